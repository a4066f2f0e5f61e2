"""Which models and weights there are, by name; torch is imported only when the list is asked for."""

from typing import TYPE_CHECKING

from lrp_cli.errors import ModelError, closest

if TYPE_CHECKING:
    from lrp_cli.models.architectures import Architecture

DEFAULT_MODEL = "efficientnet_lite0"


def model_names() -> list[str]:
    """Return the names that ``load_model`` takes: the packaged default, then torchvision's classification models."""
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
    """Return the architecture called ``model``, upper and lower case alike.

    Raises:
        ModelError: there is none; the message names the closest ones.
    """
    names = model_names()
    name = model.lower()
    if name not in names:
        raise ModelError(f"unknown model {model!r} (`lrp models` lists them){closest(name, names, count=3)}")
    if name == DEFAULT_MODEL:
        from lrp_cli.models.efficientnet_lite import EfficientNetLite0Architecture

        return EfficientNetLite0Architecture()
    from lrp_cli.models.torchvision_models import TorchvisionArchitecture

    return TorchvisionArchitecture(name)
