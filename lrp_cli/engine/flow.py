"""What a rule sees of one call of one layer, and the sums of contributions that several rules are made of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from lrp_cli.engine.books import EPSILON
from lrp_cli.engine.linear_maps import LinearMap

Value = TypeVar("Value")

WIDE = 12
"""Contributions to an output from which on a product is worth saving; fewer (depthwise convolutions) cost little."""

TOLERABLE = 1e-5
"""Share of the relevance that rounding may misplace in the sums that are taken from differences."""


class Book(Protocol):
    """Books what a layer absorbs."""

    def __call__(self, kind: str, relevance: Tensor, factor: Tensor | None = None) -> None:
        """Book relevance (any shape, batch first), times a factor that broadcasts, under a kind of absorption."""
        ...


@dataclass(frozen=True)
class Flow:
    """What a rule sees of one call of one layer.

    Attributes:
        map: the layer.
        x: its input.
        y: its output, bias included; None for rules that do not need it.
        g: the modified gradient of the output, shape of y.
        book: books what is absorbed.
        bounds: the smallest and the largest value that x can have, shape of x; None unless x is the model's input.
        memo: what does not depend on g, kept for further targets of the same forward pass.
    """

    map: LinearMap
    x: Tensor
    y: Tensor
    g: Tensor
    book: Book
    bounds: tuple[Tensor, Tensor] | None = None
    memo: dict[str, Any] = field(default_factory=dict)

    @property
    def relevance(self) -> Tensor:
        """R_j = y_j g_j."""
        return self.y * self.g

    def once(self, name: str, compute: Callable[[], Value]) -> Value:
        """Return what ``compute`` makes of x and y, computed once for all targets of a forward pass."""
        if name not in self.memo:
            self.memo[name] = compute()
        value: Value = self.memo[name]
        return value

    @property
    def is_non_negative(self) -> bool:
        """Whether no input is negative, as after a ReLU: then w+ alone makes the positive contributions."""
        return self.once("is_non_negative", lambda: bool(self.x.numel() == 0 or self.x.min() >= 0))

    @property
    def spread(self) -> Tensor:
        """A_j = sum_i |x_i| |w_ij|, shape of y: how large the contributions to an output are together."""
        return self.once("spread", lambda: self.map.apply(self.x.abs(), self.map.transformed("absolute")))

    @property
    def total(self) -> Tensor:
        """sum_i x_i w_ij, shape of y: the output without its bias."""
        bias = self.map.bias_for(self.y)
        return self.y if bias is None else self.once("total", lambda: self.y - bias)

    def positive(self) -> "Contributions":
        """Return the positive contributions, (x_i w_ij)+."""
        return Contributions(self, "positive", "negative")

    def negative(self) -> "Contributions":
        """Return the negative contributions, (x_i w_ij)-."""
        return Contributions(self, "negative", "positive")


@dataclass(frozen=True)
class Contributions:
    """The contributions x_i w_ij of one sign: those of positive inputs by one part of the weights, and vice versa.

    Attributes:
        flow: the layer call.
        with_positive_x: the part of the weights that makes a contribution of this sign with a positive input.
        with_negative_x: the part that makes one with a negative input.
    """

    flow: Flow
    with_positive_x: str
    with_negative_x: str

    def sum(self) -> Tensor:
        """Return their sum for each output, shape of y, without bias."""
        return self.flow.once(f"sum of {self.with_positive_x}", self._sum)

    def _sum(self) -> Tensor:
        layer, x = self.flow.map, self.flow.x
        if self.flow.is_non_negative:
            return layer.apply(x, layer.transformed(self.with_positive_x))
        by_positive_x = layer.apply(x.clamp(min=0), layer.transformed(self.with_positive_x))
        return by_positive_x + layer.apply(x.clamp(max=0), layer.transformed(self.with_negative_x))

    def pull(self, s: Tensor) -> Tensor:
        """Return sum_j w_ij s_j over the contributions of this sign, shape of x."""
        layer, x = self.flow.map, self.flow.x
        pulled = layer.pull(s, layer.transformed(self.with_positive_x), x)
        if self.flow.is_non_negative:
            return pulled
        return torch.where(x < 0, layer.pull(s, layer.transformed(self.with_negative_x), x), pulled)


def sums_by_difference(flow: Flow, relevance: Tensor, *, both: bool) -> tuple[Tensor, Tensor] | None:
    """Return the sums of positive and of negative contributions, shape of y each, from one product for both.

    With w+ = (w + |w|) / 2, they are (z_j + A_j) / 2 and (z_j - A_j) / 2: z_j is at hand, A_j is one more product, for
    inputs of any sign. Where one of them is small against A_j, little is left of its digits; None is returned where
    that would misplace more than :data:`TOLERABLE` of the relevance, or where a product is not worth saving.

    Args:
        flow: the layer call.
        relevance: what is to be distributed, shape of y.
        both: whether the negative sum matters, too.
    """
    if flow.map.fan_in < WIDE:
        return None
    total, spread = flow.total, flow.spread
    positive, negative = (total + spread) / 2, (total - spread) / 2
    smaller = torch.minimum(positive, -negative) if both else positive
    rounding = 16 * torch.finfo(spread.dtype).eps
    misplaced = (relevance.abs() * (spread * rounding / smaller.clamp(min=0)).nan_to_num(0.0).clamp(max=1)).sum()
    return (positive, negative) if bool(misplaced <= TOLERABLE * relevance.abs().sum()) else None


def pull_both(flow: Flow, sums: tuple[Tensor, Tensor], s_positive: Tensor, s_negative: Tensor) -> Tensor:
    """Return the sum of ``positive().pull(s_positive)`` and ``negative().pull(s_negative)``, from two products.

    For positive x it is sum_j (w_ij+ s_j+ + w_ij- s_j-) = sum_j (w_ij (s_j+ + s_j-) + |w_ij| (s_j+ - s_j-)) / 2; for
    negative x the parts of w change places, and with them the sign of the second term.

    The sums that s was divided by are rounded (:func:`sums_by_difference`): what arrives differs from what was sent by
    a little, which is booked with what the stabiliser takes.
    """
    layer, x = flow.map, flow.x
    by_weight = layer.pull((s_positive + s_negative) / 2, layer.weight, x)
    by_size = layer.pull((s_positive - s_negative) / 2, layer.transformed("absolute"), x)
    pulled = by_weight + (by_size if flow.is_non_negative else x.sign() * by_size)
    flow.book(EPSILON, s_positive, sums[0])
    flow.book(EPSILON, s_negative, sums[1])
    flow.book(EPSILON, -x, pulled)
    return pulled
