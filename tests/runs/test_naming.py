"""What outputs are called."""

import os
from pathlib import Path, PurePath

import pytest

from lrp_cli.runs.naming import Score, output_path, output_stems

LABELS = ["tench", "tiger cat", "  Très étrange / … ", "猫" * 60]


def stems(*pictures: str, folders: tuple[str, ...] = (), recorded: dict[str, str] | None = None) -> list[str]:
    named = output_stems([Path(picture) for picture in pictures], [Path(folder) for folder in folders], recorded)
    return [str(named[Path(picture)]) for picture in pictures]


def test_a_picture_keeps_its_name_and_its_place_below_a_folder() -> None:
    assert stems("/x/cat.jpg") == ["cat.jpg"]
    assert stems("/x/a/cat.jpg", "/x/b/dog.jpg", folders=("/x",)) == ["a/cat.jpg", "b/dog.jpg"]


def test_folders_tell_apart_what_shares_a_name() -> None:
    assert stems("/x/a/cat.jpg", "/x/b/cat.jpg", "/x/a/cat.png") == ["a/cat.jpg", "b/cat.jpg", "cat.png"]
    assert stems("/x/cat.jpg", "/cat.jpg") == ["x/cat.jpg", "cat.jpg"]


def test_what_some_file_systems_take_for_the_same_does_not_collide() -> None:
    assert len({stem.casefold() for stem in stems("/x/cat.jpg", "/x/CAT.JPG", "/x/Cat.jpg")}) == 3


def test_what_only_case_tells_apart_keeps_its_place() -> None:
    assert all(stem.startswith(("cat.jpg~", "CAT.JPG~")) for stem in stems("/x/cat.jpg", "/x/CAT.JPG"))
    *twins, other = stems("/x/a/cat.jpg", "/x/a/CAT.JPG", "/x/b/cat.jpg")
    assert other == "b/cat.jpg"
    assert all(stem.startswith(("a/cat.jpg~", "a/CAT.JPG~")) for stem in twins)


def test_a_picture_with_results_keeps_their_name(tmp_path: Path) -> None:
    a, b = (str(tmp_path / folder / "cat.jpg") for folder in "ab")
    assert stems(a, b, recorded={"cat.jpg": a}) == ["cat.jpg", "b/cat.jpg"]
    assert stems(a, recorded={"in/cat.jpg~0123abcd": a}) == ["in/cat.jpg~0123abcd"]
    assert stems(a, recorded={"cat.jpg": a, "a/cat.jpg": a}) == ["a/cat.jpg"]  # the latest


def test_another_picture_does_not_take_the_name_of_one_that_is_there(tmp_path: Path) -> None:
    a, b = tmp_path / "a/cat.jpg", tmp_path / "b/cat.jpg"
    assert stems(str(b), recorded={"cat.jpg": str(a)}) == ["cat.jpg"]  # it was moved, or its place has changed
    a.parent.mkdir()
    a.touch()
    assert stems(str(b), recorded={"cat.jpg": str(a)}) == ["b/cat.jpg"]
    assert stems(str(b), recorded={"CAT.jpg": str(a)}) == ["b/cat.jpg"]
    assert stems(str(b), recorded={"cat.jpg": None}) == ["b/cat.jpg"]  # of standard input


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/cat.jpg", "../cat.jpg", "a/../../cat.jpg", "other", "", "cat.jpg\0", "./cat.jpg", "a//cat.jpg"),
        *("cat.jpg\ud800", "cat.jpg" + "x" * 300, "cat.jpg~" + "1" * 300),
    ],
)
def test_a_manifest_may_lie_about_names(name: str) -> None:
    assert stems("/x/cat.jpg", recorded={name: "/x/cat.jpg"}) == ["cat.jpg"]


@pytest.mark.parametrize(
    "name", ["a\nb.png", "\x1b[2J.png", "-rf.png", "y" * 251 + ".png", "é" * 125 + ".png", os.fsdecode(b"\xff.png")]
)
def test_names_are_safe_short_and_distinct(name: str) -> None:
    ours, other = stems(f"/x/{name}", f"/x/{name}x")
    assert ours != other
    for kind in ("overlay", "npy"):
        for score in (Score(3), Score(3, 3), Score(2, "rest")):
            path = output_path(Path("out"), PurePath(ours), score, LABELS, kind)
            assert path.parent == Path("out")
            assert len(os.fsencode(path.name)) <= 255
            assert path.name.isprintable()
            assert not path.name.startswith("-")


@pytest.mark.parametrize(
    ("encoding", "label", "part"),
    [
        ("ascii", "Größe 1", "0_groe_1"),
        ("ascii", "猫", "0"),
        ("ascii", "猫 犬", "0"),
        ("ascii", "猫 Tiger", "0_tiger"),
        ("ascii", "Café 猫", "0_cafe"),
        ("latin-1", "Café 猫 ō", "0_café_o"),
        ("utf-8", "Café 猫", "0_café_猫"),
    ],
)
def test_classes_lose_letters_that_file_names_cannot_hold(
    monkeypatch: pytest.MonkeyPatch, encoding: str, label: str, part: str
) -> None:
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: encoding)
    assert output_path(Path("o"), PurePath("c.jpg"), Score(0), [label], "npy").name == f"c.jpg.{part}.npy"


def test_classes_are_named_by_letters_and_digits() -> None:
    names = [output_path(Path("o"), PurePath("c.jpg"), Score(index), LABELS, "npy").name for index in range(3)]
    assert names == ["c.jpg.0_tench.npy", "c.jpg.1_tiger_cat.npy", "c.jpg.2_très_étrange.npy"]
    contrast = output_path(Path("o"), PurePath("c.jpg"), Score(1, 0), LABELS, "overlay")
    assert contrast == Path("o/c.jpg.1_tiger_cat_vs_0_tench.overlay.png")
    assert (
        output_path(Path("o"), PurePath("c.jpg"), Score(1, "rest"), LABELS, "npy").name
        == "c.jpg.1_tiger_cat_vs_rest.npy"
    )
