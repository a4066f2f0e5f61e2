"""Activations, which the engine takes as one with the layer in front of them: what comes out is as if it did not."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_rules import CLOSE, RULES, Matrix, Only, lively, matrix_of, seeded, signed, slow
from torch import Tensor, nn

from lrp_cli.engine.books import BIAS, EPSILON
from lrp_cli.engine.layers import Layer
from lrp_cli.engine.linear_maps import Convolution
from lrp_cli.engine.propagation import Propagation
from lrp_cli.engine.rules import OutputUse, Rule, ZBox

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
    "elu that turns signs": lambda: nn.ELU(-0.5),
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


# Outputs that something else reads, too: relevance is that of a twin that computes the layer once for every reader

Function = Callable[[Tensor], Tensor]

IN_PLACE: dict[str, tuple[Function, Function]] = {
    "relu": (F.relu, F.relu),
    "relu in place": (torch.relu_, F.relu),
    "relu6 in place": (lambda z: F.relu6(z, inplace=True), F.relu6),
    "hardtanh in place": (lambda z: F.hardtanh(z, 0, 3, inplace=True), lambda z: F.hardtanh(z, 0, 3)),
    "silu": (F.silu, F.silu),
    "silu in place": (lambda z: F.silu(z, inplace=True), F.silu),
}
"""Activations, as used and out of place."""

Step = Callable[[Function, Function, Tensor], Tensor]
"""What is made of an activation, a layer and the layer's input."""


def read_before(act: Function, layer: Function, x: Tensor) -> Tensor:
    z = layer(x)
    beside = z * 0.5
    return torch.cat([act(z), beside], dim=1)


def read_after(act: Function, layer: Function, x: Tensor) -> Tensor:
    z = layer(x)
    a = act(z.clone())
    return torch.cat([a, z * 0.5], dim=1)


def activated_twice(act: Function, layer: Function, x: Tensor) -> Tensor:
    z = layer(x)
    beside = F.gelu(z)
    return act(z) + beside


def added_to_itself(act: Function, layer: Function, x: Tensor) -> Tensor:
    z = layer(x)
    kept = z * 1.0
    a = act(z)
    a += kept
    return a


def read_through_a_transpose(act: Function, layer: Function, x: Tensor) -> Tensor:
    z = layer(x)
    beside = z.mT * 0.5
    return torch.cat([act(z), beside], dim=1)


def read_out_of_sight(act: Function, layer: Function, x: Tensor) -> Tensor:
    z = layer(x)
    a = act(z.clone())
    with torch._C.DisableTorchFunction():
        beside = z * 0.5
    return torch.cat([a, beside], dim=1)


def activated_as_a_transposed_view(act: Function, layer: Function, x: Tensor) -> Tensor:
    z = layer(x)
    beside = z * 0.5
    return torch.cat([act(z.transpose(1, 2)).transpose(1, 2), beside], dim=1)


def half_activated(act: Function, layer: Function, x: Tensor) -> Tensor:
    z = layer(x)
    beside = z[:, :2] * 0.5
    return torch.cat([act(z[:, :2]), beside], dim=1)


def activation_read_twice(act: Function, layer: Function, x: Tensor) -> Tensor:
    z = layer(x)
    a = act(z)
    return torch.cat([a, a * 0.5], dim=1)


READERS: dict[Step, Step] = {
    read_before: lambda act, layer, x: torch.cat([act(layer(x)), layer(x) * 0.5], dim=1),
    read_after: lambda act, layer, x: torch.cat([act(layer(x)), layer(x) * 0.5], dim=1),
    activated_twice: lambda act, layer, x: act(layer(x)) + F.gelu(layer(x)),
    added_to_itself: lambda act, layer, x: act(layer(x)) + layer(x),
    read_through_a_transpose: lambda act, layer, x: torch.cat([act(layer(x)), layer(x).transpose(2, 3) * 0.5], dim=1),
    read_out_of_sight: lambda act, layer, x: torch.cat([act(layer(x)), layer(x) * 0.5], dim=1),
    activated_as_a_transposed_view: lambda act, layer, x: torch.cat([act(layer(x)), layer(x) * 0.5], dim=1),
    half_activated: lambda act, layer, x: torch.cat([act(layer(x)[:, :2]), layer(x)[:, :2] * 0.5], dim=1),
    activation_read_twice: lambda act, layer, x: torch.cat([act(layer(x)), act(layer(x)) * 0.5], dim=1),
}


class Net(nn.Module):
    """A convolution behind a ReLU, with a batch norm or without, and what is made of it."""

    def __init__(self, step: Step, act: Function, norm: bool) -> None:
        super().__init__()
        conv = nn.Conv2d(3, 4, 3, padding=1)
        self.layer = with_norm(conv, nn.BatchNorm2d(4)) if norm else conv
        self.step, self.act = step, act

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self.act, self.layer, F.relu(x)).flatten(1)


SOME = ("lrp-0", "epsilon", "epsilon, relative", "z+", "alpha 2 beta 1", "gamma 0.25", "gamma 3, no bias", "flat")

some_rules = pytest.mark.parametrize("rule", [RULES[name] for name in SOME], ids=SOME)


def assert_twins(model: nn.Module, twin: nn.Module, x: Tensor, rule: Rule) -> None:
    with torch.no_grad():
        y = twin(x)
        torch.testing.assert_close(model(x), y, rtol=1e-12, atol=1e-12)
    seed = signed(*y.shape, seed=3)
    for (relevance, books), (expected, books_of_twin) in zip(
        relevances(model, x, seed, rule), relevances(twin, x, seed, rule), strict=True
    ):
        torch.testing.assert_close(relevance, expected, **CLOSE)
        absorbed, absorbed_by_twin = (
            sum(sums for kinds in entries.values() for sums in kinds.values()) for entries in (books, books_of_twin)
        )
        torch.testing.assert_close(absorbed, absorbed_by_twin, rtol=1e-9, atol=1e-9)


@some_rules
@pytest.mark.parametrize(("act", "plain"), IN_PLACE.values(), ids=IN_PLACE.keys())
@pytest.mark.parametrize(("step", "twin"), READERS.items(), ids=[step.__name__ for step in READERS])
@pytest.mark.parametrize("norm", [False, True], ids=["no norm", "norm"])
def test_an_output_that_is_read_elsewhere(
    step: Step, twin: Step, act: Function, plain: Function, norm: bool, rule: Rule
) -> None:
    x = signed(2, 3, 3, 3)
    assert_twins(seeded(lambda: Net(step, act, norm)), seeded(lambda: Net(twin, plain, norm)), x, rule)


class ReadBeforeNorm(nn.Module):
    """A convolution behind a ReLU whose output something else reads than the batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        lively(self.norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.relu(x))
        return torch.cat([F.relu(self.norm(y)), y], dim=1).flatten(1)


class Cautious(Only):
    """Has all outputs kept, whatever the rule reads of them."""

    def needs_output(self, layer: Layer) -> OutputUse:
        return OutputUse.WHOLE


@some_rules
@pytest.mark.parametrize("step", READERS, ids=[step.__name__ for step in READERS])
@pytest.mark.parametrize("norm", [False, True], ids=["no norm", "norm"])
@pytest.mark.parametrize("assignment", [Only, Cautious])
def test_several_targets_of_an_output_that_is_read_elsewhere(
    assignment: type[Only], step: Step, norm: bool, rule: Rule
) -> None:
    """Inputs are positive, so that all outputs have a positive part, and rules may need no more than ratios."""
    assert_as_each_alone(seeded(lambda: Net(step, F.relu, norm)), assignment(rule))


@some_rules
@pytest.mark.parametrize("assignment", [Only, Cautious])
def test_several_targets_of_an_output_that_is_read_before_its_norm(assignment: type[Only], rule: Rule) -> None:
    assert_as_each_alone(seeded(ReadBeforeNorm), assignment(rule))


def assert_as_each_alone(model: nn.Module, assignment: Only) -> None:
    """Explain several targets of one forward pass, and each of its own."""
    x = signed(2, 3, 3, 3).abs() + 0.1
    together = Propagation(model, x, assignment)
    for number in range(3):
        seed = signed(*together.logits.shape, seed=number)
        of_several = together.propagate(seed)
        alone = Propagation(model, x, assignment).propagate(seed, keep=False)
        torch.testing.assert_close(of_several.relevance, alone.relevance, **CLOSE)
        torch.testing.assert_close(of_several.books.total(), alone.books.total(), **CLOSE)


@some_rules
def test_a_target_that_fails_spoils_none_that_follows(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(lambda: nn.Sequential(Net(lambda act, layer, x: act(layer(x)), F.relu, True), nn.Linear(36, 3)))
    x, seed = signed(2, 3, 3, 3).abs() + 0.1, torch.ones(2, 3).double()
    expected = Propagation(model, x, Only(rule)).propagate(seed)
    propagation = Propagation(model, x, Only(rule))
    with monkeypatch.context() as patch:
        patch.setattr(Convolution, "pull", lambda *_: pytest.fail("no memory"))
        patch.setattr(Convolution, "hand_down", lambda *_: pytest.fail("no memory"))
        with pytest.raises(pytest.fail.Exception, match="no memory"):
            propagation.propagate(seed)
    found = propagation.propagate(seed)
    torch.testing.assert_close(found.relevance, expected.relevance, **CLOSE)
    torch.testing.assert_close(found.books.total(), expected.books.total(), **CLOSE)


def two_in_a_row(act: Function, layer: Function, x: Tensor) -> Tensor:
    return act(act(layer(x)))


def negated(act: Function, layer: Function, x: Tensor) -> Tensor:
    return act(layer(x)).neg_()


def input_negated(act: Function, layer: Function, x: Tensor) -> Tensor:
    x = x + x[:, :1]
    z = layer(x)
    x.neg_()
    return torch.cat([act(z), x], dim=1)


def input_written(act: Function, layer: Function, x: Tensor) -> Tensor:
    x = x + x[:, :1]
    z = layer(x)
    x[:, :1] = x[:, 1:2]
    return torch.cat([act(z), x], dim=1)


def part_changed(act: Function, layer: Function, x: Tensor) -> Tensor:
    z = layer(x)
    part, rest = z.split((1, z.shape[-1] - 1), dim=-1)
    part *= 2
    return act(torch.cat([rest, part], dim=-1))


def sum_activated(act: Function, layer: Function, x: Tensor) -> Tensor:
    return act(act(layer(x) + x[:, :1])).neg_()


def pooled_before(act: Function, layer: Function, x: Tensor) -> Tensor:
    y = layer(x) + x[:, :1]
    pooled = F.max_pool2d(y, 2)
    return act(y) + pooled


def averaged_before(act: Function, layer: Function, x: Tensor) -> Tensor:
    y = layer(x) + x[:, :1]
    averaged = F.avg_pool2d(y, 3)
    return act(y) + averaged


def size_before(act: Function, layer: Function, x: Tensor) -> Tensor:
    y = layer(x) + x[:, :1]
    size = y.abs() + y.amax(dim=1, keepdim=True) + y.norm(dim=1, keepdim=True)
    return act(y).neg_() + size


def product_before(act: Function, layer: Function, x: Tensor) -> Tensor:
    y = layer(x) + x[:, :1]
    product = y * y
    return act(y).neg_() + product


def view_negated(act: Function, layer: Function, x: Tensor) -> Tensor:
    y = act(layer(x) + x[:, :1])
    y[:, :2].neg_()
    return y


def size_apart(act: Function, layer: Function, x: Tensor) -> Tensor:
    y = layer(x) + x[:, :1]
    return y.abs() + y.amax(dim=1, keepdim=True) + y.norm(dim=1, keepdim=True) - act(y)


def product_apart(act: Function, layer: Function, x: Tensor) -> Tensor:
    y = layer(x) + x[:, :1]
    return y * y - act(y)


CHANGED: dict[Step, Step] = {
    two_in_a_row: lambda act, layer, x: act(act(layer(x))),
    negated: lambda act, layer, x: -act(layer(x)),
    input_negated: lambda act, layer, x: torch.cat([act(layer(x + x[:, :1])), -(x + x[:, :1])], dim=1),
    input_written: lambda act, layer, x: torch.cat(
        [act(layer(x + x[:, :1])), (x + x[:, :1])[:, [1, *range(1, x.shape[1])]]], dim=1
    ),
    part_changed: lambda act, layer, x: act(torch.cat([layer(x)[..., 1:], layer(x)[..., :1] * 2], dim=-1)),
    sum_activated: lambda act, layer, x: -act(act(layer(x) + x[:, :1])),
    pooled_before: lambda act, layer, x: act(layer(x) + x[:, :1]) + F.max_pool2d(layer(x) + x[:, :1], 2),
    averaged_before: lambda act, layer, x: act(layer(x) + x[:, :1]) + F.avg_pool2d(layer(x) + x[:, :1], 3),
    size_before: size_apart,
    product_before: product_apart,
    view_negated: lambda act, layer, x: act(layer(x) + x[:, :1]) * torch.tensor([-1.0, -1, 1, 1])[:, None, None],
}


@some_rules
@pytest.mark.parametrize(("act", "plain"), IN_PLACE.values(), ids=IN_PLACE.keys())
@pytest.mark.parametrize(("step", "twin"), CHANGED.items(), ids=[step.__name__ for step in CHANGED])
def test_what_is_needed_for_the_way_back_may_be_changed_in_place(
    step: Step, twin: Step, act: Function, plain: Function, rule: Rule
) -> None:
    x = signed(2, 3, 3, 3)
    assert_twins(seeded(lambda: Net(step, act, False)), seeded(lambda: Net(twin, plain, False)), x, rule)


class LinearNet(nn.Module):
    """A linear layer behind a ReLU, and what is made of it: of its input, output and activation one is held."""

    def __init__(self, step: Step, act: Function) -> None:
        super().__init__()
        self.layer, self.step, self.act = nn.Linear(3, 3), step, act

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self.act, self.layer, F.relu(x)).flatten(1)


OF_ANY_LAYER = {step: twin for step, twin in (READERS | CHANGED).items() if step is not view_negated}


@some_rules
@pytest.mark.parametrize(("act", "plain"), IN_PLACE.values(), ids=IN_PLACE.keys())
@pytest.mark.parametrize(("step", "twin"), OF_ANY_LAYER.items(), ids=[step.__name__ for step in OF_ANY_LAYER])
def test_what_a_linear_layer_s_output_is_read_or_changed_by(
    step: Step, twin: Step, act: Function, plain: Function, rule: Rule
) -> None:
    x = signed(2, 3, 3, 3)
    assert_twins(seeded(lambda: LinearNet(step, act)), seeded(lambda: LinearNet(twin, plain)), x, rule)


class LinearReadBeforeNorm(nn.Module):
    """A linear layer behind a ReLU whose output something else reads than the batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(5, 4), nn.BatchNorm1d(4)
        lively(self.norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(F.relu(x))
        return torch.cat([F.relu(self.norm(y)), y], dim=1)


@some_rules
@pytest.mark.parametrize("assignment", [Only, Cautious])
def test_a_linear_layer_s_output_that_is_read_before_its_norm(assignment: type[Only], rule: Rule) -> None:
    """The norm is a layer of its own then; neither layer's rule may have the other one's input or output let go."""
    model, x, seed = seeded(LinearReadBeforeNorm), signed(2, 5), signed(2, 8, seed=3)
    with torch.no_grad():
        entering, scale = x.relu(), model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
        y = model.layer(entering)
        activated = model.norm(y).relu()
    norm = Matrix(scale.diag(), model.norm.bias - model.norm.running_mean * scale, torch.eye(4).double())
    layer = matrix_of(model.layer, (5,))
    expected = []
    for n in range(2):
        of_y = slow(rule, norm, y[n], (activated * seed[:, :4])[n])[0] + (y * seed[:, 4:])[n]
        expected.append(slow(rule, layer, entering[n], of_y)[0])
    propagation = Propagation(model, x, assignment(rule))
    for keep in (True, True, False):
        relevance = propagation.propagate(seed, keep=keep).relevance
        torch.testing.assert_close(relevance, torch.stack(expected), **CLOSE)
