"""Activations, which the engine takes as one with the layer in front of them: what comes out is as if it did not."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_rules import CLOSE, RULES, Only, lively, matrix_of, seeded, signed, slow
from torch import Tensor, nn

from lrp_cli.engine.books import BIAS, EPSILON
from lrp_cli.engine.propagation import Propagation
from lrp_cli.engine.rules import Rule, ZBox

INNER_RULES = {name: rule for name, rule in RULES.items() if not isinstance(rule, ZBox)}

every_rule = pytest.mark.parametrize("rule", INNER_RULES.values(), ids=INNER_RULES.keys())


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "functional relu": lambda: Call(F.relu),
    "relu6": nn.ReLU6,
    "relu6 in place": lambda: nn.ReLU6(inplace=True),
    "hardtanh from -1": lambda: nn.Hardtanh(-1, 2),
    "hardtanh from 0": lambda: nn.Hardtanh(0, 3),
    "silu": nn.SiLU,
    "silu in place": lambda: nn.SiLU(inplace=True),
    "gelu": nn.GELU,
    "gelu, tanh": lambda: nn.GELU("tanh"),
    "hardswish": nn.Hardswish,
    "elu": nn.ELU,
    "mish": nn.Mish,
}

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS.keys())


def relevances(
    model: nn.Module, x: Tensor, seed: Tensor, rule: Rule
) -> list[tuple[Tensor, dict[str, dict[str, Tensor]]]]:
    """Return relevance and books of one target: with more to follow, and then as the last one."""
    propagation = Propagation(model, x, Only(rule))
    of_both = [propagation.propagate(seed, keep=keep) for keep in (True, False)]
    return [(one.relevance, {account.layer: kinds for account, kinds in one.books.entries.items()}) for one in of_both]


# Against the formulas, one neuron after another


def with_norm(layer: nn.Module, norm: nn.Module) -> nn.Sequential:
    """Return the layer and a batch norm with gains of either sign and of zero behind it."""
    lively(norm)
    with torch.no_grad():
        norm.weight[:3].copy_(torch.tensor([-1.5, 0.0, 2.0]))
    return nn.Sequential(layer, norm)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "wide linear": (lambda: nn.Linear(20, 5), (20,)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 2, bias=False), (2, 3, 3)),
    "linear and norm": (lambda: with_norm(nn.Linear(7, 5), nn.BatchNorm1d(5)), (7,)),
    "wide conv2d and norm": (lambda: with_norm(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)), (3, 2, 2)),
}


@every_rule
@every_activation
@pytest.mark.parametrize(
    ("name", "behind_relu"),
    [
        ("linear", False),
        ("linear", True),
        ("wide linear", True),
        ("conv2d", False),
        ("linear and norm", True),
        ("wide conv2d and norm", False),
        ("wide conv2d and norm", True),
    ],
)
def test_activation_hands_relevance_on_unchanged(
    name: str, behind_relu: bool, activation: Callable[[], nn.Module], rule: Rule
) -> None:
    make, shape = LAYERS[name]
    layer, act = seeded(make), activation()
    connections = layer[0] if isinstance(layer, nn.Sequential) else layer
    x = signed(2, *shape) * 2
    entering = x.relu() if behind_relu else x
    with torch.no_grad():
        z = layer(entering)
        a = act(z.clone()).flatten(1)
    head = seeded(lambda: nn.Linear(a.shape[1], 3), seed=1)
    first, second = matrix_of(layer, shape, connections), matrix_of(head, (a.shape[1],))
    seed = signed(2, 3, seed=2)
    above = (a @ second.w + second.b) * seed
    model = nn.Sequential(nn.ReLU() if behind_relu else nn.Identity(), layer, act, nn.Flatten(), head).eval()
    of_a = [slow(rule, second, a[n], above[n])[0] for n in range(2)]
    expected = [slow(rule, first, entering[n].flatten(), of_a[n]) for n in range(2)]
    for relevance, books in relevances(model, x, seed, rule):
        below = [kinds for key, kinds in books.items() if key != "4"]
        booked = {} if not below else below[0]
        assert len(below) <= 1
        for n, (of_x, bias, epsilon) in enumerate(expected):
            torch.testing.assert_close(relevance[n].flatten(), of_x, **CLOSE)
            for kind, share in ((BIAS, bias), (EPSILON, epsilon)):
                there = booked[kind][n] if kind in booked else torch.tensor(0.0)
                torch.testing.assert_close(there.double(), share.detach().double(), **CLOSE)
