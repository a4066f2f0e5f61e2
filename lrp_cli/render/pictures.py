"""The two pictures of a relevance: the raw heatmap on white, and the overlay on the grey photograph."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from imagecodecs import PNG, png_encode
from PIL import Image

from lrp_cli.errors import LrpError
from lrp_cli.render.colours import HEATMAP_COLOURS, OVERLAY_COLOURS, STEPS, colour_table
from lrp_cli.render.scaling import PERCENTILE, FloatArray, normalise, smoothed

OVERLAY_PERCENTILE = 99.9
SMOOTHING = 1.5
HAZE = 0.1
"""``k`` in the opacity of :func:`overlay`: below ``m = √k`` a pixel is mostly photograph, above mostly colour."""

LONGEST = 1_000_000
"""In pixels: how long a side of a PNG may be, by libpng."""


def heatmap(
    relevance: npt.NDArray[Any],
    *,
    colormap: str = HEATMAP_COLOURS,
    percentile: float = PERCENTILE,
    scale: float | None = None,
) -> Image.Image:
    """Colour relevance, (C, H, W) or (H, W), as an RGB image of W x H pixels: raw, one pixel a pixel.

    Args:
        relevance: in units of the score; channels are summed.
        colormap: one of :func:`~lrp_cli.render.colours.colormap_names`. By default zero is white, positive red and
            negative blue.
        percentile: of ``|R|``, from which on the colour is full, see :func:`~lrp_cli.render.scaling.normalise`.
        scale: the relevance from which on the colour is full, instead of a percentile.

    Raises:
        UsageError: no such colour map, or a bad percentile, scale or shape.
        EngineError: a value is NaN or infinite.
    """
    entries = _entries(normalise(relevance, percentile, scale))
    return Image.fromarray(colour_table(colormap).take(entries, axis=0))


def overlay(
    view: Image.Image,
    relevance: npt.NDArray[Any],
    *,
    colormap: str = OVERLAY_COLOURS,
    percentile: float = OVERLAY_PERCENTILE,
    smoothing: float = SMOOTHING,
) -> Image.Image:
    """Lay relevance in colour over the greyscale photograph; an RGB image of the size of the relevance.

    Without relevance the photograph shows unchanged, in grey; the strongest relevance covers it. In between, with ``m``
    the normalised ``|R|`` and ``k = 0.1``, the opacity is ``(1 + k) m² / (m² + k)``. That grows with ``m``, and slowly
    at first: faint relevance lies nearly everywhere and would otherwise be a haze over all of the picture. Positive and
    negative relevance are treated alike.

    Args:
        view: the picture the model saw; resized where its size is another than that of the relevance.
        relevance: (C, H, W) or (H, W), in units of the score; channels are summed.
        colormap: one of :func:`~lrp_cli.render.colours.colormap_names`. Since the opacity tells how far from zero a
            value is, each arm gives the outer half of its colours only: pale middles would lie like haze, too.
        percentile: of ``|R|``, from which on colour and opacity are full; outliers are clipped to it before smoothing.
        smoothing: standard deviation of a Gaussian blur of the relevance, in 1/224 of the shorter side: raw relevance
            is grainy (strided layers leave a grid), and on a photograph grain reads as noise. 0 turns it off.

    Raises:
        UsageError: no such colour map, or a bad percentile, smoothing or shape.
        EngineError: a value is NaN or infinite.
    """
    # Blurred and blended in single precision: 8 bits come out.
    level = smoothed(relevance, percentile, smoothing / 224)
    height, width = level.shape
    entries = _entries((level + np.sign(level)) / 2)
    squared = level * level
    opacity = (1 + HAZE) * squared / (squared + HAZE)
    photograph = view.convert("L")
    if photograph.size != (width, height):
        photograph = photograph.resize((width, height), Image.Resampling.LANCZOS)
    grey = np.asarray(photograph, dtype=np.float32)
    # Channels first: numpy is several times slower where the innermost axis is as short as theirs.
    values = colour_table(colormap).T.astype(np.float32).take(entries, axis=1)
    values -= grey
    values *= opacity
    values += grey
    blended = np.rint(values, out=values).astype(np.uint8)
    return Image.merge("RGB", [Image.fromarray(channel) for channel in blended])


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write a PNG (:func:`encode_png`).

    Raises:
        LrpError: the file could not be written, or the picture is too long for a PNG.
        MemoryError: there is not enough memory.
    """
    try:
        Path(path).write_bytes(encode_png(image))
    except OSError as error:
        raise LrpError(f"cannot write {path}: {error.strerror or error}") from error


def encode_png(image: Image.Image) -> bytes:
    """Return a grey or RGB picture, with or without transparency, as the contents of a PNG file; others become RGB.

    Only repetitions of a byte are looked for, as relevance repeats nothing else, and every row is filtered alike
    (Paeth). Pillow can be told the former and not the latter: it tries all filters on each row, and takes twice as long
    for an overlay, which becomes no smaller (``python -m tests.benchmarks.pictures``).

    Raises:
        LrpError: the picture is too long for a PNG.
        MemoryError: there is not enough memory.
    """
    if max(image.size) > LONGEST:
        raise LrpError(f"a side of more than {LONGEST:,} pixels is too long for a PNG")
    pixels = np.asarray(image if image.mode in {"L", "LA", "RGB", "RGBA"} else image.convert("RGB"))
    flags = {"strategy": PNG.STRATEGY.RLE, "filter": PNG.FILTER.PAETH}
    try:
        return bytes(png_encode(pixels, level=PNG.COMPRESSION.SPEED, **flags))
    except RuntimeError as error:  # libpng's own, of which nothing but a lack of memory is left
        raise MemoryError(str(error)) from error


def _entries(level: FloatArray) -> npt.NDArray[np.intp]:
    """Return which entry of a colour table stands for each value in [-1, 1]."""
    entries: npt.NDArray[np.intp] = np.rint(level * STEPS).astype(np.intp) + STEPS
    return entries
