"""Notices what a model computes out of the interception's sight.

An ``autograd.Function`` of the model's own, a scripted function or an extension in C++ makes tensors that depend on the
input without any torch function having been called. Autograd numbers the nodes of its graph in order: a number that
was given out between two intercepted operations is that of a node which none of them made.
"""

from bisect import bisect_right
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

from lrp_cli.engine.checkpoints import REFUSAL, Checkpoints
from lrp_cli.engine.regions import Region, Watched
from lrp_cli.engine.run import Run
from lrp_cli.engine.tracking import is_outdated, tagged, tensors_in
from lrp_cli.errors import EngineError

_next_number = torch.autograd._get_sequence_nr  # type: ignore[attr-defined]

_Edge = tuple[int, int]
"""An output of a node of autograd's graph: the node's number, and which of its outputs."""


class Sight:
    """Knows which nodes of autograd's graph were made by intercepted operations."""

    def __init__(self, run: Run, checkpoints: Checkpoints) -> None:
        self._run, self._checkpoints = run, checkpoints
        self._seen = 0
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._made: list[ref[Tensor]] = []
        self._latest: Any = None
        self._tensors: dict[_Edge, ref[Tensor]] = {}
        self._stand_ins: dict[_Edge, Tensor] = {}
        self._regions: dict[int, Region] = {}

    def look(self) -> bool:
        """Note what was made since the last operation. Returns whether anything at all was made out of sight."""
        number = _next_number()
        if number > self._seen:
            self._starts.append(self._seen)
            self._ends.append(number)
            self._seen = number
        return bool(self._starts)

    def made(self, result: Any) -> None:
        """Note that all that was made since the last look was made by an intercepted operation with this result."""
        self._seen = _next_number()
        if isinstance(result, Tensor):
            if result.requires_grad:
                self._made.append(ref(result))
                self._latest = result  # whoever reads it next may let it go, and what it held is needed
        elif isinstance(result, (tuple, list)) and any(tensor.requires_grad for tensor in tensors_in(result)):
            self._made.extend(ref(tensor) for tensor in tensors_in(result))
            self._latest = result

    def notice(self, value: Any) -> None:
        """Look at what a module is given or returns: here it is known best which module made it, and from what."""
        if self.look():
            with torch._C.DisableTorchFunction():
                for tensor in tensors_in(value):
                    self.in_sight(tensor)
            self._seen = _next_number()

    def in_sight(self, tensor: Tensor) -> Tensor:
        """Return the tensor; or, if it was made out of sight, what stands for it from now on.

        Raises:
            EngineError: it was made by a checkpoint, or from a tensor that does not hold what the plain model has.
        """
        if not self._starts or not self._run.carries(tensor):
            return tensor
        number = _number(tensor.grad_fn)
        if not self._is_out_of_sight(number):
            return tensor
        edge = number, tensor.output_nr
        if edge not in self._stand_ins:
            if self._checkpoints.are_running:  # it saved what it needs by way of the checkpoint
                raise EngineError(REFUSAL)
            with torch.enable_grad():  # who reads it first may have no use for gradients
                self._stand_ins[edge] = self._stand_in(tensor)
        return self._stand_ins[edge]

    def close(self) -> None:
        """Let go of the tensors of the forward pass, which is over."""
        self._latest = None
        self._made, self._tensors, self._stand_ins = [], {}, {}

    @property
    def regions(self) -> list[Region]:
        """The regions that were made out of sight, in order of execution."""
        return [region for region in dict.fromkeys(self._regions.values()) if region.root is region]

    def _is_out_of_sight(self, number: int) -> bool:
        place = bisect_right(self._starts, number) - 1
        return place >= 0 and number < self._ends[place]

    def _stand_in(self, tensor: Tensor) -> Tensor:
        """Make out where the tensor comes from; return one by which relevance is counted as it arrives there."""
        nodes, regions = self._trace_back(tensor.grad_fn)
        inputs = {number: self._inputs(node) for number, node in nodes.items()}
        if not regions and not any(inputs.values()):  # made of parameters alone
            return tensor.detach()
        if any(_function(node) is CheckpointFunction for node in nodes.values()):
            raise EngineError(REFUSAL)
        region = regions[0] if regions else Region(self._run, *_names(tensor.grad_fn))
        for other in regions[1:]:
            other.join(region)
        for number, node in nodes.items():
            self._regions[number] = region
            region.watch_leaving(node, self._watched(number, inputs[number], region))
        return region.watch_arrival(tensor)

    def _trace_back(self, node: Any) -> tuple[dict[int, Any], list[Region]]:
        """Return the nodes out of sight that a node depends on, by number, and the regions that they border on."""
        nodes: dict[int, Any] = {}
        regions: dict[Region, None] = {}
        ahead = [node]
        while ahead:
            node = ahead.pop()
            number = _number(node)
            if number in self._regions:
                regions[self._regions[number].root] = None
            elif number not in nodes:
                nodes[number] = node
                ahead.extend(n for n, output in node.next_functions if n is not None and self._is_hidden(n, output))
        return nodes, list(regions)

    def _is_hidden(self, node: Any, output: int) -> bool:
        """Whether an output of a node was made out of sight and has not been noticed yet."""
        return self._is_out_of_sight(_number(node)) and (_number(node), output) not in self._stand_ins

    def _inputs(self, node: Any) -> dict[int, _Edge]:
        """Return those inputs of a node, by place, that are known and depend on the model's input."""
        numbered = ((place, (_number(n), output)) for place, (n, output) in enumerate(node.next_functions) if n)
        return {place: edge for place, edge in numbered if self._is_known(*edge)}

    def _is_known(self, number: int, output: int) -> bool:
        if self._is_out_of_sight(number):
            return (number, output) in self._stand_ins and number in self._regions
        return self._run.begin <= number < self._seen

    def _watched(self, number: int, inputs: dict[int, _Edge], region: Region) -> dict[int, Watched]:
        """Return the tensors that are the inputs of a node, by place; a region whose inputs are gone is told so."""
        run, watched = self._run, {}
        for place, edge in inputs.items():
            tensor = self._tensor(edge)
            if tensor is None:
                region.is_accountable = False
                continue
            if is_outdated(tensor, number, run):
                raise EngineError(
                    f"{region.description} in {region.layer} ({region.class_name}) reads a tensor that was changed in "
                    "place before; change the model to compute that step out of place"
                )
            tag = tagged(tensor, run)
            tag.note_use()
            watched[place] = Watched(run.keep(tensor), tag.batch_dim, self._regions.get(edge[0]))
        return watched

    def _tensor(self, edge: _Edge) -> Tensor | None:
        """Return the tensor that is an output of a node; None if it is gone or was changed in place."""
        if edge in self._stand_ins:
            return self._stand_ins[edge]
        for reference in self._made:
            tensor = reference()
            if tensor is not None and tensor.grad_fn is not None:
                self._tensors[_number(tensor.grad_fn), tensor.output_nr] = reference
        self._made = []
        found = self._tensors.get(edge)
        tensor = None if found is None else found()
        unchanged = tensor is not None and tensor.grad_fn is not None and _number(tensor.grad_fn) == edge[0]
        return tensor if unchanged else None


def _number(node: Any) -> int:
    number: int = node._sequence_nr()
    return number


def _function(node: Any) -> type | None:
    """Return the ``autograd.Function`` that made a node, or None if none did."""
    function: type | None = getattr(node, "_forward_cls", None)
    return function


def _names(node: Any) -> tuple[str, str]:
    """Return the name of what made a node, and what it is, for messages."""
    function = _function(node)
    if function is not None:
        return function.__name__, f"the autograd.Function '{function.__name__}'"
    name: str = node.name()
    return name, f"what autograd calls '{name}', made out of sight (by a scripted function, say),"
