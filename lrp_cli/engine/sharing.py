"""What several rules are made of: how relevance is shared out among the contributions of one sign, or of both."""

from collections.abc import Callable
from math import copysign

import torch
from torch import Tensor

from lrp_cli.engine.books import BIAS, EPSILON
from lrp_cli.engine.flow import Contributions, Flow, Spared
from lrp_cli.engine.halves import Halves, halves
from lrp_cli.engine.masks import per_unit, where_above
from lrp_cli.engine.weak import Window, hand_down_weak, of_weak

FEW = 12
"""Of fewer contributions, those of some outputs are all of the other sign: it is not asked whether that is so."""

MUCH = 1e9
"""So much relevance has to be a finite number still when divided by a stabiliser, to be booked by its share."""


def _divided(flow: Flow, z: Tensor, stabiliser: float, *, is_sure: bool) -> tuple[Tensor, bool]:
    """Return out / z in the place of z, and True; z as it is and False if somewhere it is nothing but its stabiliser.

    Arguments as those of :func:`shared_out`.
    """
    if is_sure or (flow.map.fan_in >= FEW and not _is_nothing_somewhere(z, stabiliser)):
        return torch.div(flow.out, z, out=z), True
    if stabiliser > 0:  # rounding may have left less
        z.clamp_(min=stabiliser)
    elif stabiliser < 0:
        z.clamp_(max=stabiliser)
    return z, False


def _is_nothing_somewhere(z: Tensor, stabiliser: float) -> bool:
    threshold = _threshold(z, stabiliser)
    return bool(z.amin() <= threshold if _is_positive(stabiliser) else z.amax() > threshold)


def _without_nothing(values: Tensor, z: Tensor, stabiliser: float) -> Tensor:
    """Return values, which may be overwritten, with zeros where z holds nothing but its stabiliser."""
    above = where_above(values, z, _threshold(z, stabiliser))
    return above if _is_positive(stabiliser) else values.sub_(above)


def _threshold(z: Tensor, stabiliser: float) -> float:
    """Return what z is not above where it holds nothing but a positive stabiliser, and above if it is a negative one.

    The stabiliser may have been rounded up.
    """
    a_bit_more = stabiliser * (1 + torch.finfo(z.dtype).eps)
    return a_bit_more if a_bit_more or _is_positive(stabiliser) else -torch.finfo(z.dtype).tiny


def _is_positive(stabiliser: float) -> bool:
    return copysign(1, stabiliser) > 0


def shared_out(
    flow: Flow,
    name: str,
    z: Callable[[], Tensor],
    stabiliser: float,
    shares: dict[str, Tensor | float],
    *,
    factor: float = 1.0,
    is_sure: bool = False,
) -> Tensor:
    """Return ``R / z``, shape of y; where z holds nothing but its stabiliser, zero, and it is all absorbed.

    What the stabiliser and the other shares of z absorb is booked.

    Args:
        flow: the layer call.
        name: under which what does not depend on the target is kept.
        z: makes the sum of contributions of one sign, stabiliser included: a new tensor.
        stabiliser: what was added to z; its sign is the sign of the contributions, also where it is zero.
        shares: what else is part of z and absorbs: kind -> one value a channel, or one for all.
        factor: times what relevance is booked.
        is_sure: whether z is known to hold more than the stabiliser wherever relevance arrives.
    """
    shares = shares | {EPSILON: stabiliser}
    if factor != 1:
        shares = {kind: factor * share for kind, share in shares.items()}
    kept, is_ratio = flow.once(name, lambda: _divided(flow, z(), stabiliser, is_sure=is_sure))
    if is_ratio:
        s = flow.times_g(kept)
        flow.book_shares(s, shares)
        return s
    if abs(stabiliser) * torch.finfo(kept.dtype).max > MUCH:
        s = flow.relevance.div_(kept)
        flow.book_shares(s, shares)  # of nothing but the stabiliser, its share is everything
        return _without_nothing(s, kept, stabiliser)
    relevance = flow.relevance
    distributed = _without_nothing(relevance.clone(), kept, stabiliser)
    flow.book(EPSILON, relevance.sub_(distributed), times=factor)
    s = distributed.div_(kept) if stabiliser else per_unit(distributed, kept)
    flow.book_shares(s, shares)
    return s


def rely_on_ratios(flow: Flow, *names: str, spared: Spared = Spared.OUTPUT) -> None:
    """Have further targets do without the output, if what :func:`shared_out` keeps for them is ratios alone.

    Args:
        flow: the layer call.
        names: all under which something is kept.
        spared: what they do without then.
    """
    if all(name in flow.memo and flow.memo[name][1] for name in names):
        flow.spare(spared)


def share_by_sign(flow: Flow, alpha: float, beta: float, stabiliser: float, use_bias: bool) -> Tensor:
    """Hand alpha times the relevance to the positive contributions and -beta times to the negative ones.

    Args:
        flow: the layer call.
        alpha, beta: the weights (Bach et al. 2015, eq. 60).
        stabiliser: added to the sums of contributions on their own side of zero.
        use_bias: whether the bias takes part in the sums (and is booked).

    Returns:
        g_i, shape of x.
    """
    bias, is_positive = flow.map.bias if use_bias else None, flow.is_positive(use_bias=use_bias)
    # Non-negative inputs take one product with w+ as it is; inputs of both signs would take two.
    if beta or not flow.is_non_negative:
        found = halves(flow, stabiliser, use_bias=use_bias, both=bool(beta))
        if found is not None:
            return _by_halves(flow, found, alpha, beta, stabiliser, bias)

    signs = ("positive", "negative") if beta else ("positive",)
    spared = Spared.INPUT_AND_OUTPUT if flow.is_non_negative else Spared.OUTPUT

    def hand_down(factor: float, contributions: Contributions, part: Tensor | None, stabiliser: float) -> Tensor:
        is_sure = is_positive and stabiliser > 0  # z > 0, so z+ > 0
        name, shares = contributions.with_positive_x, _of_bias(part)
        s = shared_out(flow, name, contributions.sum, stabiliser, shares, factor=factor, is_sure=is_sure)
        if name == signs[-1]:  # nothing else reads the outputs
            rely_on_ratios(flow, *signs, spared=spared)
            flow.let_outputs_go()
        return contributions.pull(s)

    part = None if bias is None else bias.clamp(min=0)
    pulled = hand_down(alpha, flow.positive(flow.offset(part, stabiliser)), part, stabiliser)
    if not beta:
        return pulled if alpha == 1 else pulled.mul_(alpha)
    part = None if bias is None else bias.clamp(max=0)
    least = -float(stabiliser)  # minus zero, not zero
    inhibition = hand_down(-beta, flow.negative(flow.offset(part, least)), part, least)
    if alpha - beta == 1:  # in a single pass
        return torch.lerp(inhibition, pulled, alpha, out=pulled)
    return pulled.mul_(alpha).sub_(inhibition, alpha=beta)


def _by_halves(flow: Flow, found: Halves, alpha: float, beta: float, stabiliser: float, bias: Tensor | None) -> Tensor:
    """As :func:`share_by_sign`, from one product with w and one with |w|.

    With s+ = alpha R / (z + A) and s- = -beta R / (z - A), a positive input gets sum_j 2 (w+ s+ + w- s-) =
    sum_j (w (s+ + s-) + |w| (s+ - s-)); for a negative one the parts of w change places. Likewise for the bias.
    """
    if found.negative is None:  # alpha is one
        ratio, weak_out = flow.once("share of the positive", lambda: _share_of_positive(flow, found))
        flow.spare(Spared.OUTPUT)
        both = difference = flow.times_g(ratio)
    else:
        weak_out = _of_weak(flow.out, found)
        both, difference = _sum_and_difference(flow, found.positive, found.negative, alpha, beta)
    # (z + A) s+ holds twice the share of b+ and of the stabiliser, (z - A) s- that of b- and of minus the stabiliser.
    shares: dict[str, Tensor | float] = {EPSILON: 2 * stabiliser}
    if bias is not None:
        flow.book_shares(both, {BIAS: bias})
        shares = shares | {BIAS: bias.abs()}
    flow.book_shares(difference, shares)
    pulled = flow.add_by_size(flow.hand_down(both), difference)
    if found.weak is not None and weak_out is not None:
        relevance = of_weak(flow.g, found.weak).mul_(weak_out)
        _add_weak(pulled, flow, found.weak, found.window, relevance, bias, (alpha, beta, stabiliser))
    return pulled


def _share_of_positive(flow: Flow, found: Halves) -> tuple[Tensor, Tensor | None]:
    """Return out / (z + A), in the place of z + A, and ``out`` of weak outputs: all that further targets need."""
    weak_out = _of_weak(flow.out, found)
    return torch.div(flow.out, found.positive, out=found.positive), weak_out


def _of_weak(values: Tensor, found: Halves) -> Tensor | None:
    return None if found.weak is None else of_weak(values, found.weak)


def _add_weak(
    pulled: Tensor,
    flow: Flow,
    weak: Tensor,
    window: Window,
    relevance: Tensor,
    bias: Tensor | None,
    factors: tuple[float, float, float],
) -> None:
    """Add to ``pulled`` what weak outputs hand down, and book what they do not (:func:`hand_down_weak`)."""
    layer, x, outputs = flow.map, flow.x, flow.g.shape
    if window.is_matrix:  # positions are rows, too
        x, pulled, outputs = x.reshape(-1, x.shape[-1]), pulled.view(-1, x.shape[-1]), outputs[-2:]
    weights = layer.raw, layer.scale, bias
    of_stabiliser, of_bias = hand_down_weak(
        pulled, x, weights, relevance, weak, outputs[1:], window, factors, flow.books.samples
    )
    flow.books.enter(flow.account, EPSILON, of_stabiliser)
    if bias is not None:
        flow.books.enter(flow.account, BIAS, of_bias)


def _sum_and_difference(
    flow: Flow, positive: Tensor, negative: Tensor, alpha: float, beta: float
) -> tuple[Tensor, Tensor]:
    """Return s+ + s- and s+ - s-, where s+ = alpha R / positive and s- = -beta R / negative, all of shape y."""
    relevance, is_scratch = flow.relevance_times(alpha), flow.is_last
    s = torch.div(relevance, positive, out=positive if is_scratch else None)
    difference = torch.addcdiv(s, relevance, negative, value=beta / alpha, out=negative if is_scratch else None)
    return torch.lerp(difference, s, 2.0, out=s), difference  # 2 s+ - (s+ - s-)


def _of_bias(part: Tensor | None) -> dict[str, Tensor | float]:
    return {} if part is None else {BIAS: part}
