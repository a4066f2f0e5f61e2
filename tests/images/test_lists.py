"""Lists of pictures, patterns, and what --include and --exclude let through."""

import os
from pathlib import Path

import pytest

from lrp_cli.errors import UsageError
from lrp_cli.images import find_images
from lrp_cli.images.lists import Listed, read_list, split_paths


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.png", "c.JPG", "thumbs/a.jpg", "sub/deep/d.png", "sub/e.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def found(folder: Path, *paths: Path | Listed, **options) -> list[str]:
    images = find_images(paths or [folder], **{"recursive": True} | options).images
    return [image.relative_to(folder).as_posix() for image in images]


def test_paths_on_a_pipe() -> None:
    assert [str(one.path) for one in split_paths(b"a b.jpg\r\n\n./c\n--dash", b"\n")] == ["a b.jpg", "c", "--dash"]
    assert [str(one.path) for one in split_paths(b"two\nlines.jpg\0x\0", b"\0")] == ["two\nlines.jpg", "x"]
    assert os.fsencode(split_paths(b"\xff\xfe.jpg", b"\n")[0].path) == b"\xff\xfe.jpg"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": ["*.jpg"]}, ["a.jpg", "sub/e.jpg", "thumbs/a.jpg"]),
        ({"include": ["*.jpg", "*.png"], "exclude": ["a*"]}, ["b.png", "sub/e.jpg", "sub/deep/d.png"]),
        ({"exclude": ["thumbs/*", "sub/*"]}, ["a.jpg", "b.png", "c.JPG"]),
        ({"include": ["*.gif"]}, []),
        ({"include": ["[ab].*"], "recursive": False}, ["a.jpg", "b.png"]),
    ],
)
def test_include_and_exclude(folder: Path, options: dict, expected: list[str]) -> None:
    assert found(folder, **options) == expected


def test_a_folder_of_which_nothing_is_left_is_named(folder: Path) -> None:
    result = find_images([folder], recursive=False, include=["*.gif"])
    assert result.missing == [(folder, "--include and --exclude leave none of its 3 images")]
    result = find_images([folder / "a.jpg"], recursive=False, exclude=["a.*"])
    assert result.missing == [(folder / "a.jpg", "left out by --include or --exclude")]


def test_patterns_that_the_shell_left_alone(folder: Path) -> None:
    assert found(folder, folder / "*.jpg") == ["a.jpg"]
    assert found(folder, folder / "**/*.jpg") == ["a.jpg", "sub/e.jpg", "thumbs/a.jpg"]
    result = find_images([folder / "*.tiff"], recursive=False)
    assert result.missing == [(folder / "*.tiff", "no file matches")]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder: Path) -> None:
    (folder / "[a].jpg").touch()
    assert found(folder, folder / "[a].jpg") == ["[a].jpg"]


def test_what_a_list_holds_is_no_pattern(folder: Path) -> None:
    result = find_images([Listed(folder / "*.jpg")], recursive=False)
    assert result.images == []
    assert result.missing == [(folder / "*.jpg", "no such file or directory")]


def test_a_text_list_is_relative_to_its_folder(folder: Path) -> None:
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\n\nsub\n" + os.fsencode(folder / "b.png") + b"\n")
    assert found(folder, *read_list(folder / "list.txt"), recursive=False) == ["a.jpg", "sub/e.jpg", "b.png"]


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg,cat\nb.png,1;dog ; 1\nc.JPG\n",
        "image,target\na.jpg,cat\nb.png,1;dog\nc.JPG,\n",
        'Target,n,File\ncat,1,a.jpg\n1;dog,2,"b.png"\n,3,c.JPG\n\n',
        '"Target";n;"File"\ncat;1,5;a.jpg\n"1;dog";2;"b.png"\n;3;c.JPG\n',
        "\t\nimage\tlabel\na.jpg\tcat\nb.png\t1;dog\nc.JPG\t\n",
    ],
)
def test_a_csv_may_have_targets(folder: Path, text: str) -> None:
    (folder / "list.csv").write_text(text)
    listed = read_list(folder / "list.csv")
    assert found(folder, *listed) == ["a.jpg", "b.png", "c.JPG"]
    assert find_images(listed, recursive=False).targets == {
        folder / "a.jpg": ("cat",),
        folder / "b.png": ("1", "dog"),
    }


def test_the_same_picture_twice_has_the_targets_of_both(folder: Path) -> None:
    (folder / "list.csv").write_text("a.jpg,cat\n./a.jpg,dog\n")
    result = find_images([folder / "a.jpg", *read_list(folder / "list.csv")], recursive=False)
    assert result.images == [folder / "a.jpg"]
    assert result.targets == {folder / "a.jpg": ("cat", "dog")}


@pytest.mark.parametrize("text", ["a.jpg,cat\na.jpg,\n", "a.jpg,\n./a.jpg,cat\n"])
def test_named_without_targets_as_well_it_has_those_of_the_run_too(folder: Path, text: str) -> None:
    (folder / "list.csv").write_text(text + "b.png,\n")
    result = find_images(read_list(folder / "list.csv"), recursive=False, targets=["predicted", "5"])
    assert result.targets.keys() == {folder / "a.jpg"}
    assert sorted(result.targets[folder / "a.jpg"]) == ["5", "cat", "predicted"]


def test_a_csv_may_have_line_breaks_in_names(folder: Path) -> None:
    (folder / "two\nlines.jpg").touch()
    (folder / "list.csv").write_text('"two\nlines.jpg",3\n')
    assert found(folder, *read_list(folder / "list.csv")) == ["two\nlines.jpg"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'"open', "unexpected end"),
        (b"target\nx\n", "call one of them 'image'"),
        (b"image,n,klass\na,1,x\n", "'klass' holds targets, call it 'target'"),
        (b"image;target\na;cat;dog\n", "more cells than columns"),
        (b"a.jpg,281,282\n", "more cells than columns for 'a.jpg'"),
        (b"a.jpg,1\n,281\n", "no path in the row ',281'"),
        (b"target,image\n281\n", "no path in the row '281'"),
    ],
)
def test_lists_that_cannot_be_read(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "x.csv").write_bytes(data)
    with pytest.raises(UsageError, match=said):
        read_list(tmp_path / "x.csv")
    with pytest.raises(UsageError, match="No such file"):
        read_list(tmp_path / "y.csv")
    with pytest.raises(UsageError, match="cannot read"):
        read_list(Path("nul\0.txt"))


def test_an_empty_list_is_empty(tmp_path: Path) -> None:
    (tmp_path / "x.csv").touch()
    assert read_list(tmp_path / "x.csv") == []


def test_a_nul_in_a_path_is_named() -> None:
    assert find_images([Path("a\0b")], recursive=False).missing[0][1] in {"not a path", "no such file or directory"}


def test_deep_folders_and_long_numbers(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(300):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "x.png").touch()
    (tmp_path / ("9" * 200 + ".png")).touch()
    (tmp_path / "1e5.png").touch()
    assert len(find_images([tmp_path], recursive=True).images) == 3


def test_what_is_to_be_skipped_is_not_found(folder: Path) -> None:
    assert found(folder, skip=lambda path: path.name == "sub") == ["a.jpg", "b.png", "c.JPG", "thumbs/a.jpg"]


def test_ten_thousand_files_are_found_and_named_quickly(tmp_path: Path) -> None:
    import time

    from lrp_cli.runs.naming import output_stems

    for number in range(10_000):
        (tmp_path / f"{number % 100}").mkdir(exist_ok=True)
        (tmp_path / f"{number % 100}/{number // 100}.png").touch()
    begun = time.process_time()
    images = find_images([tmp_path], recursive=True).images
    stems = output_stems(images, [])
    assert len({str(stem) for stem in stems.values()}) == 10_000
    assert time.process_time() - begun < 10


def test_columns_that_are_neither_are_no_matter(folder: Path) -> None:
    (folder / "list.csv").write_text("image,place,area,n\na.jpg,here,3,\n")
    assert read_list(folder / "list.csv") == [Listed(folder / "a.jpg")]
