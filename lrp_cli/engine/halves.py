"""Sums of contributions by their sign, those of both from one product, where few enough digits are lost in it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lrp_cli.engine.flow import Flow

WIDE = 12
"""Contributions to an output from which on saving a product is worth a try. Of fewer (depthwise convolutions) too many
sums are next to nothing: what was saved is lost again, and more (mobilenet_v2, alpha2-beta1: 2.3 in place of 2.0)."""

ROUNDING = 16
"""By how much a sum may be off, in units of the last place of its largest terms."""

TOLERABLE = 84
"""Share of the relevance that rounding may misplace in the sums that are taken from differences, in the same units:
1e-5 in single precision."""


@dataclass(frozen=True)
class Halves:
    """Sums of the positive and of the negative contributions from one product for both, for inputs of any sign.

    With w+ = (w + |w|) / 2 they are (z_j + A_j) / 2 and (z_j - A_j) / 2, where A_j = sum_i |x_i| |w_ij|: z_j is at
    hand, A_j is one more product.

    Attributes:
        positive: z_j + A_j, shape of y: twice the positive sum.
        negative: z_j - A_j, shape of y: twice the negative sum; None where it is not asked for.
        is_precise: whether too little is lost in the differences to be worth booking.
    """

    positive: Tensor
    negative: Tensor | None
    is_precise: bool


def halves(flow: Flow, stabiliser: float, *, use_bias: bool, both: bool) -> Halves | None:
    """Return the sums of contributions by their sign (:class:`Halves`).

    Where one of them is small against A_j, little is left of its digits; None is returned where that would misplace
    more than :data:`TOLERABLE` of a sample's relevance, or where a product is not worth saving.

    Args:
        flow: the layer call.
        stabiliser: added to the sums on their own side of zero.
        use_bias: whether the bias takes part in the sums.
        both: whether the negative sum matters, too.
    """
    if flow.map.fan_in < WIDE or flow.map.products is not None:  # z is not of the precision of A_j
        return None
    bias, is_positive = flow.map.bias if use_bias else None, flow.is_positive(use_bias=use_bias)
    z = flow.y if use_bias or flow.map.bias is None else flow.total

    def compute() -> Halves:
        offset = flow.offset(None if bias is None else bias.abs(), 2 * stabiliser)
        return _halves(flow, z, offset, both=both, is_positive=is_positive)

    found = flow.once("halves", compute)
    if found.is_precise or bool(_loss(flow, z, found, is_positive) <= TOLERABLE * torch.finfo(z.dtype).eps):
        return found
    return None


def _halves(flow: Flow, z: Tensor, offset: Tensor, *, both: bool, is_positive: bool) -> Halves:
    x = flow.x if flow.is_non_negative else flow.x.abs()
    spread = flow.map.apply(x, flow.map.transformed("absolute"), offset)
    keeps_digits = 1 - ROUNDING / TOLERABLE  # |z| up to this share of A_j leaves enough of them
    is_precise: bool
    if is_positive:
        is_precise = not both or bool(torch.sub(z, spread, alpha=keeps_digits).max() <= 0)
    elif both:
        low, high = torch.aminmax(z / spread)
        is_precise = bool((low >= -keeps_digits) & (high <= keeps_digits))
    else:
        is_precise = bool(torch.add(z, spread, alpha=keeps_digits).min() >= 0)
    positive, negative = (z + spread, torch.sub(z, spread, out=spread)) if both else (spread.add_(z), None)
    if not is_precise:  # what rounding has left of a sum that is next to nothing keeps its sign
        least = _rounding(z) / 16
        if not is_positive:  # else z + A >= A
            positive = torch.maximum(positive, (z if negative is None else negative) * -least, out=positive)
        if negative is not None:
            negative = torch.minimum(negative, positive * -least, out=negative)
    return Halves(positive, negative, is_precise)


def _loss(flow: Flow, z: Tensor, found: Halves, is_positive: bool) -> Tensor:
    """Return which share of a sample's relevance is misplaced by rounding, at most.

    Of an output it is A_j over the smallest sum, times what rounding takes, and never more than all. A_j over z_j + A_j
    is 1 - z_j / (z_j + A_j), and over A_j - z_j it is (1 - (z_j + A_j) / (z_j - A_j)) / 2.
    """
    rounding = _rounding(z)
    if found.negative is None:
        ratio = z / found.positive
    else:
        rounding, ratio = rounding / 2, found.positive / found.negative
        if not is_positive:  # either may be the smaller one
            ratio = torch.minimum(ratio, ratio.reciprocal(), out=ratio)
    ratio.clamp_(min=1 - 1 / rounding)
    relevance = flow.relevance.abs_()
    total = flow.per_sample(relevance).clamp(min=torch.finfo(z.dtype).tiny)
    return rounding * (1 - flow.per_sample(relevance.mul_(ratio)) / total).max()


def _rounding(z: Tensor) -> float:
    return ROUNDING * torch.finfo(z.dtype).eps
