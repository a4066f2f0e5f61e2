"""From paths to model input: finding pictures, decoding them, and preparing them for a network.

The public names are loaded on first use, so that importing this package imports neither Pillow nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrp_cli.images.decoding import decode
    from lrp_cli.images.finding import Found, find_images
    from lrp_cli.images.preprocessing import Preprocessing

__all__ = ["Found", "Preprocessing", "decode", "find_images"]

_HOME = {"decode": "decoding", "Found": "finding", "find_images": "finding", "Preprocessing": "preprocessing"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
