"""``--config auto``: the preset that suits a kind of network, where none is asked for.

Networks with layer norms (transformers, and ConvNeXt, built like one) carry signed activations between linear layers of
great width: gamma in all of them and AttnLRP keep their relevance bounded and readable. The other networks are
convolutional with a linear classifier on top: z-box at the pixels, gamma in convolutions, epsilon in the classifier.
"""

from collections.abc import Iterable
from typing import Any

AUTO = "auto"

CONVOLUTIONAL = "epsilon-gamma-box"
CONVOLUTIONAL_WITHOUT_BOUNDS = "epsilon-plus-flat"
TRANSFORMER = "attnlrp-gamma"

_TRANSFORMER_FAMILIES = ("vit_", "swin_", "maxvit", "convnext")


def preset_for(modules: Iterable[Any], *, bounded: bool = True) -> str:
    """Return the name of the preset for a network, given its modules.

    Args:
        modules: ``network.modules()``.
        bounded: whether the range of the input is known, as the z-box rule needs.
    """
    classes = {type(module).__name__.lower() for module in modules}
    if any(mark in name for name in classes for mark in ("layernorm", "attention", "rmsnorm")):
        return TRANSFORMER
    return CONVOLUTIONAL if bounded else CONVOLUTIONAL_WITHOUT_BOUNDS


def preset_for_name(model_name: str) -> str:
    """Return the name of the preset for a model of torchvision, or the default model, without building it."""
    return TRANSFORMER if model_name.startswith(_TRANSFORMER_FAMILIES) else CONVOLUTIONAL
