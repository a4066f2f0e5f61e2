import os
from pathlib import Path

import pytest
from PIL import Image

from lrp_cli.images import find_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures beside a text file and a hidden picture; two more pictures one and two levels down."""
    for name in (
        "img10.jpg",
        "img2.jpg",
        "Img1.jpg",
        "B.PNG",
        "notes.txt",
        ".hidden.png",
        "sub/z.gif",
        "sub/deep/a.webp",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def names(paths: list[Path], base: Path) -> list[str]:
    return [path.relative_to(base).as_posix() for path in paths]


def test_a_folder_gives_its_pictures_in_natural_order(folder: Path) -> None:
    found = find_images([folder], recursive=False)
    assert names(found.images, folder) == ["B.PNG", "Img1.jpg", "img2.jpg", "img10.jpg"]
    assert found.missing == []


def test_recursive_goes_into_folders_after_the_files(folder: Path) -> None:
    found = find_images([folder], recursive=True)
    assert names(found.images, folder)[4:] == ["sub/z.gif", "sub/deep/a.webp"]


def test_hidden_folders_are_left_out_unless_named(folder: Path) -> None:
    (folder / ".cache").mkdir()
    (folder / ".cache/x.png").touch()
    assert ".cache/x.png" not in names(find_images([folder], recursive=True).images, folder)
    assert names(find_images([folder / ".cache"], recursive=False).images, folder) == [".cache/x.png"]


def test_a_named_file_is_kept_whatever_its_suffix_and_in_the_order_given(folder: Path) -> None:
    given = [folder / "notes.txt", folder / ".hidden.png", folder / "B.PNG"]
    assert find_images(given, recursive=False).images == given


def test_the_same_file_named_twice_appears_once(folder: Path) -> None:
    (folder / "link.jpg").symlink_to(folder / "img2.jpg")
    given = [folder / "img2.jpg", folder / "sub/../img2.jpg", folder / "link.jpg", folder, folder]
    found = find_images(given, recursive=False)
    assert found.images[0] == folder / "img2.jpg"
    assert names(found.images, folder) == ["img2.jpg", "B.PNG", "Img1.jpg", "img10.jpg"]


def test_loops_of_links_end(folder: Path) -> None:
    (folder / "sub/deep/up").symlink_to(folder, target_is_directory=True)
    (folder / "self").symlink_to("self")
    found = find_images([folder], recursive=True)
    assert len(found.images) == 6
    assert len(set(found.images)) == 6


def test_paths_without_pictures_are_collected_not_raised(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "outer/inner").mkdir(parents=True)
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    given = [folder / name for name in ("nope.jpg", "empty", "outer", "dangling.jpg", "loop.jpg", "B.PNG")]
    found = find_images(given, recursive=False)
    assert found.images == [folder / "B.PNG"]
    reasons = {path.name: reason for path, reason in found.missing}
    assert reasons == {
        "nope.jpg": "no such file or directory",
        "empty": "directory holds no images",
        "outer": "directory holds no images (use --recursive to look in its folders)",
        "dangling.jpg": "no such file or directory",
        "loop.jpg": "too many levels of symbolic links",
    }


def test_with_recursive_the_hint_is_not_given_again(folder: Path) -> None:
    (folder / "outer/inner").mkdir(parents=True)
    found = find_images([folder / "outer"], recursive=True)
    assert found.missing == [(folder / "outer", "directory holds no images")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_without_permission_is_collected(folder: Path) -> None:
    (folder / "sub").chmod(0)
    try:
        found = find_images([folder], recursive=True)
    finally:
        (folder / "sub").chmod(0o755)
    assert found.missing == [(folder / "sub", "permission denied")]
    assert len(found.images) == 4


@pytest.mark.parametrize("suffix", [".eps", ".mpg", ".h5", ".pdf", ".txt"])
def test_suffixes_that_cannot_be_decoded_are_passed_over(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"x{suffix}").touch()
    assert find_images([tmp_path], recursive=False).images == []


def test_every_common_format_is_found(tmp_path: Path) -> None:
    for suffix in ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm"):
        Image.new("RGB", (2, 2)).save(tmp_path / f"x.{suffix}")
    assert len(find_images([tmp_path], recursive=False).images) == 9
