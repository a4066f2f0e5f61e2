"""A record of every operation of a forward pass, and of the relevance that passes it on the way back."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrp_cli.engine.books import Books, per_sample
from lrp_cli.engine.layers import Layer
from lrp_cli.engine.tracking import share_tag, tensors_in, with_tensors

if TYPE_CHECKING:
    from lrp_cli.engine.run import Run


@dataclass(eq=False)
class Operation:
    """One torch function in a forward pass.

    Attributes:
        number: place in the order of execution.
        name: the function's name.
        module, class_name: the module that it was executed in.
        shape: shape of the output (of the first one, where there are several).
        layers: the layers with a configurable rule in it, if any.
        merged_into: number of the operation whose rule covers this one, if any.
        relevance_in: relevance that arrives at its outputs, shape (N,).
        relevance_out: relevance that it hands to its inputs, shape (N,).
        absorbed: kind -> relevance that it absorbs, shape (N,).
    """

    number: int
    name: str
    module: str
    class_name: str
    shape: tuple[int, ...]
    relevance_in: Tensor
    relevance_out: Tensor
    layers: list[Layer] = field(default_factory=list)
    merged_into: int | None = None
    absorbed: dict[str, Tensor] = field(default_factory=dict)

    def watch_inputs(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments with the relevance that they will be given being counted."""
        watched: dict[int, Tensor] = {}

        def watch(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad:
                return tensor
            if id(tensor) not in watched:  # one tensor passed several times stays one
                watched[id(tensor)] = self._watched(tensor, "relevance_out")
            return watched[id(tensor)]

        inputs: tuple[Any, Any] = with_tensors((args, kwargs), watch)
        return inputs

    def watch_outputs(self, result: Any) -> Any:
        """Return the result with the relevance that it will receive being counted."""
        outputs = [tensor for tensor in tensors_in(result) if tensor.requires_grad]
        self.shape = tuple(outputs[0].shape) if outputs else ()
        return with_tensors(result, lambda t: self._watched(t, "relevance_in") if t.requires_grad else t)

    def _watched(self, tensor: Tensor, side: str) -> Tensor:
        watched: Tensor = _Watched.apply(tensor, self, side)
        share_tag(tensor, watched)
        return watched


class Trace:
    """The operations of a forward pass, in order of execution.

    Attributes:
        operations: the operations; their relevance is that of the latest backward pass.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._samples = 0

    @property
    def number(self) -> int:
        """Number of the operation that is being executed."""
        return len(self.operations) - 1

    @contextmanager
    def operation(self, name: str, run: "Run") -> Iterator[Operation]:
        """Record an operation."""
        self._samples = run.samples
        nothing = torch.zeros(run.samples, dtype=torch.float64)
        operation = Operation(
            number=len(self.operations),
            name=name,
            module=run.modules.name,
            class_name=run.modules.class_name,
            shape=(),
            relevance_in=nothing,
            relevance_out=nothing,
        )
        self.operations.append(operation)
        yield operation
        if not operation.shape:  # a question, such as for the number of dimensions
            self.operations.pop()

    def add_layer(self, layer: Layer) -> None:
        """Note that the operation in hand holds a layer with a configurable rule."""
        self.operations[-1].layers.append(layer)

    def merge(self, number: int | None) -> None:
        """Note that the operation in hand is covered by the rule of an earlier one."""
        self.operations[-1].merged_into = number

    def clear(self) -> None:
        """Forget the relevance of an earlier backward pass."""
        for operation in self.operations:
            operation.relevance_in = torch.zeros(self._samples, dtype=torch.float64)
            operation.relevance_out = torch.zeros(self._samples, dtype=torch.float64)
            operation.absorbed = {}

    def settle(self, books: Books) -> None:
        """Enter what each operation absorbed, and count what was merged with the layer that it was merged into."""
        for account, kinds in books.entries.items():
            if account.operation is not None:
                self.operations[account.operation].absorbed.update(kinds)
        for operation in self.operations:
            if operation.merged_into is not None and not operation.relevance_out.any():
                layer = self.operations[operation.merged_into]
                layer.relevance_in = layer.relevance_in + operation.relevance_in
                layer.absorbed = layer.absorbed | operation.absorbed
                operation.relevance_in, operation.absorbed = operation.relevance_out, {}


class _Watched(torch.autograd.Function):
    """Nothing forward; backward, counts the relevance that passes."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, operation: Operation, side: str) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.t, ctx.operation, ctx.side = t.detach(), operation, side
        return t.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        if g is not None:
            counted = getattr(ctx.operation, ctx.side)
            setattr(ctx.operation, ctx.side, counted + per_sample(ctx.t * g, len(counted)).cpu())
        return g, None, None
