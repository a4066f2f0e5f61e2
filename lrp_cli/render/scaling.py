"""From relevance in units of the score to numbers that a colour map understands.

Nothing here shifts a value: zero stays zero and a sign stays a sign, so that a colour always says what it seems to say.
"""

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from lrp_cli.errors import EngineError, UsageError

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]

PERCENTILE = 99.5
"""Percentile of ``|R|`` that gets the full colour: of a 224 x 224 picture, the 250 strongest pixels share it."""


def pixel_relevance(relevance: npt.NDArray[Any]) -> FloatArray:
    """Return the relevance of each pixel, (H, W): the sum over the channels of (C, H, W); (H, W) keeps its values.

    The sum, not the mean or the largest, because relevance is conserved: the pixels add up to what the channels did.

    Raises:
        UsageError: ``relevance`` has another number of dimensions, or no pixels.
        EngineError: a value is NaN or infinite.
    """
    if relevance.ndim not in {2, 3} or relevance.size == 0:
        raise UsageError(f"relevance of shape {relevance.shape} is no picture; give (channels, height, width)")
    bad = relevance.size - int(np.count_nonzero(np.isfinite(relevance)))
    if bad:
        raise EngineError(f"{bad} of {relevance.size} relevance values are not finite; try another config")
    values = relevance.astype(np.float64)
    return values if values.ndim == 2 else values.sum(axis=0)


def relevance_limit(relevance: npt.NDArray[Any], percentile: float = PERCENTILE) -> float:
    """Return the relevance that gets the full colour: a percentile of ``|R|`` over the pixels, in units of the score.

    A percentile and not the maximum, because a single glaring pixel would leave all the others without colour. It is
    one of the values themselves (the lower neighbour, no interpolation), so that the outlier has no part in it either.
    Where the percentile is zero (nearly all pixels are), the maximum takes its place; 0.0 means that all are zero.

    Raises:
        UsageError: ``percentile`` is not in (0, 100]; and what :func:`pixel_relevance` raises.
    """
    return _limit(pixel_relevance(relevance), percentile)


def normalise(relevance: npt.NDArray[Any], percentile: float = PERCENTILE, scale: float | None = None) -> FloatArray:
    """Divide pixel relevance by its limit and clip: (H, W) in [-1, 1], symmetric around a zero that stays exactly zero.

    ``normalise(-R) == -normalise(R)``, and the unit of R does not matter. All-zero relevance stays all zero.

    Args:
        relevance: (H, W), or (C, H, W), which is summed over the channels.
        percentile: of ``|R|``; what lies beyond it is clipped, see :func:`relevance_limit`.
        scale: the limit itself, in units of the score, for pictures that must share one; ``percentile`` is not used.

    Raises:
        UsageError: ``scale`` is not positive and finite; and what :func:`relevance_limit` raises.
    """
    if scale is not None and not (0 < scale < np.inf):
        raise UsageError(f"scale {scale:g} is not a positive number")
    pixels = pixel_relevance(relevance)
    limit = _limit(pixels, percentile) if scale is None else scale
    if limit:
        pixels /= limit
    return np.clip(pixels, -1, 1, out=pixels)


def smooth(pixels: FloatArray, sigma: float) -> FloatArray:
    """Blur pixel relevance (H, W) with a Gaussian of ``sigma`` pixels, cut off at 3 sigma; 0 changes nothing.

    Near the border the weights are those of the pixels that exist, so that a constant stays the same constant. Linear:
    ``smooth(-R) == -smooth(R)``. Pillow's own blurs know 8-bit images only, which have no sign.

    Raises:
        UsageError: ``sigma`` is negative or not finite.
    """
    if not 0 <= sigma < np.inf:
        raise UsageError(f"smoothing by {sigma:g} is not zero or a positive number")
    if sigma == 0:
        return pixels
    # So wide a blur leaves nothing that a coarser grid would lose, and costs the cube of the factor less there.
    factor = int(sigma / 4)
    if factor > 1:
        height, width = pixels.shape
        coarse = _resized(pixels, (max(width // factor, 1), max(height // factor, 1)), Image.Resampling.BOX)
        return _resized(_blur_both(coarse, sigma / factor), (width, height), Image.Resampling.BILINEAR)
    return _blur_both(pixels, sigma)


def _limit(pixels: FloatArray, percentile: float) -> float:
    if not 0 < percentile <= 100:
        raise UsageError(f"percentile {percentile:g} is not above 0 and at most 100")
    magnitude = np.abs(pixels)
    rank = int((magnitude.size - 1) * (percentile / 100))  # as numpy counts, from the lowest
    return float(_nth_largest(magnitude.ravel(), magnitude.size - rank)) or float(magnitude.max())


def _nth_largest(values: FloatArray, n: int) -> np.floating[Any]:
    """Return the ``n``-th largest of some values, counted from 1.

    At least ``n`` are no smaller than the ``n``-th largest of a part of them, the maxima of columns, here. That leaves
    few candidates: ``np.partition`` of all pixels of a picture would take several times as long.
    """
    rows = max(values.size // (4 * n), 1)
    columns = values.size // rows
    maxima = values[: rows * columns].reshape(rows, columns).max(axis=0)
    candidates = values[values >= np.partition(maxima, columns - n)[columns - n]]
    largest: np.floating[Any] = np.partition(candidates, candidates.size - n)[candidates.size - n]
    return largest


def _resized(values: FloatArray, size: tuple[int, int], how: Image.Resampling) -> FloatArray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, how), dtype=values.dtype)


def _blur_both(values: FloatArray, sigma: float) -> FloatArray:
    return _blur_rows(_blur_rows(values.T, sigma).T, sigma)


def _blur_rows(values: FloatArray, sigma: float) -> FloatArray:
    """Blur (H, W) along H; the result lies in memory row by row."""
    values = np.ascontiguousarray(values)
    height = values.shape[0]
    blurred, weights = values.copy(), np.ones((height, 1), values.dtype)
    for offset in range(1, min(math.ceil(3 * sigma), height - 1) + 1):
        weight = math.exp(-0.5 * (offset / sigma) ** 2)
        weighted = weight * values
        blurred[offset:] += weighted[:-offset]
        blurred[:-offset] += weighted[offset:]
        weights[offset:] += weight
        weights[:-offset] += weight
    blurred /= weights
    return blurred
