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

from lrp_cli.engine.processors import multiplies_matrices_well
from lrp_cli.engine.weak import Window
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

MANY = 128
"""From so many positions on, several pictures are multiplied by a matrix one after another; fewer are not worth it."""


@dataclass
class LinearMap:
    """A linear map with its weight and bias.

    Attributes:
        raw: the layer's own weight.
        bias: shape (channels,) or None; a batch norm is merged into it where there is one.
        cache: where transformed weights are kept.
        parameter: the parameter that ``raw`` is derived from; None where there is none to hold on to.
        origin: what distinguishes this map from others made with ``parameter``.
        scale: what a batch norm multiplies the outputs with, shape (channels,); None where there is none.
        products: the type that products with transformed weights and transposed ones are computed in; None: x's own.
    """

    raw: Tensor
    bias: Tensor | None
    cache: WeightCache = field(repr=False)
    parameter: Tensor | None = field(default=None, repr=False)
    origin: Hashable = None
    scale: Tensor | None = field(default=None, repr=False)
    products: torch.dtype | None = None

    def output(self, x: Tensor) -> Tensor:
        """Return what the layer makes of ``x``, as the model computes it."""
        return self._apply(x, self.weight, self.bias)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the map of ``x`` with ``weight`` and ``bias`` in place of its own, computed in the weight's type."""
        if weight.dtype == x.dtype:
            return self._apply(x, weight, bias)
        y = self._apply(x.to(weight.dtype), weight, None).to(x.dtype)
        return y if bias is None else y.add_(self.channels(bias, y))

    def pull(self, s: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        """Return the transposed map of ``s`` (shape of y): for every input, the sum of ``weight * s`` it feeds.

        ``x`` gives the shape of the result, and its values are not read. Computed in the weight's type.
        """
        if weight.dtype == s.dtype:
            return self._pull(s, weight, x)
        return self._pull(s.to(weight.dtype), weight, x).to(s.dtype)

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _pull(self, s: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError

    def channels(self, values: Tensor, y: Tensor) -> Tensor:
        """Return ``values``, shape (channels,), so that they broadcast against the output ``y``."""
        raise NotImplementedError

    def sums(self, s: Tensor, samples: int) -> Tensor:
        """Return the sums of ``s``, shape of y with the batch first, over all positions: shape (samples, channels)."""
        raise NotImplementedError

    def scaled(self, scale: Tensor) -> Tensor:
        """Return the weight with its output channels multiplied by ``scale``, shape (channels,)."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The weight, with the batch norm's scale in it."""
        return self.raw if self.scale is None else self.derived("itself", self._merged)

    def _merged(self) -> Tensor:
        return self.raw if self.scale is None else self.scaled(self.scale)

    def hand_down(self, s: Tensor, x: Tensor) -> Tensor:
        """Return the transposed map of ``s`` with the map's own weight (:meth:`pull`).

        Where the weight is larger than ``s``, the batch norm's scale goes to ``s``: no merged weight is made and kept.
        """
        if self.scale is None or self.raw.numel() <= s.numel():
            return self.pull(s, self.weight if self.products is None else self._factor("itself", self._merged), x)
        raw = self.raw if self.products is None else self._factor("raw", lambda: self.raw)
        return self.pull(s * self.channels(self.scale, s), raw, x)

    @property
    def outputs(self) -> int:
        """How many channels the output has."""
        return self.raw.shape[0]

    @property
    def fan_in(self) -> int:
        """How many inputs contribute to an output."""
        raise NotImplementedError

    @property
    def window(self) -> Window | None:
        """Which inputs an output sees; None where it is not told."""
        return None

    def transformed(self, name: str) -> Tensor:
        """Return the weight transformed: positive, negative, absolute, square or ones (:data:`TRANSFORMS`)."""
        return self._factor(name, lambda: TRANSFORMS[name](self._merged()))

    def with_gain(self, gain: float) -> Tensor:
        """Return the weight with its positive part times ``1 + gain``."""

        def compute() -> Tensor:
            merged = self._merged()
            return torch.add(merged, merged.clamp(min=0), alpha=gain)

        return self._factor(("gain", gain), compute)

    def _factor(self, name: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return what products are made with: a tensor derived from the weight, in the type of the products."""
        if self.products is None:
            return self.derived(name, compute)
        return self.derived((name, self.products), lambda: compute().to(self.products))

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

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def _pull(self, s: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        return s @ weight

    def channels(self, values: Tensor, y: Tensor) -> Tensor:
        return values

    def sums(self, s: Tensor, samples: int) -> Tensor:
        return s.reshape(samples, -1, s.shape[-1]).sum(dim=1)

    def scaled(self, scale: Tensor) -> Tensor:
        return self.raw * scale[:, None]

    @property
    def fan_in(self) -> int:
        return self.raw.shape[1]

    @property
    def window(self) -> Window:
        return Window()


@dataclass
class Convolution(LinearMap):
    """A convolution of one, two or three dimensions, with groups, transposed or not; x of shape (N, C, ...)."""

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    groups: int = 1

    def output(self, x: Tensor) -> Tensor:
        return self._convolved(x, self.weight, self.bias)

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _product(weight.flatten(1), x, bias) if self._is_matrix_for(x) else self._convolved(x, weight, bias)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
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

    def _pull(self, s: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        if self._is_matrix_for(s):
            return _product(weight.flatten(1).mT, s)
        pulled: Tensor = torch.ops.aten.convolution_backward.default(
            s,
            _in_place_of(x, s),
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

    def _is_matrix_for(self, x: Tensor) -> bool:
        """Whether this is a product with a matrix at each position, and faster so: kernels of one entry, on processors.

        Torch's convolutions lay their inputs out anew first, which may take longer than the arithmetic of such kernels.
        """
        is_pointwise = not self.transposed and self.groups == 1 and self.raw.shape[2:].numel() == 1
        is_plain = is_pointwise and all(step == 1 for step in self.stride) and not any(self.padding)
        positions = x.shape[2:].numel()
        is_on_processor = x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()
        is_worth_it = multiplies_matrices_well() and (len(x) == 1 or positions >= MANY)
        # Autocast would make another type of matrices, and not of convolutions called as they are here.
        return is_plain and is_on_processor and is_worth_it and not torch.is_autocast_enabled("cpu")

    def channels(self, values: Tensor, y: Tensor) -> Tensor:
        return values.view(-1, *[1] * len(self.stride))

    def sums(self, s: Tensor, samples: int) -> Tensor:
        return _sums_of_planes(s, samples)

    def scaled(self, scale: Tensor) -> Tensor:
        if not self.transposed:
            return self.raw * scale.view(-1, *[1] * (self.raw.dim() - 1))
        # Transposed weights are stored as (in, out / groups, ...), the inputs of one group after another.
        grouped = self.raw.view(self.groups, -1, *self.raw.shape[1:])
        per_group = scale.view(self.groups, 1, -1, *[1] * (self.raw.dim() - 2))
        return (grouped * per_group).view_as(self.raw)

    @property
    def outputs(self) -> int:
        return self.raw.shape[1] * self.groups if self.transposed else self.raw.shape[0]

    @property
    def fan_in(self) -> int:
        inputs = self.raw.shape[0] // self.groups if self.transposed else self.raw.shape[1]
        return inputs * prod(self.raw.shape[2:])

    @property
    def window(self) -> Window | None:
        return None if self.transposed else Window(self.stride, self.padding, self.dilation, self.groups)


@dataclass
class Scaling(LinearMap):
    """One factor a channel: a batch norm that stands alone; x of shape (N, C, ...), weight (C,)."""

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        scaled = x * self.channels(weight, x)
        return scaled if bias is None else scaled + self.channels(bias, x)

    def _pull(self, s: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        return s * self.channels(weight, s)

    def channels(self, values: Tensor, y: Tensor) -> Tensor:
        return values.view(-1, *[1] * (y.dim() - 2))

    def sums(self, s: Tensor, samples: int) -> Tensor:
        return _sums_of_planes(s, samples)

    @property
    def fan_in(self) -> int:
        return 1


def _product(matrix: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``matrix`` times what x, shape (N, C, ...), holds at each position, plus a bias, shape (channels,)."""
    columns = x.flatten(2)
    if bias is None:
        product = torch.bmm(matrix.expand(len(x), *matrix.shape), columns)
    else:
        product = torch.baddbmm(bias[:, None], matrix.expand(len(x), *matrix.shape), columns)
    return product.view(*product.shape[:2], *x.shape[2:])


def _in_place_of(x: Tensor, s: Tensor) -> Tensor:
    """Return a tensor of x's layout where only that is read: of memory of s, if that is enough, which lets x go.

    Torch asks for the input of a convolution even where no gradient of the weight is wanted.
    """
    if s.numel() >= x.numel() and _is_dense(s) and _is_dense(x):
        return s.as_strided(x.shape, x.stride(), s.storage_offset())
    if x.is_meta or x.dtype != s.dtype:
        return s.new_empty_strided(x.shape, x.stride())  # never touched: a processor finds no memory for it
    return x


def _is_dense(t: Tensor) -> bool:
    """Whether a tensor's entries lie side by side in memory, channel by channel or channels last."""
    return t.is_contiguous() or any(
        t.dim() == dimensions and t.is_contiguous(memory_format=layout)
        for dimensions, layout in ((4, torch.channels_last), (5, torch.channels_last_3d))
    )


def _sums_of_planes(s: Tensor, samples: int) -> Tensor:
    """Sum s, shape (B, C, ...) with B a multiple of the samples, to shape (samples, C)."""
    planes = s.sum(dim=tuple(range(2, s.dim()))) if s.dim() > 2 else s
    return planes if len(planes) == samples else planes.view(samples, -1, planes.shape[1]).sum(dim=1)
