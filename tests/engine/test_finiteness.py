"""Activations that are not finite: the operation that they come from is named."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import LRP0, Case, assert_right, build, case, explain, fingerprint, inputs
from torch import Tensor, nn

from lrp_cli.errors import EngineError


class Net(nn.Module):
    """Two blocks, with a step between them."""

    def __init__(self, step: Callable[["Net", Tensor], Tensor] = lambda net, x: x) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.fc = nn.Linear(4, 5)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.step(self, self.features(x)).mean((2, 3)))


def net(step: Callable[[Net, Tensor], Tensor] = lambda net, x: x) -> Case:
    return case(lambda: Net(step), 2, 3, 8, 8)


def message(network: Case) -> str:
    with pytest.raises(EngineError) as caught:
        explain(network, LRP0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("number", [0, 2, 4])
def test_the_layer_that_overflows_is_named(number: int) -> None:
    """In single precision, with large but finite weights."""
    network = net()
    network = Case(network.model.float(), network.x.float())
    with torch.no_grad():
        for layer in network.model.features[::2]:
            layer.weight.abs_()
            layer.bias.fill_(1)
        network.model.features[number].weight.fill_(1e38)
        network.model.features[number].bias.fill_(3e38)
    network.x.abs_().add_(4)
    before = fingerprint(network.model)
    named = f"from layer 'features.{number}' (Conv2d, operation conv2d) on: it overflows on this input"
    assert message(network) == f"activations are not finite {named}"
    assert fingerprint(network.model) == before


def normalised_by_nothing(x: Tensor) -> Tensor:
    return x / (x - x).abs().amax(dim=1, keepdim=True)


def overflowing_in_place(x: Tensor) -> Tensor:
    x[:, :2] *= 1e308
    x[:, :2] *= 1e308
    return x


STEPS: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "exp": (lambda x: torch.exp(x.abs() * 1e6).mul(2), "exp", "overflows"),
    "product": (lambda x: (x.abs() * 1e200).relu() * 1e200, "mul", "overflows"),
    "0 / 0": (lambda x: (x * 0) / x.mul(0).abs(), "div", "nan"),
    "1 / 0": (lambda x: x / (x * 0), "div", "overflows"),
    "root": (lambda x: torch.sqrt(x - 1e3), "sqrt", "nan"),
    "log": (lambda x: torch.log(F.relu(-x.abs())), "log", "overflows"),
    "in place, by a view": (overflowing_in_place, "mul", "overflows"),
    "mask that leaves nothing": (
        lambda x: x.masked_fill(torch.ones(8, dtype=torch.bool)[: x.shape[3]], float("-inf")).softmax(dim=3),
        "softmax",
        "nan",
    ),
    "mask times zero": (lambda x: x.masked_fill(x.detach() < x.detach().mean(), float("-inf")) * 0, "mul", "nan"),
    "overflow, then a mask": (
        lambda x: (
            (x.abs() * 1e308 * 1e308).masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), float("-inf")).softmax(3)
        ),
        "mul",
        "overflows",
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_operation_that_makes_it_is_named(name: str) -> None:
    step, operation, what = STEPS[name]
    said = message(net(lambda net, x: step(x)))
    assert f"from layer 'Net' (Net, operation {operation}) on" in said
    assert what in said


@pytest.mark.parametrize(
    "step",
    [lambda x: x + (x * 1e308 * 1e308).tanh(), lambda x: F.relu(x) + (x * 1e308 * 1e308).clamp(-1, 1) * 0.1],
)
def test_overflow_that_the_output_does_not_show(step: Callable[[Tensor], Tensor]) -> None:
    network = net(lambda net, x: step(x))
    assert network.model(network.x).isfinite().all()
    said = message(network)
    assert said.startswith("the books do not balance, as activations are not finite")
    assert "from layer 'Net' (Net, operation mul) on: it overflows" in said


class Masked(nn.Module):
    """Attention by hand under a mask of minus infinity, then a step."""

    def __init__(self, how: str, step: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.qkv, self.fc = nn.Linear(6, 12), nn.Linear(4, 5)
        self.register_buffer("mask", torch.full((5, 5), float("-inf")).triu(1))
        self.how, self.step = how, step

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        logits = q @ k.transpose(1, 2)
        if self.how == "buffer":
            logits = logits + self.mask
        elif self.how == "masked_fill":
            logits = logits.masked_fill(self.mask < 0, float("-inf"))
        elif self.how == "masked_fill, in place":
            logits = logits.clone().masked_fill_(self.mask < 0, float("-inf"))
        elif self.how == "where":
            logits = torch.where(self.mask < 0, -torch.inf, logits)
        elif self.how == "log":
            logits = logits + torch.ones(5, 5, dtype=x.dtype).tril().log()
        return self.fc(self.step(logits.softmax(dim=-1) @ v).mean(dim=1))


MASKS = ["buffer", "masked_fill", "masked_fill, in place", "where", "log"]


@pytest.mark.parametrize("how", MASKS)
def test_infinite_masks_are_no_fault(how: str) -> None:
    network = case(lambda: Masked(how), 2, 5, 6)
    assert_right(explain(network, LRP0), network)


@pytest.mark.parametrize("how", MASKS)
def test_infinite_masks_are_not_blamed_for_what_comes_after(how: str) -> None:
    network = case(lambda: Masked(how, lambda x: x * 1e200 * 1e200), 2, 5, 6)
    assert "from layer 'Masked' (Masked, operation mul) on: it overflows" in message(network)


@pytest.mark.parametrize("how", MASKS)
def test_infinite_masks_are_not_blamed_for_what_comes_before(how: str) -> None:
    network = case(lambda: Masked(how), 2, 5, 6)
    with torch.no_grad():
        network.model.qkv.weight.fill_(1e308)
    network.x.abs_().add_(2)
    assert "from layer 'qkv' (Linear, operation linear) on: it overflows" in message(network)


def test_not_finite_parameters_and_inputs_come_first() -> None:
    network = net()
    with torch.no_grad():
        network.model.features[2].bias[0] = float("inf")
    assert "features.2.bias" in message(network)
    x = inputs(2, 3, 8, 8)
    x[0, 0, 0, 0] = float("nan")
    assert "the input is not finite" in message(Case(build(lambda: Net().double()), x))
