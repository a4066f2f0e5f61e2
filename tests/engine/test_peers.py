"""Side by side with other implementations of LRP, where theirs means the same.

What differs by design is left out: batch norms that are not merged, smooth activations and products, which peers
propagate otherwise or not at all, and zennit's gamma without biases, which takes the sign from an output with its bias
and the denominator from one without.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrp_cli.explainer import Explainer

LOW, HIGH = -2.2, 2.7
TOLERANCE = 1e-4


def pictures(n: int, size: int) -> Tensor:
    """Return pictures in float64, of any sign, between LOW and HIGH."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, size, size, generator=generator, dtype=torch.float64).clamp(LOW, HIGH)


def lively(model: nn.Module) -> nn.Module:
    """Return the model in float64 and eval mode, its biases of both signs and far from zero."""
    generator = torch.Generator().manual_seed(1)
    model = model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1)
    return model


def small_vgg() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(
            nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(8, 12, 3, stride=2),
                nn.ReLU(),
                nn.AvgPool2d(2),
                nn.Flatten(),
                nn.Linear(12, 16),
                nn.ReLU(),
                nn.Dropout(),
                nn.Linear(16, 6),
            )
        )


def vgg11() -> nn.Module:
    torchvision = pytest.importorskip("torchvision", reason="torchvision has the VGG-11 that is compared here")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(torchvision.models.vgg11(weights=None, num_classes=10))


def one_layer() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))


def seed_of(target: int) -> Callable[[Tensor], Tensor]:
    """Return what starts zennit's way back: the logit of the class as its relevance."""

    def seed(output: Tensor) -> Tensor:
        return output * nn.functional.one_hot(torch.tensor(target), output.shape[1])

    return seed


def zennit_relevance(composite: Any, model: nn.Module, x: Tensor, target: int) -> Tensor:
    from zennit.attribution import Gradient

    with Gradient(model=model, composite=composite) as attributor:
        _, relevance = attributor(x.clone().requires_grad_(), seed_of(target))
    return relevance.detach()


def assert_agree(ours: Tensor, theirs: Tensor) -> None:
    """Compare by the largest difference in proportion to the largest relevance."""
    assert theirs.abs().max() > 0
    assert ((ours - theirs).abs().max() / theirs.abs().max()).item() < TOLERANCE


# Both generalise gamma to inputs and outputs of any sign in the same way, and leave the bias out of z-box. Excitation
# backprop has no biases; zennit's composite has to be told.
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("epsilon-plus", small_vgg),
        ("epsilon-plus-flat", small_vgg),
        ("epsilon-plus-flat", vgg11),
        ("epsilon-alpha2-beta1", small_vgg),
        ("epsilon-alpha2-beta1-flat", small_vgg),
        ("epsilon-alpha2-beta1-flat", vgg11),
        ("epsilon-gamma-box", small_vgg),
        ("epsilon-gamma-box", vgg11),
        ("excitation-backprop", small_vgg),
    ],
)
def test_zennits_composites_of_the_same_names(name: str, make: Callable[[], nn.Module]) -> None:
    composites = pytest.importorskip("zennit.composites", reason="zennit is compared with; install the extra 'peers'")
    options: dict[str, Any] = {
        "epsilon-gamma-box": {"low": torch.tensor(LOW), "high": torch.tensor(HIGH)},
        "excitation-backprop": {"zero_params": "bias"},
    }.get(name, {})
    composite = composites.COMPOSITES[name.replace("-", "_")](**options)
    model, x = make(), pictures(1, 64) if make is vgg11 else pictures(2, 12)
    ours = Explainer(model, name, bounds=(LOW, HIGH)).explain(x, target=3).relevance
    assert_agree(ours, zennit_relevance(composite, model, x, 3))


@pytest.mark.parametrize("make", [small_vgg, one_layer])
@pytest.mark.parametrize("name", ["epsilon", "gamma", "zplus", "alpha-beta"])
def test_zennits_rules_in_every_layer(name: str, make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """The first layer sees inputs of any sign, and a single layer has outputs of any sign."""
    rules = pytest.importorskip("zennit.rules", reason="zennit is compared with; install the extra 'peers'")
    rule = {"epsilon": rules.Epsilon, "gamma": rules.Gamma, "zplus": rules.ZPlus, "alpha-beta": rules.AlphaBeta}[name]()
    compare(make(), pictures(2, 12), {"every": rule}, f"layers: [{{rule: {name}}}]", tmp_path)


@pytest.mark.parametrize("name", ["wsquare", "flat", "zbox"])
def test_zennits_rules_for_pixels(name: str, tmp_path: Path) -> None:
    """In the first layer only: further up, zennit's w² and flat give inactive neurons a share, which is then lost.

    zennit's w² has the square of the bias in its denominator; without it, as in the paper, it is the same.
    """
    rules = pytest.importorskip("zennit.rules", reason="zennit is compared with; install the extra 'peers'")
    bounds = torch.tensor(LOW), torch.tensor(HIGH)
    first = {
        "wsquare": lambda: rules.WSquare(zero_params="bias"),
        "flat": rules.Flat,
        "zbox": lambda: rules.ZBox(*bounds),
    }[name]()
    config = f"layers: [{{first: true, rule: {name}}}, {{rule: epsilon}}]"
    compare(small_vgg(), pictures(2, 12), {"first": first, "every": rules.Epsilon()}, config, tmp_path)


def compare(model: nn.Module, x: Tensor, theirs: dict[str, Any], config: str, folder: Path) -> None:
    """Compare zennit's rules for the first and for every layer with a config's."""
    from zennit.composites import SpecialFirstLayerMapComposite
    from zennit.rules import Norm, Pass
    from zennit.types import Activation, AvgPool, Convolution, Linear

    layers = (Convolution, Linear)
    composite = SpecialFirstLayerMapComposite(
        layer_map=[((Activation,), Pass()), ((AvgPool,), Norm()), (layers, theirs["every"])],
        first_map=[(layers, theirs["first"])] if "first" in theirs else [],
    )
    path = folder / "config.yaml"
    path.write_text(config)
    ours = Explainer(model, path, bounds=(LOW, HIGH)).explain(x, target=3).relevance
    assert_agree(ours, zennit_relevance(composite, model, x, 3))


class Plain(nn.Module):
    """Convolutions, ReLUs and linear layers; captum knows no module for flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(54, 10), nn.ReLU(), nn.Linear(10, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.convs(x).flatten(1))


@pytest.mark.parametrize("epsilon", [1e-6, 0.05])
def test_captums_epsilon(epsilon: float, tmp_path: Path) -> None:
    """Pooling is left out: captum puts an epsilon into it too, which is felt where epsilon is not small."""
    captum = pytest.importorskip("captum.attr", reason="captum is compared with; install the extra 'peers'")
    from captum.attr._utils.lrp_rules import EpsilonRule

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = lively(Plain())
    x = pictures(2, 12)
    path = tmp_path / "config.yaml"
    path.write_text(f"layers: [{{rule: {{type: epsilon, epsilon: {epsilon:f}}}}}]")
    ours = Explainer(model, path).explain(x, target=3).relevance
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.rule = EpsilonRule(epsilon)
    assert_agree(ours, captum.LRP(model).attribute(x.requires_grad_(), target=3).detach())
