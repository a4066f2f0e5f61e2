"""Heatmaps on the whole original picture; what the model did not see is shown as such."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lrp_cli import render
from lrp_cli.images.mapping import Mapping, onto_original

MOST_PIXELS = 6_000_000
"""Larger pictures are drawn smaller: rendering takes some hundred bytes a pixel."""

_PALE = 0.6
_UNEXPLAINED = 225  # grey, which no relevance is shown in
_STRIPES = 12  # in pixels, of the pattern of what is not explained


def spread(
    original: Image.Image, mapping: Mapping, relevance: npt.NDArray[Any]
) -> tuple[Image.Image, Mapping, npt.NDArray[np.float32]]:
    """Lay relevance, (3, H, W), onto the whole picture.

    Returns the picture, made smaller where it is very large, its mapping to the model's input, and the relevance,
    (height, width), with NaN where the model did not see the picture.
    """
    factor = (MOST_PIXELS / (original.width * original.height)) ** 0.5
    if factor < 1:
        size = (max(1, int(original.width * factor)), max(1, int(original.height * factor)))
        original = original.resize(size)
    mapping = mapping.resized(original.size)
    return original, mapping, onto_original(relevance.sum(axis=0), mapping)


def shaded(picture: Image.Image, mapping: Mapping) -> Image.Image:
    """Return the picture, pale and striped where the model did not see it."""
    unseen = np.isnan(onto_original(np.zeros((mapping.input[1], mapping.input[0])), mapping))
    if not unseen.any():
        return picture
    pixels = np.asarray(picture).copy()
    pale = pixels[unseen] * (1 - _PALE) + 255 * _PALE
    pixels[unseen] = np.where(_stripes(unseen)[unseen][:, None], pale, pale * 0.9)
    return Image.fromarray(pixels)


def shaded_heatmap(relevance: npt.NDArray[np.float32]) -> Image.Image:
    """Colour relevance, (height, width), with grey stripes where it is NaN."""
    unseen = np.isnan(relevance)
    pixels = np.asarray(render.heatmap(np.nan_to_num(relevance))).copy()
    pixels[unseen] = np.where(_stripes(unseen)[unseen], _UNEXPLAINED, _UNEXPLAINED - 15)[:, None]
    return Image.fromarray(pixels)


def _stripes(like: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    height, width = like.shape
    stripes: npt.NDArray[np.bool_] = (np.arange(height)[:, None] + np.arange(width)) // _STRIPES % 2 == 0
    return stripes
