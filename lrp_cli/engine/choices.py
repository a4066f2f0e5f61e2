"""Rules in programs: what a rule decides by the values at hand is decided anew each time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lrp_cli.engine.books import Account, Books, Entry
from lrp_cli.engine.flow import Flow
from lrp_cli.engine.lowering import Differs, compiled, missing
from lrp_cli.engine.rules import Rule
from lrp_cli.engine.transcript import Step, Transcript, Value, values_in

COURSES = 4
"""How many courses of one rule are kept."""


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
    """What a rule did, where it decided in one way.

    Attributes:
        steps: what it did.
        inputs: values of the tensors it worked on.
        result: value of the modified gradient of the layer's input.
        bookings: what it booked.
        function: the steps as a function of a box with the inputs, which it empties once nothing is left to decide.
    """

    steps: Sequence[Step]
    inputs: Sequence[Value]
    result: Value
    bookings: Sequence[Booking]
    function: Callable[..., tuple[Any, ...]]

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
        places = {value: place for place, value in enumerate(inputs)}
        function = compiled(steps, [], outputs, places, is_revocable=True)
        return cls(steps, inputs, result, bookings, function)

    def __call__(self, tensors: list[Tensor]) -> tuple[Tensor, list[Entry]]:
        """Return the modified gradient of the layer's input, and the entries.

        Args:
            tensors: those of the layer call; emptied.

        Raises:
            Differs: the rule takes another course; the list is as it was.
        """
        result, *found = self.function(tensors)
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

    @property
    def likeliest(self) -> Course:
        """The course that the rule took the last time."""
        return self._courses[0]

    @property
    def varies(self) -> bool:
        """Whether it took several."""
        return len(self._courses) > 1

    def __call__(self, tensors: list[Tensor]) -> tuple[Tensor, list[Entry]]:
        """Return the modified gradient of the layer's input, and the entries.

        Args:
            tensors: those of the layer call (:func:`tensors_of`); emptied as soon as they are not needed.
        """
        for course in self._courses:
            try:
                found = course(tensors)
            except Differs:
                continue
            if course is not self.likeliest:
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


def chosen(choice: Choice, tensors: list[Tensor]) -> tuple[Tensor, list[Entry]]:
    """Return what a choice makes of tensors, as a function, which is what programs are made of."""
    return choice(tensors)
