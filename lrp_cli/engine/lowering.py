"""Steps of a transcript as one function, by way of ``torch.fx``, which lets go of each tensor after its last use."""

import operator
from collections.abc import Callable, Sequence, Set
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import fx

from lrp_cli.engine.shortcuts import shortened
from lrp_cli.engine.transcript import Step, Value, values_in, with_values


class Differs(Exception):  # noqa: N818 (it is no error: there is another way)
    """Something turned out otherwise than when the transcript was made."""


def expect(found: Any, expected: Any) -> None:
    """Raise :class:`Differs` unless the two are equal."""
    if found != expected:
        raise Differs


def take(box: list[Any], place: int) -> Any:
    """Return what lies in a box, and let go of it there."""
    value, box[place] = box[place], None
    return value


def empty(box: list[Any]) -> None:
    """Let go of all that lies in a box."""
    box.clear()


def listed(values: list[Any]) -> list[Any]:
    """Return values as a list, which whoever is given it may empty."""
    return [*values]


Places = dict[Value, int]
"""Where in the box a value lies."""


def needed(steps: Sequence[Step], outputs: Sequence[Value]) -> list[Step]:
    """Return the steps that make something else than what nobody needs for these outputs."""
    makers: dict[Value, Step] = {}
    for step in steps:
        for value in step.made:
            makers.setdefault(value, step)
    wanted, kept = set(outputs), []
    for step in reversed(steps):
        if step.is_guard or step.writes or any(value in wanted and makers[value] is step for value in step.made):
            kept.append(step)
            wanted.update(step.arguments)
    return kept[::-1]


def missing(steps: Sequence[Step], outputs: Sequence[Value], inputs: Sequence[Value]) -> list[Value]:
    """Return what steps need for these outputs, and do not make."""
    known = {*inputs}
    found: dict[Value, None] = {}
    for step in needed(steps, outputs):
        found |= dict.fromkeys(value for value in step.arguments if value.constant is None and value not in known)
        known.update(step.made)
    found |= dict.fromkeys(value for value in outputs if value.constant is None and value not in known)
    return [*found]


def compiled(
    steps: Sequence[Step],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    places: Places | None = None,
    *,
    spared: Set[Value] = frozenset(),
    free: Set[int | None] = frozenset(),
    is_revocable: bool = False,
) -> Callable[..., tuple[Any, ...]]:
    """Return a function that executes steps.

    Args:
        steps: the steps; what nobody needs is left out.
        inputs: its arguments but the last one, which is the box.
        outputs: what it returns.
        places: where in the box is what comes from earlier functions.
        spared: what in the box others need afterwards; all else is let go of.
        free: numbers of the memory of what is in the box that may be written over.
        is_revocable: whether that is so only once nothing can raise :class:`Differs` any more; then nothing is spared.
    """
    places = places or {}
    lowering = _Lowering(inputs, places, {*places} if is_revocable else spared)
    wanted = shortened(needed(steps, outputs), outputs, free)
    undecided = max((number for number, step in enumerate(wanted, start=1) if step.is_guard), default=0)
    for step in wanted[:undecided]:
        lowering.add(step)
    if is_revocable:
        lowering.empty_box()
    for step in wanted[undecided:]:
        lowering.add(step)
    return lowering.function(outputs)


class _Lowering:
    """Makes a graph of steps."""

    def __init__(self, inputs: Sequence[Value], places: Places, spared: Set[Value]) -> None:
        self._graph, self._places, self._spared = fx.Graph(), places, spared
        self._constants: dict[str, Any] = {}
        self._nodes: dict[Value, fx.Node] = {}
        for number, value in enumerate(inputs):
            self._nodes.setdefault(value, self._graph.placeholder(f"input_{number}"))
        self._box = self._graph.placeholder("box")

    def add(self, step: Step) -> None:
        """Add a step."""
        args, kwargs = with_values(step.args, self._node), with_values(step.kwargs, self._node)
        if step.empties:
            args = tuple(self._graph.call_function(listed, (arg,)) if isinstance(arg, list) else arg for arg in args)
        made = self._graph.call_function(step.function, args, kwargs)
        if step.is_guard:
            self._graph.call_function(expect, (made, step.expected))
        enter(self._graph, self._nodes, step.results, made)

    def empty_box(self) -> None:
        """Fetch all that lies in the box, and let go of it there."""
        for value in self._places:
            self._node(value)
        self._graph.call_function(empty, (self._box,))

    def function(self, outputs: Sequence[Value]) -> Callable[..., tuple[Any, ...]]:
        """Return the graph as a function that returns these outputs."""
        self._graph.output(tuple(self._node(value) for value in outputs))
        code = self._graph.python_code("self")
        scope = dict(code.globals)
        exec(code.src, scope)  # noqa: S102 (written by torch.fx, of operations alone)
        # A GraphModule would refer to itself, and hold the weights until garbage is collected.
        return partial(scope["forward"], SimpleNamespace(**self._constants))

    def _node(self, value: Value) -> fx.Node:
        if value not in self._nodes:
            if value.constant is not None:
                name = f"constant_{len(self._constants)}"
                self._constants[name] = value.constant
                self._nodes[value] = self._graph.create_node("get_attr", name)
            else:
                fetch = operator.getitem if value in self._spared else take
                self._nodes[value] = self._graph.call_function(fetch, (self._box, self._places[value]))
        return self._nodes[value]


def enter(graph: fx.Graph, nodes: dict[Value, fx.Node], results: Any, made: fx.Node) -> None:
    """Note which node a step's results are; those that lie where an earlier one does are known already."""
    if isinstance(results, Value):
        nodes.setdefault(results, made)
    elif isinstance(results, (tuple, list)):
        for place, result in enumerate(results):
            if any(value not in nodes for value in values_in(result)):
                enter(graph, nodes, result, graph.call_function(operator.getitem, (made, place)))
