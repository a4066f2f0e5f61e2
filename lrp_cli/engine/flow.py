"""What a rule sees of one call of one layer, and the sums of contributions that several rules are made of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeVar

import torch
from torch import Tensor

from lrp_cli.engine.books import Account, Books
from lrp_cli.engine.linear_maps import LinearMap
from lrp_cli.engine.masks import by_sign

Value = TypeVar("Value")


class Spared(IntEnum):
    """Of what further targets of a layer call need no more than the shape."""

    NOTHING = 0
    OUTPUT = 1
    INPUT_AND_OUTPUT = 2


@dataclass
class Flow:
    """What a rule sees of one call of one layer, and of the activation behind it where the two go together.

    The activation hands relevance on unchanged: a rule distributes ``relevance`` as if it had arrived at ``y``.

    Attributes:
        map: the layer.
        x: its input.
        z: its output, bias included.
        out: what the relevance arrives at: the output of the activation, or y itself.
        g: the modified gradient of ``out``, shape of y.
        books: where what is absorbed is entered.
        account: on which account.
        bounds: the smallest and the largest value that x can have, shape of x; None unless x is the model's input.
        memo: what does not depend on g, kept for further targets of the same forward pass.
        is_non_negative: whether x is known to have no negative value, as behind a ReLU.
        is_activated: whether there is an activation.
        is_rectified: whether relevance arrives at positive outputs only, as in front of a ReLU.
        keeps_signs: whether there is an activation, which no value gets another sign by.
        is_last: whether no further target follows, so that what is in the memo may be overwritten.
        may_spare: whether nobody but the rule asks for what is kept of the layer call.
        spared: of what further targets need no more than the shape: nothing, z and out, or x, too.
    """

    map: LinearMap
    x: Tensor
    z: Tensor
    out: Tensor
    g: Tensor
    books: Books
    account: Account
    bounds: tuple[Tensor, Tensor] | None = None
    memo: dict[str, Any] = field(default_factory=dict)
    is_non_negative: bool = False
    is_activated: bool = False
    is_rectified: bool = False
    keeps_signs: bool = False
    is_last: bool = False
    may_spare: bool = False
    spared: Spared = Spared.NOTHING

    @property
    def y(self) -> Tensor:
        """The output; where ``is_rectified``, with zeros for negative values, where no relevance arrives."""
        return self.z.clamp(min=0) if self.is_rectified and self.out is not self.z else self.z

    @property
    def is_only(self) -> bool:
        """Whether no further target follows, and nothing is kept from earlier ones."""
        return self.is_last and not self.memo

    def is_positive(self, *, use_bias: bool) -> bool:
        """Whether the sum of contributions, with the bias or without it, is known to be positive for all relevance."""
        return self.is_rectified and (use_bias or self.map.bias is None)

    @property
    def relevance(self) -> Tensor:
        """R_j, shape of y; a new tensor each time, which may be overwritten."""
        return self.out * self.g

    def relevance_times(self, factor: float) -> Tensor:
        """Return ``factor R_j``, shape of y, in a single pass: a new tensor, which may be overwritten."""
        nothing = self.map.derived("nothing", lambda: torch.zeros((), dtype=self.g.dtype, device=self.g.device))
        return torch.addcmul(nothing, self.out, self.g, value=factor)

    def relevance_over(self, z: Tensor) -> Tensor:
        """Return R_j / z_j, shape of y; made in the place of z, which spares fresh memory."""
        return torch.div(self.out, z, out=z).mul_(self.g)

    def times_g(self, ratio: Tensor) -> Tensor:
        """Return R_j / z_j, shape of y, of ``ratio``, out_j / z_j: a tensor from the memo.

        Further targets take the ratio again, and neither ``out`` nor z; for the last one it is overwritten.
        """
        return ratio.mul_(self.g) if self.is_last else ratio * self.g

    def book(self, kind: str, relevance: Tensor, factor: Tensor | None = None, *, times: float = 1) -> None:
        """Book relevance (any shape, batch first), times a factor that broadcasts, under a kind of absorption."""
        self.books.book(self.account, kind, relevance, factor, times=times)

    def book_shares(self, s: Tensor, shares: dict[str, Tensor | float]) -> None:
        """Book ``sum_j s_j c_j`` for each kind of absorption, c being one value a channel, or one for all.

        Args:
            s: shape of y.
            shares: kind -> c, shape (channels,), or a number.
        """
        self.books.book_channels(self.account, self.map, s, shares)

    def spare(self, spared: Spared) -> None:
        """Note of what further targets need no more than the shape."""
        if self.may_spare:
            self.spared = spared

    def once(self, name: str, compute: Callable[[], Value]) -> Value:
        """Return what ``compute`` makes of x and y, computed once for all targets of a forward pass."""
        value: Value = self.memo.pop(name) if name in self.memo else compute()
        if not self.is_last:
            self.memo[name] = value
        return value

    def hand_down(self, s: Tensor) -> Tensor:
        """Return sum_j w_ij s_j, shape of x.

        To be called after all that reads ``z`` and ``out``: for the last target, and where further ones need them no
        more, they are let go of here, before the product, which takes the most memory.
        """
        self.let_outputs_go()
        return self.map.hand_down(s, self.x)

    def pull(self, s: Tensor, weight: Tensor) -> Tensor:
        """Return the same as :meth:`hand_down` with another weight."""
        self.let_outputs_go()
        return self.map.pull(s, weight, self.x)

    def let_outputs_go(self) -> None:
        """Let go of ``z`` and ``out``, which the rule needs no more, unless further targets do."""
        if self.is_last or self.spared:
            self.z = self.out = self.out.new_empty(0)

    @property
    def total(self) -> Tensor:
        """sum_i x_i w_ij, shape of y: the output without its bias."""
        bias = self.map.bias_for(self.z)
        return self.z if bias is None else self.once("total", lambda: self.z - bias)

    def positive(self, offset: Tensor | None) -> "Contributions":
        """Return the positive contributions, (x_i w_ij)+, with an offset, shape (channels,), added to their sum."""
        return Contributions(self, "positive", "negative", offset)

    def negative(self, offset: Tensor | None) -> "Contributions":
        """Return the negative contributions, (x_i w_ij)-, with an offset, shape (channels,), added to their sum."""
        return Contributions(self, "negative", "positive", offset)

    def offset(self, bias: Tensor | None, stabiliser: float) -> Tensor:
        """Return what a sum of contributions starts with, shape (channels,): its part of the bias, and a stabiliser."""
        return self.g.new_full((self.map.outputs,), stabiliser) if bias is None else bias + stabiliser

    def add_by_size(self, pulled: Tensor, s: Tensor, factor: float = 1) -> Tensor:
        """Return ``pulled + factor sign(x_i) sum_j |w_ij| s_j``, shape of x, in the place of ``pulled``."""
        by_size = self.pull(s, self.map.transformed("absolute"))
        if self.is_non_negative:
            return pulled.add_(by_size, alpha=factor)
        return pulled.addcmul_(self.x.sign(), by_size, value=factor)


@dataclass(frozen=True)
class Contributions:
    """The contributions x_i w_ij of one sign: those of positive inputs by one part of the weights, and vice versa.

    Attributes:
        flow: the layer call.
        with_positive_x: the part of the weights that makes a contribution of this sign with a positive input.
        with_negative_x: the part that makes one with a negative input.
        offset: what is added to their sum, shape (channels,), or None.
    """

    flow: Flow
    with_positive_x: str
    with_negative_x: str
    offset: Tensor | None

    def sum(self) -> Tensor:
        """Return their sum for each output with the offset, shape of y: a new tensor."""
        layer, x = self.flow.map, self.flow.x
        if self.flow.is_non_negative:
            return layer.apply(x, layer.transformed(self.with_positive_x), self.offset)
        by_positive_x = layer.apply(x.clamp(min=0), layer.transformed(self.with_positive_x), self.offset)
        return by_positive_x.add_(layer.apply(x.clamp(max=0), layer.transformed(self.with_negative_x)))

    def pull(self, s: Tensor) -> Tensor:
        """Return sum_j w_ij s_j over the contributions of this sign, shape of x."""
        layer, x = self.flow.map, self.flow.x
        pulled = layer.pull(s, layer.transformed(self.with_positive_x), x)
        if self.flow.is_non_negative:
            return pulled
        return by_sign(x, pulled, layer.pull(s, layer.transformed(self.with_negative_x), x))
