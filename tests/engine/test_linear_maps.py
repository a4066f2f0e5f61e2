"""Convolutions whose kernels have one entry are products with a matrix, where that is faster, and only those."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lrp_cli.engine import linear_maps
from lrp_cli.engine.linear_maps import MANY, Convolution
from lrp_cli.engine.weights import WeightCache

FEW, SIDE = 7, 12
assert FEW**2 < MANY <= SIDE**2


@pytest.fixture(autouse=True)
def _is_good_at_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_maps, "multiplies_matrices_well", lambda: True)


class Called(TorchDispatchMode):
    """Notes the names of what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Execute an operation, and note its name."""
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def layer(weight: Tensor, **options: Any) -> Convolution:
    spatial = weight.dim() - 2
    given: dict[str, Any] = {
        "stride": (1,) * spatial,
        "padding": (0,) * spatial,
        "dilation": (1,) * spatial,
        "output_padding": (0,) * spatial,
    }
    return Convolution(weight, None, WeightCache(), **(given | options))


def compare(weight: Tensor, x: Tensor, *, is_matrix: bool, **options: Any) -> None:
    """Compare a layer and its transpose with a convolution in double precision and its gradient."""
    channels = weight.shape[1] if options.get("transposed") else weight.shape[0]
    made, bias = layer(weight, **options), torch.randn(channels)
    with Called() as called:
        y, without = made.apply(x, weight, bias), made.apply(x, weight)
        s = torch.randn_like(y)
        pulled = made.pull(s, weight, x)
    exact = layer(weight.double(), **options)
    input = x.double().requires_grad_()
    expected = exact.apply(input, weight.double(), bias.double())
    (gradient,) = torch.autograd.grad(expected, input, s.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(without.double(), expected - made.channels(bias, y), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pulled.double(), gradient, rtol=1e-5, atol=1e-5)
    assert ({"bmm", "baddbmm"} <= called.names) == is_matrix
    assert ("convolution_backward" in called.names) != is_matrix


@pytest.mark.parametrize("samples, side, is_matrix", [(1, FEW, True), (1, 1, True), (3, SIDE, True), (3, FEW, False)])
def test_kernels_of_one_entry(samples: int, side: int, is_matrix: bool) -> None:
    compare(torch.randn(5, 4, 1, 1), torch.randn(samples, 4, side, side), is_matrix=is_matrix)


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_any_number_of_dimensions(spatial: int) -> None:
    compare(
        torch.randn(5, 4, *[1] * spatial),
        torch.randn(1, 4, 9, 8, 7)[(..., *[0] * (3 - spatial))].contiguous(),
        is_matrix=True,
    )


@pytest.mark.parametrize(
    "options, shape",
    [
        ({"stride": (2, 1)}, (4, 4, 1, 1)),
        ({"padding": (0, 1)}, (4, 4, 1, 1)),
        ({"groups": 2}, (4, 2, 1, 1)),
        ({"transposed": True}, (4, 3, 1, 1)),
        ({}, (4, 4, 1, 2)),
    ],
    ids=["stride", "padding", "groups", "transposed", "kernel"],
)
def test_all_others_are_convolutions(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    compare(torch.randn(shape), torch.randn(1, 4, SIDE, SIDE), is_matrix=False, **options)


def test_what_lies_otherwise_in_memory_is_not_copied() -> None:
    x = torch.randn(1, 4, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    compare(torch.randn(5, 4, 1, 1), x, is_matrix=False)


def test_other_types_are_convolutions() -> None:
    x, weight = torch.randn(1, 4, SIDE, SIDE).bfloat16(), torch.randn(5, 4, 1, 1).bfloat16()
    with Called() as called:
        layer(weight).pull(layer(weight).apply(x, weight), weight, x)
    assert not {"bmm", "baddbmm"} & called.names


def test_the_forward_pass_is_the_models_own() -> None:
    conv, x = torch.nn.Conv2d(40, 50, 1), torch.randn(1, 40, SIDE, SIDE)
    made = Convolution(
        conv.weight, conv.bias, WeightCache(), stride=(1, 1), padding=(0, 0), dilation=(1, 1), output_padding=(0, 0)
    )
    assert torch.equal(made.output(x), conv(x))
    assert made.output(x)._base is None


def test_under_autocast_products_stay_precise() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compare(torch.randn(5, 4, 1, 1), torch.randn(1, 4, SIDE, SIDE), is_matrix=False)


def test_processors_that_are_better_at_convolutions_are_given_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_maps, "multiplies_matrices_well", lambda: False)
    compare(torch.randn(5, 4, 1, 1), torch.randn(1, 4, SIDE, SIDE), is_matrix=False)
