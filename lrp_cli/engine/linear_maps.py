"""The operations that rules are made for, as linear maps: ``y = apply(x, weight) + bias`` and its transpose.

A rule needs a layer only in this form, with weights of its choice (their positive part, their square, ones). What kind
of convolution it is, how wide and with how many groups, stays here.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from lrp_cli.engine.weights import WeightCache


def _positive(weight: Tensor) -> Tensor:
    return weight.clamp(min=0)


def _negative(weight: Tensor) -> Tensor:
    return weight.clamp(max=0)


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "positive": _positive,
    "negative": _negative,
    "absolute": torch.abs,
    "square": torch.square,
    "ones": torch.ones_like,
}


@dataclass
class LinearMap:
    """A linear map with its weight and bias.

    Attributes:
        weight: the layer's weight, batch norm merged into it where it was.
        bias: shape (channels,) or None.
        cache: where transformed weights are kept.
        parameter: the parameter that ``weight`` is derived from; None where there is none to hold on to.
        origin: what distinguishes ``weight`` from other weights derived from ``parameter``.
    """

    weight: Tensor
    bias: Tensor | None
    cache: WeightCache = field(repr=False)
    parameter: Tensor | None = field(default=None, repr=False)
    origin: Hashable = None

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the map of ``x`` with ``weight`` and ``bias`` in place of its own."""
        raise NotImplementedError

    def pull(self, s: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        """Return the transposed map of ``s`` (shape of y): for every input, the sum of ``weight * s`` it feeds.

        ``x`` gives the shape of the result.
        """
        raise NotImplementedError

    def channels(self, values: Tensor, y: Tensor) -> Tensor:
        """Return ``values``, shape (channels,), so that they broadcast against the output ``y``."""
        raise NotImplementedError

    def scaled(self, scale: Tensor) -> Tensor:
        """Return the weight with its output channels multiplied by ``scale``, shape (channels,)."""
        raise NotImplementedError

    @property
    def fan_in(self) -> int:
        """How many inputs contribute to an output."""
        raise NotImplementedError

    def transformed(self, name: str) -> Tensor:
        """Return the weight transformed: positive, negative, absolute, square or ones (:data:`TRANSFORMS`)."""
        return self.derived(name, lambda: TRANSFORMS[name](self.weight))

    def derived(self, name: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return a tensor derived from the weight, cached under ``name`` where the weight is a parameter's."""
        if self.parameter is None:
            return compute()
        return self.cache.get(self.parameter, (self.origin, name), compute)

    def bias_for(self, y: Tensor) -> Tensor | None:
        """Return the bias so that it broadcasts against ``y``, or None."""
        return None if self.bias is None else self.channels(self.bias, y)


@dataclass
class Linear(LinearMap):
    """``y = x W^T + b``; x of shape (..., in), weight (out, in)."""

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias)

    def pull(self, s: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        return s @ weight

    def channels(self, values: Tensor, y: Tensor) -> Tensor:
        return values

    def scaled(self, scale: Tensor) -> Tensor:
        return self.weight * scale[:, None]

    @property
    def fan_in(self) -> int:
        return self.weight.shape[1]


@dataclass
class Convolution(LinearMap):
    """A convolution of one, two or three dimensions, with groups, transposed or not; x of shape (N, C, ...)."""

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    groups: int = 1

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.convolution(
            x,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
        )

    def pull(self, s: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        pulled: Tensor = torch.ops.aten.convolution_backward(
            s,
            s.new_empty(1).expand(x.shape),  # only the shape is read: no gradient of the weight is asked for
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
            (True, False, False),
        )[0]
        return pulled

    def channels(self, values: Tensor, y: Tensor) -> Tensor:
        return values.view(-1, *[1] * len(self.stride))

    def scaled(self, scale: Tensor) -> Tensor:
        if not self.transposed:
            return self.weight * scale.view(-1, *[1] * (self.weight.dim() - 1))
        # Transposed weights are stored as (in, out / groups, ...), the inputs of one group after another.
        grouped = self.weight.view(self.groups, -1, *self.weight.shape[1:])
        per_group = scale.view(self.groups, 1, -1, *[1] * (self.weight.dim() - 2))
        return (grouped * per_group).view_as(self.weight)

    @property
    def fan_in(self) -> int:
        inputs = self.weight.shape[0] // self.groups if self.transposed else self.weight.shape[1]
        return inputs * prod(self.weight.shape[2:])


@dataclass
class Scaling(LinearMap):
    """One factor a channel: a batch norm that stands alone; x of shape (N, C, ...), weight (C,)."""

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        scaled = x * self.channels(weight, x)
        return scaled if bias is None else scaled + self.channels(bias, x)

    def pull(self, s: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        return s * self.channels(weight, s)

    def channels(self, values: Tensor, y: Tensor) -> Tensor:
        return values.view(-1, *[1] * (y.dim() - 2))

    @property
    def fan_in(self) -> int:
        return 1
