"""Weak outputs: those of which hardly anything of one sign arrives, so that a difference has few of its digits left.

With z_j, the sum of an output's contributions, and A_j, that of their sizes, the sums of one sign are (z_j + A_j) / 2
and (z_j - A_j) / 2 (:mod:`lrp_cli.engine.halves`). Where one of them is small against A_j, or nothing at all, it cannot
be taken from the difference. Such outputs are few; their relevance is handed down contribution by contribution.

How many they are differs from picture to picture, and programs hold operations on tensors of shapes that stay
(:mod:`lrp_cli.engine.transcript`). So these are operators of torch's dispatcher, like its own, which list weak outputs
in a tensor with room for as many as there may be: how many there are, and then where they lie in the flattened output.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

from lrp_cli.engine.masks import where_above

SHARE = 2**-7
"""Outputs are weak whose smaller sum is less than half of this share of A_j: differences take seven binary digits
off others at most, of 24 in single precision."""

NOWHERE = -(2**48)
"""A place so far in front of a tensor that nothing added to it leads into the tensor."""

ROW = 64
"""Entries that are looked at together for the largest one."""

TABLE = 2**18
"""Up to so many inputs that the outputs of a channel see, it is kept where they lie, for 32 kinds of layers at most."""

BLOCK = 2**20
"""Contributions that are gone through at a time, which bounds the memory that they take."""


@dataclass(frozen=True)
class Window:
    """Which inputs an output of a layer sees: as those of a convolution with zero padding, of any number of dimensions.

    Attributes:
        stride, padding, dilation: of the convolution; nothing for a product with a matrix.
        groups: into how many groups the channels are divided.
    """

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def is_matrix(self) -> bool:
        """Whether an output sees all inputs of its row."""
        return not self.stride


_LIBRARY = torch.library.Library("lrp_cli", "DEF")  # type: ignore[no-untyped-call]
for _schema in (
    "sums_by_sign(Tensor z, Tensor(a!) size, bool low, bool high, int most) -> (Tensor, Tensor)",
    "of_weak(Tensor values, Tensor weak) -> Tensor",
    "hand_down_weak(Tensor(a!) pulled, Tensor x, Tensor weight, Tensor? scale, Tensor? bias, Tensor relevance, "
    "Tensor weak, int[] outputs, int[] stride, int[] padding, int[] dilation, int groups, float alpha, float beta, "
    "float stabiliser, int samples) -> Tensor",
):
    _LIBRARY.define(_schema)  # type: ignore[no-untyped-call]


def sums_by_sign(z: Tensor, size: Tensor, *, low: bool, high: bool, most: int) -> tuple[Tensor, Tensor]:
    """Return ``z + size``, and the weak outputs; if ``high``, ``size`` becomes ``z - size``.

    The sums of weak outputs are infinite, so that nothing is shared out in proportion to them.

    Args:
        z: the sum of contributions, any shape.
        size: the sum of their sizes A_j, shape of z, with what keeps it from zero.
        low: whether outputs with hardly any positive contribution count as weak.
        high: whether those with hardly any negative contribution do.
        most: how many weak outputs there is room for; of more, nothing but their number is right.

    Returns:
        Twice the positive sum, shape of z, and the weak outputs, shape (1 + most,): their number, and their places.
    """
    found: tuple[Tensor, Tensor] = torch.ops.lrp_cli.sums_by_sign(z, size, low, high, most)
    return found


def of_weak(values: Tensor, weak: Tensor) -> Tensor:
    """Return the values of weak outputs, shape (most,), with room behind them that holds anything."""
    found: Tensor = torch.ops.lrp_cli.of_weak(values, weak)
    return found


def hand_down_weak(
    pulled: Tensor,
    x: Tensor,
    weights: tuple[Tensor, Tensor | None, Tensor | None],
    relevance: Tensor,
    weak: Tensor,
    outputs: Sequence[int],
    window: Window,
    factors: tuple[float, float, float],
    samples: int,
) -> Tensor:
    """Add what weak outputs hand down to the modified gradient of the input.

    g_i = sum_j  w_ij ( alpha [x_i w_ij > 0] / z_j+  -  beta [x_i w_ij < 0] / z_j- ) R_j  (Bach et al. 2015, eq. 60)

    Args:
        pulled: the modified gradient, shape of x; changed in place.
        x: the layer's input, shape (rows, channels, ...); rows of one sample lie next to each other.
        weights: the weight, shape (outputs, channels / groups, ...), what its output channels are multiplied by or
            None, and the bias or None, shape (outputs,).
        relevance: of the weak outputs (:func:`of_weak`).
        weak: the weak outputs (:func:`sums_by_sign`).
        outputs: the output's shape but its rows, (channels, ...).
        window: which inputs an output sees.
        factors: alpha, beta, and what keeps the sums from zero.
        samples: N, the number of samples.

    Returns:
        What is not handed down, shape (2, N, 1), float64: what the stabiliser takes, and what the bias does.
    """
    booked: Tensor = torch.ops.lrp_cli.hand_down_weak(
        pulled,
        x,
        *weights,
        relevance,
        weak,
        [*outputs],
        [*window.stride],
        [*window.padding],
        [*window.dilation],
        window.groups,
        *factors,
        samples,
    )
    return booked


def _sums_by_sign(z: Tensor, size: Tensor, low: bool, high: bool, most: int) -> tuple[Tensor, Tensor]:
    positive = torch.empty_like(z)
    if _is_any_weak(z, size, low, high, scratch=positive):
        if not high:
            excess = torch.add(z, size, alpha=1 - SHARE, out=positive).neg_()
        elif not low:
            excess = torch.sub(z, size, alpha=1 - SHARE, out=positive)
        else:
            excess = torch.abs(z, out=positive).sub_(size, alpha=1 - SHARE)
        places = _places_from_zero(excess)  # zero, where there is nothing at all, and nothing to keep sums from zero
    else:
        places = torch.empty(0, dtype=torch.int64, device=z.device)
    weak = places.new_empty(1 + most)
    weak[0] = len(places)
    torch.add(z, size, out=positive)
    if high:
        torch.sub(z, size, out=size)
    if 0 < len(places) <= most:
        weak[1 : 1 + len(places)] = places
        for sums, value in ((positive, inf), (size, -inf)) if high else ((positive, inf),):
            _fill_at(sums, places, value)
    return positive, weak


def _is_any_weak(z: Tensor, size: Tensor, low: bool, high: bool, scratch: Tensor) -> bool:
    """Return whether there may be weak outputs: soon told where none is. On a GPU each time of asking is a wait."""
    if z.device.type != "cpu" or not z.numel():
        return True
    least, largest = torch.div(z, size, out=scratch).aminmax()
    # Nothing over nothing is neither above nor below.
    return not ((bool(least > SHARE - 1) or (high and not low)) and (bool(largest < 1 - SHARE) or not high))


def _places_from_zero(excess: Tensor) -> Tensor:
    """Return where entries are not negative, in their order in the flattened tensor: shape (K,)."""
    flat = excess.reshape(-1)
    if flat.device.type == "cpu" and len(flat) and len(flat) % ROW == 0:
        # Comparing takes longer than looking for the largest: where few rows have one, only those are compared.
        rows = flat.view(-1, ROW)
        having = (rows.amax(dim=1) >= 0).nonzero().flatten()
        if len(having) < len(rows) // 8:
            number, place = (rows[having] >= 0).nonzero().unbind(dim=1)
            return having[number] * ROW + place
    return (flat >= 0).nonzero().flatten()


def _fill_at(tensor: Tensor, places: Tensor, value: float) -> None:
    """Set entries of a tensor, where they lie in it flattened."""
    if tensor.is_contiguous():
        tensor.view(-1).index_fill_(0, places, value)
    else:
        tensor[torch.unravel_index(places, tensor.shape)] = value


def _listed(weak: Tensor) -> Tensor:
    """Return where weak outputs lie, shape (K,); nothing if there was no room for them."""
    count = int(weak[0])
    return weak[1 : 1 + count] if count < len(weak) else weak[:0]


def _of_weak(values: Tensor, weak: Tensor) -> Tensor:
    places = _listed(weak)
    found = values.new_empty(len(weak) - 1)
    if len(places):
        torch.take(values, places, out=found[: len(places)])
    return found


def _hand_down_weak(
    pulled: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    relevance: Tensor,
    weak: Tensor,
    outputs: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    alpha: float,
    beta: float,
    stabiliser: float,
    samples: int,
) -> Tensor:
    booked = torch.zeros(2, samples, 1, dtype=torch.float64, device=relevance.device)
    places = _listed(weak)
    if not len(places):
        return booked
    window, rows = Window(tuple(stride), tuple(padding), tuple(dilation), groups), weight.flatten(1)
    a_sample, plane = len(x) // samples * prod(outputs), prod(outputs[1:])
    flat = pulled.view(-1) if pulled.is_contiguous() else pulled.new_zeros(pulled.numel())
    step = max(BLOCK // rows.shape[1], 1)
    for start in range(0, len(places), step):
        at, arriving = places[start : start + step], relevance[start : start + step][: len(places) - start]
        number = at // plane  # of the output's channel, those of one row after those of another
        channels = number % outputs[0]
        inputs, is_inside = _seen(at % plane, x.shape, weight.shape, outputs, window)
        group = number if groups == outputs[0] else number // (outputs[0] // groups)
        inputs = inputs + (group * (weight.shape[1] * prod(x.shape[2:])))[:, None]
        w = rows.index_select(0, channels)
        if scale is not None:
            w.mul_(scale.index_select(0, channels)[:, None])
        if is_inside is not None:
            w.mul_(is_inside)
        terms = x.take(inputs).mul_(w)
        w_up, w_down = where_above(w, terms, 0), where_above(w, terms.neg(), 0)
        up, down = terms.clamp(min=0).sum(dim=1), terms.clamp_(max=0).sum(dim=1)
        if bias is not None:
            b = bias.index_select(0, channels)
            b_up, b_down = b.clamp(min=0), b.clamp(max=0)
            up, down = up.add_(b_up), down.add_(b_down)
        s_up, s_down = _over(alpha * arriving, up, stabiliser), _over(-beta * arriving, down, -stabiliser)
        handed = w_up.mul_(s_up[:, None]).addcmul_(w_down, s_down[:, None])
        # In order on a processor, unlike put_: the same to the last bit each time.
        flat.index_add_(0, inputs.view(-1), handed.view(-1))
        kinds = [arriving - up.mul_(s_up).addcmul_(down, s_down)]
        if bias is not None:
            kinds.append(b_up.mul_(s_up).addcmul_(b_down, s_down))
        booked[: len(kinds)].index_add_(1, at // a_sample, torch.stack(kinds).double()[:, :, None])
    if not pulled.is_contiguous():
        pulled.add_(flat.view(pulled.shape))
    return booked


def _over(relevance: Tensor, sums: Tensor, stabiliser: float) -> Tensor:
    """Return relevance over stabilised sums, shape (K,); zero for sums of nothing."""
    return torch.div(relevance, sums + stabiliser).masked_fill_(sums == 0, 0)


def _seen(
    at: Tensor, inputs: Sequence[int], weight: Sequence[int], outputs: Sequence[int], window: Window
) -> tuple[Tensor, Tensor | None]:
    """Return where in their group inputs lie that outputs see, shape (K, inputs), and which are no padding; None: all.

    Those that are padding are said to lie where the group begins.

    Args:
        at: where the outputs lie in their channel, shape (K,).
        inputs: shape of the layer's input.
        weight: shape of its weight.
        outputs: shape of its output but the rows.
        window: which inputs an output sees.
    """
    sizes = tuple(inputs[2:]), tuple(weight[1:]), tuple(outputs[1:])
    if prod(outputs[1:]) * prod(weight[1:]) > TABLE:
        return _looked_up(at, *sizes, window)
    place, is_inside = _table(*sizes, window, at.device)
    return place.index_select(0, at), None if is_inside is None else is_inside.index_select(0, at)


@lru_cache(maxsize=32)
def _table(
    inputs: tuple[int, ...], weight: tuple[int, ...], outputs: tuple[int, ...], window: Window, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Return the same for all outputs of a channel."""
    place, is_inside = _looked_up(torch.arange(prod(outputs), device=device), inputs, weight, outputs, window)
    return place.int(), is_inside


def _looked_up(
    at: Tensor, inputs: tuple[int, ...], weight: tuple[int, ...], outputs: tuple[int, ...], window: Window
) -> tuple[Tensor, Tensor | None]:
    """Return the same as :func:`_seen`, found dimension by dimension."""
    plane, size, rest = prod(outputs), prod(inputs), at
    place = (size * torch.arange(weight[0], device=at.device)).expand(len(at), -1)
    for dim, (stride, padding, dilation) in enumerate(zip(window.stride, window.padding, window.dilation, strict=True)):
        plane, size = plane // outputs[dim], size // inputs[dim]
        first = rest // plane * stride - padding
        along = first[:, None] + dilation * torch.arange(weight[1 + dim], device=at.device)
        along = torch.where((along < 0) | (along >= inputs[dim]), NOWHERE, along * size)
        place, rest = (place[:, :, None] + along[:, None]).flatten(1), rest % plane
    if not any(window.padding):
        return place, None
    return place.clamp(min=0), (place >= 0).to(torch.float32)


def _like_sums(z: Tensor, size: Tensor, low: bool, high: bool, most: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(z), z.new_empty(1 + most, dtype=torch.int64)


def _like_of_weak(values: Tensor, weak: Tensor) -> Tensor:
    return values.new_empty(len(weak) - 1)


def _like_booked(pulled: Tensor, *others: Any) -> Tensor:
    return pulled.new_empty(2, others[-1], 1, dtype=torch.float64)


def _implement(name: str, function: Callable[..., Any], like: Callable[..., Any]) -> None:
    """Say how an operator of the library works, and what shapes it returns, which torch's compiler asks for."""
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"lrp_cli::{name}", like, lib=_LIBRARY)


_implement("sums_by_sign", _sums_by_sign, _like_sums)
_implement("of_weak", _of_weak, _like_of_weak)
_implement("hand_down_weak", _hand_down_weak, _like_booked)
