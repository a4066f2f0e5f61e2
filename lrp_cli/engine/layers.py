"""One call of one layer: what the forward pass keeps of it, and how its relevance is handed on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from lrp_cli.engine.books import Account
from lrp_cli.engine.flow import Flow, Spared
from lrp_cli.engine.linear_maps import LinearMap
from lrp_cli.engine.masks import per_unit
from lrp_cli.engine.rules import OutputUse, Rule
from lrp_cli.engine.stand_ins import valueless

if TYPE_CHECKING:
    from lrp_cli.engine.run import Run

Compute = Callable[[Tensor], Tensor]
"""Makes the result of an operation of its input."""

CONVOLUTION, LINEAR, BATCH_NORM = "convolution", "linear", "batch_norm"


@dataclass(frozen=True)
class Layer:
    """A call of a layer, as rules are assigned by it.

    Attributes:
        name: the module's dotted name; with a suffix where one module holds several (``attention.in_proj``).
        class_name: the module's class.
        kind: convolution, linear or batch_norm.
        index: how many convolutions and linear layers were executed before it; batch norms are not counted.
    """

    name: str
    class_name: str
    kind: str
    index: int


class Assignment(Protocol):
    """Which rule a layer gets."""

    def needs_output(self, layer: Layer) -> OutputUse:
        """Tell, during the forward pass, what the rules that the layer may get read of the layer's output."""
        ...

    def reads_input(self, layer: Layer) -> bool:
        """Tell, during the forward pass, whether any rule that the layer may get reads the values of its input."""
        ...

    def rule(self, layer: Layer, count: int) -> Rule:
        """Return the layer's rule, once all ``count`` convolutions and linear layers have been executed."""
        ...


@dataclass(frozen=True)
class Activation:
    """An activation that hands relevance on unchanged.

    Attributes:
        function: elementwise, with f(0) = 0.
        rectifies: whether negative values become zero.
        is_relu: whether it does nothing else.
        keeps_signs: whether f(z) is known never to have another sign than z.
    """

    function: Compute
    rectifies: bool = False
    is_relu: bool = False
    keeps_signs: bool = False


class LayerCall:
    """What is kept of one call of a layer until relevance comes back.

    The output is kept only where a rule reads it, and can be computed again where it was let go. The input is kept only
    where a rule reads it, or the output is not kept; a convolution's in any case until its output is read, for a batch
    norm behind it has the output let go.

    Attributes:
        x: the input; where no more than that is needed, a tensor of its shape without values.
        use: what of the output is needed.
        out: the output behind an activation that the call stands for, too; None where there is none, or it was let go.
    """

    def __init__(
        self,
        run: "Run",
        layer: Layer,
        make_map: Callable[[], LinearMap],
        x: Tensor,
        bounds: tuple[Tensor, Tensor] | None = None,
        account: Account | None = None,
    ) -> None:
        self.run = run
        self.layer = layer
        self.account = account or run.account(x)._replace(layer=layer.name)
        self.bounds = bounds
        self.use = run.assignment.needs_output(layer)
        self._reads_x = not self.use or run.assignment.reads_input(layer)
        # Noted as kept in any case: relevance comes back to x as it was when the layer read it, before any write.
        self.x = run.keep(x)
        if layer.kind == LINEAR and not self._reads_x:
            self.x = valueless(self.x)
        self._address = x.data_ptr()
        self.is_non_negative = run.is_non_negative(x)
        self._make_map = make_map
        self._replaces: LayerCall | None = None
        self._is_alone: Callable[[], bool] | None = None
        self._y: Tensor | None = None
        self._memo: dict[str, Any] = {}
        self.out: Tensor | None = None
        self._is_read = False
        self._spared = Spared.NOTHING

    def let_input_go(self) -> None:
        """Let go of the input unless a rule reads it: no batch norm follows that the output is let go of for."""
        if self.has_output and not self._reads_x and not self.x.is_meta:
            self.x = valueless(self.x)

    def note_read(self) -> None:
        """Note that something else may ask for the output, unless that turns out to be one with the layer."""
        self._is_read = True

    def followed_by(self, make_map: Callable[[], LinearMap], is_alone: Callable[[], bool]) -> "LayerCall":
        """Return the call of this layer and the batch norm behind it as one layer, ``make_map``.

        ``is_alone`` tells, once the forward pass is over, whether nothing but the batch norm uses the layer's output.
        That is let go, unless the input was: then it could not be made again.
        """
        merged = LayerCall(self.run, self.layer, make_map, self.x, self.bounds)
        merged.is_non_negative = self.is_non_negative
        merged._replaces, merged._is_alone = self, is_alone
        self.note_read()
        if not self.x.is_meta:
            self._y = None
        return merged

    def is_of(self, x: Tensor) -> bool:
        """Whether ``x`` lies where the input lay."""
        return x.data_ptr() == self._address

    @property
    def has_output(self) -> bool:
        """Whether the output is kept, and not computed again where it is asked for."""
        return self._y is not None

    @property
    def needs_activated(self) -> bool:
        """Whether ``out`` has to be given before relevance can be handed on behind an activation."""
        return self.out is None and not self._spared

    @cached_property
    def map(self) -> LinearMap:
        """The layer as a linear map, made on first use: most are only needed on the way back."""
        return self._make_map()

    @property
    def holds(self) -> bool:
        """Whether the call may stand for all that it covers, which is known once the forward pass is over."""
        return (self._is_alone is None or self._is_alone()) and (self._replaces is None or self._replaces.holds)

    def keep_output(self, y: Tensor) -> None:
        """Keep the output for the way back if a rule that the layer may get reads it."""
        if self.use:
            self._y = y.detach()

    def output(self) -> Tensor:
        """Return the layer's output, bias included."""
        if self._y is not None:
            return self._y
        return self.map.output(self.x)

    def propagate(self, g: Tensor, activation: Activation | None = None) -> Tensor:
        """Return the modified gradient of the input, and book what is absorbed.

        Args:
            g: the modified gradient of the output, or of ``out`` where there is an activation.
            activation: what made ``out`` of the output, if anything did.
        """
        rule, out = self.run.rule(self.layer), self.out
        is_rectified = activation is not None and activation.rectifies
        if self._spared or (not rule.needs_output and out is None):
            y = out = g  # for its shape
        elif activation is not None and activation.is_relu and out is not None and rule.needs_output < OutputUse.WHOLE:
            y, self._y = out, None
        else:
            y = self.output()
        flow = Flow(
            map=self.map,
            x=self.x,
            z=y,
            out=y if out is None else out,
            g=g,
            books=self.run.books,
            account=self.account,
            bounds=self.bounds,
            memo=self._memo,
            is_non_negative=self.is_non_negative,
            is_activated=activation is not None,
            is_rectified=is_rectified,
            keeps_signs=activation is not None and activation.keeps_signs,
            is_last=not self.run.keeps,
            may_spare=activation is not None or not self._is_read,
        )
        del y, out  # the rule lets go of them when it needs them no more
        with self._lent(flow):
            return self.run.propagate(rule, flow)

    @contextmanager
    def _lent(self, flow: Flow) -> Iterator[None]:
        """Hold nothing while a rule works that it may let go of; afterwards, what further targets need."""
        if not self.run.keeps:
            self._release()
            yield
            return
        lends_y, lends_out = flow.z is self._y, flow.out is self.out
        self._y, self.out = None if lends_y else self._y, None if lends_out else self.out
        try:
            yield
        finally:
            if flow.spared:
                self._spare(flow.spared)
            else:
                self._y, self.out = flow.z if lends_y else self._y, flow.out if lends_out else self.out

    def _spare(self, spared: Spared) -> None:
        """Free that of which further targets need no more than the shape."""
        self._spared, self._y, self.out = spared, None, None
        if spared == Spared.INPUT_AND_OUTPUT and not self.x.is_meta:
            self.x = valueless(self.x)
        if self._replaces is not None:
            self._replaces._spare(spared)

    def _release(self) -> None:
        """Free what was kept: no further target follows."""
        self.x, self._y, self.out, self._memo = self.x.new_empty(0), None, None, {}
        if self._replaces is not None:
            self._replaces._release()


@dataclass(frozen=True)
class Made:
    """What a handler made of an operation: a layer, or what goes together with the layer in front of it.

    Attributes:
        call: the layer; where a batch norm follows one, the two as one.
        compute: makes the operation's result of its input; None for an activation.
        follows: the layer in front of a batch norm or an activation.
        activation: the activation, if it is one.
        in_place: whether the activation overwrote the layer's output.
    """

    call: LayerCall
    compute: Compute | None
    follows: LayerCall | None = None
    activation: Activation | None = None
    in_place: bool = False


def no_view(y: Tensor) -> Tensor:
    """Return a layer's output as no view.

    Torch allows no write into a view that a node returns, and what is written into a part of it would go to its base.
    """
    return torch.ops.aten._unsafe_view.default(y, y.shape) if y._is_view() else y


class LayerNode(torch.autograd.Function):
    """A layer in the graph: computes what the model computes, and hands back relevance by the layer's rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: LayerCall, compute: Compute) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.call = call
        y = no_view(compute(x))
        call.keep_output(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        return (None if g is None else ctx.call.propagate(g)), None, None


class MergedNode(torch.autograd.Function):
    """A batch norm and the linear layer that feeds it, as one layer.

    Takes the linear layer's input x and its output t. Whether anything but the batch norm uses t is known only after
    the forward pass; if so, relevance goes through the batch norm alone, and to t.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        t: Tensor,
        merged: LayerCall,
        alone: Callable[[], LayerCall],
        compute: Compute,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.merged, ctx.alone = merged, alone
        y = compute(t)
        merged.keep_output(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        g_x = g_t = None
        if g is not None and ctx.merged.holds:
            g_x = ctx.merged.propagate(g)
        elif g is not None:
            g_t = ctx.alone().propagate(g)
        return g_x, g_t, None, None, None


class ActivatedNode(torch.autograd.Function):
    """An activation and the layer that feeds it: the layer's rule takes the relevance where the activation hands it on.

    Takes the layer's input x and its output z. Whether anything but the activation uses z is known only after the
    forward pass; if so, relevance goes to z.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        z: Tensor,
        call: LayerCall,
        activation: Activation,
        is_alone: Callable[[], bool],
        in_place: bool,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.call, ctx.activation, ctx.is_alone = call, activation, is_alone
        call.note_read()
        z = z.detach()
        out = z.relu_() if in_place else activation.function(z)
        # A gradient holds an activation's input alone, and so does this behind a linear layer. Behind a convolution the
        # next layer's rule mostly holds the output anyway.
        is_made_again = call.layer.kind == LINEAR and not activation.is_relu and call.has_output
        ctx.out = None if is_made_again else out.detach()
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        g_x = g_z = None
        call = ctx.call
        if g is not None and ctx.is_alone() and call.holds:
            if call.needs_activated:
                call.out, ctx.out = _activated(ctx), None
            g_x = call.propagate(g, ctx.activation)
        elif g is not None:
            g_z = per_unit(g * _activated(ctx), call.output())
        return g_x, g_z, *(None,) * 4


def _activated(ctx: Any) -> Tensor:
    """Return the output of the activation of an :class:`ActivatedNode`, made again where it was let go."""
    out: Tensor = ctx.activation.function(ctx.call.output()) if ctx.out is None else ctx.out
    return out
