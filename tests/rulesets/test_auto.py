import pytest
import torch

from lrp_cli.rulesets import load
from lrp_cli.rulesets.auto import (
    CONVOLUTIONAL,
    CONVOLUTIONAL_WITHOUT_BOUNDS,
    TRANSFORMER,
    preset_for,
    preset_for_name,
)


def test_the_presets_exist() -> None:
    for name in (CONVOLUTIONAL, CONVOLUTIONAL_WITHOUT_BOUNDS, TRANSFORMER):
        load(name)


def test_by_name_as_by_network() -> None:
    """For the models of torchvision, built without memory; regnets, which cannot be, by their smallest two."""
    from torchvision import models

    names = models.list_models(module=models)
    assert len(names) >= 80
    for name in names:
        extra = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
        if name.startswith("regnet") and not name.endswith("400mf"):
            continue
        with torch.device("cpu" if name.startswith("regnet") else "meta"):
            network = models.get_model(name, weights=None, **extra)
        assert preset_for_name(name) == preset_for(network.modules()), name


@pytest.mark.parametrize(
    ("layer", "bounded", "preset"),
    [
        (torch.nn.LayerNorm(4), True, TRANSFORMER),
        (torch.nn.MultiheadAttention(4, 2), False, TRANSFORMER),
        (torch.nn.BatchNorm2d(4), True, CONVOLUTIONAL),
        (torch.nn.GroupNorm(2, 4), False, CONVOLUTIONAL_WITHOUT_BOUNDS),
    ],
)
def test_by_layers(layer: torch.nn.Module, bounded: bool, preset: str) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), layer)
    assert preset_for(network.modules(), bounded=bounded) == preset
