"""What comes out for a picture does not depend on the pictures beside it in the batch."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torchvision
from networks import build, inputs
from torch import Tensor, nn

from lrp_cli.explainer import Explainer
from lrp_cli.rulesets import presets

PRESETS = [preset.name for preset in presets()]

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: torchvision.models.resnet18(weights=None, num_classes=20), 32),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(weights=None, num_classes=20), 32),
    "densenet121": (lambda: torchvision.models.densenet121(weights=None, num_classes=20), 32),
    "vision transformer": (
        lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=20),
        32,
    ),
}


@cache
def network(name: str) -> nn.Module:
    make, side = NETWORKS[name]
    return build(make, inputs(8, 3, side, side)).float()


def neighbours(side: int) -> dict[str, Tensor]:
    """Return what may lie beside a picture, two of each."""
    others = inputs(2, 3, side, side, seed=5, dtype=torch.float32)
    return {
        "others": others,
        "black": torch.zeros_like(others),
        "much larger": others * 1000,
        "one much larger": torch.cat([others[:1], others[1:] * 1000]),
    }


@pytest.mark.parametrize("config", PRESETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_result_does_not_depend_on_the_rest_of_the_batch(name: str, config: str) -> None:
    model, side = network(name), NETWORKS[name][1]
    picture = inputs(1, 3, side, side, seed=3, dtype=torch.float32)
    explainer = Explainer(model, config, bounds=(-2500.0, 2500.0), on_unknown="gradient")
    found = {
        kind: explainer.explain(torch.cat([picture, beside]), 7).relevance[0]
        for kind, beside in neighbours(side).items()
    }
    size = found["others"].abs().max().item()
    for kind, relevance in found.items():
        difference = (relevance - found["others"]).abs().max().item()
        assert difference <= 1e-5 * size, kind
