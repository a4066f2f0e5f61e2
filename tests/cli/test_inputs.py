"""Pictures named on pipes and in lists, as ``lrp explain`` takes them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

CAT = Path(__file__).resolve().parents[2] / "sample_images/cat.jpg"


def names(result) -> list[str]:
    return [Path(record["image"]).name for record in result.records]


@pytest.fixture
def folder(tmp_path: Path, make_picture: Callable[..., Path]) -> Path:
    for seed, name in enumerate(["a b.png", "c.png", "-dash.png", "two\nlines.png"]):
        make_picture(tmp_path / "in" / name, seed)
    return tmp_path / "in"


def test_paths_on_standard_input(lrp, folder: Path, tmp_path: Path) -> None:
    lines = b"\n".join(os.fsencode(folder / name) for name in ("c.png", "a b.png", "gone.png"))
    result = lrp.explain("-", "-o", tmp_path / "out", "--json", stdin=lines)
    assert (result.code, names(result)) == (1, ["c.png", "a b.png"])
    assert "gone.png: no such file" in result.err
    nul = b"\0".join(os.fsencode(path) for path in sorted(folder.iterdir())) + b"\0"
    result = lrp.explain("--stdin0", "-o", tmp_path / "out0", "--json", stdin=nul)
    assert (result.code, names(result)) == (0, ["-dash.png", "a b.png", "c.png", "two\nlines.png"])
    assert lrp.explain("-", "-o", tmp_path / "none", stdin=b"").code == 2


def test_find_print0(lrp, folder: Path, tmp_path: Path) -> None:
    small = " ".join(lrp.small)
    line = f"find . -name '*.png' -print0 | LRP explain --stdin0 {small} --json -o {tmp_path}/out"
    result = lrp.shell(line, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 4


def test_a_picture_on_standard_input(lrp, tmp_path: Path) -> None:
    piped = lrp.explain("--image-stdin", "--name", "x", "-o", tmp_path / "a", "--json", stdin=CAT.read_bytes())
    named = lrp.explain(CAT, "-o", tmp_path / "b", "--json")
    assert piped.code == 0
    assert piped.records[0]["score"] == named.records[0]["score"]
    assert Path(piped.records[0]["outputs"]["npy"]).name.startswith("x.")
    line = json.loads((tmp_path / "a/manifest.jsonl").read_text())
    assert line["input"]["bytes"] == CAT.stat().st_size
    again = lrp.explain("--image-stdin", "--name", "x", "-o", tmp_path / "a", "--json", stdin=CAT.read_bytes())
    assert again.records[0]["skipped"]
    full = lrp.explain("--image-stdin", "--full", "-o", tmp_path / "c", "--json", stdin=CAT.read_bytes()).records[0]
    with Image.open(full["outputs"]["overlay"]) as overlay, Image.open(CAT) as cat:
        assert overlay.size == cat.size


def test_a_file_does_not_take_the_name_of_a_picture_on_standard_input(lrp, tmp_path: Path) -> None:
    piped = lrp.explain("--image-stdin", "--name", CAT.name, "-o", tmp_path, "--json", stdin=CAT.read_bytes())
    (mirrored := tmp_path / "mirrored").mkdir()
    with Image.open(CAT) as cat:
        cat.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored / CAT.name)
    named = lrp.explain(mirrored / CAT.name, "-o", tmp_path, "--json")
    again = lrp.explain("--image-stdin", "--name", CAT.name, "-o", tmp_path, "--json", stdin=CAT.read_bytes())
    assert (piped.code, named.code, again.code) == (0, 0, 0)
    assert all(Path(path).exists() for path in piped.records[0]["outputs"].values())
    assert again.records[0]["skipped"]
    assert Path(named.records[0]["outputs"]["npy"]).parent == mirrored


def test_a_picture_on_standard_input_does_not_take_the_name_of_a_file(
    lrp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(CAT, "cat.jpg")
    named = lrp.explain("cat.jpg", "-o", "out", "--json")
    data = (CAT.parent / "rocket.jpg").read_bytes()
    piped = [lrp.explain("--image-stdin", "--name", "cat.jpg", "-o", "out", "--json", stdin=data) for _ in range(2)]
    again = lrp.explain("cat.jpg", "-o", "out", "--json")
    assert [run.code for run in (named, *piped, again)] == [0, 0, 0, 0]
    assert again.records[0]["skipped"]
    assert piped[1].records[0]["skipped"]
    assert again.records[0]["outputs"] == named.records[0]["outputs"]
    assert not {*piped[0].records[0]["outputs"].values()} & {*named.records[0]["outputs"].values()}
    assert lrp("verify", "out").code == 0


@pytest.mark.parametrize("data", [b"", b"no picture", CAT.read_bytes()[:500]])
def test_a_bad_picture_on_standard_input(lrp, tmp_path: Path, data: bytes) -> None:
    result = lrp.explain("--image-stdin", "-o", tmp_path, "--json", stdin=data)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("lrp: stdin: ")


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a/../../b", "..", "-rf", "", "x\ny", "\x1b[2J"])
def test_a_name_from_a_stranger_stays_in_the_directory(lrp, tmp_path: Path, name: str) -> None:
    out = tmp_path / "deep/out"
    result = lrp.explain("--image-stdin", "--name", name, "-o", out, "--json", stdin=CAT.read_bytes())
    assert result.code == 0
    for path in result.records[0]["outputs"].values():
        assert Path(path).resolve().parent == out.resolve()
        assert not Path(path).name.startswith("-")
        assert Path(path).name.isprintable()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == ["deep", "out"]


def test_outputs_that_a_killed_run_has_not_recorded_are_no_pictures(lrp, folder: Path) -> None:
    out = folder / "out"
    first = lrp.explain(folder, "-r", "-o", out, "--json", "--save", "overlay,heatmap,panel")
    assert first.code == 0
    assert len([*out.rglob("*.png")]) == 3 * len(first.records)
    (out / "manifest.jsonl").write_bytes(b"")
    again = lrp.explain(folder, "-r", "-o", out, "--json")
    assert [record["image"] for record in again.records] == [record["image"] for record in first.records]
    own = ("slide.0012.heatmap.png", "scan.3_left.overlay.png", "plain.png")
    for name in own:
        shutil.copy(folder / "c.png", out / name)
    own_ones = lrp.explain(out, "-r", "-o", out, "--json")
    assert sorted(Path(record["image"]).name for record in own_ones.records) == sorted(own)
    (out / "manifest.jsonl").unlink()  # then there was no run
    assert len(lrp.explain(out, "-r", "-o", out, "--json", "--dry-run").records) > 3 * len(first.records)


def test_a_csv_with_a_target_for_each_picture(lrp, folder: Path, tmp_path: Path) -> None:
    (folder / "list.csv").write_text("image,target\nc.png,tench;5\na b.png,\n-dash.png,no such thing\n")
    result = lrp.explain("--list", folder / "list.csv", "-o", tmp_path / "out", "--json", "-t", "7")
    assert result.code == 1
    assert [(Path(record["image"]).name, record["target"]) for record in result.records] == [
        ("c.png", 0),
        ("c.png", 5),
        ("a b.png", 7),
    ]
    assert "-dash.png: no class is called 'no such thing'" in result.err


def test_lists_may_stand_among_the_paths(lrp, folder: Path, tmp_path: Path) -> None:
    (folder / "list.txt").write_text("c.png\ngone.png\n")
    (folder / "more.csv").write_text("a b.png,5\n")
    (folder / "pictures.lst").write_text("-dash.png\n")
    lists = (folder / "list.txt", folder / "more.csv", "--list", folder / "pictures.lst")
    result = lrp.explain(*lists, "-o", tmp_path / "out", "--json", "-t", "7")
    assert result.code == 1
    assert [(Path(record["image"]).name, record["target"]) for record in result.records] == [
        ("c.png", 7),
        ("a b.png", 5),
        ("-dash.png", 7),
    ]
    assert "gone.png: no such file" in result.err


def test_a_mixed_batch_gives_every_picture_its_own_targets(lrp, folder: Path, tmp_path: Path) -> None:
    (folder / "list.csv").write_text("c.png,top:3\na b.png,1 vs rest\n-dash.png,2;3\n")
    result = lrp.explain("--list", folder / "list.csv", "-o", tmp_path / "out", "--json", "-c", "epsilon-plus-flat")
    alone = [
        lrp.explain(folder / name, "-o", tmp_path / f"alone{number}", "--json", "-c", "epsilon-plus-flat", *targets)
        for number, (name, targets) in enumerate(
            [("c.png", ["-t", "top:3"]), ("a b.png", ["-t", "1 vs rest"]), ("-dash.png", ["-t", "2", "-t", "3"])]
        )
    ]
    expected = [record for each in alone for record in each.records]
    assert len(result.records) == 6
    for record, reference in zip(result.records, expected, strict=True):
        assert (record["target"], record["versus"]) == (reference["target"], reference["versus"])
        assert record["score"] == pytest.approx(reference["score"], rel=1e-4, abs=1e-4)
        assert record["relevance_sum"] == pytest.approx(reference["relevance_sum"], rel=1e-2, abs=1e-3)


def test_full_and_fit(lrp, tmp_path: Path, make_picture: Callable[..., Path]) -> None:
    path = make_picture(tmp_path / "wide.png", 0, size=(120, 40))
    for fit in ("crop", "squash", "pad"):
        options = ("--full", "--fit", fit, "-s", "overlay,heatmap,panel,npy", "--json")
        (record,) = lrp.explain(path, "-o", tmp_path / fit, *options).records
        for kind in ("overlay", "heatmap"):
            with Image.open(record["outputs"][kind]) as image:
                assert image.size == (120, 40)
                # The left margin is striped grey in the crop's heatmap, and part of the explained view otherwise.
                if kind == "heatmap":
                    corner = {image.getpixel((x, 20)) for x in range(12)}
                    assert (corner <= {(225,) * 3, (210,) * 3}) == (fit == "crop")
        with Image.open(record["outputs"]["panel"]) as panel:  # 448 pixels for 120, in the middle of 1424
            strip = {panel.getpixel((x, 126 + 74)) for x in range(496, 526)}
            assert (strip <= {(225,) * 3, (210,) * 3}) == (fit == "crop")
        line = json.loads((tmp_path / fit / "manifest.jsonl").read_text())
        assert line["mapping"]["original"] == [120, 40]
        assert line["preprocessing"]["fit"] == fit
