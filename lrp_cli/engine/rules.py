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
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from lrp_cli.engine.books import BIAS, EPSILON
from lrp_cli.engine.flow import Flow, pull_both, sums_by_difference
from lrp_cli.errors import EngineError


class OutputUse(IntEnum):
    """What a rule reads of the layer's output: nothing, only where it carries relevance, or all of it."""

    NONE = 0
    ACTIVE = 1
    WHOLE = 2


class Rule(ABC):
    """How one layer hands its relevance on to its inputs."""

    @property
    def needs_output(self) -> OutputUse:
        """What the rule reads of the layer's output; a ReLU in place may have zeroed what carries no relevance."""
        return OutputUse.ACTIVE

    @abstractmethod
    def propagate(self, flow: Flow) -> Tensor:
        """Return g_i, shape of x, with R_i = x_i g_i, and book what is absorbed."""


def stabilised(z: Tensor, epsilon: Tensor | float) -> Tensor:
    """Return ``z + epsilon * sign(z)`` with ``sign(0) = +1``: a denominator away from zero, on z's own side."""
    return z + _with_sign_of(z, epsilon)


def _with_sign_of(z: Tensor, size: Tensor | float) -> Tensor:
    return torch.copysign(torch.as_tensor(size, dtype=z.dtype, device=z.device), z)


def _ratio(relevance: Tensor, z: Tensor, stabiliser: float) -> Tensor:
    """Return ``relevance / stabilised(z)``, and zero where z is zero: there is nothing to distribute it to."""
    return (relevance / stabilised(z, stabiliser)).masked_fill_(z == 0, 0.0)


def _share(flow: Flow, relevance: Tensor, z: Tensor, stabiliser: float) -> Tensor:
    """Return ``s = relevance / stabilised(z)``, and book what that leaves undistributed, ``relevance - s z``."""
    s = _ratio(relevance, z, stabiliser)
    flow.book(EPSILON, torch.addcmul(relevance, s, z, value=-1))
    return s


def _per_unit(relevance: Tensor, x: Tensor) -> Tensor:
    """Return ``relevance / x``: relevance in gradient form; zero where x is zero, which can carry none."""
    return (relevance / x).masked_fill_(x == 0, 0.0)


@dataclass(frozen=True)
class LRP0(Rule):
    """LRP-0: in proportion to the contribution, bias included in the denominator.

    R_i = sum_j  x_i w_ij / z_j  R_j;  on a ReLU network without biases this is gradient times input.
    Source: Bach et al. 2015, eq. 56; the Overview, section 10.2.1. In gradient form nothing is divided.
    """

    @property
    def needs_output(self) -> OutputUse:
        return OutputUse.NONE

    def propagate(self, flow: Flow) -> Tensor:
        bias = flow.map.bias_for(flow.g)
        if bias is not None:
            flow.book(BIAS, flow.g, bias)
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

    @property
    def needs_output(self) -> OutputUse:
        return OutputUse.WHOLE if self.relative else OutputUse.ACTIVE

    def propagate(self, flow: Flow) -> Tensor:
        bias = flow.map.bias_for(flow.y)
        if bias is None or self.use_bias:
            # R_j / (y_j + epsilon sign) = g_j - g_j epsilon / (|y_j| + epsilon): precise, however small epsilon is.
            epsilon = self._scale(flow.y)
            absorbed = (flow.g / flow.y.abs().add_(epsilon)).mul_(epsilon)
            s = flow.g - absorbed
            flow.book(EPSILON, flow.y, absorbed)
            if bias is not None:
                flow.book(BIAS, s, bias)
        else:
            relevance, z = flow.relevance, flow.total
            s = relevance / stabilised(z, self._scale(z))
            flow.book(EPSILON, torch.addcmul(relevance, s, z, value=-1))
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
        relevance = flow.relevance
        # Non-negative inputs take one product with w+ as it is; inputs of both signs would take two.
        sums = None if flow.is_non_negative else sums_by_difference(flow, relevance, both=False)
        positive = flow.positive().sum() if sums is None else sums[0]
        s = _share(flow, relevance, positive if bias is None else positive + bias.clamp(min=0), self.stabiliser)
        if bias is not None:
            flow.book(BIAS, s, bias.clamp(min=0))
        return flow.positive().pull(s) if sums is None else pull_both(flow, sums, s, torch.zeros_like(s))


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
        relevance = flow.relevance
        sums = sums_by_difference(flow, relevance, both=True)
        positive, negative = (flow.positive().sum(), flow.negative().sum()) if sums is None else sums
        z_positive = positive if bias is None else positive + bias.clamp(min=0)
        z_negative = negative if bias is None else negative + bias.clamp(max=0)
        s_positive = self.alpha * _ratio(relevance, z_positive, self.stabiliser)
        s_negative = -self.beta * _ratio(relevance, z_negative, self.stabiliser)
        handed_on = torch.addcmul(s_positive * z_positive, s_negative, z_negative)
        flow.book(EPSILON, relevance - handed_on)
        if bias is not None:
            flow.book(BIAS, s_positive, bias.clamp(min=0))
            flow.book(BIAS, s_negative, bias.clamp(max=0))
        if sums is not None:
            return pull_both(flow, sums, s_positive, s_negative)
        pulled = flow.positive().pull(s_positive)
        return pulled + flow.negative().pull(s_negative) if self.beta else pulled


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
        bias = flow.map.bias_for(flow.y) if self.use_bias else None
        # The output's sign and the denominator come from the same z: with the bias in both, or in neither.
        z = flow.y if self.use_bias else flow.total
        if flow.is_non_negative and (bool(z.min() >= 0) or not bool((flow.g * (z < 0)).any())):
            return self._on_one_side(flow, bias)
        return self._on_both_sides(flow, z, bias)

    def _on_one_side(self, flow: Flow, bias: Tensor | None) -> Tensor:
        """Inputs >= 0, and only positive outputs carry relevance, as between ReLUs: one product with w + gamma w+."""
        layer = flow.map
        weight = layer.derived(("gamma", self.gamma), lambda: layer.weight + self.gamma * layer.weight.clamp(min=0))
        z = flow.once(f"gamma {self.gamma}", lambda: layer.apply(flow.x, weight))
        favoured = None if bias is None else bias + self.gamma * bias.clamp(min=0)
        s = _share(flow, flow.relevance, z if favoured is None else z + favoured, self.stabiliser)
        if favoured is not None:
            flow.book(BIAS, s, favoured)
        return layer.pull(s, weight, flow.x)

    def _on_both_sides(self, flow: Flow, z: Tensor, bias: Tensor | None) -> Tensor:
        layer, half = flow.map, self.gamma / 2
        sign = _with_sign_of(z, 1.0)
        spread = flow.spread if bias is None else flow.spread + bias.abs()
        s = _share(flow, flow.relevance, (1 + half) * z + half * sign * spread, self.stabiliser)
        if bias is not None:
            flow.book(BIAS, s, (1 + half) * bias)
            flow.book(BIAS, s * sign, half * bias.abs())
        by_weight = layer.pull((1 + half) * s, layer.weight, flow.x)
        by_size = layer.pull(half * sign * s, layer.transformed("absolute"), flow.x)
        return by_weight + (by_size if flow.is_non_negative else flow.x.sign() * by_size)


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
    total = flow.once(transform, lambda: layer.apply((flow.x != 0).to(flow.y.dtype), weight))
    s = _share(flow, flow.relevance, total, stabiliser)
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
        beyond = flow.once("box", lambda: layer.apply(low, positive) + layer.apply(high, negative))
        s = _share(flow, flow.relevance, flow.total - beyond, self.stabiliser)
        received = x * layer.pull(s, layer.weight, x)
        received = received - low * layer.pull(s, positive, x) - high * layer.pull(s, negative, x)
        return _per_unit(received, x)
