"""The functions that programs are made of, in machine code, by torch's inductor.

What is decided by values is taken to be decided as it was, and looked at afterwards (:mod:`lrp_cli.engine.native`); a
rule that was seen to decide in several ways is asked each time, between one piece of code and the next.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from lrp_cli.engine.choices import entries_of, values_of
from lrp_cli.engine.lowering import Differs, Places, enter, missing, needed
from lrp_cli.engine.transcript import Step, Value, with_values
from lrp_cli.engine.unfolding import Stretch, Unfit, Unfolded

OPTIONS = {
    "cpp.dynamic_threads": True,  # as many as the thread that runs it is allowed
    "layout_optimization": False,  # on processors it makes depthwise convolutions slow on the way back
}
"""Inductor's options."""

VIEW = torch.ops.aten.view.default

Tensors = dict[Value, Any]
"""What values turned out to be: tensors, or lists of entries."""


@dataclass(frozen=True)
class Passage:
    """The steps that a function of a tensor and a box is made of; see :func:`lrp_cli.engine.lowering.compiled`.

    Attributes:
        steps: the steps.
        input: stands for the tensor.
        outputs: what the function returns.
        places: where in the box other tensors lie.
        spared: what in the box other functions need afterwards.
    """

    steps: Sequence[Step]
    input: Value
    outputs: Sequence[Value]
    places: Places
    spared: frozenset[Value] = frozenset()


class Code:
    """A passage in machine code."""

    def __init__(self, passage: Passage) -> None:
        """Prepare to compile a passage.

        Raises:
            Unfit: it cannot be compiled.
        """
        self._passage = passage
        unfolded = Unfolded(passage.steps)
        self._outputs = [unfolded.names.get(value, value) for value in passage.outputs]
        self._bookings = [unfolded.bookings.get(value) for value in self._outputs]
        wanted = {
            inner
            for value, bookings in zip(self._outputs, self._bookings, strict=True)
            for inner in ([value] if bookings is None else values_of(bookings))
        }
        self._strides: list[tuple[int, ...] | None] = [None] * len(self._outputs)
        kept = {value.memory for value in passage.spared}
        needs = [part.arguments for part in unfolded.parts]
        self._parts: list[tuple[_Piece | _Question, set[Value]]] = []
        for place, part in enumerate(unfolded.parts, start=1):
            later = wanted.union(*needs[place:])
            self._parts.append((_Piece(part, later, kept) if isinstance(part, Stretch) else _Question(part), later))

    def __call__(self, tensor: Tensor, box: Sequence[Any]) -> tuple[Any, ...] | None:
        """Return what the passage returns; None where something was decided otherwise than in it.

        Pieces are compiled when they are first run, for tensors laid out as those are.

        Raises:
            Differs: the same, and it is too late to begin anew.
        """
        tensors = self._given(tensor, box)
        for part, needed_later in self._parts:
            if not part.run(tensors):
                return None
            for value in [*tensors]:
                if value not in needed_later:
                    del tensors[value]
        return self._returned(tensors)

    def lay_out_like(self, expected: Sequence[Any]) -> None:
        """Have what is returned lie in memory as what a program returned does, which other programs count on."""
        self._strides = [each.stride() if isinstance(each, Tensor) else None for each in expected]

    def _given(self, tensor: Tensor, box: Sequence[Any]) -> Tensors:
        places = self._passage.places.items()  # the first backward pass fills the last of them
        return {self._passage.input: tensor} | {value: box[place] for value, place in places if place < len(box)}

    def _returned(self, tensors: Tensors) -> tuple[Any, ...]:
        return tuple(
            _laid_out(_found(value, tensors), strides)
            if bookings is None
            else entries_of(bookings, [_found(inner, tensors) for inner in values_of(bookings)])
            for value, bookings, strides in zip(self._outputs, self._bookings, self._strides, strict=True)
        )


def _found(value: Value, tensors: Mapping[Value, Any]) -> Any:
    return tensors[value] if value.constant is None else value.constant


def _laid_out(found: Any, strides: tuple[int, ...] | None) -> Any:
    if strides is None or found.stride() == strides:
        return found
    return torch.empty_strided(found.shape, strides, dtype=found.dtype, device=found.device).copy_(found)


class _Question:
    """A choice: its rule decides anew."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def run(self, tensors: Tensors) -> bool:
        """Enter what the rule makes of tensors."""
        choice, inputs = self._step.args
        arguments = [_found(value, tensors) for value in inputs]
        versions = [tensor._version for tensor in arguments]
        for value, made in zip(self._step.results, self._step.function(choice.constant, [*arguments]), strict=True):
            tensors[value] = made
        if versions != [tensor._version for tensor in arguments]:
            raise Differs  # what shares memory in a program may not do so here
        return True


class _Piece:
    """A stretch in machine code."""

    def __init__(self, stretch: Stretch, needed_later: set[Value], kept: set[int | None]) -> None:
        """Prepare to compile a stretch.

        Args:
            stretch: the steps.
            needed_later: what others need.
            kept: the memory that nobody may change.

        Raises:
            Unfit: it cannot be compiled.
        """
        made = {value: None for step in stretch.steps for value in step.made}
        self._outputs = [value for value in made if value in needed_later]
        self._expected = [*stretch.guards.values()]
        ends = [*self._outputs, *stretch.guards]
        steps = needed(stretch.steps, ends)
        self._inputs = missing(steps, ends, [])
        changed = [value for value in self._inputs if value.memory in _written(steps)]
        memory = Counter(value.memory for value in {*self._inputs, *(needed_later - made.keys())})
        if any(value.memory in kept or memory[value.memory] > 1 for value in changed):
            raise Unfit("what others need is changed in place")
        graph = _Graph(self._inputs, changed, steps, ends)
        self._constants = graph.constants
        self._module: fx.GraphModule | None = graph.module(self._outputs, [*stretch.guards])
        self._function: Callable[..., Sequence[Any]] | None = None

    def run(self, tensors: Tensors) -> bool:
        """Enter what the steps make of tensors; return whether all was decided as it was."""
        arguments = [*(tensors[value] for value in self._inputs), *self._constants]
        with torch.no_grad():
            if self._module is not None:
                from torch._inductor import compile as to_machine_code

                self._function = to_machine_code(self._module, arguments, options=OPTIONS)
                self._module = None
            found = self._function(*arguments) if self._function is not None else ()
        if self._expected:
            *found, decided = found
            if decided.tolist() != self._expected:
                return False
        tensors.update(zip(self._outputs, found, strict=True))
        return True


def _written(steps: Sequence[Step]) -> set[int]:
    return {number for step in steps for number in step.writes}


def _is_free(view: Step, later: Sequence[Step], outputs: Sequence[Value]) -> bool:
    """Whether a view could as well be a copy: nothing is written into it, nor is it read after the memory is."""
    family = set(view.made)
    memory = {value.memory for value in family}
    is_written = False
    for step in later:
        takes = not family.isdisjoint(step.arguments)
        if takes and (is_written or memory & step.writes):
            return False
        is_written = is_written or bool(memory & step.writes)
        if takes:
            family.update(value for value in step.made if value.memory in memory)
    return not is_written or family.isdisjoint(outputs)


class _Graph:
    """Makes a module of steps, with all that comes from elsewhere as arguments.

    Attributes:
        constants: the last of the arguments.
    """

    def __init__(
        self, inputs: Sequence[Value], changed: Sequence[Value], steps: Sequence[Step], outputs: Sequence[Value]
    ) -> None:
        """Make the graph of steps for these outputs; inputs that are changed in place are copied first."""
        used = [*(value for step in steps for value in step.arguments), *outputs]
        constants = list(dict.fromkeys(value for value in used if value.constant is not None))
        self.constants = [value.constant for value in constants]
        self._graph = fx.Graph()
        self._nodes = {
            value: self._graph.placeholder(f"input_{number}") for number, value in enumerate([*inputs, *constants])
        }
        for value in changed:
            self._nodes[value] = self._graph.call_function(torch.ops.aten.clone.default, (self._nodes[value],))
        for number, step in enumerate(steps):
            self._add(step, of_a_copy=step.function is VIEW and _is_free(step, steps[number + 1 :], outputs))

    def module(self, outputs: Sequence[Value], guards: Sequence[Value]) -> fx.GraphModule | None:
        """Return the module that returns these outputs and, in one tensor, the guards; None if there are none."""
        nodes = [self._nodes[value] for value in outputs]
        if guards:
            numbers = [self._as_number(self._nodes[value]) for value in guards]
            nodes.append(self._graph.call_function(torch.ops.aten.cat.default, (numbers,)))
        if not nodes:
            return None
        self._graph.output(tuple(nodes))
        return fx.GraphModule(nn.Module(), self._graph)

    def _as_number(self, node: fx.Node) -> fx.Node:
        flat = self._graph.call_function(VIEW, (node, [1]))
        return self._graph.call_function(torch.ops.aten._to_copy.default, (flat,), {"dtype": torch.float64})

    def _add(self, step: Step, *, of_a_copy: bool) -> None:
        args, kwargs = (with_values(part, self._nodes.__getitem__) for part in (step.args, step.kwargs))
        if of_a_copy:
            # Tensors may lie in memory otherwise than they did, so that there is no such view. Inductor makes no copy
            # where it needs none.
            whole = self._graph.call_function(
                torch.ops.aten.clone.default, (args[0],), {"memory_format": torch.contiguous_format}
            )
            args = (whole, *args[1:])
        made = self._graph.call_function(step.function, args, kwargs)
        enter(self._graph, self._nodes, step.results, made)
