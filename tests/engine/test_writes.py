"""Models that take views and write in place, in any order: LRP-0 is gradient times input all the same."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import LRP0, Case, assert_right, assert_samples_independent, explain, inputs, ruleset
from torch import Tensor, nn

from lrp_cli.errors import EngineError
from lrp_cli.explainer import Explainer, Explanation
from lrp_cli.inspection import inspect
from lrp_cli.rulesets import NamedRuleset

MODELS = range(40)

NEXT_TO_LRP0 = ruleset({"rule": {"type": "epsilon", "epsilon": 1e-13}})
"""The same as LRP-0, but for rounding; it reads a layer's output, which must not be written into meanwhile."""


def written(tensor: Tensor, index: tuple[slice, ...], value: Tensor | float) -> Tensor:
    tensor[index] = value
    return tensor


VIEWS: list[Callable[[Tensor], Tensor]] = [
    lambda t: t.flatten(1).reshape(t.shape),
    lambda t: t.reshape(-1).view(t.shape),
    lambda t: t.transpose(1, 2).transpose(1, 2),
    lambda t: t.narrow(1, 0, 1),
    lambda t: t.select(1, -1).unsqueeze(1),
    lambda t: t[..., None].squeeze(-1),
    lambda t: t[:, :1],
    lambda t: t[:, ::2],
    lambda t: t.permute(2, 0, 1).permute(1, 2, 0),
    lambda t: t.contiguous(),
    lambda t: t.to(t.dtype),
    lambda t: t.mT.mT,
    lambda t: nn.functional.dropout(t, 0.5, training=False),
    lambda t: t.expand(2, -1, -1)[1:],
]
WRITES: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda t, other: t.relu_(),
    lambda t, other: torch.relu_(t),
    lambda t, other: nn.functional.leaky_relu_(t, 0.3),
    lambda t, other: nn.functional.relu(t, inplace=True),
    lambda t, other: nn.functional.dropout(t, 0.5, training=False, inplace=True),
    lambda t, other: t.mul_(1.5),
    lambda t, other: t.div_(2),
    lambda t, other: t.masked_fill_(torch.arange(4) == 2, 0.0),
    lambda t, other: t.clamp_(min=0),
    lambda t, other: t.add_(other.clone()),
    lambda t, other: t.sub_(other.clone(), alpha=0.5),
    lambda t, other: t.add_(0.25),
    lambda t, other: t.neg_(),
    lambda t, other: t.copy_(other * 2),
    lambda t, other: t.zero_(),
    lambda t, other: written(t, (slice(None), slice(None), slice(0, 2)), other[..., 1:3] * 0.5),
    lambda t, other: written(t, (slice(None), slice(0, 1)), 0.5),
]


Step = tuple[str, int, int, int]
"""What is done ("view", "write", "layer" or "sum"), which of the ways, to which tensor, and with which other one."""


def steps(seed: int) -> list[Step]:
    """Return random steps; numbers are taken modulo what there is to choose from."""
    choose = random.Random(seed)
    kinds = choose.choices(["view", "write", "layer", "sum"], [40, 35, 15, 10], k=choose.randint(4, 10))
    return [(kind, choose.randrange(1000), choose.randrange(1000), choose.randrange(1000)) for kind in kinds]


class Model(nn.Module):
    """Takes the steps with a growing number of tensors, shape (1, up to 6, 4); adds up what has become of them."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4)).double()
            self.head = nn.Linear(4, 3).double()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        tensors = [self.layers[0](x), self.layers[1](x) * 0.5]
        for kind, way, one, another in self.steps:
            tensor = tensors[one % len(tensors)]
            if kind == "view":
                tensors.append(VIEWS[way % len(VIEWS)](tensor))
            elif kind == "write":
                others = [other for other in tensors if other.shape == tensor.shape]
                WRITES[way % len(WRITES)](tensor, others[another % len(others)])
            elif kind == "layer":
                tensors.append(self.layers[way % len(self.layers)](tensor))
            else:
                tensors.append(torch.relu(tensor) + tensor)
        return torch.stack([self.head(tensor.sum(1)) for tensor in tensors]).sum(0)


def gradient_times_input(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits, and gradient times input of the second, in forward mode: there nothing is saved."""
    slopes = []
    for direction in torch.eye(x.numel(), dtype=x.dtype):
        logits, slope = torch.func.jvp(model, (x,), (direction.view_as(x),))
        slopes.append(slope[0, 1])
    return logits, torch.stack(slopes).view_as(x) * x


def assert_gradient_times_input(explanation: Explanation, model: nn.Module, x: Tensor) -> None:
    logits, expected = gradient_times_input(model, x)
    torch.testing.assert_close(explanation.logits, logits)
    torch.testing.assert_close(explanation.relevance, expected, rtol=1e-8, atol=1e-10)
    assert explanation.imbalance.abs().item() < 1e-9 * max(1, explanation.scores.abs().item())


@pytest.mark.parametrize("seed", MODELS)
def test_inspected(seed: int) -> None:
    """Tracing makes tensors of their own of views; they change with what they are views of all the same."""
    model, x = Model(steps(seed)), inputs(1, 6, 4, seed=seed)
    inspection = inspect(Explainer(model, LRP0), x, 1)
    assert_gradient_times_input(inspection.explanation, model, x)
    assert inspection.rows[-1].relevance_in == pytest.approx(inspection.explanation.scores.item())


@pytest.mark.parametrize("config", [LRP0, NEXT_TO_LRP0], ids=["lrp-0", "epsilon"])
@pytest.mark.parametrize("seed", MODELS)
def test_explained(seed: int, config: NamedRuleset) -> None:
    model, x = Model(steps(seed)), inputs(1, 6, 4, seed=seed)
    explainer = Explainer(model, config)
    for _ in range(4):  # the first as the operations come, later ones by its plan
        assert_gradient_times_input(explainer.explain(x, 1), model, x)


class Doing(nn.Module):
    """Does something with the output of a layer, shape (1, 6, 4), and adds up what that returns."""

    def __init__(self, what: Callable[[Tensor], list[Tensor]]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()
        self.what = what
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.last(tensor.sum(1)) for tensor in self.what(self.first(x))]).sum(0)


def test_a_view_of_what_took_the_place_of_a_tensor_is_not_taken_for_made_out_of_sight() -> None:
    """Autograd makes a new node for a view whose base was written into, when somebody asks for it."""

    def what(y: Tensor) -> list[Tensor]:
        y = y * 0.5
        part = y[:, :1]
        nn.functional.leaky_relu_(part, 0.3)  # y's place is taken
        another = part[..., :3]
        part.neg_()  # and written into
        return [nn.functional.pad(another, (0, 1)), y]

    model, x = Doing(what), inputs(1, 6, 4)
    assert_gradient_times_input(Explainer(model, LRP0).explain(x, 1), model, x)


def test_a_view_earlier_and_no_longer() -> None:
    """As squeeze and excitation do: the view is read before what it is a view of is written into."""

    def what(y: Tensor) -> list[Tensor]:
        mean = y.view(1, -1).mean()
        return [y.mul_(2), mean.expand(1, 6, 4)]

    model, x = Doing(what), inputs(1, 6, 4)
    assert_gradient_times_input(inspect(Explainer(model, LRP0), x, 1).explanation, model, x)


class EverySecond(torch.autograd.Function):
    """Returns a tensor whose entries do not lie side by side in memory, and which autograd takes for no view."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return (y * 1)[:, ::2]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        return torch.stack([g, torch.zeros_like(g)], 2).flatten(1, 2)


@pytest.mark.parametrize("look", [Explainer.explain, inspect])
def test_a_view_that_cannot_be_found_is_refused(look: Callable[..., Any]) -> None:
    def what(y: Tensor) -> list[Tensor]:
        z = EverySecond.apply(y)
        part = z[:, :2]
        z.relu_()
        return [part]

    with pytest.raises(EngineError, match=r"a view .* is read in Doing \(Doing\), .*change the model"):
        look(Explainer(Doing(what), LRP0, on_unknown="gradient"), inputs(1, 6, 4), 1)


class BatchSecond(nn.Module):
    """Has the batch in the second dimension, as transformers of sequences do."""

    def __init__(self, rectify: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second, self.last = (nn.Linear(4, 4).double() for _ in range(3))
        self.rectify = rectify
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.rectify(self.first(x.transpose(0, 1))))
        return self.last(y.transpose(0, 1).mean(1))


@pytest.mark.parametrize("rectify", [torch.relu, torch.relu_, nn.functional.gelu], ids=["relu", "relu_", "gelu"])
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("bias", ["use", "ignore"])
def test_the_batch_in_another_dimension(rectify: Callable[[Tensor], Tensor], relative: bool, bias: str) -> None:
    network = Case(BatchSecond(rectify), inputs(3, 6, 4))
    config = ruleset({"rule": {"type": "epsilon", "epsilon": 0.3, "relative": relative, "bias": bias}})
    assert_right(explain(network, config), network)
    assert_samples_independent(network, config, 1e-12)
