"""Compiled models are explained as they were written."""

import pytest
import torch
from networks import build, inputs
from torch import Tensor, nn

from lrp_cli.engine.compiled import uncompiled
from lrp_cli.explainer import Explainer

pytestmark = pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch before 2.6 knows no stances")


class Small(nn.Module):
    """Two layers, one of which calls what is compiled, if anything is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.pool = pooled

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(torch.relu(self.conv(x))))


def pooled(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3))


def whole(model: Small) -> nn.Module:
    return torch.compile(model)


def a_part(model: Small) -> nn.Module:
    model.conv = torch.compile(model.conv)
    return model


def in_place(model: Small) -> nn.Module:
    model.compile()
    return model


def a_function(model: Small) -> nn.Module:
    model.pool = torch.compile(pooled)
    return model


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
@pytest.mark.parametrize("compile_", [whole, a_part, in_place, a_function])
def test_a_compiled_model(compile_: object) -> None:
    x = inputs(2, 3, 8, 8, dtype=torch.float32)
    plain = Explainer(build(Small), "epsilon-plus").explain(x)
    explainer = Explainer(compile_(build(Small)), "epsilon-plus")
    for _ in range(2):
        compiled = explainer.explain(x)
        assert torch.equal(compiled.relevance, plain.relevance)
        assert [*compiled.absorbed] == [*plain.absorbed] == ["head", "conv"]


def test_compilation_is_not_switched_off_for_good() -> None:
    x = inputs(2, 3, 8, 8, dtype=torch.float32)
    model = build(Small)
    compiled = []

    def backend(graph: nn.Module, _: object) -> object:
        compiled.append(graph)
        return graph.forward

    fast = torch.compile(model, backend=backend)
    Explainer(fast, "epsilon-plus").explain(x)
    assert not compiled
    fast(x)
    assert compiled


def test_threads_that_begin_and_end_in_any_order_leave_it_switched_on() -> None:
    first, second = uncompiled(), uncompiled()
    with first:
        second.__enter__()
    second.__exit__(None, None, None)
    compiled = []

    def backend(graph: nn.Module, _: object) -> object:
        compiled.append(graph)
        return graph.forward

    torch.compile(lambda x: x * 2 + 1, backend=backend)(torch.ones(3))
    assert compiled
