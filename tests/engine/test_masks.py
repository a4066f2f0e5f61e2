"""Choices made by arithmetic are those that ``torch.where`` makes, bit by bit."""

import pytest
import torch

from lrp_cli.engine.masks import by_sign, is_not_zero, per_unit, where_above

INF, NAN = float("inf"), float("nan")

X = (0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 1e-6, -1e-6, 3e38, -3e38, INF, -INF, 2.5, -2.5)

each_type = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])


@each_type
def test_by_sign(dtype: torch.dtype) -> None:
    x = torch.tensor(X, dtype=dtype)
    a, b = torch.randn_like(x), torch.randn_like(x)
    a[:4], b[-4:] = torch.tensor([INF, NAN, -INF, 1e-30]), torch.tensor([1e30, INF, NAN, 0.0])
    torch.testing.assert_close(by_sign(x, a, b), torch.where(x < 0, b, a), rtol=0, atol=0, equal_nan=True)


@each_type
def test_where_above(dtype: torch.dtype) -> None:
    x, values = torch.tensor(X, dtype=dtype), torch.arange(1, len(X) + 1).to(dtype)
    for threshold in (0.0, 1e-6, 2.5):
        kept = torch.where(x > torch.tensor(threshold, dtype=dtype), values, 0)
        assert torch.equal(where_above(values, x, threshold), kept)


@each_type
def test_per_unit(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -0.0, 2.0, -4.0, 1e-30, 1.5], dtype=dtype)
    relevance = torch.tensor([3.0, 0.0, 3.0, 8.0, 1e-30, -6.0], dtype=dtype)
    assert torch.equal(per_unit(relevance, x), torch.tensor([0.0, 0.0, 1.5, -2.0, 1.0, -4.0], dtype=dtype))
    assert torch.equal(is_not_zero(x), torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0], dtype=dtype))


def test_what_is_not_a_number_stays_so() -> None:
    assert per_unit(torch.tensor([NAN, 1.0]), torch.tensor([0.0, NAN])).isnan().all()
    assert where_above(torch.tensor([NAN]), torch.tensor([1.0]), 0.0).isnan().all()
