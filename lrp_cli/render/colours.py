"""Diverging colour tables: cold for negative relevance, warm for positive, one colour in the middle for zero.

A table is (511, 3) 8-bit: entry 255 is zero, 255 entries on each side. The odd length gives zero an entry of its own,
and opposite signs entries at the same distance from it.
"""

from functools import cache

import numpy as np
import numpy.typing as npt

from lrp_cli.errors import UsageError, closest

Table = npt.NDArray[np.uint8]

STEPS = 255
HEATMAP_COLOURS = "red-blue"
OVERLAY_COLOURS = "fire-ice"

# The warm half, from zero to the strongest relevance; the cold half is its mirror image, red and blue exchanged.
_WARM_HALVES = {
    # White paper, then red ink: the look of most published LRP heatmaps.
    "red-blue": ((255, 255, 255), (255, 128, 112), (250, 30, 20), (170, 0, 0)),
    # From black through red to yellow: the outer half is vivid, and the brighter the stronger. It glows on grey.
    "fire-ice": ((0, 0, 0), (128, 0, 0), (255, 0, 0), (255, 20, 0), (255, 225, 75)),
}

# Those of matplotlib's colour maps that have two arms and a middle; the others would give zero a colour of its own.
_DIVERGING = (
    "BrBG PRGn PiYG PuOr RdBu RdGy RdYlBu RdYlGn Spectral berlin bwr coolwarm managua seismic vanimo".split()  # noqa: SIM905
)


def colormap_names() -> list[str]:
    """Return the names that ``colormap=`` takes: the two of this module, then matplotlib's diverging ones."""
    return [*_WARM_HALVES, *_DIVERGING, *(f"{name}_r" for name in _DIVERGING)]


@cache
def colour_table(name: str) -> Table:
    """Return the (511, 3) table of a colour map, the most negative relevance first; read-only, for it is cached.

    Raises:
        UsageError: no diverging colour map has that name.
    """
    if name in _WARM_HALVES:
        table = _from_warm_half(np.array(_WARM_HALVES[name], dtype=np.float64))
    else:
        table = _from_matplotlib(name)
    table.flags.writeable = False
    return table


def _from_warm_half(anchors: npt.NDArray[np.float64]) -> Table:
    """Interpolate between equally spaced (n, 3) anchors, and mirror."""
    strength, stops = np.linspace(0, 1, STEPS + 1), np.linspace(0, 1, len(anchors))
    warm = np.stack([np.interp(strength, stops, channel) for channel in anchors.T], axis=1)
    table: Table = np.rint(np.concatenate([warm[:0:-1, ::-1], warm])).astype(np.uint8)
    return table


def _from_matplotlib(name: str) -> Table:
    from matplotlib import colormaps

    names = [known for known in colormap_names() if known in _WARM_HALVES or known in colormaps]
    if name not in names:
        raise UsageError(f"no diverging colour map {name!r}{closest(name, names, 3) or '; known: ' + ', '.join(names)}")
    rgba = colormaps[name].resampled(2 * STEPS + 1)(np.arange(2 * STEPS + 1))
    table: Table = np.rint(255 * rgba[:, :3]).astype(np.uint8)
    return table
