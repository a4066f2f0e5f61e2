"""Which models and weights there are, by name; torch is imported only when the list is asked for."""

import re
from typing import TYPE_CHECKING

from lrp_cli.errors import ModelError, closest

if TYPE_CHECKING:
    from lrp_cli.models.architectures import Architecture

DEFAULT_MODEL = "efficientnet_lite0"
TIMM_PREFIX = "timm:"


def model_names() -> list[str]:
    """Return the packaged default's name, then those of torchvision's classification models.

    ``load_model`` takes these, and besides them ``timm:NAME`` and ``FILE.py:FUNCTION``.
    """
    import torchvision
    from torchvision.models import list_models  # type: ignore[attr-defined]

    return [DEFAULT_MODEL, *list_models(module=torchvision.models)]


def weights_names(model: str) -> tuple[str, ...]:
    """Return the names of the published weights of ``model``, the default first; empty where there are none.

    Raises:
        ModelError: there is no such model.
    """
    return find_architecture(model).weights_names


def find_architecture(model: str) -> "Architecture":
    """Return the architecture called ``model``; upper and lower case are alike, except in ``FILE.py:FUNCTION``.

    Raises:
        ModelError: there is none; the message names the closest ones.
    """
    if re.search(r"\.py(:|$)", model, re.IGNORECASE):
        from lrp_cli.models.own_models import find_own

        return find_own(model)
    if model.lower().startswith(TIMM_PREFIX):
        from lrp_cli.models.timm_models import find_timm

        return find_timm(model)
    name = model.lower()
    if name == DEFAULT_MODEL:
        from lrp_cli.models.efficientnet_lite import EfficientNetLite0Architecture

        return EfficientNetLite0Architecture()
    names = model_names()
    if name not in names:
        hint = f"`lrp models` lists them; also {TIMM_PREFIX}NAME, FILE.py:FUNCTION"
        raise ModelError(f"unknown model {model!r} ({hint}){closest(name, names, count=3)}")
    from lrp_cli.models.torchvision_models import TorchvisionArchitecture

    return TorchvisionArchitecture(name)
