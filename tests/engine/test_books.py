"""Sums of products for the books: right for any layout, and without copies of large tensors."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lrp_cli.engine import books
from lrp_cli.engine.books import Account, Books


class Copies(TorchDispatchMode):
    """Counts copies of tensors with more than one entry a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.name in {"aten::clone", "aten::contiguous", "aten::copy_", "aten::_to_copy"}:
            self.count += args[0].dim() > 1
        return function(*args, **(kwargs or {}))


class Largest(TorchDispatchMode):
    """Notes how many entries the largest tensor has that is made in memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and all(returned.alias_info is None for returned in function._schema.returns):
            self.made = max(self.made, out.numel())
        return out


def laid_out(layout: str, seed: int) -> Tensor:
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(seed))
    if layout == "permuted":
        return x.permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels last" else x


def booked(values: Tensor, g: Tensor, batch_dim: int = 0) -> tuple[Tensor, int]:
    account, kept, copies = Account("layer", None, batch_dim), Books(2), Copies()
    with copies:
        kept.book_product(account, "constant", values, g)
    return kept.absorbed()["layer"], copies.count


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "permuted"])
def test_products_are_summed_where_they_lie(layout: str) -> None:
    values, g = laid_out(layout, 0), laid_out(layout, 1)
    found, copies = booked(values, g)
    torch.testing.assert_close(found, (values.double() * g.double()).flatten(1).sum(dim=1), rtol=1e-5, atol=1e-5)
    assert copies == 0


def test_products_of_tensors_that_lie_differently() -> None:
    values, g = laid_out("contiguous", 0), laid_out("channels last", 1)
    found, _ = booked(values, g)
    torch.testing.assert_close(found, (values.double() * g.double()).flatten(1).sum(dim=1), rtol=1e-5, atol=1e-5)


def test_products_where_the_batch_is_another_dimension() -> None:
    values, g = laid_out("permuted", 0).movedim(0, 1), laid_out("permuted", 1).movedim(0, 1)
    found, copies = booked(values, g, batch_dim=1)
    expected = (values.double() * g.double()).movedim(1, 0).flatten(1).sum(dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert copies == 0


@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("size", [books.MANY - 1, books.MANY, books.LONG, books.LONG + 1, 2 * books.LONG + 5])
def test_many_products_are_added_up_in_parts_and_no_tensor_of_them_is_made(samples: int, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    one, other = (torch.randn(samples, size, generator=generator) for _ in range(2))
    expected = torch.stack([torch.dot(a, b) for a, b in zip(one.double(), other.double(), strict=True)])
    kept, largest = Books(samples), Largest()
    with largest:
        kept.book_product(Account("layer", None, 0), "constant", one, other)
    torch.testing.assert_close(kept.absorbed()["layer"], expected, rtol=0, atol=1e-5 * size**0.5)
    assert (samples > 1 and size < books.MANY) or largest.made <= 10


def test_products_of_a_value_that_stands_for_many() -> None:
    g = laid_out("channels last", 1)
    found, _ = booked(torch.full((1, 3, 1, 1), 2.0), g)
    torch.testing.assert_close(found, 2 * g.double().flatten(1).sum(dim=1), rtol=1e-5, atol=1e-5)
