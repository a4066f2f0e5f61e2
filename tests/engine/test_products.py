"""Products on the way back in another type than the network's."""

import pytest
import torch
from torch import Tensor, nn

from lrp_cli import Explainer
from lrp_cli.errors import UsageError

PRESETS = ("epsilon", "epsilon-plus-flat", "epsilon-gamma-box", "epsilon-alpha2-beta1", "attnlrp-gamma", "deep-taylor")


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.SiLU(),
        nn.Conv2d(16, 32, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 32),
        nn.GELU(),
        nn.Linear(32, 5),
    )
    model(torch.randn(8, 3, 12, 12))
    return model.eval()


def explain(model: nn.Module, x: Tensor, preset: str, products: torch.dtype | None) -> tuple[Tensor, Tensor]:
    explanation = Explainer(model, preset, bounds=(-3, 3), products=products).explain(x, 2)
    return explanation.logits, explanation.relevance


@pytest.mark.parametrize("preset", PRESETS)
def test_only_the_way_back_is_less_precise(preset: str) -> None:
    model, x = network(), torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1)).clamp(-3, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits, relevance = explain(model, x, preset, None)
    rough_logits, rough = explain(model, x, preset, torch.bfloat16)
    assert torch.equal(rough_logits, logits)
    assert rough.dtype == torch.float32
    assert 0 < (rough - relevance).abs().sum() <= 0.03 * relevance.abs().sum()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_products_in_double_precision_make_a_single_precision_network_more_precise() -> None:
    model, x = network(), torch.randn(2, 3, 12, 12)
    exact = explain(model.double(), x.double(), "epsilon-plus-flat", None)[1]
    single = explain(model.float(), x, "epsilon-plus-flat", None)[1]
    mixed = explain(model, x, "epsilon-plus-flat", torch.float64)[1]
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed.double(), exact, rtol=1e-4, atol=1e-6 * exact.abs().max().item())
    assert not torch.equal(mixed, single)


def test_integers_are_refused() -> None:
    with pytest.raises(UsageError, match="floating-point"):
        Explainer(network(), products=torch.int8)
