"""Programs: an explanation as one straight line of tensor operations, for inputs of one shape and one model.

A forward pass by its plan (:mod:`lrp_cli.engine.replay`) still runs the model's Python, the interception's and the
rules', which on a small network takes as long as the arithmetic. A program is made of a transcript of one explanation
and holds none of it. What a rule decides by the values at hand is decided anew each time (:class:`Choice`); everything
else must turn out as it did, or the program is not used.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import Tensor, fx

from lrp_cli.engine.books import Account, Books, Entry
from lrp_cli.engine.flow import Flow
from lrp_cli.engine.rules import Rule
from lrp_cli.engine.standing import Standing
from lrp_cli.engine.transcript import Step, Transcript, Value, values_in, with_values

COURSES = 4
"""How many courses of one rule are kept."""


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


def call(choice: "Choice", *tensors: Tensor) -> Any:
    """Have a rule propagate relevance."""
    return choice(*tensors)


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
    lets_go: bool = False,
) -> Callable[..., tuple[Any, ...]]:
    """Return a function that executes steps.

    Args:
        steps: the steps; what nobody needs is left out.
        inputs: its arguments but the last one, which is the box.
        outputs: what it returns.
        places: where in the box is what comes from earlier functions.
        lets_go: whether this function is the last one to need that.
    """
    graph, constants = fx.Graph(), dict[str, Any]()
    nodes: dict[Value, fx.Node] = {}
    for number, value in enumerate(inputs):
        nodes.setdefault(value, graph.placeholder(f"input_{number}"))
    box = graph.placeholder("box")

    def constant(content: Any) -> fx.Node:
        name = f"constant_{len(constants)}"
        constants[name] = content
        return graph.create_node("get_attr", name)

    def node(value: Value) -> fx.Node:
        if value not in nodes:
            if value.constant is not None:
                nodes[value] = constant(value.constant)
            else:
                place = (places or {})[value]
                nodes[value] = graph.call_function(take if lets_go else operator.getitem, (box, place))
        return nodes[value]

    def enter(results: Any, made: fx.Node) -> None:
        if isinstance(results, Value):
            nodes.setdefault(results, made)
        elif isinstance(results, (tuple, list)):
            for place, result in enumerate(results):
                if any(value not in nodes for value in values_in(result)):
                    enter(result, graph.call_function(operator.getitem, (made, place)))

    for step in needed(steps, outputs):
        args, kwargs = with_values(step.args, node), with_values(step.kwargs, node)
        if isinstance(step.function, Choice):
            made = graph.call_function(call, (constant(step.function), *args))
        else:
            made = graph.call_function(step.function, args, kwargs)
        if step.is_guard:
            graph.call_function(expect, (made, step.expected))
        enter(step.results, made)
    graph.output(tuple(node(value) for value in outputs))
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(code.src, scope)  # noqa: S102 (written by torch.fx, of operations alone)
    # A GraphModule would refer to itself, and hold the weights until garbage is collected.
    return partial(scope["forward"], SimpleNamespace(**constants))


@dataclass(frozen=True)
class Booking:
    """An entry into the books, its tensors given as values.

    ``share`` is the same each time where it is no value. A booking without an account stands for several entries, the
    list of which is ``sums``.
    """

    account: Account | None
    kind: str
    sums: Value
    share: Value | Tensor | float


def values_of(bookings: Sequence[Booking]) -> list[Value]:
    """Return the values that make entries of bookings (:func:`entries_of`)."""
    return [value for booking in bookings for value in values_in([booking.sums, booking.share])]


def entries_of(bookings: Sequence[Booking], found: Sequence[Any]) -> list[Entry]:
    """Return the entries, given what the values turned out to be."""
    entries: list[Entry] = []
    tensors = iter(found)
    for booking in bookings:
        sums = next(tensors)
        if booking.account is None:
            entries += sums
            continue
        share = next(tensors) if isinstance(booking.share, Value) else booking.share
        entries.append(Entry(booking.account, booking.kind, sums, share))
    return entries


def bookings_of(entries: Sequence[Entry], transcript: Transcript) -> list[Booking]:
    """Return the bookings that stand for entries made while a transcript was written."""
    bookings = []
    for account, kind, sums, share in entries:
        known: Value | Tensor | float = share
        if isinstance(share, Tensor):
            value = transcript.value(share)
            known = value if value.constant is None else value.constant
        bookings.append(Booking(account, kind, transcript.value(sums), known))
    return bookings


@dataclass(frozen=True)
class Course:
    """What a rule did, where it decided in one way."""

    function: Callable[..., tuple[Any, ...]]
    bookings: Sequence[Booking]

    @classmethod
    def of(
        cls, steps: Sequence[Step], inputs: Sequence[Value], result: Value, bookings: Sequence[Booking]
    ) -> "Course | None":
        """Return the course that steps amount to; None where they need more than the inputs, or spoil them."""
        outputs = [result, *values_of(bookings)]
        guards = [number for number, step in enumerate(steps) if step.is_guard]
        given = {value.memory for value in inputs}
        if any(step.writes & given for step in steps[: guards[-1] if guards else 0]):
            return None
        if missing(steps, outputs, inputs):
            return None
        return cls(compiled(steps, inputs, outputs), bookings)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, list[Entry]]:
        """Return the modified gradient of the layer's input, and the entries; raises :class:`Differs`."""
        result, *found = self.function(*tensors, None)
        return result, entries_of(self.bookings, found)


def tensors_of(flow: Flow) -> list[Tensor]:
    """Return what a rule works on: the input, the output before and behind the activation, its gradient, the bounds."""
    return [flow.x, flow.z, flow.out, flow.g, *(flow.bounds or ())]


def with_tensors(flow: Flow, tensors: Sequence[Tensor], books: Books) -> Flow:
    """Return a layer call like ``flow`` on other tensors (:func:`tensors_of`), with other books and an empty memo."""
    x, z, out, g, *bounds = tensors
    ends = (bounds[0], bounds[1]) if bounds else None
    return replace(flow, x=x, z=z, out=out, g=g, bounds=ends, memo={}, books=books)


class Choice:
    """A rule that decides by the values at hand which way to take: one course for each way it took."""

    def __init__(self, rule: Rule, flow: Flow, constants: Sequence[Tensor]) -> None:
        """Prepare to do what ``rule`` does with tensors like those of ``flow``, which are not kept."""
        self._rule, self._constants = rule, constants
        self._flow = with_tensors(flow, [flow.g.new_empty(0)] * len(tensors_of(flow)), Books(flow.books.samples))
        self._courses: tuple[Course, ...] = ()

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, list[Entry]]:
        """Return the modified gradient of the layer's input, and the entries.

        Args:
            tensors: those of the layer call (:func:`tensors_of`).
        """
        for course in self._courses:
            try:
                found = course(*tensors)
            except Differs:
                continue
            if course is not self._courses[0]:  # what was right the last time is the likeliest
                self._courses = (course, *(other for other in self._courses if other is not course))
            return found
        return self._take(tensors)

    def note(self, course: Course) -> None:
        """Note a course that the rule takes."""
        self._courses = (course, *self._courses)

    def _take(self, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Entry]]:
        """Have the rule decide, and note the course that it takes."""
        flow = with_tensors(self._flow, tensors, Books(self._flow.books.samples))
        if len(self._courses) >= COURSES:
            return self._rule.propagate(flow), flow.books.booked
        transcript = Transcript(self._constants)
        inputs = [transcript.new_input(tensor) for tensor in tensors]
        with transcript:
            result = self._rule.propagate(flow)
        bookings = bookings_of(flow.books.booked, transcript)
        course = Course.of(transcript.steps, inputs, transcript.value(result), bookings)
        if course is not None and transcript.problem is None:
            self.note(course)
        return result, flow.books.booked


@dataclass(frozen=True)
class Descent:
    """One backward pass: ``function`` returns the gradient, the values of the bookings, and what is kept for others."""

    function: Callable[..., tuple[Any, ...]]
    bookings: Sequence[Booking]


Turn = tuple[bool, bool]
"""Which backward pass over a forward pass: whether it is the first one, and whether others follow."""


@dataclass(frozen=True)
class Program:
    """An explanation as functions of tensors.

    Attributes:
        standing: how the model has to be.
        circumstances: what else has to be as it was.
        ascent: returns the logits of an input, and what the backward passes need.
        descents: the backward passes.
    """

    standing: Standing
    circumstances: tuple[Any, ...]
    ascent: Callable[..., tuple[Any, ...]]
    descents: dict[Turn, Descent]
