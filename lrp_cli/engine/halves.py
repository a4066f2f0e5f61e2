"""Sums of contributions by their sign, those of both from one product, but for outputs that it leaves no digits of."""

from dataclasses import dataclass

from torch import Tensor

from lrp_cli.engine import weak
from lrp_cli.engine.flow import Flow
from lrp_cli.engine.weak import Window

WIDE, NARROW = 12, 8
"""Contributions to an output from which on saving products is worth a try: one of two, as of non-negative inputs, or
three of four. Of fewer too many sums are next to nothing: what was saved is lost again, and more."""

MANY = 64
"""Contributions to an output from which on it is asked whether any output is weak at all: next to none ever is.
(Not where other targets follow: all of what was done for the first one would be begun anew if one is, for once.)"""

ROOM = 0.5
"""Up to so many contributions to weak outputs for each output there is are worth being handed down one by one."""


@dataclass(frozen=True)
class Halves:
    """Sums of the positive and of the negative contributions from one product for both, for inputs of any sign.

    With w+ = (w + |w|) / 2 they are (z_j + A_j) / 2 and (z_j - A_j) / 2, where A_j = sum_i |x_i| |w_ij|: z_j is at
    hand, A_j is one more product.

    Attributes:
        positive: z_j + A_j, shape of y: twice the positive sum; infinite for weak outputs. Where no negative sum is
            asked for, to be overwritten by what is shared out in proportion to it.
        negative: z_j - A_j, shape of y: twice the negative sum; None where it is not asked for.
        weak: the outputs of which too little is left in the differences (:mod:`lrp_cli.engine.weak`); None: there are
            none.
        window: which inputs an output sees.
    """

    positive: Tensor
    negative: Tensor | None
    weak: Tensor | None
    window: Window


def halves(flow: Flow, stabiliser: float, *, use_bias: bool, both: bool) -> Halves | None:
    """Return the sums of contributions by their sign; None where a product is not worth saving, or cannot be saved.

    Args:
        flow: the layer call.
        stabiliser: added to the sums on their own side of zero.
        use_bias: whether the bias takes part in the sums.
        both: whether the negative sum matters, too.
    """
    layer, window = flow.map, flow.map.window
    # Of an output whose bias is left out, some digits are gone already, which fewer contributions would feel.
    is_exact = use_bias or layer.bias is None
    is_worth_it = layer.fan_in >= (NARROW if is_exact and not flow.is_non_negative else WIDE)
    # Products in another type leave z without the precision of A_j.
    if window is None or not is_worth_it or layer.products is not None or flow.account.batch_dim:
        return None
    bias = layer.bias if use_bias else None

    def compute() -> Halves | None:
        z = flow.y if is_exact else flow.total
        offset = flow.offset(None if bias is None else bias.abs(), 2 * stabiliser)
        size = layer.apply(flow.x if flow.is_non_negative else flow.x.abs(), layer.transformed("absolute"), offset)
        most = int(ROOM * size.numel() / layer.fan_in)
        low = not flow.is_positive(use_bias=use_bias)
        positive, found = weak.sums_by_sign(z, size, low=low, high=both, most=most)
        negative = size if both else None
        if layer.fan_in >= MANY and flow.is_last and not bool(found[0] > 0):
            return Halves(positive, negative, None, window)
        return None if bool(found[0] > most) else Halves(positive, negative, found, window)

    return flow.once("halves", compute)
