"""The cache of derived weights: what it counts, and that it never mistakes one tensor for another."""

import gc
from collections.abc import Iterator

import pytest
import torch
from test_rules import lively, propagate, seeded, signed
from torch import nn

from lrp_cli.engine import weights
from lrp_cli.engine.rules import Gamma, ZPlus
from lrp_cli.engine.weights import WeightCache, number_of
from lrp_cli.explainer import Explainer

TWO = torch.tensor([2.0])


@pytest.fixture(autouse=True)
def without_garbage_collector() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    yield
    if was_on:
        gc.enable()


def test_an_entry_dies_with_its_parameter_and_gives_its_bytes_back() -> None:
    cache = WeightCache()
    stays, goes = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(3, 5))
    cache.get(stays, "double", lambda: stays * 2)
    assert cache.used_bytes == 4 * 4
    for name in ("double", "triple"):
        cache.get(goes, name, lambda: torch.ones(3, 5))
    assert cache.used_bytes == 4 * 4 + 2 * 15 * 4
    del goes
    assert cache.used_bytes == 4 * 4
    kept = cache.get(stays, "double", lambda: pytest.fail("it is in the cache"))
    assert torch.equal(kept, torch.full((4,), 2.0))


def test_a_changed_parameter_takes_the_place_of_its_former_self() -> None:
    cache, parameter = WeightCache(), nn.Parameter(torch.ones(4))
    for factor in (1.0, 3.0, 5.0):
        with torch.no_grad():
            parameter.fill_(factor)
        assert torch.equal(cache.get(parameter, "double", lambda: parameter.detach() * 2), torch.full((4,), 2 * factor))
        assert cache.used_bytes == 4 * 4


def test_a_new_tensor_at_the_same_id_is_another_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python gives an object the id of one that is gone, and torch gives it its memory."""
    monkeypatch.setattr(weights, "id", lambda parameter: 1, raising=False)
    cache = WeightCache()
    memory = torch.arange(14.0)
    one, other = nn.Parameter(memory[:7]), nn.Parameter(memory[::2])
    for parameter in (one, other, one):
        derived = cache.get(parameter, "itself", lambda p=parameter: p.detach().clone())
        assert torch.equal(derived, parameter)
        assert cache.used_bytes == 7 * 4


def test_entries_that_are_gone_make_room() -> None:
    cache = WeightCache(limit_bytes=40)
    first, second = nn.Parameter(torch.ones(10)), nn.Parameter(torch.ones(10))
    cache.get(first, "double", lambda: torch.ones(10))
    calls = []
    for _ in range(2):
        cache.get(second, "double", lambda: calls.append(1) or second.detach() * 2)
    assert len(calls) == 2
    del first
    for _ in range(2):
        cache.get(second, "double", lambda: calls.append(1) or second.detach() * 2)
    assert len(calls) == 3
    assert cache.used_bytes == 40


def test_a_large_tensor_is_kept_from_the_second_forward_pass_on() -> None:
    cache, parameter, calls = WeightCache(), nn.Parameter(torch.ones(weights.SMALL // 4 + 1)), []

    def ask() -> None:
        assert torch.equal(cache.get(parameter, "double", lambda: calls.append(1) or parameter.detach() * 2)[:1], TWO)

    for forward, made in enumerate([2, 3, 3]):  # asked twice in each
        cache.begin_forward()
        for _ in range(2):
            cache.begin_target()
            ask()
        assert len(calls) == made
        assert cache.used_bytes == (0 if forward == 0 else weights.SMALL + 4)
    other = nn.Parameter(torch.ones(weights.SMALL // 4 + 1))
    cache.get(other, "triple", lambda: other.detach() * 3)  # what is asked for late is kept at once
    assert cache.used_bytes == 2 * (weights.SMALL + 4)


LARGE = 3 * 1024 * 16 * 16 * 4
"""Bytes of what is derived from the weights of a wide convolution."""


def with_a_wide_convolution() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Conv2d(3, 1024, 16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 4))).float()


@pytest.mark.parametrize("config", ["epsilon-plus", "epsilon-alpha2-beta1"])
def test_an_explainer_keeps_large_tensors_once_it_explains_again(config: str) -> None:
    explainer, x, kept = Explainer(with_a_wide_convolution(), config), torch.rand(1, 3, 16, 16), []
    for _ in range(3):
        explainer.explain(x)
        kept.append(explainer._cache.used_bytes)
    assert weights.SMALL < LARGE
    assert kept[0] < LARGE <= kept[1] == kept[2]


def test_an_explainer_keeps_large_tensors_once_a_picture_has_many_targets() -> None:
    explainer = Explainer(with_a_wide_convolution(), "epsilon-plus")
    forward, kept = explainer.forward(torch.rand(1, 3, 16, 16)), []
    for target in range(weights.FEW + 1):
        forward.explain(target % 4)
        kept.append(explainer._cache.used_bytes)
    assert kept[-2] < LARGE <= kept[-1]


def test_no_two_tensors_have_a_number() -> None:
    """Unlike ids, which those that come after one that is gone have again."""
    ids, numbers = set(), set()
    for _ in range(100):
        tensor = torch.ones(3)
        assert number_of(tensor) == number_of(tensor)
        ids.add(id(tensor))
        numbers.add(number_of(tensor))
        del tensor
    assert len(ids) < 100 == len(numbers)


@pytest.mark.parametrize("rule", [ZPlus(), Gamma()], ids=["z+", "gamma"])
@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"])
def test_a_tensor_put_in_the_place_of_another(name: str, rule: ZPlus | Gamma) -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)))
    lively(model[1])
    x, seed, cache = signed(1, 2, 4, 4).abs(), torch.ones(1, 12).double(), WeightCache()
    module, attribute = model[int(name[0])], name[2:]
    is_parameter = isinstance(getattr(module, attribute), nn.Parameter)
    for factor in (1.0, 2.0, 0.5, 3.0):
        values = getattr(module, attribute).detach().clone() * factor
        setattr(module, attribute, None)
        setattr(module, attribute, nn.Parameter(values.clone()) if is_parameter else values.clone())
        found = propagate(model, x, seed, rule, cache=cache)[0]
        assert torch.equal(found, propagate(model, x, seed, rule, cache=WeightCache())[0])
