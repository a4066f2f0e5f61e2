"""One call of one layer: what the forward pass keeps of it, and how its relevance is handed on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from lrp_cli.engine.flow import Flow
from lrp_cli.engine.linear_maps import LinearMap
from lrp_cli.engine.rules import OutputUse, Rule

if TYPE_CHECKING:
    from lrp_cli.engine.run import Run

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

    def rule(self, layer: Layer, count: int) -> Rule:
        """Return the layer's rule, once all ``count`` convolutions and linear layers have been executed."""
        ...


class LayerCall:
    """What is kept of one call of a layer until relevance comes back, and ``use``: what of the output it needs.

    The output is kept only where a rule reads it, and can be computed again where it was let go.
    """

    def __init__(
        self,
        run: "Run",
        layer: Layer,
        make_map: Callable[[], LinearMap],
        x: Tensor,
        bounds: tuple[Tensor, Tensor] | None = None,
        replaces: "LayerCall | None" = None,
    ) -> None:
        self.run = run
        self.layer = layer
        self.account = run.account(x)._replace(layer=layer.name)
        self.x = run.keep(x)
        self.bounds = bounds
        self._replaces = replaces
        self._make_map = make_map
        self.use = OutputUse.NONE
        self._y: Tensor | None = None
        self._memo: dict[str, Any] = {}

    @cached_property
    def map(self) -> LinearMap:
        """The layer as a linear map, made on first use: most are only needed on the way back."""
        return self._make_map()

    def keep_output(self, y: Tensor) -> None:
        """Keep the output for the way back if a rule that the layer may get reads it."""
        self.use = self.run.assignment.needs_output(self.layer)
        if self.use:
            self._y = y.detach()

    def drop_output(self) -> None:
        """Let go of the output: another call now stands for this one."""
        self._y = None

    def output(self) -> Tensor:
        """Return the layer's output, bias included."""
        if self._y is not None:
            return self._y
        return self.map.apply(self.x, self.map.weight, self.map.bias)

    def propagate(self, g: Tensor) -> Tensor:
        """Return the modified gradient of the input, given that of the output, and book what is absorbed."""
        rule = self.run.rule(self.layer)
        flow = Flow(
            map=self.map,
            x=self.x,
            y=self.output() if rule.needs_output else g,
            g=g,
            book=partial(self.run.books.book, self.account),
            bounds=self.bounds,
            memo=self._memo,
        )
        handed_on = rule.propagate(flow)
        if not self.run.keeps:
            self._release()
        return handed_on

    def _release(self) -> None:
        """Free what was kept: no further target follows."""
        self.x, self._y, self._memo = self.x.new_empty(0), None, {}
        if self._replaces is not None:
            self._replaces._release()


class LayerNode(torch.autograd.Function):
    """A layer in the graph: computes what the model computes, and hands back relevance by the layer's rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: LayerCall, compute: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.call = call
        y = compute(x)
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
        is_shared: Callable[[], bool],
        compute: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.merged, ctx.alone, ctx.is_shared = merged, alone, is_shared
        y = compute(t)
        merged.keep_output(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        g_x = g_t = None
        if g is not None:
            if ctx.is_shared():
                g_t = ctx.alone().propagate(g)
            else:
                g_x = ctx.merged.propagate(g)
        return g_x, g_t, None, None, None, None
