"""Where a network comes from: the one that ships with the package, torchvision or timm by name, or code of one's own.

The public names are loaded on first use, so that importing this package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrp_cli.models.catalogue import DEFAULT_MODEL, model_names, weights_names
    from lrp_cli.models.listing import ModelEntry, list_models
    from lrp_cli.models.loading import LoadedModel, load_model
    from lrp_cli.models.targets import (
        ClassIndex,
        Contrast,
        Predicted,
        Rest,
        Target,
        Top,
        parse_target,
        resolve_class,
    )

__all__ = [
    "DEFAULT_MODEL",
    "ClassIndex",
    "Contrast",
    "LoadedModel",
    "ModelEntry",
    "Predicted",
    "Rest",
    "Target",
    "Top",
    "list_models",
    "load_model",
    "model_names",
    "parse_target",
    "resolve_class",
    "weights_names",
]

_HOME = {
    **dict.fromkeys(["DEFAULT_MODEL", "model_names", "weights_names"], "catalogue"),
    **dict.fromkeys(["ModelEntry", "list_models"], "listing"),
    **dict.fromkeys(["LoadedModel", "load_model"], "loading"),
    **dict.fromkeys(["ClassIndex", "Contrast", "Predicted", "Rest", "Target", "Top"], "targets"),
    **dict.fromkeys(["parse_target", "resolve_class"], "targets"),
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
