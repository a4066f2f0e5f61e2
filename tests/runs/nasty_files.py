"""A folder that nobody has cleaned: files of all kinds, and what is to become of each.

Every picture shows ``LEFT`` on its left half and ``RIGHT`` on its right half, so that a result from another file, from
another frame or turned the wrong way is noticed.
"""

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, features

LEFT, RIGHT = (200, 40, 40), (40, 40, 200)
SIZE = (48, 32)


@dataclass(frozen=True)
class Good:
    """A picture that is explained: upright (width, height), and the colours of its left and right half."""

    size: tuple[int, int] = SIZE
    left: tuple[int, int, int] = LEFT
    right: tuple[int, int, int] = RIGHT
    tolerance: int = 30


@dataclass(frozen=True)
class Bad:
    """A file that is passed over, and part of the reason that is given."""

    reason: str


Expected = Good | Bad


def picture(size: tuple[int, int] = SIZE, left: tuple[int, ...] = LEFT, right: tuple[int, ...] = RIGHT) -> Image.Image:
    pixels = np.zeros((size[1], size[0], len(left)), dtype=np.uint8)
    pixels[:, : (size[0] + 1) // 2] = left
    pixels[:, (size[0] + 1) // 2 :] = right
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes, *, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
    )


def png(width: int, height: int, data: bytes, *, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def turned(orientation: int) -> bytes:
    upright = np.asarray(picture())
    stored = {
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(np.ascontiguousarray(stored)), "JPEG", quality=95, exif=exif)


def good_files() -> dict[str, tuple[bytes, Good]]:
    plain, other = picture(), picture(left=(0, 255, 0), right=(0, 255, 0))
    jpeg, whole = encoded(plain, "JPEG", quality=95), Good()
    grey = Good(left=(40,) * 3, right=(210,) * 3)
    greys = picture(left=(40,) * 3, right=(210,) * 3).convert("L")
    deep = Image.fromarray(np.asarray(greys).astype(np.uint16) * 257)
    clear = picture(left=(*LEFT, 255), right=(*RIGHT, 0))
    over_white = Good(right=(255, 255, 255))
    rows = np.asarray(plain).astype(">u2") * 257
    files: dict[str, tuple[bytes, Good]] = {
        "baseline.jpg": (jpeg, whole),
        "progressive.jpg": (encoded(plain, "JPEG", quality=95, progressive=True), whole),
        "cmyk.jpg": (encoded(plain.convert("CMYK"), "JPEG", quality=95), whole),
        "grey.jpg": (encoded(greys, "JPEG", quality=95), grey),
        "trailing.jpg": (jpeg + b"garbage" * 100, whole),
        "bad_profile.jpg": (encoded(plain, "JPEG", quality=95, icc_profile=b"no profile"), whole),
        "bad_exif.jpg": (encoded(plain, "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), whole),
        "comment.jpg": (encoded(plain, "JPEG", quality=95, comment=b"x" * 60_000), whole),
        "plain.png": (encoded(plain, "PNG"), whole),
        "palette.png": (encoded(plain.quantize(4), "PNG"), whole),
        "alpha.png": (encoded(clear, "PNG"), over_white),
        "grey_alpha.png": (encoded(clear.convert("LA"), "PNG"), Good(left=(88,) * 3, right=(255,) * 3)),
        "one_bit.png": (
            encoded(greys.point(lambda v: 255 * (v > 128)).convert("1"), "PNG"),
            Good(left=(0,) * 3, right=(255,) * 3),
        ),
        "deep_grey.png": (encoded(deep, "PNG"), grey),
        "deep_colour.png": (png(*SIZE, b"".join(b"\0" + row.tobytes() for row in rows), depth=16), whole),
        "animated.png": (encoded(plain, "PNG", save_all=True, append_images=[other]), whole),
        "lossy.webp": (encoded(plain, "WEBP", quality=95), whole),
        "lossless.webp": (encoded(clear, "WEBP", lossless=True), over_white),
        "animated.webp": (encoded(plain, "WEBP", save_all=True, append_images=[other], lossless=True), whole),
        "still.gif": (encoded(plain, "GIF"), whole),
        "animated.gif": (encoded(plain, "GIF", save_all=True, append_images=[other]), whole),
        "raw.tiff": (encoded(plain, "TIFF"), whole),
        "lzw.tif": (encoded(plain, "TIFF", compression="tiff_lzw"), whole),
        "deflate.tif": (encoded(plain, "TIFF", compression="tiff_adobe_deflate"), whole),
        "jpeg.tif": (encoded(plain, "TIFF", compression="jpeg", quality=95), whole),
        "pages.tif": (encoded(plain, "TIFF", save_all=True, append_images=[other]), whole),
        "deep.tif": (encoded(deep, "TIFF"), grey),
        "cmyk.tif": (encoded(plain.convert("CMYK"), "TIFF"), whole),
        "float.tif": (encoded(Image.fromarray(np.asarray(greys).astype(np.float32) / 255), "TIFF"), grey),
        "plain.bmp": (encoded(plain, "BMP"), whole),
        "grey.bmp": (encoded(greys, "BMP"), grey),
        "plain.tga": (encoded(plain, "TGA"), whole),
        "plain.ppm": (encoded(plain, "PPM"), whole),
        "ascii.pgm": (b"P2\n2 1\n255\n40 210\n", Good((2, 1), (40,) * 3, (210,) * 3)),
        "plain.pcx": (encoded(plain, "PCX"), whole),
        "plain.sgi": (encoded(plain, "SGI"), whole),
        "icon.ico": (encoded(picture((32, 32)), "ICO", sizes=[(32, 32)]), Good((32, 32))),
        "jpeg_called.png": (jpeg, whole),
        "png_called.jpg": (encoded(plain, "PNG"), whole),
        "UPPER.JPG": (jpeg, whole),
        "dot.dot.jpg": (jpeg, whole),
        "one_pixel.png": (encoded(picture((1, 1)), "PNG"), Good((1, 1), LEFT, LEFT)),
        "two_pixels.png": (encoded(picture((2, 1)), "PNG"), Good((2, 1))),
        "very_wide.png": (encoded(picture((20_000, 20)), "PNG"), Good((20_000, 20))),
        "very_tall.png": (encoded(picture((20, 20_000)), "PNG"), Good((20, 20_000))),
        "with space.png": (encoded(plain, "PNG"), whole),
        "ünïcödé 猫.png": (encoded(plain, "PNG"), whole),
        "new\nline.png": (encoded(plain, "PNG"), whole),
        "escape\x1b[31m.png": (encoded(plain, "PNG"), whole),
        "--leading-dash.png": (encoded(plain, "PNG"), whole),
        "quote'\"$(x)`.png": (encoded(plain, "PNG"), whole),
        "long" + "x" * 247 + ".png": (encoded(plain, "PNG"), whole),
        os.fsdecode(b"not-utf-8-\xff\xfe.png"): (encoded(plain, "PNG"), whole),
    }
    files |= {f"turned_{way}.jpg": (turned(way), whole) for way in range(2, 9)}
    if features.check("avif"):
        files["plain.avif"] = (encoded(plain, "AVIF", quality=95), whole)
    if features.check("jpg_2000"):
        files["plain.jp2"] = (encoded(plain, "JPEG2000"), whole)
    return files


class _Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch /tmp/lrp-was-executed",)


def bad_files() -> dict[str, tuple[bytes, Bad]]:
    rng = np.random.default_rng(0)
    grainy = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    jpeg, whole_png, webp = encoded(grainy, "JPEG"), encoded(grainy, "PNG"), encoded(grainy, "WEBP")
    tiff, gif, bmp = encoded(grainy, "TIFF", compression="tiff_lzw"), encoded(grainy, "GIF"), encoded(grainy, "BMP")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("x.png", whole_png)
    array = io.BytesIO()
    np.save(array, np.zeros(4))
    none, broken = Bad("not a picture"), Bad("cannot be decoded")
    any_reason = Bad("")
    flipped = bytearray(whole_png)
    flipped[len(flipped) // 2] ^= 0xFF
    return {
        "empty.jpg": (b"", Bad("0 bytes")),
        "one_byte.png": (b"\x89", none),
        "zeros.jpg": (bytes(4096), none),
        "text.jpg": (b"hello\n", none),
        "page.png": (b"<!DOCTYPE html><html></html>", none),
        "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", none),
        "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", none),
        "document.png": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", none),
        "archive.png": (archive.getvalue(), none),
        "pickle.png": (pickle.dumps(_Bomb()), none),
        "array.png": (array.getvalue(), none),
        "script.gif": (b"#!/bin/sh\ntouch /tmp/lrp-was-executed\n", none),
        "noise.webp": (rng.bytes(5000), none),
        "half.jpg": (jpeg[: len(jpeg) // 2], Bad("truncated")),
        "start.jpg": (jpeg[:2], none),
        "header.jpg": (jpeg[:200], any_reason),
        "half.png": (whole_png[: len(whole_png) // 2], broken),
        "signature.png": (whole_png[:8], none),
        "flipped.png": (bytes(flipped), broken),
        "no_data.png": (png(64, 64, b""), broken),
        "little_data.png": (png(64, 64, bytes(100)), broken),
        "no_size.png": (png(0, 0, b""), any_reason),
        "half.webp": (webp[: len(webp) // 2], any_reason),
        "half.tif": (tiff[: len(tiff) // 2], any_reason),
        "loop.tif": (b"II*\0\x08\0\0\0\0\0\x08\0\0\0", any_reason),
        "half.gif": (gif[: len(gif) // 2], broken),
        "half.bmp": (bmp[: len(bmp) // 2], broken),
        "missing.ppm": (b"P6\n100 100\n255\nabc", broken),
        "many_pixels.png": (png(20_000, 20_000, b""), Bad("decompression bomb")),
        "bomb.png": (png(60_000, 60_000, b""), Bad("decompression bomb")),
        "bomb.gif": (b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",", any_reason),
        "bomb.bmp": (bmp[:18] + struct.pack("<ii", 2**30, 2**30) + bmp[26:], any_reason),
        "bomb.ppm": (b"P6\n99999 99999\n255\n", Bad("decompression bomb")),
        "not_finite.tif": (encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), Bad("pixel values")),
        "negative.tif": (encoded(Image.fromarray(np.full((4, 4), -5, np.int32)), "TIFF"), Bad("pixel values")),
        "text_bomb.png": (
            png(8, 8, bytes(8 * 25), extra=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(90_000_000), 9))),
            broken,
        ),
    }


def write_all(folder: Path) -> dict[str, Expected]:
    """Write every file, and a few things that are no files; returns what is expected of each."""
    folder.mkdir(parents=True)
    expected: dict[str, Expected] = {}
    for name, (data, outcome) in {**good_files(), **bad_files()}.items():
        (folder / name).write_bytes(data)
        expected[name] = outcome
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    expected["dangling.jpg"] = Bad("no such file")
    (folder / "itself.png").symlink_to("itself.png")
    expected["itself.png"] = Bad("links")
    os.mkfifo(folder / "pipe.png")
    expected["pipe.png"] = Bad("not a regular file")
    (folder / "folder.png").mkdir()
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("passed over")
    return expected
