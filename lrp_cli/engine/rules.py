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
from lrp_cli.engine.flow import Flow, Spared
from lrp_cli.engine.masks import is_not_zero, per_unit
from lrp_cli.engine.sharing import rely_on_ratios, share_by_sign, shared_out
from lrp_cli.errors import ConfigError


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

    @property
    def reads_input(self) -> bool:
        """Whether the rule reads more of the layer's input than its shape."""
        return True

    @abstractmethod
    def propagate(self, flow: Flow) -> Tensor:
        """Return g_i, shape of x, with R_i = x_i g_i, and book what is absorbed."""


@dataclass(frozen=True)
class LRP0(Rule):
    """LRP-0: in proportion to the contribution, bias included in the denominator.

    R_i = sum_j  x_i w_ij / z_j  R_j;  on a ReLU network without biases this is gradient times input.
    Source: Bach et al. 2015, eq. 56; the Overview, section 10.2.1. In gradient form nothing is divided.
    """

    @property
    def needs_output(self) -> OutputUse:
        return OutputUse.NONE

    @property
    def reads_input(self) -> bool:
        return False

    def propagate(self, flow: Flow) -> Tensor:
        g = per_unit(flow.relevance, flow.y) if flow.is_activated else flow.g
        if flow.map.bias is not None:
            flow.book_shares(g, {BIAS: flow.map.bias})
        return flow.hand_down(g)


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

    @property
    def reads_input(self) -> bool:
        return False

    def propagate(self, flow: Flow) -> Tensor:
        shares: dict[str, Tensor | float] = {}
        is_plain = self.use_bias and not self.relative
        if is_plain and flow.is_rectified:
            s = flow.relevance_over(flow.y + self.epsilon)
            shares[EPSILON] = self.epsilon
        elif self.use_bias and (flow.keeps_signs or not flow.is_activated):
            s = self._of_ratio(flow)
        else:
            s = self._of_sum(flow)
        if self.use_bias and flow.map.bias is not None:
            shares[BIAS] = flow.map.bias
        if shares:
            flow.book_shares(s, shares)
        return flow.hand_down(s)

    def _of_ratio(self, flow: Flow) -> Tensor:
        """Return s_j = R_j / (z_j + epsilon sign(z_j)), where R_j = out_j g_j with out_j of the sign of z_j, or zero.

        That is |out_j| / (|z_j| + epsilon) g_j, and epsilon takes epsilon out_j / (|z_j| + epsilon) g_j. Several
        targets share the ratio of an activated output in place of both; one without activation is held anyway.
        """
        epsilon = self._scale(flow, flow.z)
        is_shared = flow.is_activated and not self.relative and not flow.is_only

        def divided() -> Tensor:
            size = flow.z.abs().add_(epsilon)
            return torch.div(flow.out, size, out=size)

        ratio = flow.once("epsilon", divided) if is_shared else divided()
        if is_shared:
            flow.spare(Spared.INPUT_AND_OUTPUT)
        flow.let_outputs_go()
        if isinstance(epsilon, Tensor):
            flow.book(EPSILON, ratio * epsilon, flow.g)
        else:
            flow.book(EPSILON, ratio, flow.g, times=epsilon)
        share = ratio.abs() if is_shared and not flow.is_last else ratio.abs_()
        return share.mul_(flow.g)

    def _of_sum(self, flow: Flow) -> Tensor:
        """Return s_j = R_j / (z_j + epsilon sign(z_j)): R_j / (|z_j| + epsilon), with the sign of z_j."""
        z = flow.z if self.use_bias else flow.total
        epsilon = self._scale(flow, z)
        ratio = flow.relevance_over(z.abs().add_(epsilon))
        flow.let_outputs_go()
        if isinstance(epsilon, Tensor):
            flow.book(EPSILON, ratio, epsilon.expand_as(ratio))
        else:
            flow.book_shares(ratio, {EPSILON: epsilon})
        # sign(0) = +1 matters only where the relevance of an output of zero is not zero: where its bias is left out.
        sign = z.sign() if self.use_bias else z.sign().add_(0.5).sign_()
        return sign.mul_(ratio)

    def _scale(self, flow: Flow, z: Tensor) -> Tensor | float:
        if not self.relative:
            return self.epsilon
        of_sample = [dimension for dimension in range(z.dim()) if dimension != flow.account.batch_dim]
        mean_square = z.square().mean(dim=of_sample, keepdim=True)
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
        return share_by_sign(flow, 1.0, 0.0, self.stabiliser, self.use_bias)


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
        return share_by_sign(flow, self.alpha, self.beta, self.stabiliser, self.use_bias)


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
        if not self.gamma:
            return Epsilon(self.stabiliser, use_bias=self.use_bias).propagate(flow)
        bias = flow.map.bias if self.use_bias else None
        if flow.is_non_negative and flow.is_positive(use_bias=self.use_bias):
            return self._on_one_side(flow, bias)
        return self._on_both_sides(flow, bias)

    def _on_one_side(self, flow: Flow, bias: Tensor | None) -> Tensor:
        """Inputs >= 0, and only positive outputs carry relevance, as between ReLUs: one product with w + gamma w+."""
        layer, weight = flow.map, flow.map.with_gain(self.gamma)
        favoured = None if bias is None else bias + self.gamma * bias.clamp(min=0)
        offset = flow.offset(favoured, self.stabiliser)

        def ratio() -> Tensor:
            # Inactive outputs may be anything, zero included; active ones are larger than the stabiliser.
            z = layer.apply(flow.x, weight, offset).clamp_(min=self.stabiliser)
            return torch.div(flow.out, z, out=z)

        s = flow.times_g(flow.once("gamma", ratio))
        flow.spare(Spared.INPUT_AND_OUTPUT)
        shares: dict[str, Tensor | float] = {EPSILON: self.stabiliser}
        flow.book_shares(s, shares if favoured is None else shares | {BIAS: favoured})
        return flow.pull(s, weight)

    def _on_both_sides(self, flow: Flow, bias: Tensor | None) -> Tensor:
        # The output's sign and the denominator come from the same z: with the bias in both, or in neither.
        z = flow.y if self.use_bias else flow.total
        half = self.gamma / 2
        size = None if bias is None else bias.abs()

        def ratio() -> Tensor:
            size_of_z = self._denominator(flow, z, size)
            return torch.div(flow.out, size_of_z, out=size_of_z)

        relative = flow.times_g(flow.once("gamma", ratio))
        s = relative if flow.is_positive(use_bias=self.use_bias) else relative * z.sign()
        shares: dict[str, Tensor | float] = {EPSILON: self.stabiliser}
        if bias is not None and size is not None:
            flow.book_shares(s, {BIAS: (1 + half) * bias})
            shares = shares | {BIAS: half * size}
        flow.book_shares(relative, shares)
        return flow.add_by_size(flow.hand_down(s).mul_(1 + half), relative, half)

    def _denominator(self, flow: Flow, z: Tensor, size: Tensor | None) -> Tensor:
        """Return |z_j + gamma z_j±|, stabilised: (1 + gamma/2) |z_j| + (gamma/2) A_j, where nothing cancels."""
        half = self.gamma / 2
        x = flow.x if flow.is_non_negative else flow.x.abs()
        spread = flow.map.apply(x, flow.map.transformed("absolute"), flow.offset(size, self.stabiliser / half))
        size_of_sum = z if flow.is_positive(use_bias=self.use_bias) else z.abs()
        return spread.mul_(half).add_(size_of_sum, alpha=1 + half)


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
    offset = flow.offset(None, stabiliser)
    s = shared_out(flow, transform, lambda: layer.apply(is_not_zero(flow.x), weight, offset), stabiliser, {})
    rely_on_ratios(flow, transform)
    return per_unit(flow.pull(s, weight), flow.x)


@dataclass(frozen=True)
class ZBox(Rule):
    """z-box (z^B): for inputs that are known to lie between l and h, such as pixels.

    R_i = sum_j  (x_i w_ij - l_i w_ij+ - h_i w_ij-) / sum_i' (x_i' w_i'j - l_i' w_i'j+ - h_i' w_i'j-)  R_j.
    Source: Montavon et al. 2017, section 4.1 (the z^B rule); the Overview, table 10.1. Every term is >= 0 and the bias
    plays no part. Bounds of padding are zero. As w = w+ + w-, a term is (x_i - l_i) w_ij+ + (x_i - h_i) w_ij-, of which
    one part is zero and nothing cancels.

    Attributes:
        stabiliser: added to the denominator.
    """

    stabiliser: float = 1e-6

    def propagate(self, flow: Flow) -> Tensor:
        if flow.bounds is None:
            raise ConfigError(
                f"{flow.account.layer}: the z-box rule needs to know between which values its layer's input lies, as "
                "it does where the model's input goes into the layer; give this layer another rule"
            )
        layer, x, (low, high) = flow.map, flow.x, flow.bounds
        positive, negative = layer.transformed("positive"), layer.transformed("negative")

        def sum_of_terms() -> Tensor:
            terms = layer.apply(x - low, positive, flow.offset(None, self.stabiliser))
            return terms.add_(layer.apply(x - high, negative))

        s = shared_out(flow, "box", sum_of_terms, self.stabiliser, {})
        rely_on_ratios(flow, "box")
        received = (x - low).mul_(flow.pull(s, positive))
        return per_unit(received.addcmul_(x - high, flow.pull(s, negative)), x)
