"""The relevance that passes through what was computed out of sight: what arrives there, and what leaves.

A model's own ``autograd.Function`` or a scripted function hands on relevance by its plain gradient. Where as much
leaves as arrives, that is right (Euler: ``f(x) = f'(x) x`` for whatever is linear or a matter of shapes). Where not, it
is an operation without a rule.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrp_cli.engine.books import UNKNOWN, Account, per_sample
from lrp_cli.engine.operations.unknown import TOLERANCE, refusal
from lrp_cli.engine.run import Run
from lrp_cli.engine.tracking import tagged
from lrp_cli.errors import EngineError


@dataclass(frozen=True)
class Watched:
    """A tensor at the edge of a region.

    Attributes:
        values: the tensor's values.
        batch_dim: which dimension is the batch.
        region: the region that made it, if one did.
    """

    values: Tensor
    batch_dim: int
    region: "Region | None" = None


class Region:
    """A part of autograd's graph that was made out of sight.

    Attributes:
        description: what computed it, for messages.
        layer, class_name: the module that was running.
        is_accountable: whether all tensors that it was computed from are known, so that what leaves can be told.
    """

    def __init__(self, run: Run, operation: str, description: str) -> None:
        self._run, self._operation = run, operation
        self.description = description
        self.layer, self.class_name = run.modules.name, run.modules.class_name
        self.is_accountable = True
        self._batch_dim = 0
        self._row: Any = None
        self._joined: Region | None = None
        self._tolerance = TOLERANCE
        self.clear()

    @property
    def root(self) -> "Region":
        """The region that this one has become a part of; or the region itself."""
        return self if self._joined is None else self._joined.root

    def join(self, other: "Region") -> None:
        """Become a part of another region: they share nodes, and what arrives at one may leave the other."""
        other.is_accountable &= self.is_accountable
        self._joined = other

    def clear(self) -> None:
        """Begin a backward pass."""
        self._arrived: Tensor | float = 0.0
        self._left: Tensor | float = 0.0
        self._size: Tensor | float = 0.0

    def watch_arrival(self, tensor: Tensor) -> Tensor:
        """Return a tensor to use in place of one that the region made: relevance that arrives by it is counted."""
        run, at = self._run, self._batch_dim
        batch_dim = at if tensor.dim() > at and tensor.shape[at] == run.samples else 0
        self._tolerance = 1e-9 if tensor.dtype == torch.float64 else TOLERANCE
        watched: Tensor = _Arrival.apply(tensor, self, Watched(run.keep(tensor), batch_dim))
        tagged(watched, run).batch_dim, tagged(watched, run).kept = batch_dim, "any"  # the values are the same memory
        if run.trace is None:
            return watched
        with run.trace.operation(self._operation, run) as self._row:
            traced: Tensor = self._row.watch_outputs(watched)
        return traced

    def watch_leaving(self, node: Any, edges: dict[int, Watched]) -> None:
        """Count the relevance that leaves by some of a node's inputs, given the tensors there by place."""
        self._batch_dim = max([self._batch_dim, *(watched.batch_dim for watched in edges.values())])

        def count(gradients: tuple[Tensor | None, ...], _: Any) -> None:
            for place, watched in edges.items():
                g = gradients[place]
                if g is not None:
                    self.root._leave(watched, g)
                    if watched.region is not None:
                        watched.region.root.arrive(watched, g)

        node.register_hook(count)

    def arrive(self, watched: Watched, g: Tensor) -> None:
        """Count relevance that arrives.

        Raises:
            EngineError: it could not be told what becomes of it.
        """
        if not self.is_accountable:
            raise EngineError(self._unaccountable() if self._run.on_unknown == "gradient" else self.refusal())
        relevance = _relevance(watched, g)
        self._arrived = self._arrived + per_sample(relevance, self._run.samples)
        self._size = self._size + per_sample(relevance.abs(), self._run.samples)

    def _leave(self, watched: Watched, g: Tensor) -> None:
        relevance = per_sample(_relevance(watched, g), self._run.samples)
        self._left = self._left + relevance
        if self._row is not None:
            self._row.relevance_out = self._row.relevance_out + relevance.cpu()

    def settle(self) -> None:
        """Compare what has arrived with what has left, and book the difference.

        Raises:
            EngineError: they differ, and operations without a rule are errors.
        """
        difference = self._arrived - self._left
        if not isinstance(difference, Tensor):  # nothing arrived
            return
        if self._run.on_unknown == "gradient":
            number = None if self._row is None else self._row.number
            self._run.books.book(Account(self.layer, number), UNKNOWN, difference)
        elif bool((difference.abs() > self._tolerance * self._size).any()):
            raise EngineError(self.refusal())

    def refusal(self) -> str:
        """Return the message that the operation has no rule."""
        return refusal(self.description, self.layer, self.class_name)

    def _unaccountable(self) -> str:
        return (
            f"the books cannot be kept for {self.description} in {self.layer} ({self.class_name}): what it was made "
            "from is gone or was changed in place; change the model to use torch functions there"
        )


def _relevance(watched: Watched, g: Tensor) -> Tensor:
    """Return the relevance of a tensor, the batch first."""
    return torch.where(g == 0, 0.0, watched.values * g).movedim(watched.batch_dim, 0)


class _Arrival(torch.autograd.Function):
    """Nothing forward; backward, counts the relevance that arrives at a region."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, region: Region, watched: Watched) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.region, ctx.watched = region, watched
        return t.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if gradients[0] is not None:
            ctx.region.root.arrive(ctx.watched, gradients[0])
        return gradients[0], None, None
