"""The rules of Layer-wise Relevance Propagation for linear layers, in gradient form.

A layer computes ``z_j = sum_i x_i w_ij + b_j``. Its output carries the relevance ``R_j``, handed down as the modified
gradient ``g_j`` with ``R_j = y_j g_j``; a rule returns the modified gradient of the input, ``g_i`` with
``R_i = x_i g_i``, and books what does not reach the input. ``x+`` and ``x-`` are the positive and negative parts.

Sources
    Bach et al. 2015, PLOS ONE 10(7): e0130140.
    Montavon et al. 2017, Pattern Recognition 65: 211-222 (deep Taylor decomposition).
    Montavon et al. 2019, in: Explainable AI, LNCS 11700, chapter 10 ("the Overview").
    Lapuschkin et al. 2019, Nature Communications 10: 1096.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lrp_cli.engine.books import BIAS, EPSILON
from lrp_cli.engine.linear_maps import LinearMap
from lrp_cli.errors import EngineError

Book = Callable[[str, Tensor], None]
"""Books relevance (any shape, batch first) under a kind of absorption, for the layer in hand."""


@dataclass(frozen=True)
class Flow:
    """What a rule sees of one call of one layer.

    Attributes:
        map: the layer.
        x: its input, or None where the rule does not need it (then ``shape_of_x`` gives its shape).
        y: its output, bias included, or None where the rule does not need it.
        g: the modified gradient of the output, shape of y.
        book: books what is absorbed.
        bounds: the smallest and the largest value that x can have, shape of x; None unless x is the model's input.
    """

    map: LinearMap
    x: Tensor
    y: Tensor
    g: Tensor
    book: Book
    bounds: tuple[Tensor, Tensor] | None = None

    @property
    def relevance(self) -> Tensor:
        """R_j = y_j g_j."""
        return self.y * self.g


class Rule(ABC):
    """How one layer hands its relevance on to its inputs."""

    needs_output: ClassVar[bool] = True

    @abstractmethod
    def propagate(self, flow: Flow) -> Tensor:
        """Return g_i, shape of x, with R_i = x_i g_i, and book what is absorbed."""


def stabilised(z: Tensor, epsilon: Tensor | float) -> Tensor:
    """Return ``z + epsilon * sign(z)`` with ``sign(0) = +1``: a denominator away from zero, on z's own side."""
    return z + torch.where(z < 0, -epsilon, epsilon)


def _share(relevance: Tensor, z: Tensor, stabiliser: float) -> Tensor:
    """Return ``relevance / stabilised(z)``, and zero where z is zero: there is nothing to distribute it to."""
    return torch.where(z == 0, 0.0, relevance / stabilised(z, stabiliser))


def _per_unit(relevance: Tensor, x: Tensor) -> Tensor:
    """Return ``relevance / x``: relevance in gradient form; zero where x is zero, which can carry none."""
    return torch.where(x == 0, 0.0, relevance / x)


def _signed_parts(flow: Flow) -> tuple[Tensor, Tensor]:
    """Return the sums of the positive and of the negative contributions x_i w_ij, shape of y, without bias."""
    return _part(flow, "positive", "negative"), _part(flow, "negative", "positive")


def _part(flow: Flow, with_positive_x: str, with_negative_x: str) -> Tensor:
    layer, x = flow.map, flow.x
    if _is_non_negative(x):
        return layer.apply(x, layer.transformed(with_positive_x))
    positive = layer.apply(x.clamp(min=0), layer.transformed(with_positive_x))
    return positive + layer.apply(x.clamp(max=0), layer.transformed(with_negative_x))


def _pull_part(flow: Flow, s: Tensor, with_positive_x: str, with_negative_x: str) -> Tensor:
    layer, x = flow.map, flow.x
    pulled = layer.pull(s, layer.transformed(with_positive_x), x)
    if _is_non_negative(x):
        return pulled
    return torch.where(x < 0, layer.pull(s, layer.transformed(with_negative_x), x), pulled)


def _is_non_negative(x: Tensor) -> bool:
    return bool(x.min() >= 0) if x.numel() else True


@dataclass(frozen=True)
class LRP0(Rule):
    """LRP-0: in proportion to the contribution, bias included in the denominator.

    R_i = sum_j  x_i w_ij / z_j  R_j;  on a ReLU network without biases this is gradient times input.
    Source: Bach et al. 2015, eq. 56; the Overview, section 10.2.1. In gradient form nothing is divided.
    """

    needs_output: ClassVar[bool] = False

    def propagate(self, flow: Flow) -> Tensor:
        bias = flow.map.bias_for(flow.g)
        if bias is not None:
            flow.book(BIAS, flow.g * bias)
        return flow.map.pull(flow.g, flow.map.weight, flow.x)


@dataclass(frozen=True)
class Epsilon(Rule):
    """LRP-epsilon: as LRP-0, with the denominator kept away from zero; epsilon absorbs weak and contradictory evidence.

    R_i = sum_j  x_i w_ij / (z_j + epsilon sign(z_j))  R_j,  sign(0) = +1.
    Source: Bach et al. 2015, eq. 58; the Overview, section 10.2.1.

    Attributes:
        epsilon: the stabiliser, in units of z; with ``relative``, times the root mean square of z over the sample.
        relative: whether epsilon is relative.
        use_bias: whether the bias takes part in the denominator (and is booked).
    """

    epsilon: float = 1e-6
    relative: bool = False
    use_bias: bool = True

    def propagate(self, flow: Flow) -> Tensor:
        bias = flow.map.bias_for(flow.y)
        z = flow.y if self.use_bias or bias is None else flow.y - bias
        epsilon = self._scale(z)
        s = flow.relevance / stabilised(z, epsilon)
        flow.book(EPSILON, torch.where(z < 0, -s, s) * epsilon)
        if self.use_bias and bias is not None:
            flow.book(BIAS, s * bias)
        return flow.map.pull(s, flow.map.weight, flow.x)

    def _scale(self, z: Tensor) -> Tensor:
        if not self.relative:
            return z.new_tensor(self.epsilon)
        mean_square = z.square().mean(dim=tuple(range(1, z.dim())), keepdim=True)
        return (self.epsilon * mean_square.sqrt()).clamp(min=torch.finfo(z.dtype).tiny)


@dataclass(frozen=True)
class ZPlus(Rule):
    """z+: only to what excites; equal to LRP-alpha1-beta0.

    R_i = sum_j  (x_i w_ij)+ / (sum_i' (x_i' w_i'j)+ + b_j+)  R_j,  for inputs of any sign.
    Source: Montavon et al. 2017, section 4.2 (the z+ rule); without the bias it is Excitation Backprop
    (Zhang et al. 2016, arXiv:1608.00507, eq. 5).

    Attributes:
        stabiliser: added to the denominator.
        use_bias: whether the positive part of the bias takes part in the denominator (and is booked).
    """

    stabiliser: float = 1e-6
    use_bias: bool = True

    def propagate(self, flow: Flow) -> Tensor:
        bias = flow.map.bias_for(flow.y) if self.use_bias else None
        positive = _part(flow, "positive", "negative")
        z = positive if bias is None else positive + bias.clamp(min=0)
        relevance = flow.relevance
        s = _share(relevance, z, self.stabiliser)
        flow.book(EPSILON, relevance - s * z)
        if bias is not None:
            flow.book(BIAS, s * bias.clamp(min=0))
        return _pull_part(flow, s, "positive", "negative")


@dataclass(frozen=True)
class AlphaBeta(Rule):
    """LRP-alpha-beta: excitation and inhibition in a fixed proportion.

    R_i = sum_j ( alpha (x_i w_ij)+ / z_j+  -  beta (x_i w_ij)- / z_j- ) R_j,  alpha - beta = 1,
    z_j+ and z_j- being the sums of the positive and negative contributions, bias included.
    Source: Bach et al. 2015, eq. 60. A neuron without negative contributions hands on alpha R_j instead of R_j: what it
    makes up is booked as absorbed with the opposite sign.

    Attributes:
        alpha, beta: the weights of excitation and inhibition.
        stabiliser: added to the denominators on their own side of zero.
        use_bias: whether the bias takes part in the denominators (and is booked).
    """

    alpha: float = 2.0
    beta: float = 1.0
    stabiliser: float = 1e-6
    use_bias: bool = True

    def propagate(self, flow: Flow) -> Tensor:
        bias = flow.map.bias_for(flow.y) if self.use_bias else None
        bias_positive = 0.0 if bias is None else bias.clamp(min=0)
        bias_negative = 0.0 if bias is None else bias.clamp(max=0)
        positive, negative = _signed_parts(flow)
        z_positive, z_negative = positive + bias_positive, negative + bias_negative
        relevance = flow.relevance
        s_positive = self.alpha * _share(relevance, z_positive, self.stabiliser)
        s_negative = -self.beta * _share(relevance, z_negative, self.stabiliser)
        flow.book(EPSILON, relevance - s_positive * z_positive - s_negative * z_negative)
        if bias is not None:
            flow.book(BIAS, s_positive * bias_positive + s_negative * bias_negative)
        return _pull_part(flow, s_positive, "positive", "negative") + _pull_part(
            flow, s_negative, "negative", "positive"
        )


@dataclass(frozen=True)
class Gamma(Rule):
    """LRP-gamma: as LRP-0, with the contributions on the output's own side of zero favoured by gamma.

    R_i = sum_j  (x_i w_ij + gamma (x_i w_ij)±) / (z_j + gamma z_j±)  R_j,  ± being the sign of the output z_j;
    gamma = 0 is LRP-0 and, for positive outputs, gamma -> infinity is z+.
    Source: the Overview, section 10.2.1 and table 10.1, there for non-negative inputs and positive outputs.

    With w+ = (w + |w|) / 2 and A_j = sum_i |x_i| |w_ij|, both signs follow from A alone, and nothing cancels:
    z_j + gamma z_j± = (1 + gamma/2) z_j ± (gamma/2) A_j.

    Attributes:
        gamma: how much the favoured side gains.
        stabiliser: added to the denominator on its own side of zero.
        use_bias: whether the bias takes part in the denominator (and is booked).
    """

    gamma: float = 0.25
    stabiliser: float = 1e-6
    use_bias: bool = True

    def propagate(self, flow: Flow) -> Tensor:
        layer, half = flow.map, self.gamma / 2
        bias = layer.bias_for(flow.y)
        # The output's sign and the denominator come from the same z: with the bias in both, or in neither.
        z = flow.y if self.use_bias or bias is None else flow.y - bias
        sign = torch.where(z < 0, -1.0, 1.0).to(z.dtype)
        spread = layer.apply(flow.x.abs(), layer.transformed("absolute"))
        if self.use_bias and bias is not None:
            spread = spread + bias.abs()
        denominator = (1 + half) * z + half * sign * spread
        relevance = flow.relevance
        s = _share(relevance, denominator, self.stabiliser)
        flow.book(EPSILON, relevance - s * denominator)
        if self.use_bias and bias is not None:
            flow.book(BIAS, s * ((1 + half) * bias + half * sign * bias.abs()))
        pulled = (1 + half) * layer.pull(s, layer.weight, flow.x)
        return pulled + half * flow.x.sign() * layer.pull(s * sign, layer.transformed("absolute"), flow.x)


@dataclass(frozen=True)
class Flat(Rule):
    """Flat: evenly over the receptive field, whatever the input and the weights.

    R_i = sum_j  1 / n_j  R_j,  n_j being the number of inputs of output j.
    Source: Lapuschkin et al. 2019, supplementary note; the Overview, section 10.2.3 (there called w-flat).

    Inputs that are exactly zero carry no relevance and are not counted: padding, and inactive neurons. (No pixel of the
    model's input is ever exactly zero in the engine.)
    """

    def propagate(self, flow: Flow) -> Tensor:
        return _spread_by_weight(flow, "ones", 0.0)


@dataclass(frozen=True)
class WSquare(Rule):
    """w²: in proportion to the squared weight, whatever the input.

    R_i = sum_j  w_ij² / sum_i' w_i'j²  R_j.
    Source: Montavon et al. 2017, section 4.1 (the w² rule, for unbounded inputs). Zero inputs as for :class:`Flat`.

    Attributes:
        stabiliser: added to the denominator.
    """

    stabiliser: float = 1e-6

    def propagate(self, flow: Flow) -> Tensor:
        return _spread_by_weight(flow, "square", self.stabiliser)


def _spread_by_weight(flow: Flow, transform: str, stabiliser: float) -> Tensor:
    layer, weight = flow.map, flow.map.transformed(transform)
    present = (flow.x != 0).to(flow.y.dtype)
    total = layer.apply(present, weight)
    relevance = flow.relevance
    s = _share(relevance, total, stabiliser)
    flow.book(EPSILON, relevance - s * total)
    return _per_unit(layer.pull(s, weight, flow.x), flow.x)


@dataclass(frozen=True)
class ZBox(Rule):
    """z-box (z^B): for inputs that are known to lie between l and h, such as pixels.

    R_i = sum_j  (x_i w_ij - l_i w_ij+ - h_i w_ij-) / sum_i' (x_i' w_i'j - l_i' w_i'j+ - h_i' w_i'j-)  R_j.
    Source: Montavon et al. 2017, section 4.1 (the z^B rule); the Overview, table 10.1. Every term is >= 0 and the bias
    plays no part. Bounds of padding are zero.

    Attributes:
        stabiliser: added to the denominator.
    """

    stabiliser: float = 1e-6

    def propagate(self, flow: Flow) -> Tensor:
        if flow.bounds is None:
            raise EngineError(
                "the z-box rule needs the bounds of its layer's input, and so is for the first layer only"
            )
        layer, x = flow.map, flow.x
        (low, high), positive, negative = flow.bounds, layer.transformed("positive"), layer.transformed("negative")
        z = layer.apply(x, layer.weight) - layer.apply(low, positive) - layer.apply(high, negative)
        relevance = flow.relevance
        s = _share(relevance, z, self.stabiliser)
        flow.book(EPSILON, relevance - s * z)
        received = x * layer.pull(s, layer.weight, x)
        received = received - low * layer.pull(s, positive, x) - high * layer.pull(s, negative, x)
        return _per_unit(received, x)
