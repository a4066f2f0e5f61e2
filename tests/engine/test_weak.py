"""Weak outputs, of which next to nothing of one sign arrives: their relevance is as exact as that of others."""

import copy
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_programs import UNTIL_THEN
from test_rules import LAYERS, Only, check, matrix_of, propagate, seeded, signed, slow
from torch import Tensor, nn

from lrp_cli.engine import halves, library, sharing, weak
from lrp_cli.engine.programs import ProgramRun
from lrp_cli.engine.propagation import Propagation
from lrp_cli.engine.rules import AlphaBeta, Rule, ZPlus
from lrp_cli.explainer import Explainer

RULES: dict[str, Rule] = {
    "z+": ZPlus(1e-3),
    "alpha 2 beta 1": AlphaBeta(2, 1, 1e-3),
    "alpha 2 beta 1, no bias": AlphaBeta(2, 1, 1e-3, use_bias=False),
    "alpha 2 beta 1, nothing to stabilise": AlphaBeta(2, 1, 0),
}

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
ANY = 2.0
"""A share by which all outputs are weak."""


class Listed:
    """The weak outputs of the layers that rules were asked about, one after the other."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    @property
    def counts(self) -> list[int]:
        """How many they were: to be asked when all is over, as programs would be made to expect that number."""
        return [int(tensor[0]) for tensor in self.tensors]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Listed:
    """Weak outputs, as they are found."""
    found = Listed()

    def noting(*args: Any) -> Tensor:
        found.tensors.append(args[4])
        return weak.hand_down_weak(*args)

    monkeypatch.setattr(sharing, "hand_down_weak", noting)
    return found


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have products saved at every layer, however many outputs are weak."""
    monkeypatch.setattr(halves, "NARROW", 1)
    monkeypatch.setattr(halves, "WIDE", 1)
    monkeypatch.setattr(halves, "MANY", 2**30)
    monkeypatch.setattr(halves, "ROOM", 1e3)


@pytest.mark.usefixtures("roomy")
@every_rule
@pytest.mark.parametrize("share", [weak.SHARE, 0.6, ANY])
@pytest.mark.parametrize("name", [name for name in LAYERS if "transposed" not in name])
def test_rule_equals_its_formula(
    name: str, share: float, rule: Rule, listed: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weak, "SHARE", share)
    monkeypatch.setattr(weak, "BLOCK", 64)  # so that they are not all gone through at once
    make, shape = LAYERS[name]
    layer = seeded(make)
    x = signed(3, *shape)
    check(layer, x, rule, matrix_of(layer, shape))
    assert len(listed.counts) == 1
    if share == ANY:
        assert listed.counts == [layer(x).numel()]


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize("rule", [*RULES.values()][:3], ids=[*RULES][:3])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("table", [weak.TABLE, 0], ids=["places kept", "places made anew"])
def test_behind_a_batch_norm_of_inputs_that_are_zero_in_places(
    table: int, format: torch.memory_format, rule: Rule, listed: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weak, "SHARE", ANY)
    monkeypatch.setattr(weak, "TABLE", table)
    layer, norm = seeded(lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4)), seeded(lambda: nn.BatchNorm2d(8), 1)
    with torch.no_grad():
        for tensor in (norm.running_mean, norm.weight, norm.bias):
            tensor.copy_(signed(8, seed=9))  # type: ignore[union-attr]
        layer.weight.view(8, -1)[::2, 3] = 0
    x = signed(2, 4, 4, 4)
    x[:, 1], x[1, 0, 2] = 0, 0
    both = nn.Sequential(layer, norm).eval()
    check(both, x.to(memory_format=format), rule, matrix_of(both, (4, 4, 4), layer))
    assert listed.counts == [2 * 8 * 16]


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize("shape", [(6, 4, 16), (4, 6, 16)], ids=["samples first", "samples second"])
def test_books_of_each_sample(shape: tuple[int, ...], listed: Listed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weak, "SHARE", ANY)
    layer, rule = seeded(lambda: nn.Linear(16, 5)), AlphaBeta(2, 1, 0.1)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return (
                self.layer(x).flatten(1) if shape[0] == 6 else self.layer(x.transpose(0, 1)).transpose(0, 1).flatten(1)
            )

    x = signed(6, 4, 16)
    propagation = Propagation(Tokens().eval(), x, Only(rule))
    y = propagation.logits
    propagated = propagation.propagate(torch.ones_like(y))
    m = matrix_of(layer, (16,))
    for n in range(6):
        rows = [slow(rule, m, x[n, row], (x[n, row] @ m.w + m.b)) for row in range(4)]
        torch.testing.assert_close(propagated.relevance[n], torch.stack([relevance for relevance, _, _ in rows]))
        absorbed = sum(bias + epsilon for _, bias, epsilon in rows)
        torch.testing.assert_close(propagated.books.total()[n], absorbed)
    assert listed.counts == [6 * 4 * 5] * (shape[0] == 6)  # where samples are not the rows, products are not saved


@pytest.mark.usefixtures("roomy")
def test_rows_that_are_parts_of_samples(listed: Listed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weak, "SHARE", ANY)
    layer, rule = seeded(lambda: nn.Conv2d(2, 3, 3, padding=1)), AlphaBeta(2, 1, 0.1)

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2]).flatten(1)

    x = signed(2, 3, 2, 4, 4)
    propagation = Propagation(Windows().eval(), x, Only(rule))
    propagated = propagation.propagate(torch.ones_like(propagation.logits))
    m = matrix_of(layer, (2, 4, 4))
    for n in range(2):
        rows = [slow(rule, m, row.flatten(), row.flatten() @ m.w + m.b) for row in x[n]]
        expected = torch.stack([relevance for relevance, _, _ in rows]).view_as(x[n])
        torch.testing.assert_close(propagated.relevance[n], expected)
        torch.testing.assert_close(propagated.books.total()[n], sum(bias + epsilon for _, bias, epsilon in rows))
    assert listed.counts == [2 * 3 * 3 * 16]


@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_outputs_that_see_nothing_and_nothing_to_stabilise(
    dtype: torch.dtype, use_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, bias=not use_bias))

    model, x, seed = seeded(make), signed(2, 3, 24, 24), signed(2, 32 * 22 * 22, seed=4)
    with torch.no_grad():
        model[0].bias[:] = -0.01
        model[0].weight[:] = model[0].weight.abs()
    x[:, :, :3, :3] = -1  # behind the ReLU there is nothing
    rule = AlphaBeta(2, 1, 0, use_bias=use_bias)
    found, _, _ = propagate(model.to(dtype), x.to(dtype), seed.to(dtype), rule)
    monkeypatch.setattr(halves, "WIDE", 2**30)
    expected, _, _ = propagate(model, x.to(dtype), seed.to(dtype), rule)
    assert found.isfinite().all()
    assert (found - expected).abs().sum() <= 1e-4 * expected.abs().sum()


def depthwise() -> tuple[nn.Conv2d, Tensor]:
    """Return a layer that adds up nine contributions, and inputs of both signs: some outputs have those of one only."""
    layer = seeded(lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False))
    x = F.silu(2 * signed(2, 16, 10, 10))
    layer.float().double()
    return layer, x.float().double()


def misplaced(rule: Rule, bias: float = 0) -> float:
    """Return which share of an explanation in single precision differs from one in double precision."""
    layer, x = depthwise()
    if bias:
        layer.bias = nn.Parameter(bias * signed(16, seed=5).float().double())
    seed = signed(2, 16 * 100, seed=3).float().double()
    exact, _, _ = propagate(layer, x, seed, rule)
    rough, _, _ = propagate(copy.deepcopy(layer).float(), x.float(), seed.float(), rule)
    return float((rough - exact).abs().sum() / exact.abs().sum())


@pytest.mark.parametrize("rule", [AlphaBeta(), ZPlus()], ids=["alpha 2 beta 1", "z+"])
def test_single_precision(rule: Rule, listed: Listed, monkeypatch: pytest.MonkeyPatch) -> None:
    assert misplaced(rule) <= 1e-6
    assert all(0 < count <= 16 * 2 * 100 // 18 for count in listed.counts)
    assert len(listed.counts) == 2
    monkeypatch.setattr(weak, "SHARE", 0.0)
    assert misplaced(rule) > 1e-4  # so much is lost where they are taken for others


@pytest.mark.parametrize("few", [True, False], ids=["some are weak", "none is"])
def test_wide_layers_are_asked_whether_there_are_any(few: bool, listed: Listed) -> None:
    layer = seeded(lambda: nn.Linear(halves.MANY, 2000))
    x = signed(2, halves.MANY)
    if few:
        with torch.no_grad():
            layer.weight[7] = x[0].sign() * layer.weight[7].abs()
            layer.bias[7] = 0
    y = layer(x)
    seed = signed(2, 2000, seed=4)
    relevance = Propagation(layer, x, Only(AlphaBeta())).propagate(seed, keep=False).relevance
    m = matrix_of(layer, (halves.MANY,))
    for n in range(2):
        expected, _, _ = slow(AlphaBeta(), m, x[n], y[n] * seed[n])
        torch.testing.assert_close(relevance[n], expected)
    assert listed.counts == [1] * few


def test_a_large_bias_that_is_left_out() -> None:
    assert misplaced(AlphaBeta(use_bias=False), bias=1e4) <= 1e-6


@pytest.mark.parametrize("rule", [AlphaBeta(), ZPlus(), ZPlus(use_bias=False)], ids=["both", "z+", "z+, no bias"])
def test_several_targets(listed: Listed, rule: Rule) -> None:
    layer, x = depthwise()
    propagation = Propagation(nn.Sequential(layer, nn.Flatten()).eval(), x, Only(rule))
    seeds = [signed(2, 16 * 100, seed=number) for number in range(4)]
    found = [propagation.propagate(seed, keep=number < 3) for number, seed in enumerate(seeds)]
    assert len(listed.counts) == 4
    assert all(listed.counts)
    for each, seed in zip(found, seeds, strict=True):
        expected, _, _ = propagate(layer, x, seed, rule)
        torch.testing.assert_close(each.relevance, expected)
        total = each.relevance.flatten(1).sum(dim=1) + each.books.total()
        torch.testing.assert_close(total, (propagation.logits * seed).sum(dim=1))


def test_more_than_there_is_room_for(listed: Listed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weak, "SHARE", 0.9)
    assert misplaced(AlphaBeta()) <= 1e-6
    assert not listed.tensors


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Whether programs did what they were asked to, one after the other."""
    monkeypatch.setattr(library, "AFTER", 1)
    done: list[bool] = []
    hand_down = ProgramRun.hand_down

    def noting(self: ProgramRun, seed: Tensor, *, keep: bool) -> object:
        found = hand_down(self, seed, keep=keep)
        done.append(found is not None)
        return found

    monkeypatch.setattr(ProgramRun, "hand_down", noting)
    yield done


def network() -> nn.Module:
    def make() -> nn.Module:
        convolutions = nn.Conv2d(3, 16, 1), nn.SiLU(), nn.Conv2d(16, 16, 3, groups=16), nn.SiLU()
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16 * 64, 3))

    return seeded(make).float()


def explained(explain: Callable[[Tensor], Tensor]) -> list[Tensor]:
    return [explain(signed(2, 3, 10, 10, seed=seed).float()) for seed in range(UNTIL_THEN + 6)]


def test_programs_have_another_number_of_them_each_time(programs: list[bool], listed: Listed) -> None:
    model = network()
    explainer = Explainer(model, "epsilon-alpha2-beta1")
    by_programs = explained(lambda x: explainer.explain(x, 1).relevance)
    assert programs == [True] * 6
    assert len(listed.counts) == UNTIL_THEN  # after that no rule was asked any more
    one_by_one = explained(lambda x: Explainer(model, "epsilon-alpha2-beta1").explain(x, 1).relevance)
    for found, expected in zip(by_programs, one_by_one, strict=True):
        assert torch.equal(found, expected)
    assert len({*listed.counts[UNTIL_THEN:]}) > 3  # there was another number of them in most pictures
    exact = Explainer(network().double(), "epsilon-alpha2-beta1")
    for found, expected in zip(by_programs, explained(lambda x: exact.explain(x.double(), 1).relevance), strict=True):
        assert (found - expected).abs().sum() <= 1e-5 * expected.abs().sum()


@pytest.mark.parametrize("size", [4, 64], ids=["few outputs", "rows of them"])
@pytest.mark.parametrize("value", [1.0, -1.0], ids=["nothing negative", "nothing positive"])
def test_a_single_weak_output_is_found_where_it_matters(value: float, size: int) -> None:
    z = torch.linspace(-0.5, 0.5, size * size).view(size, size)
    z[1, 2] = value
    for low, high in itertools.product((True, False), (True, False)):
        _, found = weak.sums_by_sign(z, torch.ones_like(z), low=low, high=high, most=5)
        # Where only one side counts, the other is not asked about; where none does, it is the positive sum after all.
        matters = high if value > 0 else low or not high
        assert found[: 1 + found[0]].tolist() == ([1, size + 2] if matters else [0])


def test_nothing_over_nothing_is_weak() -> None:
    z, size = torch.full((2, 64), 0.5), torch.ones(2, 64)
    z[1, 3] = size[1, 3] = 0
    assert weak.sums_by_sign(z, size, low=True, high=True, most=5)[1][:2].tolist() == [1, 67]


def test_operators_do_what_they_say_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """They change no other argument, and return tensors of the shapes that torch's compiler is told."""
    monkeypatch.setattr(weak, "SHARE", 0.5)
    torch.manual_seed(0)
    x, layer = torch.randn(2, 4, 6, 6), nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
    w = layer.weight.detach()
    z, size = (F.conv2d(*given, None, 2, 1, 1, 2) for given in ((x, w), (x.abs(), w.abs())))
    check = partial(torch.library.opcheck, test_utils=("test_schema", "test_faketensor"))
    for low, high, most in itertools.product((True, False), (True, False), (0, z.numel())):
        check(torch.ops.lrp_cli.sums_by_sign, (z, size.clone(), low, high, most))
    _, found = weak.sums_by_sign(z, size, low=True, high=True, most=z.numel())
    assert 0 < int(found[0]) < z.numel()
    check(torch.ops.lrp_cli.of_weak, (z, found))
    relevance = weak.of_weak(z, found)
    for format in (torch.contiguous_format, torch.channels_last):
        pulled = torch.zeros_like(x, memory_format=format)
        given = pulled, x, w, torch.rand(8), torch.randn(8), relevance, found, [8, 3, 3], [2, 2], [1, 1], [1, 1], 2
        check(torch.ops.lrp_cli.hand_down_weak, (*given, 2.0, 1.0, 1e-3, 2))
