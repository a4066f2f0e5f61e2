"""Passes that follow a plan give what a first pass gives, to the last bit; and nothing else when the model differs."""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import BOUNDS, build, inputs
from torch import Tensor, nn
from torch.nn.utils import prune

from lrp_cli.engine.interception import Interception
from lrp_cli.errors import EngineError
from lrp_cli.explainer import Explainer, Explanation

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated", "ignore:Using padding=.same.")

PRESETS = ("epsilon", "epsilon-plus-flat", "epsilon-gamma-box", "epsilon-alpha2-beta1", "lrp-0", "attnlrp-gamma")


def assert_same(a: Explanation, b: Explanation) -> None:
    """Assert that two explanations are equal bit by bit, books included, and in the same order."""
    assert torch.equal(a.logits, b.logits)
    assert torch.equal(a.relevance, b.relevance)
    assert [*a.absorbed] == [*b.absorbed]
    assert all(torch.equal(absorbed, b.absorbed[layer]) for layer, absorbed in a.absorbed.items())
    kinds = [{account: [*entries] for account, entries in one.books.entries.items()} for one in (a, b)]
    assert kinds[0] == kinds[1]


def fresh(model: nn.Module, x: Tensor, config: str = "epsilon") -> Explanation:
    """Return what an explainer that knows nothing of the model gives."""
    return Explainer(model, config, bounds=BOUNDS).explain(x)


@pytest.fixture
def by_themselves(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operations that are executed by themselves, not as members of a group."""
    names: list[str] = []
    handle = Interception._handle

    def noting(self: Interception, name: str, *rest: Any) -> Any:
        names.append(name)
        return handle(self, name, *rest)

    monkeypatch.setattr(Interception, "_handle", noting)
    return names


class Variety(nn.Module):
    """Layers alone and with what follows them, read once and twice, in place and not, reused and shared."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6)
        self.norm3 = nn.BatchNorm2d(12)
        self.same = nn.Conv2d(12, 12, 4, padding="same", padding_mode="zeros")
        self.up = nn.ConvTranspose2d(12, 5, 2, stride=2)
        self.hidden, self.head = nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        assert x.shape[1] == 6
        x = F.relu(self.norm1(x), inplace=True)
        y = self.norm2(self.conv2(x))
        F.relu_(y)  # what it returns is not used
        twice = self.conv2(y)
        y = F.silu(self.norm2(twice), inplace=True) + twice  # the batch norm is not alone
        y = F.hardtanh(self.norm3(torch.cat([x, y], dim=1)), 0.0, 6.0)
        y = F.gelu(self.up(self.same(y)))
        y = y.flatten(2).transpose(1, 2)
        y = torch.relu(self.hidden(y)).mean(dim=1)
        return self.head(F.dropout(y, training=self.training))


@pytest.mark.parametrize("config", PRESETS)
def test_later_explanations_are_the_first_ones_to_the_last_bit(config: str, by_themselves: list[str]) -> None:
    x = inputs(3, 3, 12, 12, dtype=torch.float32)
    model = build(Variety, x)
    explainer = Explainer(model, config, bounds=BOUNDS)
    first = explainer.explain(x)
    count = len(by_themselves)
    for _ in range(3):
        assert_same(explainer.explain(x), first)
    assert len(by_themselves) - count < 2.5 * count  # it is the plan that gave them
    other = inputs(3, 3, 12, 12, seed=9, dtype=torch.float32)
    assert_same(explainer.explain(other), fresh(model, other, config))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5", "vgg11_bn"])
def test_whole_networks(name: str, by_themselves: list[str]) -> None:
    x = inputs(2, 3, 64, 64, dtype=torch.float32)
    explainer = Explainer(build(lambda: torchvision.models.get_model(name), x), "epsilon-gamma-box", bounds=BOUNDS)
    first = explainer.explain(x)
    assert "batch_norm" in by_themselves
    by_themselves.clear()
    assert_same(explainer.explain(x), first)
    assert not {"conv2d", "linear", "batch_norm", "relu"} & set(by_themselves)


def test_several_targets_of_a_planned_pass() -> None:
    x = inputs(2, 3, 12, 12, dtype=torch.float32)
    explainer = Explainer(build(Variety, x), "epsilon-plus")
    first = explainer.forward(x)
    of_first = [first.explain(target) for target in range(4)]
    second = explainer.forward(x)
    for target in (3, 1, 0, 2):
        assert_same(second.explain(target), of_first[target])


def test_each_shape_has_its_plan(by_themselves: list[str]) -> None:
    model = build(Variety, inputs(3, 3, 12, 12))
    explainer = Explainer(model.float(), "epsilon-plus")
    batches = [inputs(n, 3, 12 + n, 12, dtype=torch.float32) for n in (1, 2, 3, 4, 5, 6)]
    for x in batches * 2:
        assert_same(explainer.explain(x), fresh(model, x, "epsilon-plus"))


class Wayward(nn.Module):
    """A network that does something else once it is told to."""

    def __init__(self, other_way: Callable[["Wayward", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.other_way, self.is_other = other_way, False

    def forward(self, x: Tensor) -> Tensor:
        t = self.conv(x)
        z = self.other_way(self, x, t) if self.is_other else torch.relu(self.norm(t))
        return self.head(z.mean(dim=(2, 3)))


class Doubling(torch.autograd.Function):
    """Out of sight of any interception."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return t.detach() * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * 2


def swallowing(net: Wayward, x: Tensor, t: Tensor) -> Tensor:
    """Hide from the engine that it raises."""
    try:
        z = F.softplus(t)
    except Exception:
        z = torch.relu(net.norm(t))
    return torch.relu(net.norm(z))


WAYS: dict[str, Callable[[Wayward, Tensor, Tensor], Tensor]] = {
    "another activation": lambda net, x, t: F.silu(net.norm(t)),
    "no batch norm": lambda net, x, t: torch.relu(t),
    "the output read a second time": lambda net, x, t: torch.relu(net.norm(t)) + t,
    "read first": lambda net, x, t: t * 0.5 + torch.relu(net.norm(t)),
    "a part of the output": lambda net, x, t: torch.relu(net.norm(t)) + t[:, :1],
    "something else normalised": lambda net, x, t: torch.relu(net.norm(t * 2)),
    "another layer's output": lambda net, x, t: torch.relu(net.norm(net.conv(x))),
    "changed in place": lambda net, x, t: torch.relu(net.norm(t.mul_(2))),
    "changed after it was read": lambda net, x, t: torch.relu(net.norm(t)) * t.relu_(),
    "out of sight": lambda net, x, t: torch.relu(net.norm(Doubling.apply(t))),
    "out of sight, and read twice": lambda net, x, t: torch.relu(net.norm(t)) + Doubling.apply(t),
    "out of sight in the end": lambda net, x, t: Doubling.apply(torch.relu(net.norm(t))),
    "other statistics": lambda net, x, t: torch.relu(
        F.batch_norm(t, net.norm.running_mean + 1, net.norm.running_var, net.norm.weight, net.norm.bias)
    ),
    "other options": lambda net, x, t: torch.relu(
        F.batch_norm(t, net.norm.running_mean, net.norm.running_var, net.norm.weight, net.norm.bias, eps=0.5)
    ),
    "an error swallowed": swallowing,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("config", ["epsilon", "epsilon-plus"])
def test_a_model_that_does_something_else(way: str, config: str) -> None:
    """As values may tell it to: what it does this time is what is explained."""
    x = inputs(2, 3, 8, 8, dtype=torch.float32)
    model = build(lambda: Wayward(WAYS[way]), x)
    explainer = Explainer(model, config)
    for is_other in (False, False, True, False, False, True, True, True, False, True, False):
        model.is_other = is_other
        assert_same(explainer.explain(x), fresh(model, x, config))


@torch.jit.script
def doubled(t: Tensor) -> Tensor:
    """Out of sight of any interception, and without a node in autograd's graph where nothing asks for gradients."""
    return t * 2


def twice_or_nothing(t: Tensor) -> Any:
    """Hide from the engine that it raises."""
    try:
        return t * 2
    except Exception:
        return 0.0


class Wandering(nn.Module):
    """A network that calls the same functions in the same order, of other tensors."""

    def __init__(self, *ways: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.ways, self.way = ways, 0
        self.register_buffer("constant", torch.ones(4, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        t = self.conv(x)
        u = self.norm(t)
        z = torch.relu(u)
        return self.head((z + self.ways[self.way](self, t, u)).mean(dim=(2, 3)))


OTHERS: dict[str, tuple[Callable[[Wandering, Tensor, Tensor], Any], ...]] = {
    "the convolution's output": (lambda net, t, u: net.constant, lambda net, t, u: t),
    "the batch norm's output": (lambda net, t, u: net.constant, lambda net, t, u: u),
    "out of sight": (lambda net, t, u: net.constant, lambda net, t, u: Doubling.apply(t)),
    "out of sight, the batch norm's": (lambda net, t, u: net.constant, lambda net, t, u: Doubling.apply(u)),
    "scripted": (lambda net, t, u: net.constant, lambda net, t, u: doubled(t)),
    "an error swallowed": (lambda net, t, u: net.constant * 2, lambda net, t, u: twice_or_nothing(t)),
    "another constant": (lambda net, t, u: net.constant, lambda net, t, u: 3.0),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_model_that_does_the_same_with_something_else(other: str) -> None:
    x = inputs(2, 3, 8, 8, dtype=torch.float32)
    model = build(lambda: Wandering(*OTHERS[other]), x)
    explainer = Explainer(model, "epsilon-plus")
    for way in (0, 0, 1, 0, 0, 1, 1):
        model.way = way
        assert_same(explainer.explain(x), fresh(model, x, "epsilon-plus"))


def test_an_operation_without_a_rule_that_comes_later_is_refused() -> None:
    x = inputs(2, 3, 8, 8, dtype=torch.float32)
    model = build(lambda: Wayward(lambda net, x, t: torch.relu(net.norm(torch.erf(t)))), x)
    explainer = Explainer(model, "epsilon")
    explainer.explain(x)
    model.is_other = True
    with pytest.raises(EngineError, match="erf"):
        explainer.explain(x)


class Stale(nn.Module):
    """An activation in place, after which the name of its input is read, and not by a layer."""

    def __init__(self, change: Callable[[Tensor], Tensor], read: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, 4)
        self.change, self.read = change, read

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        z = self.change(y)
        return self.head(self.read(x, y, z).mean(dim=(2, 3)))


IN_PLACE = {
    "relu_": F.relu_,
    "relu": lambda y: F.relu(y, inplace=True),
    "silu": lambda y: F.silu(y, inplace=True),
    "hardtanh": lambda y: F.hardtanh(y, -1.0, 1.0, inplace=True),
}

READS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sum": lambda x, y, z: y + x,
    "the other way round": lambda x, y, z: x + y,
    "both names": lambda x, y, z: y * 0.5 + z,
    "joined": lambda x, y, z: torch.cat([y, x], dim=2),
    "a view": lambda x, y, z: y.view(-1, 3, 8, 8) + x,
    "a part": lambda x, y, z: y[:, :, :4] + x[:, :, 4:],
    "a property": lambda x, y, z: y.mT + x,
    "in place": lambda x, y, z: y.add_(x),
    "in place, and the other name": lambda x, y, z: y.add_(x) * z,
}


@pytest.mark.parametrize("change", IN_PLACE)
@pytest.mark.parametrize("read", READS)
def test_what_was_changed_in_place_under_its_old_name(change: str, read: str) -> None:
    x = inputs(2, 3, 8, 8, dtype=torch.float32)
    model = build(lambda: Stale(IN_PLACE[change], READS[read]), x)
    explainer = Explainer(model, "epsilon-plus")
    first = fresh(model, x, "epsilon-plus")
    torch.testing.assert_close(first.logits, model(x))
    for _ in range(3):
        assert_same(explainer.explain(x), first)


class Choosing(nn.Module):
    """A network that may take other modules, and other arguments, for the same functions of the same tensors."""

    def __init__(self, forward: Callable[["Choosing", Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = (nn.Linear(4, 4) for _ in range(4))
        self.tied, self.convs = nn.Linear(4, 4), nn.Conv1d(1, 1, 3, padding=1)
        self.tied.weight, self.tied.bias = self.a.weight, self.a.bias
        self.p, self.q, self.padding = nn.Softplus(), nn.Softplus(), [1]
        self.register_buffer("constant", torch.linspace(-1, 1, 8).view(2, 4))
        self.own, self.way = forward, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


def an_earlier_layer(net: Choosing, x: Tensor) -> Tensor:
    h = net.a(x if net.way else net.constant)
    return net.head(torch.relu(net.c(torch.relu(net.b(x)))) + h)


def tied_weights(net: Choosing, x: Tensor) -> Tensor:
    return net.head(torch.relu((net.tied if net.way else net.a)(x)))


def without_parameters(net: Choosing, x: Tensor) -> Tensor:
    return net.head((net.q if net.way else net.p)(net.b(x)))


def a_list_of_its_own(net: Choosing, x: Tensor) -> Tensor:
    net.padding[0] = net.way + 1
    y = F.conv1d(x[:, None], net.convs.weight, net.convs.bias, 1, net.padding)
    return net.head(y[:, 0, :4])


def a_list_changed_afterwards(net: Choosing, x: Tensor) -> Tensor:
    y = F.conv1d(x[:, None], net.convs.weight, net.convs.bias, 1, net.padding)
    net.padding[0] = net.way + 1
    return net.head(y[:, 0, :4])


def raised_again(net: Choosing, x: Tensor) -> Tensor:
    h = net.b(x)
    try:
        h = F.silu(h) if net.way else torch.relu(h)
    except Exception as error:
        raise ValueError("something went wrong") from error
    return net.head(h)


def passed_over(net: Choosing, x: Tensor) -> Tensor:
    y, h = None, net.b(x)
    with contextlib.suppress(Exception):
        y = F.silu(h) if net.way else torch.relu(h)
    return net.head(y)


@pytest.mark.parametrize(
    "forward", [an_earlier_layer, tied_weights, without_parameters, a_list_of_its_own, raised_again, passed_over]
)
@pytest.mark.parametrize("ways", [(0, 0, 1, 1, 0), (1, 1, 0, 0, 1)])
def test_a_model_that_chooses(forward: Callable[[Choosing, Tensor], Tensor], ways: tuple[int, ...]) -> None:
    x = inputs(2, 4, dtype=torch.float32)
    model = build(lambda: Choosing(forward))
    explainer = Explainer(model, "epsilon-plus-flat")  # the first layer's rule is another one
    for way in ways:
        model.way = way
        assert_same(explainer.explain(x), fresh(model, x, "epsilon-plus-flat"))


def test_statistics_that_a_pass_changes() -> None:
    class Moving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            self.norm.running_var.mul_(1.5)
            return self.head(torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3)))

    x = inputs(2, 3, 8, 8, dtype=torch.float32)
    model = build(Moving, x)
    explainer = Explainer(model, "epsilon-plus")
    for _ in range(4):
        explanation = explainer.explain(x)
        assert (explanation.imbalance.abs() < 1e-5 * explanation.scores.abs()).all()


def test_random_numbers_are_drawn_once() -> None:
    x = inputs(2, 4, dtype=torch.float32)
    noisy = lambda net, x: net.head((F.silu if net.way else torch.relu)(net.b(x)) + torch.rand(4))  # noqa: E731
    model = build(lambda: Choosing(noisy))
    explainer = Explainer(model, "epsilon")
    for way in (0, 0, 1, 0):
        model.way = way
        torch.manual_seed(3)
        explanation = explainer.explain(x)
        torch.manual_seed(3)
        assert_same(explanation, fresh(model, x))


@pytest.mark.parametrize("model", [nn.Identity(), nn.Flatten()])
def test_a_model_without_layers(model: nn.Module) -> None:
    x = inputs(2, 4, dtype=torch.float32)
    explainer = Explainer(model.eval(), "epsilon")
    for _ in range(3):
        assert_same(explainer.explain(x), fresh(model, x))


def test_parameters_made_in_inference_mode() -> None:
    x = inputs(2, 3, 8, 8, dtype=torch.float32)
    make = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))  # noqa: E731
    plain = make().eval()
    with torch.inference_mode():
        model = make().eval()
        model.load_state_dict(plain.state_dict())
    explainer = Explainer(model, "epsilon-plus")
    for _ in range(3):
        assert_same(explainer.explain(x), fresh(plain, x, "epsilon-plus"))


def test_a_batch_norm_that_cannot_be_merged_does_not_spoil_the_plan(by_themselves: list[str]) -> None:
    x = inputs(3, 6, 4, dtype=torch.float32)
    head = [nn.Flatten(), nn.Linear(24, 3)]
    model = build(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 6, 1), *head))
    explainer = Explainer(model, "epsilon-plus")
    first = explainer.explain(x)
    for _ in range(2):
        by_themselves.clear()
        assert_same(explainer.explain(x), first)
        assert not {"linear", "conv1d"} & set(by_themselves)


def wrapped(model: nn.Module) -> None:
    model.head = nn.Sequential(model.head).eval()


def weight_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model.conv1.weight.mul_(1.5)


def statistics(model: nn.Module) -> None:
    model.norm2.running_var.mul_(3)


def exchanged(model: nn.Module) -> None:
    model.head = build(lambda: nn.Linear(5, 4), seed=3)


def loaded(model: nn.Module) -> None:
    model.load_state_dict({name: tensor * 1.25 for name, tensor in model.state_dict().items()})


def other_eps(model: nn.Module) -> None:
    model.norm1.eps = 0.5


def without_bias(model: nn.Module) -> None:
    model.conv2.bias = None


def pruned(model: nn.Module) -> None:
    prune.random_unstructured(model.conv1, "weight", 0.5)


def hooked(model: nn.Module) -> None:
    model.norm1.register_forward_hook(lambda module, args, output: output * 2)


def hooked_inside(model: nn.Module) -> None:
    model.conv1.register_forward_hook(lambda module, args, output: output.clone())


CHANGES = (
    weight_in_place,
    statistics,
    exchanged,
    loaded,
    other_eps,
    without_bias,
    pruned,
    hooked,
    hooked_inside,
    wrapped,
)


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_was_changed(change: Callable[[nn.Module], None]) -> None:
    x = inputs(2, 3, 12, 12, dtype=torch.float32)
    model = build(Variety, x)
    explainer = Explainer(model, "epsilon-plus")
    before = explainer.explain(x)
    explainer.explain(x)
    change(model)
    for _ in range(3):
        after = explainer.explain(x)
        assert_same(after, fresh(copy.deepcopy(model), x, "epsilon-plus"))
    assert not torch.equal(after.relevance, before.relevance) or change in {hooked_inside, wrapped}


def test_a_model_in_another_precision() -> None:
    x = inputs(2, 3, 12, 12, dtype=torch.float32)
    model = build(Variety, x)
    explainer = Explainer(model, "epsilon-plus")
    single = explainer.explain(x)
    model.double()
    assert_same(explainer.explain(x.double()), fresh(model, x.double(), "epsilon-plus"))
    model.float()
    assert_same(explainer.explain(x), single)


def test_weights_made_on_the_way() -> None:
    """Weights that the model computes anew each time are those of this time."""

    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head, self.scale = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(F.conv2d(x, self.conv.weight * self.scale)).mean(dim=(2, 3)))

    x = inputs(2, 3, 8, 8, dtype=torch.float32)
    model = build(Standardised)
    explainer = Explainer(model, "epsilon-plus")
    for scale in (1.0, 1.0, 2.0, 2.0, 0.5):
        model.scale = scale
        assert_same(explainer.explain(x), fresh(model, x, "epsilon-plus"))


def test_a_model_that_returns_what_it_reads_once() -> None:
    """A layer's output can be read by one operation alone and be the model's output, too."""

    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.head(torch.relu(self.hidden(x)))
            torch.relu(y)
            return y

    x = inputs(2, 4, dtype=torch.float32)
    model = build(Aside)
    explainer = Explainer(model, "epsilon-plus")
    for _ in range(5):
        assert_same(explainer.explain(x), fresh(model, x, "epsilon-plus"))


def test_a_batch_norm_of_something_else() -> None:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head, self.way = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Linear(3, 4), 0

        def forward(self, x: Tensor) -> Tensor:
            x = x * 2
            t = self.conv(x)
            return self.head(torch.relu(self.norm((t, x)[self.way])).mean(dim=(2, 3)))

    x = inputs(2, 3, 8, 8, dtype=torch.float32)
    model = build(Choosing, x)
    explainer = Explainer(model, "epsilon-plus")
    for way in (0, 0, 1, 0, 0):
        model.way = way
        assert_same(explainer.explain(x), fresh(model, x, "epsilon-plus"))


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU()])
def test_a_model_that_stops_earlier(activation: nn.Module) -> None:
    """What is planned and not done makes the plan invalid, too."""

    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.depth = nn.ModuleList(nn.Linear(4, 4) for _ in range(4)), 4

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers[: self.depth]:
                x = layer(activation(x))
            return x

    x = inputs(2, 4, dtype=torch.float32)
    model = build(Growing)
    explainer = Explainer(model, "epsilon-plus-flat")  # the last layer's rule is another one
    for depth in (4, 4, 2, 2, 3, 4):
        model.depth = depth
        assert_same(explainer.explain(x), fresh(model, x, "epsilon-plus-flat"))


def test_a_list_that_is_changed_once_it_was_used() -> None:
    x = inputs(2, 4, dtype=torch.float32)
    model, twin = (build(lambda: Choosing(a_list_changed_afterwards)) for _ in range(2))
    explainer = Explainer(model, "epsilon-plus-flat")
    for way in (1, 1, 0, 0, 1):
        model.way = twin.way = way
        assert_same(explainer.explain(x), fresh(twin, x, "epsilon-plus-flat"))
