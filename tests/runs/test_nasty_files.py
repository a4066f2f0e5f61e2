"""Files that people have: each is explained correctly, or reported in one line and passed over."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nasty_files import Bad, Good, bad_files, encoded, good_files, picture, write_all
from PIL import Image

from lrp_cli.cli.text import printable
from lrp_cli.errors import ImageError
from lrp_cli.images import Preprocessing, decode
from lrp_cli.images.decoding import read_picture

SHARED = Path(__file__).resolve().parents[3] / "shared"
GOOD, BAD = good_files(), bad_files()


def halves(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.asarray(image, dtype=float)
    quarter = max(1, image.width // 4)
    return pixels[:, :quarter].mean((0, 1)), pixels[:, -quarter:].mean((0, 1))


def test_there_are_enough_of_them() -> None:
    assert len(GOOD) + len(BAD) >= 60


@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_pictures_of_all_kinds_are_read_as_a_person_sees_them(tmp_path: Path, name: str) -> None:
    data, expected = GOOD[name]
    (tmp_path / name).write_bytes(data)
    image = decode(tmp_path / name)
    assert image.mode == "RGB"
    assert image.size == expected.size
    left, right = halves(image)
    assert np.abs(left - expected.left).max() <= expected.tolerance
    assert np.abs(right - expected.right).max() <= expected.tolerance


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    data, expected = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError) as caught:
        decode(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / name}: ")
    assert expected.reason in message
    assert len(message.splitlines()) == 1
    assert len(message) < len(str(tmp_path)) + 200


def test_a_folder_of_them_in_one_run(lrp, tmp_path: Path) -> None:
    expected = write_all(tmp_path / "in")
    result = lrp.explain(tmp_path / "in", "-o", tmp_path / "out", "--json", "-t", "0")
    assert result.code == 1
    assert "Traceback" not in result.err
    explained = {Path(record["image"]).name: record for record in result.records}
    assert set(explained) == {name for name, outcome in expected.items() if isinstance(outcome, Good)}
    complaints = [line for line in result.err.splitlines() if line.startswith("lrp: ")]
    bad = {name: outcome for name, outcome in expected.items() if isinstance(outcome, Bad)}
    assert len(complaints) == len(bad)
    for name, outcome in bad.items():
        assert any(f"/{name}: " in line and outcome.reason in line for line in complaints), name
    # Each result is that of its own picture, whatever stood beside it in the batch.
    by_view: dict[tuple[bytes, ...], set[float]] = {}
    preprocessing = Preprocessing(64, 64, (0.5,) * 3, (0.5,) * 3, "bicubic")
    for name, record in explained.items():
        view = preprocessing.view(decode(tmp_path / "in" / name))
        by_view.setdefault((view.tobytes(),), set()).add(round(record["score"], 2))
    assert all(max(scores) - min(scores) < 0.05 for scores in by_view.values())
    names = [Path(path).name for record in result.records for path in record["outputs"].values()]
    assert len(set(names)) == 2 * len(explained)
    assert all(printable(name) == name and len(os.fsencode(name)) <= 255 and name[0] != "-" for name in names)
    assert lrp("verify", tmp_path / "out").code == 0
    assert not Path("/tmp/lrp-was-executed").exists()  # noqa: S108
    again = lrp.explain(tmp_path / "in", "-o", tmp_path / "out", "--json", "-t", "0")
    assert all(record["skipped"] for record in again.records)
    assert len(again.records) == len(explained)


SEEDS = {
    name: data
    for name, (data, _) in GOOD.items()
    if len(data) < 20_000
    and name.split(".")[0]
    in {
        "baseline",
        "progressive",
        "plain",
        "palette",
        "lossy",
        "lzw",
        "still",
        "animated",
        "raw",
        "cmyk",
        "turned_6",
        "icon",
    }
}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(SEEDS)),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12),
    cut=st.floats(0.05, 1),
    doubled=st.booleans(),
)
def test_damaged_files_are_read_or_refused_and_nothing_else(
    name: str, edits: list[tuple[float, int]], cut: float, doubled: bool
) -> None:
    data = bytearray(SEEDS[name])
    for place, value in edits:
        data[int(place * len(data))] = value
    data = data[: max(1, int(cut * len(data)))]
    if doubled:
        data = data + data
    try:
        decoded = read_picture(Path(name), bytes(data))
    except ImageError as error:
        assert len(str(error).splitlines()) == 1
        return
    assert decoded.image.mode == "RGB"
    assert decoded.orientation in range(1, 9)
    assert Image.MAX_IMAGE_PIXELS is not None
    assert 0 < decoded.image.width * decoded.image.height <= Image.MAX_IMAGE_PIXELS
    if decoded.image.width * decoded.image.height < 10**6:
        assert Preprocessing(64, 64).view(decoded.image).size == (64, 64)


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=400),
    head=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"BM", b"RIFF"]),
)
def test_noise_is_refused(data: bytes, head: bytes) -> None:
    try:
        read_picture(Path("noise"), head + data)
    except ImageError as error:
        assert len(str(error).splitlines()) == 1


def test_bombs_are_refused_in_many_threads_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    (tmp_path / "bomb.png").write_bytes(encoded(picture((80, 60)), "PNG"))
    (tmp_path / "fine.png").write_bytes(encoded(picture((40, 30)), "PNG"))

    def outcome(number: int) -> bool:
        try:
            decode(tmp_path / ("bomb.png" if number % 2 else "fine.png"))
        except ImageError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(outcome, range(400))) == [True, False] * 200


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the shared pictures are not here")
def test_two_hundred_pictures_with_forty_broken_ones_among_them(lrp, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shutil.copytree(SHARED / "pictures/imagenet", folder)
    pictures = sorted(folder.glob("*.jpg"))
    broken = list(bad_files().items())
    for number in range(40):
        name, (data, _) = broken[number % len(broken)]
        (folder / f"{number * 5:04}_{number}_{name}").write_bytes(data)
    result = lrp("explain", folder, "-o", tmp_path / "out", "--json")
    assert result.code == 1
    assert [record["image"] for record in result.records] == [str(path) for path in pictures]
    assert len([line for line in result.err.splitlines() if line.startswith("lrp: ")]) == 40
    lines = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    assert sorted(line["status"] for line in lines) == ["done"] * 200 + ["failed"] * 40
    assert lrp("verify", tmp_path / "out").code == 0
