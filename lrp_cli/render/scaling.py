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

QUICK = 11
"""So many weights numpy correlates with several times as fast as with more."""

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
    return _clipped(pixels, _limit(pixels, percentile) if scale is None else scale)


def smoothed(relevance: npt.NDArray[Any], percentile: float, smoothing: float) -> FloatArray:
    """Normalise, blur, and normalise again, in single precision: (H, W) in [-1, 1].

    Outliers are clipped before they are blurred, or each would become a spot.

    Args:
        relevance: (H, W), or (C, H, W), which is summed over the channels.
        percentile: of ``|R|``, each time, as in :func:`normalise`.
        smoothing: standard deviation of the blur, see :func:`smooth`, as a multiple of the shorter side.

    Raises:
        UsageError: ``smoothing`` is negative or not finite; and what :func:`relevance_limit` raises.
    """
    pixels = normalise(relevance, percentile).astype(np.float32)
    pixels = smooth(pixels, smoothing * min(pixels.shape))
    return _clipped(pixels, _limit(pixels, percentile))


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
        return _resized(_blur(coarse, sigma / factor), (width, height), Image.Resampling.BILINEAR)
    return _blur(pixels, sigma)


def _clipped(pixels: FloatArray, limit: float) -> FloatArray:
    """Divide by the limit and clip to [-1, 1], in place."""
    if limit:
        np.divide(pixels, limit, out=pixels)
    np.clip(pixels, -1, 1, out=pixels)
    return pixels


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
    return np.array(Image.fromarray(values.astype(np.float32)).resize(size, how), dtype=values.dtype)


def _blur(values: FloatArray, sigma: float) -> FloatArray:
    offsets = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2).astype(values.dtype)
    sums = _add_along_rows(_add_along_rows(values, kernel).T, kernel).T
    rows, columns = (_add_along_rows(np.ones((1, size), values.dtype), kernel) for size in values.shape)
    blurred: FloatArray = np.divide(sums, rows.T * columns, order="C")
    return blurred


def _add_along_rows(values: FloatArray, kernel: FloatArray) -> FloatArray:
    """Return the sums of a pixel's neighbours in its row of (H, W), times their weights; beyond the ends lies nothing.

    All rows at once, one behind the other with gaps between them, since each call of numpy lets go of Python's lock and
    asks for it again: where other threads decode and draw, a call per neighbour waits longer than it adds.
    """
    height, width = values.shape
    reach = len(kernel) // 2
    apart = np.zeros((height + 1, width + 2 * reach), values.dtype)
    apart[:-1, reach : reach + width] = values
    flat, size = apart.ravel(), height * apart.shape[1]
    sums = np.zeros(size, values.dtype)
    for start in range(0, len(kernel), QUICK):
        part = kernel[start : start + QUICK]
        sums += np.correlate(flat[start : start + size + len(part) - 1], part)
    return sums.reshape(height, -1)[:, :width]
