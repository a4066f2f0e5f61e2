"""From a picture file to RGB pixels, upright, as a person would see them on white paper."""

import io
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from lrp_cli.errors import ImageError

# Formats that Pillow only recognises (stubs without a decoder), and EPS, for which it would start Ghostscript.
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
_FIRST = ("JPEG", "PNG")  # most pictures are; others are told apart by what a file begins with, too, one by one
_WHITE = (255, 255, 255, 255)


def readable_formats() -> tuple[str, ...]:
    """Return the names of the formats that are decoded, such as ``"JPEG"``."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - _NOT_DECODED))


@cache
def _formats_to_try() -> tuple[str, ...]:
    return *_FIRST, *(name for name in readable_formats() if name not in _FIRST)


def readable_suffixes() -> frozenset[str]:
    """Return the file suffixes, in lower case and with the dot, of the formats that are decoded."""
    formats = set(readable_formats())
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


@dataclass(frozen=True)
class Decoded:
    """A picture, upright and in 8-bit RGB, and the EXIF orientation (1 to 8) that the file had."""

    image: Image.Image
    orientation: int


def decode(path: Path) -> Image.Image:
    """Decode the first frame of ``path`` to an upright 8-bit RGB picture of width x height pixels.

    The EXIF orientation is applied, transparent pixels are laid over white, 16-bit greys are scaled to 8 bits, and
    greyscale, palette and CMYK pictures are converted. Pillow's limit on the number of pixels stays in force.

    Raises:
        ImageError: the file is missing, not a regular file, empty, unreadable, not a picture, truncated or too large.
    """
    return read_picture(path).image


def read_picture(path: Path, data: bytes | None = None) -> Decoded:
    """Decode like :func:`decode`, and say how the picture was turned; ``data`` stands in for the file's contents.

    Raises:
        ImageError: as :func:`decode` does.
    """
    if data is None:
        _check_file(path)
    elif not data:
        raise ImageError(f"{path}: is empty (0 bytes)")
    source = path if data is None else io.BytesIO(data)
    try:
        with _without_remarks(), Image.open(source, formats=_formats_to_try()) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
                raise Image.DecompressionBombError
            image.load()  # before the metadata: damaged pixels must be noticed here
            orientation = _orientation(image)
            return Decoded(_to_rgb(ImageOps.exif_transpose(image)), orientation)
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not a picture in a format that Pillow can read; save it as PNG or JPEG") from None
    except Image.DecompressionBombError:
        limit = f"{Image.MAX_IMAGE_PIXELS:,}"
        raise ImageError(f"{path}: more than {limit} pixels, which Pillow takes for a decompression bomb") from None
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except Exception as error:
        # Decoders meet broken data with whatever went wrong inside: OSError, SyntaxError, struct.error, IndexError...
        raise ImageError(f"{path}: {_reason(error)}") from error


class _Quiet:
    """How many threads decode, and the warning filters from before the first of them."""

    lock = threading.Lock()
    decoding = 0
    filters: "warnings.catch_warnings[None] | None" = None


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Silence Pillow's remarks on damaged metadata, which say nothing about the pixels, and on many pixels.

    ``warnings.catch_warnings`` alone is not for threads: one would put back the filters of another.
    """
    with _Quiet.lock:
        if _Quiet.decoding == 0:
            _Quiet.filters = warnings.catch_warnings()
            _Quiet.filters.__enter__()
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        _Quiet.decoding += 1
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.decoding -= 1
            if _Quiet.decoding == 0 and _Quiet.filters is not None:
                _Quiet.filters.__exit__(None, None, None)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata, see read_picture
        return 1
    return value if value in range(1, 9) else 1


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else _reason(error)
        raise ImageError(f"{path}: {reason}") from None
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{path}: is a directory, not a picture")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{path}: is not a regular file")
    if status.st_size == 0:
        raise ImageError(f"{path}: is empty (0 bytes)")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_grey(image)
    if image.mode in {"La", "RGBa"} or image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_grey(image: Image.Image) -> Image.Image:
    """Scale grey values of more than 8 bits to 8: integers from 0..65535, floating point from 0..1.

    Pillow's own conversion clips at 255, which turns a 16-bit picture white.
    """
    values = np.asarray(image, dtype=np.float64)
    white = 1.0 if image.mode == "F" else 65535.0
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= white):
        raise ImageError(
            f"pixel values outside 0..{white:g}, so that black and white are unknown; save it as 8 or 16 bit"
        )
    return Image.fromarray(np.rint(values * (255.0 / white)).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, MemoryError):
        return "too large for the memory"
    said = " ".join(str(error).split()) or type(error).__name__
    return f"cannot be decoded: {said}"
