"""Every rule against its formula, written out with the layer's matrix in relevance form, the slow and obvious way."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lrp_cli.engine import sharing
from lrp_cli.engine.books import BIAS, EPSILON, Account, Books
from lrp_cli.engine.flow import Flow
from lrp_cli.engine.layers import BATCH_NORM, Layer
from lrp_cli.engine.linear_maps import Linear
from lrp_cli.engine.propagation import Propagation
from lrp_cli.engine.rules import LRP0, AlphaBeta, Epsilon, Flat, Gamma, OutputUse, Rule, WSquare, ZBox, ZPlus
from lrp_cli.engine.weights import WeightCache
from lrp_cli.errors import ConfigError

LOW, HIGH = -2.5, 3.0
CLOSE = {"rtol": 1e-9, "atol": 1e-10}

STABILISER = 1e-3

RULES: dict[str, Rule] = {
    "lrp-0": LRP0(),
    "epsilon": Epsilon(0.3),
    "epsilon, relative": Epsilon(0.25, relative=True),
    "epsilon, no bias": Epsilon(0.3, use_bias=False),
    "epsilon, relative, no bias": Epsilon(0.25, relative=True, use_bias=False),
    "z+": ZPlus(STABILISER),
    "z+, no bias": ZPlus(STABILISER, use_bias=False),
    "alpha 2 beta 1": AlphaBeta(2, 1, STABILISER),
    "alpha 2 beta 1, no bias": AlphaBeta(2, 1, STABILISER, use_bias=False),
    "alpha 1 beta 0": AlphaBeta(1, 0, STABILISER),
    "gamma 0.25": Gamma(0.25, STABILISER),
    "gamma 3, no bias": Gamma(3.0, STABILISER, use_bias=False),
    "gamma 0": Gamma(0.0, STABILISER),
    "flat": Flat(),
    "w²": WSquare(STABILISER),
    "z-box": ZBox(STABILISER),
}

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


# The slow reference


@dataclass(frozen=True)
class Matrix:
    """A layer as ``y = x W + b``: w of shape (inputs, outputs), b of shape (outputs,), connects 1 where i feeds j."""

    w: Tensor
    b: Tensor
    connects: Tensor


def matrix_of(layer: nn.Module, shape: tuple[int, ...], connections: nn.Module | None = None) -> Matrix:
    """Return the matrix of an affine map of one sample of ``shape``, by sending every unit vector through it.

    ``connections``: the convolution or linear layer that says which input feeds which output; ``layer`` itself if None.
    """
    inputs = int(torch.tensor(shape).prod())
    units = torch.eye(inputs, dtype=torch.float64).reshape(inputs, *shape)
    with torch.no_grad():
        b = layer(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        w = layer(units).flatten(1) - b
        ones = copy.deepcopy(connections or layer)
        ones.weight.fill_(1.0)  # type: ignore[operator, union-attr]
        ones.bias = None
        connects = ones(units).flatten(1)
    return Matrix(w, b, connects)


def sign(z: Tensor) -> Tensor:
    """The sign, with sign(0) = +1."""
    return torch.where(z >= 0, 1.0, -1.0).to(z.dtype)


def slow(rule: Rule, m: Matrix, x: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the relevance of the inputs, of the bias and what epsilon absorbs, for one sample.

    x: (inputs,), r: relevance of the outputs (outputs,). One neuron after another.
    """
    relevance, bias_share, epsilon_share = torch.zeros_like(x), 0.0, 0.0
    use_bias = getattr(rule, "use_bias", True)
    z_all = x @ m.w + (m.b if use_bias else 0.0)
    for j in range(m.w.shape[1]):
        w, b, z, r_j = m.w[:, j], m.b[j] if use_bias else torch.zeros(()), z_all[j], r[j]
        contributions = x * w
        match rule:
            case LRP0():
                parts, bias_part, total, stabiliser = contributions, b, z, 0.0
            case Epsilon():
                rms = (z_all**2).mean().sqrt().clamp(min=1e-300) if rule.relative else 1.0
                parts, bias_part, total, stabiliser = contributions, b, z, rule.epsilon * rms
            case ZPlus():
                parts, bias_part = contributions.clamp(min=0), b.clamp(min=0)
                total, stabiliser = parts.sum() + bias_part, rule.stabiliser
            case Gamma():
                own_side = sign(z)
                parts = contributions + rule.gamma * torch.where(contributions * own_side > 0, contributions, 0.0)
                bias_part = b + (rule.gamma * b if b * own_side > 0 else 0.0)
                total, stabiliser = parts.sum() + bias_part, rule.stabiliser
            case Flat():
                parts, bias_part = torch.where(x != 0, m.connects[:, j], 0.0), torch.zeros(())
                total, stabiliser = parts.sum(), 0.0
            case WSquare():
                parts, bias_part = torch.where(x != 0, w**2, 0.0), torch.zeros(())
                total, stabiliser = parts.sum(), rule.stabiliser
            case ZBox():
                parts = x * w - LOW * w.clamp(min=0) - HIGH * w.clamp(max=0)
                bias_part = torch.zeros(())
                total, stabiliser = parts.sum(), rule.stabiliser
            case AlphaBeta():
                handed_on = torch.zeros_like(x)
                to_bias = 0.0
                for factor, own_side in ((rule.alpha, 1.0), (-rule.beta, -1.0)):
                    of_side = torch.where(contributions * own_side > 0, contributions, 0.0)
                    b_of_side = b if b * own_side > 0 else torch.zeros(())
                    z_of_side = of_side.sum() + b_of_side
                    if z_of_side != 0:
                        handed_on += factor * of_side / (z_of_side + rule.stabiliser * own_side) * r_j
                        to_bias += factor * b_of_side / (z_of_side + rule.stabiliser * own_side) * r_j
                relevance += handed_on
                bias_share += to_bias
                epsilon_share += r_j - handed_on.sum() - to_bias
                continue
        if total == 0 and not isinstance(rule, Epsilon):  # nothing to hand it on to
            epsilon_share += r_j
            continue
        denominator = total + stabiliser * sign(total)
        relevance += parts / denominator * r_j
        bias_share += bias_part / denominator * r_j
        epsilon_share += r_j - parts.sum() / denominator * r_j - bias_part / denominator * r_j
    return relevance, torch.as_tensor(bias_share), torch.as_tensor(epsilon_share)


# The engine


class Only:
    """Gives every layer the same rule; batch norms that stand alone may have one of their own."""

    def __init__(self, rule: Rule, batch_norm: Rule | None = None) -> None:
        self._rule, self._batch_norm = rule, batch_norm or rule

    def needs_output(self, layer: Layer) -> OutputUse:
        return self.rule(layer, 0).needs_output

    def reads_input(self, layer: Layer) -> bool:
        return self.rule(layer, 0).reads_input

    def rule(self, layer: Layer, count: int) -> Rule:
        return self._batch_norm if layer.kind == BATCH_NORM else self._rule


def propagate(
    model: nn.Module,
    x: Tensor,
    seed: Tensor,
    rule: Rule,
    *,
    batch_norm: Rule | None = None,
    cache: WeightCache | None = None,
) -> tuple[Tensor, Tensor, dict[str, dict[str, Tensor]]]:
    """Return relevance, shape of x, the model's output and the entries of the books."""
    bounds = torch.tensor(LOW, dtype=x.dtype), torch.tensor(HIGH, dtype=x.dtype)
    propagation = Propagation(
        nn.Sequential(model, nn.Flatten()).eval(), x, Only(rule, batch_norm), bounds=bounds, cache=cache
    )
    propagated = propagation.propagate(seed)
    entries = {account.layer: kinds for account, kinds in propagated.books.entries.items()}
    return propagated.relevance, propagation.logits, entries


def check(model: nn.Module, x: Tensor, rule: Rule, m: Matrix, *, only_active: bool = False) -> None:
    """Compare relevance and books of a one-layer model with the slow reference, sample by sample."""
    y = x.flatten(1) @ m.w + m.b
    seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    seed = seed * (y > 0) if only_active else seed
    relevance, output, entries = propagate(model, x, seed, rule)
    torch.testing.assert_close(output, y, **CLOSE)
    assert len(entries) <= 1
    booked = next(iter(entries.values()), {})
    nothing = torch.zeros(len(x), dtype=torch.float64)
    for n, sample in enumerate(x.flatten(1)):
        expected, bias, epsilon = slow(rule, m, sample, y[n] * seed[n])
        torch.testing.assert_close(relevance[n].flatten(), expected, **CLOSE)
        torch.testing.assert_close(booked.get(BIAS, nothing)[n], bias.double(), **CLOSE)
        torch.testing.assert_close(booked.get(EPSILON, nothing)[n], epsilon.double(), **CLOSE)
    assert set(booked) <= {BIAS, EPSILON}


def signed(*shape: int, seed: int = 0) -> Tensor:
    """Return inputs of any sign, none exactly zero, between LOW and HIGH."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.clamp(LOW, HIGH)


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Return the module in float64 and eval mode, with the parameters that the seed gives."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double().eval()


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "linear without bias": (lambda: nn.Linear(7, 5, bias=False), (7,)),
    "linear on tokens": (lambda: nn.Linear(4, 3), (5, 4)),
    # With many contributions to an output, rules take their sums from differences.
    "wide linear": (lambda: nn.Linear(150, 5), (150,)),
    "wide conv2d": (lambda: nn.Conv2d(16, 4, 3, padding=1), (16, 3, 3)),
    "wide conv2d with groups": (lambda: nn.Conv2d(32, 4, 3, groups=2, bias=False), (32, 4, 3)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2, groups=2), (2, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3), (3, 5, 6)),
    "conv2d, strides that leave a border out": (
        lambda: nn.Conv2d(2, 3, (2, 3), stride=(3, 2), padding=(0, 1)),
        (2, 6, 5),
    ),
    "conv2d without bias": (lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, bias=False), (4, 4, 4)),
    "depthwise conv2d": (lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3), (3, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(2, 2, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1)), (2, 2, 4, 3)),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(2, 3, 2, stride=3, output_padding=1), (2, 4)),
    "transposed conv2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=1),
        (4, 3, 3),
    ),
    "transposed conv2d without bias": (lambda: nn.ConvTranspose2d(2, 2, 2, stride=3, bias=False), (2, 2, 2)),
    "transposed conv3d": (lambda: nn.ConvTranspose3d(2, 2, 2, stride=(1, 2, 1), dilation=(1, 1, 2)), (2, 2, 2, 2)),
}


@every_rule
@pytest.mark.parametrize("name", LAYERS)
def test_rule_equals_its_formula(name: str, rule: Rule) -> None:
    make, shape = LAYERS[name]
    layer = seeded(make)
    check(layer, signed(3, *shape), rule, matrix_of(layer, shape))


@every_rule
@pytest.mark.parametrize("name", ["linear", "conv2d", "wide conv2d", "transposed conv2d"])
@pytest.mark.parametrize("active", [False, True], ids=["all outputs", "positive outputs"])
def test_rule_with_inputs_that_are_not_negative(name: str, rule: Rule, active: bool) -> None:
    """As between two ReLUs: then, with ``active``, only positive outputs carry relevance."""
    make, shape = LAYERS[name]
    layer = seeded(make, seed=1)
    check(layer, signed(2, *shape).abs(), rule, matrix_of(layer, shape), only_active=active)


@every_rule
@pytest.mark.parametrize("name", ["linear", "wide linear", "wide conv2d"])
@pytest.mark.parametrize("not_negative", [False, True])
def test_several_targets_of_one_forward_pass(name: str, rule: Rule, not_negative: bool) -> None:
    """What is kept of a layer for the next target must not depend on the last one."""
    make, shape = LAYERS[name]
    layer = nn.Sequential(seeded(make), nn.Flatten()).eval()
    x = signed(2, *shape).abs() if not_negative else signed(2, *shape)
    y = layer(x).detach()
    bounds = torch.tensor(LOW), torch.tensor(HIGH)
    seeds = [torch.ones_like(y), (y > 0).to(y), signed(*y.shape, seed=2), torch.ones_like(y)]
    together = Propagation(layer, x, Only(rule), bounds=bounds)
    for seed in seeds:
        one = together.propagate(seed, keep=True)
        alone = Propagation(layer, x, Only(rule), bounds=bounds).propagate(seed, keep=False)
        torch.testing.assert_close(one.relevance, alone.relevance, **CLOSE)
        torch.testing.assert_close(one.books.total(), alone.books.total(), **CLOSE)


@every_rule
@pytest.mark.parametrize("kind", ["any sign", "not negative", "hardly a positive part", "hardly a negative part"])
def test_single_precision(kind: str, rule: Rule) -> None:
    """Sums of few small numbers among many large ones keep their digits, or carry hardly any relevance."""
    layer = seeded(lambda: nn.Linear(300, 12))
    x = signed(2, 300)
    with torch.no_grad():
        if kind.startswith("hardly"):
            layer.weight.abs_().mul_(1 if "negative" in kind else -1)
            layer.weight[:, 0] *= -1e-3
            x.abs_()
        elif kind == "not negative":
            x.abs_()
    m = matrix_of(layer, (300,))
    y = x @ m.w + m.b
    seed = signed(2, 12, seed=4)
    relevance, _, _ = propagate(copy.deepcopy(layer).float(), x.float(), seed.float(), rule)
    for n in range(2):
        expected, _, _ = slow(rule, m, x[n], y[n] * seed[n])
        assert (relevance[n] - expected).abs().max() < 1e-4 * expected.abs().max()


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...], int]:
    """Draw a convolution, the shape of its input and a seed."""
    d = draw(st.integers(1, 3))
    groups, transposed = draw(st.sampled_from([1, 2])), draw(st.booleans())

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(d))

    kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple(draw(st.integers(0, span // 2 if transposed else 2)) for span in spans)
    low = [1 if transposed else max(1, span + 1 - 2 * p) for span, p in zip(spans, padding, strict=True)]
    size = tuple(n + draw(st.integers(0, 2)) for n in low)
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    common = {"padding": padding, "dilation": dilation, "groups": groups, "bias": draw(st.booleans())}
    seed = draw(st.integers(0, 99))
    if transposed:
        common["output_padding"] = tuple(
            draw(st.integers(0, max(s, e) - 1)) for s, e in zip(stride, dilation, strict=True)
        )
    kind = (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        if transposed
        else (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    )
    layer = seeded(lambda: kind[d - 1](*channels, kernel, stride=stride, **common), seed)
    return layer, (channels[0], *size), seed


@settings(max_examples=40, deadline=None, derandomize=True)
@given(drawn=convolutions(), name=st.sampled_from(list(RULES)))
def test_rule_on_any_convolution(drawn: tuple[nn.Module, tuple[int, ...], int], name: str) -> None:
    layer, shape, seed = drawn
    check(layer, signed(2, *shape, seed=seed), RULES[name], matrix_of(layer, shape))


@every_rule
def test_inactive_neurons_carry_nothing_and_are_not_counted(rule: Rule) -> None:
    if isinstance(rule, ZBox):
        pytest.skip("z-box is for the model's input")
    layer = seeded(lambda: nn.Conv2d(3, 4, 3, padding=1))
    x = signed(2, 3, 4, 4)
    m = matrix_of(layer, (3, 4, 4))
    active = x.clamp(min=0)
    y = active.flatten(1) @ m.w + m.b
    seed = torch.ones_like(y)
    relevance, _, _ = propagate(nn.Sequential(nn.ReLU(), layer), x, seed, rule)
    for n in range(2):
        expected, _, _ = slow(rule, m, active[n].flatten(), y[n])
        torch.testing.assert_close(relevance[n].flatten(), expected, **CLOSE)
    assert (relevance[x < 0] == 0).all()


@pytest.mark.parametrize("weights", ["of both signs", "positive", "negative"])
@pytest.mark.parametrize("picture", ["black", "white", "black, with one grey pixel"])
def test_zbox_where_inputs_are_at_their_bounds(picture: str, weights: str) -> None:
    """Next to nothing is left of a sum of many terms then, in single precision too, and the rest is absorbed."""
    layer = seeded(lambda: nn.Conv2d(3, 16, 7, stride=2, padding=3))
    with torch.no_grad():
        if weights != "of both signs":
            layer.weight.abs_().mul_(1 if weights == "positive" else -1)
        layer.float().double()
    x = torch.full((1, 3, 9, 9), HIGH if picture == "white" else LOW, dtype=torch.float64)
    if "grey" in picture:
        x[..., 4, 4] += 1e-3
    x = x.float().double()
    m = matrix_of(layer, (3, 9, 9))
    y = x.flatten(1) @ m.w + m.b
    rule = ZBox()
    relevance, output, entries = propagate(copy.deepcopy(layer).float(), x.float(), torch.ones_like(y).float(), rule)
    expected, _, absorbed = slow(rule, m, x[0].flatten(), y[0])
    size = y.abs().sum()
    assert (relevance.flatten() - expected).abs().sum() < 1e-5 * size
    booked = sum(kinds[EPSILON] for kinds in entries.values())
    assert abs(booked - absorbed) < 1e-5 * size
    assert abs(output.sum() - relevance.sum() - booked) < 1e-5 * size


def test_zbox_wants_bounds() -> None:
    layer = seeded(lambda: nn.Linear(4, 2))
    propagation = Propagation(layer, signed(1, 4), Only(ZBox()))
    with pytest.raises(ConfigError, match="between which values"):
        propagation.propagate(torch.ones(1, 2))
    two = nn.Sequential(seeded(lambda: nn.Linear(4, 4)), layer)
    with pytest.raises(ConfigError, match="another rule"):
        propagate(two, signed(1, 4), torch.ones(1, 2), ZBox())


# Denominators that are zero, and where relevance then goes


def fixed_linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer.requires_grad_(False)


def test_epsilon_at_zero_takes_the_positive_sign() -> None:
    # z = 1 - 1 + 0 = 0 without its bias, and the output is the bias, 2: R = 2 is shared out over z + eps = +0.5.
    layer = fixed_linear([[1.0, -1.0]], [2.0])
    x = torch.ones(1, 2, dtype=torch.float64)
    relevance, output, entries = propagate(layer, x, torch.ones(1, 1), Epsilon(0.5, use_bias=False))
    assert output.item() == 2
    assert relevance.tolist() == [[4.0, -4.0]]
    assert entries == {"0": {EPSILON: torch.tensor([2.0])}}


@pytest.mark.parametrize(
    "rule",
    [r for r in RULES.values() if not isinstance(r, LRP0 | Flat | WSquare | ZBox)],
    ids=lambda r: type(r).__name__,
)
def test_layer_of_zeros_absorbs_everything_and_stays_finite(rule: Rule) -> None:
    layer = fixed_linear([[0.0, 0.0]], [3.0])
    layer.bias = None
    x = torch.ones(2, 2, dtype=torch.float64)
    relevance, output, entries = propagate(layer, x, torch.ones(2, 1), rule)
    assert (output == 0).all()
    assert (relevance == 0).all()
    assert all((entry == 0).all() for entry in entries["0"].values())


@pytest.mark.parametrize("rule", [ZPlus(1e-9), AlphaBeta(2, 1, 1e-9), AlphaBeta(1, 0, 1e-9)], ids=["z+", "2/1", "1/0"])
@pytest.mark.parametrize("few", [0, 12], ids=["is asked for", "is expected"])
def test_neuron_that_nothing_excites(few: int, rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    # z = -1 - 2 = -3; z+ has nowhere to send R = -3, alpha-beta sends -beta R.
    monkeypatch.setattr(sharing, "FEW", few)
    layer = fixed_linear([[-1.0, -2.0]])
    x = torch.ones(1, 2, dtype=torch.float64)
    relevance, _, entries = propagate(layer, x, torch.ones(1, 1), rule)
    beta = getattr(rule, "beta", 0)
    expected = torch.tensor([[1.0, 2.0]]) * beta
    torch.testing.assert_close(relevance, expected.double(), rtol=1e-6, atol=1e-9)
    assert entries["0"][EPSILON].item() == pytest.approx(-3 - 3 * beta, rel=1e-6)


def test_nothing_excites_in_half_precision() -> None:
    # R = -300, divided by the stabiliser, is more than half precision holds.
    layer = fixed_linear([[-100.0, -200.0]]).half()
    relevance, _, entries = propagate(layer, torch.ones(1, 2).half(), torch.ones(1, 1).half(), AlphaBeta(2, 1, 1e-3))
    torch.testing.assert_close(relevance, torch.tensor([[100.0, 200.0]]).half(), rtol=1e-3, atol=0)
    assert entries["0"][EPSILON].item() == pytest.approx(-600, rel=1e-3)


@pytest.mark.parametrize("stabiliser", [1e-38, 1e-30, 1e-6])
def test_nothing_excites_and_the_stabiliser_is_very_small(stabiliser: float) -> None:
    layer = fixed_linear([[-100.0, -200.0]]).float()
    relevance, _, entries = propagate(layer, torch.ones(1, 2), torch.ones(1, 1), ZPlus(stabiliser))
    assert (relevance == 0).all()
    assert entries["0"][EPSILON].item() == pytest.approx(-300, rel=1e-6)


@pytest.mark.parametrize("least", [-1e-3, 0.0, 1e-7])
def test_what_rounding_leaves_below_the_stabiliser_is_nothing(least: float) -> None:
    layer, x, books = Linear(torch.eye(2), None, WeightCache()), torch.ones(1, 2), Books(1)
    flow = Flow(layer, x, x, torch.tensor([[4.0, 4.0]]), torch.ones(1, 2), books, Account("0"), is_last=True)
    s = sharing.shared_out(flow, "some", lambda: torch.tensor([[least, 2.0]]), 1e-6, {})
    assert s.tolist() == [[0.0, 2.0]]
    assert books.total().item() == pytest.approx(4, rel=1e-5)


@pytest.mark.parametrize("few", [0, 12], ids=["is asked for", "is expected"])
def test_several_targets_where_nothing_excites_some_outputs(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "FEW", few)
    layer, x = fixed_linear([[-1.0, 2.0], [-3.0, -4.0]]), torch.ones(2, 2).double()
    propagation = Propagation(layer.eval(), x, Only(AlphaBeta(2, 1, 1e-9)))
    expected = [[-1.0, 2.0], [3.0, 4.0]]  # of R = 1 and of R = -7, of which nothing goes to positive contributions
    for target in (0, 1, 0):
        seed = torch.zeros(2, 2).double()
        seed[:, target] = 1
        found = propagation.propagate(seed)
        torch.testing.assert_close(found.relevance, torch.tensor([expected[target]] * 2).double(), rtol=1e-6, atol=0)
        total = found.relevance.sum(dim=1) + found.books.total()
        torch.testing.assert_close(total, propagation.logits[:, target], rtol=1e-6, atol=0)


def test_alpha_beta_books_what_it_makes_up() -> None:
    # No negative contributions: alpha 2 hands on twice the relevance, and the books show -R as absorbed.
    layer = fixed_linear([[1.0, 3.0]], [0.0])
    relevance, output, entries = propagate(layer, torch.ones(1, 2).double(), torch.ones(1, 1), AlphaBeta(2, 1, 1e-9))
    assert output.item() == 4
    torch.testing.assert_close(relevance, torch.tensor([[2.0, 6.0]]).double(), rtol=1e-6, atol=0)
    assert entries["0"][EPSILON].item() == pytest.approx(-4, rel=1e-6)
    # With a negative contribution of any size nothing is made up.
    layer = fixed_linear([[1.0, 3.0]], [-1e-3])
    relevance, _, entries = propagate(layer, torch.ones(1, 2).double(), torch.ones(1, 1), AlphaBeta(2, 1, 1e-9))
    assert entries["0"][EPSILON].item() == pytest.approx(0, abs=1e-5)
    assert entries["0"][BIAS].item() == pytest.approx(-3.999, rel=1e-5)


def test_relative_epsilon_is_each_samples_own_and_scale_free() -> None:
    layer = seeded(lambda: nn.Conv2d(2, 3, 3, bias=False))
    x = signed(3, 2, 5, 5)
    seed = torch.ones(3, 27).double()
    alone = torch.cat([propagate(layer, x[n : n + 1], seed[:1], Epsilon(0.25, relative=True))[0] for n in range(3)])
    together = propagate(layer, x, seed, Epsilon(0.25, relative=True))[0]
    torch.testing.assert_close(together, alone, **CLOSE)
    scaled = propagate(layer, x * 1000, seed, Epsilon(0.25, relative=True))[0]
    torch.testing.assert_close(scaled, together * 1000, **CLOSE)


def test_rules_that_are_special_cases_of_one_another() -> None:
    layer = seeded(lambda: nn.Conv2d(3, 4, 3))
    x, seed = signed(2, 3, 4, 4), signed(2, 16, seed=3)

    def relevance(rule: Rule) -> Tensor:
        return propagate(layer, x, seed, rule)[0]

    torch.testing.assert_close(relevance(ZPlus(1e-5)), relevance(AlphaBeta(1, 0, 1e-5)), **CLOSE)
    torch.testing.assert_close(relevance(Gamma(0.0, 1e-12)), relevance(LRP0()), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(relevance(Epsilon(1e-12)), relevance(LRP0()), rtol=1e-6, atol=1e-8)


# Batch norm


def lively(norm: nn.Module, seed: int = 5) -> nn.Module:
    """Give a batch norm statistics, gains and shifts that are no identity, some gains negative."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        norm.running_mean.copy_(draw(norm.running_mean))
        norm.running_var.copy_(draw(norm.running_var).abs() + 0.05)
        if norm.affine:
            norm.weight.copy_(draw(norm.weight))
            norm.bias.copy_(draw(norm.bias))
    return norm


PAIRS: dict[str, tuple[Callable[[], tuple[nn.Module, nn.Module]], tuple[int, ...]]] = {
    "conv2d": (lambda: (nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), (2, 4, 4)),
    "no bias, large eps": (lambda: (nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3, eps=0.5)), (2, 4, 4)),
    "not affine": (lambda: (nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False)), (2, 4, 4)),
    "groups, stride": (lambda: (nn.Conv2d(4, 6, 3, groups=2, stride=2, padding=1), nn.BatchNorm2d(6)), (4, 4, 4)),
    "depthwise": (lambda: (nn.Conv2d(3, 3, 3, groups=3, bias=False), nn.BatchNorm2d(3)), (3, 4, 4)),
    "transposed": (lambda: (nn.ConvTranspose2d(2, 3, 2, stride=2), nn.BatchNorm2d(3)), (2, 2, 2)),
    "transposed, groups": (
        lambda: (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2, bias=False, output_padding=1), nn.BatchNorm2d(6)),
        (4, 2, 2),
    ),
    "conv1d": (lambda: (nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3)), (2, 6)),
    "conv3d": (lambda: (nn.Conv3d(2, 2, 2), nn.BatchNorm3d(2)), (2, 2, 3, 3)),
    "linear": (lambda: (nn.Linear(5, 4), nn.BatchNorm1d(4)), (5,)),
    "linear without bias": (lambda: (nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4)), (5,)),
}


@every_rule
@pytest.mark.parametrize("name", PAIRS)
def test_batch_norm_is_one_layer_with_what_feeds_it(name: str, rule: Rule) -> None:
    make, shape = PAIRS[name]
    pair = seeded(lambda: nn.Sequential(*make()))
    lively(pair[1])
    check(pair, signed(2, *shape), rule, matrix_of(pair, shape, connections=pair[0]))


@every_rule
def test_batch_norm_after_a_batch_norm(rule: Rule) -> None:
    # The first is merged; the second then follows a linear layer again.
    trio = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)))
    lively(trio[1])
    lively(trio[2], seed=6)
    check(trio, signed(2, 2, 4, 4), rule, matrix_of(trio, (2, 4, 4), connections=trio[0]))


class Branching(nn.Module):
    """A convolution whose output goes through a batch norm and, beside it, straight on."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.norm_first = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), norm_first

    def forward(self, x: Tensor) -> Tensor:
        t = self.conv(x)
        beside = None if self.norm_first else t * 0.5
        normed = self.norm(t)
        return torch.cat([normed, t * 0.5 if beside is None else beside], dim=1)


def diagonal(scale: Tensor, offset: Tensor, positions: int) -> Matrix:
    """Return a map of one factor and one offset a channel as a matrix."""
    w = torch.diag(scale.repeat_interleave(positions))
    return Matrix(w, offset.repeat_interleave(positions), (w != 0).double())


@every_rule
@pytest.mark.parametrize("norm_first", [True, False])
def test_batch_norm_stands_alone_where_its_input_is_used_elsewhere_too(rule: Rule, norm_first: bool) -> None:
    model = seeded(lambda: Branching(norm_first))
    lively(model.norm)
    x = signed(2, 2, 4, 4)
    seed = signed(2, 24, seed=3)
    alone = Epsilon(0.2)  # the batch norm's rule
    relevance, output, entries = propagate(model, x, seed, rule, batch_norm=alone)
    conv = matrix_of(model.conv, (2, 4, 4))
    scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    norm = diagonal(scale, model.norm.bias - model.norm.running_mean * scale, positions=4)
    for n in range(2):
        t = x[n].flatten() @ conv.w + conv.b
        above = output[n] * seed[n]
        of_t, norm_bias, norm_epsilon = slow(alone, norm, t, above[:12])
        expected, bias, epsilon = slow(rule, conv, x[n].flatten(), of_t + above[12:])
        torch.testing.assert_close(relevance[n].flatten(), expected, rtol=1e-8, atol=1e-8)
        by_layer = {"0.norm": norm_bias + norm_epsilon, "0.conv": bias + epsilon}
        for layer, absorbed in by_layer.items():
            booked = sum(kinds[n] for kinds in entries.get(layer, {}).values())
            torch.testing.assert_close(torch.as_tensor(booked).double(), absorbed.detach(), rtol=1e-8, atol=1e-8)


def test_merged_or_not_lrp0_is_the_same() -> None:
    """LRP-0 does not care how affine maps are grouped: with the branch that forbids merging weighed zero, the same."""
    model = seeded(lambda: Branching(norm_first=True))
    lively(model.norm)
    x = signed(2, 2, 4, 4)
    seed = signed(2, 24, seed=3)
    seed[:, 12:] = 0
    apart, _, _ = propagate(model, x, seed, LRP0())
    together, _, _ = propagate(nn.Sequential(model.conv, model.norm), x, seed[:, :12], LRP0())
    torch.testing.assert_close(apart, together, **CLOSE)


class Joined(nn.Module):
    """A batch norm after a concatenation, as in a DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 1, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.cat([self.a(x), self.b(x)], dim=1))


@every_rule
def test_batch_norm_after_a_concatenation_stands_alone(rule: Rule) -> None:
    model = seeded(Joined)
    lively(model.norm)
    x, seed, alone = signed(2, 2, 4, 4), signed(2, 12, seed=3), Epsilon(0.2)
    relevance, output, entries = propagate(model, x, seed, rule, batch_norm=alone)
    a, b = matrix_of(model.a, (2, 4, 4)), matrix_of(model.b, (2, 4, 4))
    scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    norm = diagonal(scale, model.norm.bias - model.norm.running_mean * scale, positions=4)
    for n in range(2):
        flat = x[n].flatten()
        t_a, t_b = flat @ a.w + a.b, flat @ b.w + b.b
        of_t, _, _ = slow(alone, norm, torch.cat([t_a, t_b]), output[n] * seed[n])
        expected = slow(rule, a, flat, of_t[:8])[0] + slow(rule, b, flat, of_t[8:])[0]
        torch.testing.assert_close(relevance[n].flatten(), expected, rtol=1e-8, atol=1e-8)
    assert "0.norm" in entries


@pytest.mark.parametrize(
    "rule", [ZPlus(1e-3), AlphaBeta(stabiliser=1e-3), Gamma(stabiliser=1e-3), WSquare(1e-3)], ids=str
)
def test_stabilisers_are_not_rounded_in_double_precision(rule: Rule) -> None:
    layer = seeded(lambda: nn.Linear(7, 5))
    check(layer, signed(3, 7).abs() * 1e-3, rule, matrix_of(layer, (7,)))


# The cache of transformed weights


def halve(parameter: nn.Parameter) -> None:
    with torch.no_grad():
        parameter[..., 0] *= -0.5


def halve_data(parameter: nn.Parameter) -> None:
    parameter.data[..., 0] *= -0.5


def replace_data(parameter: nn.Parameter) -> None:
    parameter.data = parameter.data.flip(0) * 2


STALE = pytest.mark.xfail(
    strict=True,
    reason="changes in place through .data neither raise the version that the cache looks at nor move the data",
)


@pytest.mark.parametrize("change", [halve, pytest.param(halve_data, marks=STALE), replace_data])
@pytest.mark.parametrize("rule", [ZPlus(), AlphaBeta(), Gamma(), WSquare()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("with_norm", [False, True])
def test_changed_parameters_are_noticed(change: Callable[[nn.Parameter], None], rule: Rule, with_norm: bool) -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3) if with_norm else nn.Identity()))
    if with_norm:
        lively(model[1])
    x, seed, cache = signed(1, 2, 4, 4), torch.ones(1, 12).double(), WeightCache()
    before = propagate(model, x, seed, rule, cache=cache)[0]
    change(model[0].weight)
    after = propagate(model, x, seed, rule, cache=cache)[0]
    assert not torch.equal(after, before)
    assert torch.equal(after, propagate(model, x, seed, rule, cache=WeightCache())[0])


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_changed_batch_norm_is_noticed(name: str) -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)))
    lively(model[1])
    x, seed, cache = signed(1, 2, 4, 4), torch.ones(1, 12).double(), WeightCache()
    before = propagate(model, x, seed, ZPlus(), cache=cache)[0]
    with torch.no_grad():
        getattr(model[1], name).mul_(1.5)
    after = propagate(model, x, seed, ZPlus(), cache=cache)[0]
    assert not torch.equal(after, before)
    assert torch.equal(after, propagate(model, x, seed, ZPlus(), cache=WeightCache())[0])


def test_one_weight_in_two_layers_and_under_two_batch_norms() -> None:
    """What is cached for a shared weight must tell apart in which role it is used."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)
            self.norms = nn.ModuleList([nn.BatchNorm2d(2), nn.BatchNorm2d(2)])

        def forward(self, x: Tensor) -> Tensor:
            for norm in self.norms:
                x = F.relu(norm(self.conv(x)))
            return self.conv(x)

    shared = seeded(Shared)
    lively(shared.norms[0], seed=1)
    lively(shared.norms[1], seed=2)
    copies = [copy.deepcopy(shared.conv) for _ in range(3)]
    apart = nn.Sequential(copies[0], shared.norms[0], nn.ReLU(), copies[1], shared.norms[1], nn.ReLU(), copies[2])
    x, seed = signed(1, 2, 4, 4), torch.ones(1, 32).double()
    for rule in (ZPlus(), Gamma(), AlphaBeta()):
        cache = WeightCache()
        expected = propagate(apart, x, seed, rule)[0]
        for _ in range(2):
            assert torch.equal(propagate(shared, x, seed, rule, cache=cache)[0], expected)


def test_cache_stays_within_its_bound_and_without_one_nothing_changes() -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 2)))
    x, seed = signed(1, 2, 5, 5), torch.ones(1, 12).double()
    expected = propagate(model, x, seed, AlphaBeta())[0]
    for limit in (0, model[0].weight.nbytes):
        cache = WeightCache(limit_bytes=limit)
        for _ in range(2):
            assert torch.equal(propagate(model, x, seed, AlphaBeta(), cache=cache)[0], expected)
            assert cache.used_bytes <= limit


# Few contributions of a sign, or none


def one_sided(fan_in: int, positive: bool) -> nn.Linear:
    """Return a layer of contributions of one sign only to each neuron, from inputs that are not negative."""
    layer = seeded(lambda: nn.Linear(fan_in, 6))
    with torch.no_grad():
        layer.weight.abs_().mul_(1 if positive else -1)
        layer.bias.abs_().mul_(1 if positive else -1)
        layer.weight[-1] = 0
        layer.weight[-2, 0] *= -1
    return layer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("behind", [nn.Identity, nn.ReLU, nn.SiLU], ids=["plain", "relu", "silu"])
@pytest.mark.parametrize("positive", [True, False], ids=["no negative ones", "no positive ones"])
@pytest.mark.parametrize("fan_in", [5, 150], ids=["narrow", "wide"])
@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", [AlphaBeta, ZPlus, Gamma])
def test_contributions_of_one_sign_only(
    kind: Callable[..., Rule], use_bias: bool, fan_in: int, positive: bool, behind: type[nn.Module], dtype: torch.dtype
) -> None:
    rule = kind(use_bias=use_bias)
    layer = one_sided(fan_in, positive)
    x = signed(3, fan_in).abs()
    x[0] = 0
    model = nn.Sequential(nn.ReLU(), layer, behind()).eval()
    with torch.no_grad():
        y, m = model(x), matrix_of(layer, (fan_in,))
    seed = signed(3, 6, seed=2)
    relevance, output, entries = propagate(model.to(dtype), x.to(dtype), seed.to(dtype), rule)
    assert relevance.isfinite().all()
    absorbed = sum(sums for kinds in entries.values() for sums in kinds.values())
    scores = (output * seed.to(dtype)).double().sum(dim=1)
    total = relevance.double().sum(dim=1) + absorbed
    precise = dtype == torch.float64
    size = relevance.abs().sum().item() + scores.abs().sum().item()
    torch.testing.assert_close(total, scores, rtol=0, atol=size * (1e-12 if precise else 1e-5))
    for n in range(3):
        expected, _, _ = slow(rule, m, x[n], y[n] * seed[n])
        error = (relevance[n] - expected).abs().max()
        assert error <= (1e-9 if precise else 1e-4) * expected.abs().sum() + 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("fan_in", [2, 40], ids=["narrow", "wide"])
@pytest.mark.parametrize("kind", [Gamma, ZPlus, AlphaBeta])
@pytest.mark.parametrize("sign_of_bias", [1, -1])
def test_a_denominator_that_the_bias_makes_zero(
    sign_of_bias: int, kind: Callable[..., Rule], fan_in: int, use_bias: bool, dtype: torch.dtype
) -> None:
    """With no input at all, the bias is the output, and it may be minus the stabiliser."""
    layer = fixed_linear([[1.0] * fan_in, [-1.0] * fan_in, [1.0] * fan_in], [0.5 * sign_of_bias, 0.5, 0.0])
    rule = kind(stabiliser=0.5, use_bias=use_bias)
    model = nn.Sequential(nn.ReLU(), layer, nn.ReLU()).to(dtype).eval()
    for x in (-torch.ones(2, fan_in, dtype=dtype), torch.ones(2, fan_in, dtype=dtype)):
        for keep in (True, False):
            propagation = Propagation(model, x, Only(rule))
            propagated = propagation.propagate(torch.ones(2, 3), keep=keep)
            absorbed = propagated.books.total()
            assert propagated.relevance.isfinite().all()
            torch.testing.assert_close(
                propagated.relevance.double().sum(1) + absorbed,
                propagation.logits.double().sum(1),
                rtol=1e-5,
                atol=1e-5,
            )


def test_an_output_of_exactly_zero_that_its_bias_makes_up_for() -> None:
    """Without the bias the positive sum is zero, and all of it is rounding where it is a difference."""
    layer = fixed_linear([[-4.0] * 16, [1.0] * 16], [64.0, 0.0])
    model = nn.Sequential(nn.ReLU(), layer, nn.ReLU()).float().eval()
    for rule in (AlphaBeta(use_bias=False), Gamma(use_bias=False), ZPlus(use_bias=False)):
        relevance, _, _ = propagate(model, torch.ones(2, 16), torch.ones(2, 2), rule)
        assert relevance.isfinite().all()


@every_rule
@pytest.mark.parametrize("behind", [nn.Identity, nn.ReLU, nn.GELU], ids=["plain", "relu", "gelu"])
@pytest.mark.parametrize("kind", ["any sign", "not negative", "a large bias"])
def test_single_precision_where_sums_cancel(kind: str, behind: type[nn.Module], rule: Rule) -> None:
    """Sums of large numbers that nearly cancel, with what is left of them carrying relevance."""
    if isinstance(rule, ZBox) and kind != "any sign":
        pytest.skip("z-box is for the model's input")
    layer = seeded(lambda: nn.Linear(256, 24))
    x = signed(2, 256) if kind == "any sign" else signed(2, 256).abs()
    with torch.no_grad():
        layer.weight[:, 1::2] = -layer.weight[:, ::2] * x[0, ::2] / x[0, 1::2]
        layer.weight.add_(signed(24, 256, seed=5) * 1e-3)
        if kind == "a large bias":
            layer.weight.abs_().neg_()
            layer.weight[:, 0] *= -1
            layer.bias.copy_(-(x @ layer.weight.T).min(dim=0).values + 1)
        layer.float().double()
    x = x.float().double()
    m = matrix_of(layer, (256,))
    entrance = nn.Identity() if kind == "any sign" else nn.ReLU()
    model = nn.Sequential(entrance, layer, behind()).eval()
    with torch.no_grad():
        y = model(x)
    seed = signed(2, 24, seed=4).float().double()
    relevance, _, _ = propagate(copy.deepcopy(model).float(), x.float(), seed.float(), rule)
    for n in range(2):
        expected, _, _ = slow(rule, m, x[n], y[n] * seed[n])
        assert (relevance[n] - expected).abs().sum() <= 1e-4 * expected.abs().sum()


@every_rule
@pytest.mark.parametrize("size", [1e4, 1e7], ids=str)
@pytest.mark.parametrize("kind", ["hardly a positive part", "hardly a negative part", "any sign"])
def test_single_precision_beside_a_much_larger_sample(kind: str, size: float, rule: Rule) -> None:
    layer = seeded(lambda: nn.Linear(300, 12))
    x = signed(2, 300)
    with torch.no_grad():
        if kind.startswith("hardly"):
            layer.weight.abs_().mul_(1 if "negative" in kind else -1)
            layer.weight[:, 0] *= -1e-4
            x[0].abs_()  # the sums of the other sample keep their digits
        layer.float().double()
    x = x.float().double()
    m = matrix_of(layer, (300,))
    y = x[0] @ m.w + m.b
    seed = signed(2, 12, seed=4).float().double()
    beside = torch.stack([x[0], x[1] * size])
    relevance, _, _ = propagate(copy.deepcopy(layer).float(), beside.float(), seed.float(), rule)
    expected, _, _ = slow(rule, m, x[0], y * seed[0])
    assert (relevance[0] - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_dead_output_beside_one_that_is_next_to_dead(dtype: torch.dtype) -> None:
    """What one output's relevance is divided by may be tiny, and does not reach beyond the numbers of the type."""
    layers = nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(3, 1, bias=False)
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        layers[0].weight[:] = torch.tensor([0.0, 1e-5, 1.0])[:, None, None, None]
        layers[0].bias[:] = torch.tensor([-1.0, -1.0, 0.5])  # type: ignore[index]
        layers[2].weight[:] = torch.tensor([0.0, 0.0, 1.0])
    x, seed = torch.ones(1, 1, 1, 1, dtype=dtype), torch.ones(1, 1, dtype=dtype)
    relevance, logits, _ = propagate(model.to(dtype), x, seed, ZPlus())
    assert float(logits) == 1.5
    torch.testing.assert_close(relevance, torch.ones(1, 1, 1, 1, dtype=dtype))
