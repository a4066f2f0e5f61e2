import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrp_cli.errors import ImageError
from lrp_cli.images import decode

SHARED = Path(__file__).resolve().parents[3] / "shared"
SAMPLES = Path(__file__).resolve().parents[2] / "sample_images"


def pixels(path: Path) -> np.ndarray:
    image = decode(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def png(path: Path, depth: int, colour: int, rows: np.ndarray, extra: bytes = b"") -> Path:
    """Write a PNG byte by byte, so that 16-bit and transparency chunks do not depend on the writer under test."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = rows.shape[:2]
    kind = ">u2" if depth == 16 else "u1"
    lines = b"".join(b"\0" + row.astype(kind).tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


GREYS = np.array([[0, 1000, 32768], [40000, 65000, 65535]])


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    got = pixels(png(tmp_path / "x.png", 16, 0, GREYS))
    assert np.array_equal(got[..., 0], np.rint(GREYS / 257))
    assert (got == got[..., :1]).all()


def test_16_bit_grey_tiff_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(GREYS.astype(np.uint16)).save(tmp_path / "x.tif")
    assert np.array_equal(pixels(tmp_path / "x.tif")[..., 0], np.rint(GREYS / 257))


def test_16_bit_colour_keeps_its_brightness(tmp_path: Path) -> None:
    rgb = np.stack([GREYS, GREYS[::-1], 65535 - GREYS], axis=-1)
    assert np.abs(pixels(png(tmp_path / "x.png", 16, 2, rgb)).astype(float) - rgb / 257).max() <= 1


def test_16_bit_alpha_lies_over_white(tmp_path: Path) -> None:
    grey_alpha = np.stack([np.zeros_like(GREYS), GREYS], axis=-1)
    assert np.abs(pixels(png(tmp_path / "x.png", 16, 4, grey_alpha))[..., 0] - (255 - GREYS / 257)).max() <= 1


def test_floating_point_tiff(tmp_path: Path) -> None:
    values = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert pixels(tmp_path / "x.tif")[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("values", [[[0.0, 7.0]], [[0.0, np.nan]]])
def test_floating_point_beyond_white_is_an_error(tmp_path: Path, values: list[list[float]]) -> None:
    Image.fromarray(np.array(values, dtype=np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(ImageError, match=r"x\.tif: pixel values outside 0\.\.1"):
        decode(tmp_path / "x.tif")


def test_alpha_lies_over_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [200, 0, 0, 51]]], dtype=np.uint8)).save(
        tmp_path / "x.png"
    )
    assert pixels(tmp_path / "x.png").tolist() == [[[255, 255, 255], [200, 0, 0], [244, 204, 204]]]


def test_one_transparent_colour_lies_over_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.putpixel((1, 0), (1, 2, 3))
    image.save(tmp_path / "x.png", transparency=(1, 2, 3))
    assert pixels(tmp_path / "x.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    for place in range(3):
        image.putpixel((place, 0), place)
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert pixels(tmp_path / "opaque.png").tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    assert pixels(tmp_path / "clear.png").tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_modes(tmp_path: Path, mode: str) -> None:
    Image.new("L", (2, 2), 255).convert(mode).save(tmp_path / "x.png")
    assert (pixels(tmp_path / "x.png") == 255).all()


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (255, 255, 0, 0)).save(tmp_path / "x.jpg", quality=95)
    red, green, blue = pixels(tmp_path / "x.jpg").reshape(-1, 3).mean(0)
    assert red < 20
    assert green < 20
    assert blue > 235


@pytest.mark.skipif(not SHARED.exists(), reason="the shared pictures are not here")
def test_cmyk_photograph_looks_like_its_rgb_version() -> None:
    cmyk = pixels(SHARED / "pictures/free/african_elephants_cmyk.jpg").astype(float)
    rgb = pixels(SHARED / "pictures/free/african_elephants.jpg").astype(float)
    assert np.abs(cmyk - rgb).mean() < 12
    assert np.abs(cmyk - (255 - rgb)).mean() > 40


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((16, 32), dtype=np.uint8)
    upright[:8, :8] = 255
    # What a camera stores for each orientation (EXIF 2.3, tag 0x0112) is the upright picture turned the other way.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "x.png")[..., 0], upright)


def test_16_bit_grey_is_turned_upright_as_well(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(GREYS).astype(np.uint16)).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "x.png")[..., 0], np.rint(GREYS / 257))


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for name in ("x.gif", "x.png", "x.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert pixels(tmp_path / name)[0, 0].tolist() == [255, 0, 0]


def test_a_plain_photograph_is_what_pillow_reads() -> None:
    with Image.open(SAMPLES / "cat.jpg") as image:
        assert np.array_equal(pixels(SAMPLES / "cat.jpg"), np.asarray(image))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\x09\0"]
)
def test_damaged_metadata_does_not_cost_the_picture(tmp_path: Path, exif: bytes) -> None:
    Image.new("RGB", (8, 4), "white").save(tmp_path / "x.jpg", exif=exif)
    assert pixels(tmp_path / "x.jpg").shape == (4, 8, 3)


def complaint(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        decode(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_broken_files_say_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("hello")
    whole = (SAMPLES / "cat.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "half.png").write_bytes((SAMPLES / "coffee.png").read_bytes()[:1000])
    os.mkfifo(tmp_path / "pipe.png")
    assert complaint(tmp_path / "nope.png") == "no such file"
    assert complaint(tmp_path) == "is a directory, not a picture"
    assert complaint(tmp_path / "empty.png") == "is empty (0 bytes)"
    assert complaint(tmp_path / "text.jpg") == "not a picture in a format that Pillow can read; save it as PNG or JPEG"
    assert complaint(tmp_path / "pipe.png") == "is not a regular file"
    assert "truncated" in complaint(tmp_path / "half.jpg")
    assert complaint(tmp_path / "half.png").startswith("cannot be decoded: ")


@pytest.mark.parametrize("cut", range(9, 120, 7))
@pytest.mark.parametrize("name", ["cat.jpg", "coffee.png"])
def test_no_other_exception_escapes_from_damaged_headers(tmp_path: Path, name: str, cut: int) -> None:
    damaged = bytearray((SAMPLES / name).read_bytes()[:4000])
    damaged[cut] ^= 0xFF
    (tmp_path / name).write_bytes(damaged)
    complaint(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_permission_denied(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "cat.jpg", tmp_path)
    (tmp_path / "cat.jpg").chmod(0)
    assert complaint(tmp_path / "cat.jpg") == "permission denied"


@pytest.mark.parametrize("limit", [10_000, 1_000])
def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    Image.new("RGB", (150, 100)).save(tmp_path / "x.png")
    # 15,000 pixels: Pillow only warns up to twice its limit, and raises beyond.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert "decompression bomb" in complaint(tmp_path / "x.png")


def test_postscript_is_not_handed_to_ghostscript(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.eps")
    assert complaint(tmp_path / "x.eps") == "not a picture in a format that Pillow can read; save it as PNG or JPEG"
