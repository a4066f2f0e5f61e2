"""Relevance becomes pictures: a signed array goes in, a Pillow image in honest colours comes out.

The room knows numpy, Pillow, imagecodecs and matplotlib, which is imported only where a panel or one of its colour maps
is wanted. It knows no model, no torch and no file beyond the one it saves.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lrp_cli.render.colours import HEATMAP_COLOURS, OVERLAY_COLOURS, colormap_names
from lrp_cli.render.pictures import OVERLAY_PERCENTILE, SMOOTHING, encode_png, heatmap, overlay, save_png
from lrp_cli.render.scaling import PERCENTILE, normalise, pixel_relevance, relevance_limit

if TYPE_CHECKING:
    from lrp_cli.render.panels import panel

__all__ = [
    "HEATMAP_COLOURS",
    "OVERLAY_COLOURS",
    "OVERLAY_PERCENTILE",
    "PERCENTILE",
    "SMOOTHING",
    "colormap_names",
    "encode_png",
    "heatmap",
    "normalise",
    "overlay",
    "panel",
    "pixel_relevance",
    "relevance_limit",
    "save_png",
]


def __getattr__(name: str) -> Any:
    if name == "panel":
        return import_module("lrp_cli.render.panels").panel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
