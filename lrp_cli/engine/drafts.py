"""Explanations that are carried out and written down at once, to make a program of."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lrp_cli.engine.books import Books
from lrp_cli.engine.choices import Booking, Choice, Course, bookings_of, chosen, tensors_of, values_of
from lrp_cli.engine.flow import Flow
from lrp_cli.engine.lowering import Places, compiled, missing
from lrp_cli.engine.machine_code import Passage
from lrp_cli.engine.native import Compiler
from lrp_cli.engine.programs import Backward, Circumstances, Program, Turn
from lrp_cli.engine.rules import Rule
from lrp_cli.engine.standing import Standing
from lrp_cli.engine.transcript import Step, Transcript, Value


@dataclass(frozen=True)
class _Pass:
    """One backward pass of a transcript."""

    turn: Turn
    steps: list[Step]
    seed: Value
    gradient: Value
    bookings: list[Booking]

    @property
    def outputs(self) -> list[Value]:
        """What the pass has to return."""
        return [self.gradient, *values_of(self.bookings)]

    @property
    def missing(self) -> list[Value]:
        """What it needs of the passes before it."""
        return missing(self.steps, self.outputs, [self.seed])


class Draft:
    """An explanation that is written down.

    Attributes:
        transcript: to be active while tensors are computed.
        kind: for what kind of input, and of explanation.
    """

    def __init__(
        self, standing: Standing, circumstances: Circumstances, constants: Iterable[Tensor], x: Tensor, kind: Hashable
    ) -> None:
        """Begin to write.

        Args:
            standing: of the model, before its forward pass.
            circumstances: what else the explanation depends on.
            constants: the tensors that are the same in every explanation.
            x: the input.
            kind: for what kind of input, and of explanation.
        """
        self.kind = kind
        self._standing, self._circumstances = standing, circumstances
        self.transcript = Transcript(constants)
        self._x = self.transcript.new_input(x)
        self._forward: list[Step] = []
        self._logits = self._seed = Value()
        self._passes: dict[Turn, _Pass] = {}
        self._choices: dict[range, Booking] = {}

    def end_forward(self, logits: Tensor) -> None:
        """Note that the forward pass is over."""
        self._logits, self._forward = self.transcript.value(logits), self._cut()

    def is_new(self, *, keep: bool) -> bool:
        """Whether a backward pass is another one than those that were written down."""
        return self.transcript.problem is None and (not self._passes, keep) not in self._passes

    def begin_backward(self, seed: Tensor) -> Tensor:
        """Note that a backward pass begins; return the seed that is to be used."""
        seed = seed.clone()
        self._seed, self._choices = self.transcript.new_input(seed), {}
        return seed

    def end_backward(self, gradient: Tensor, books: Books, *, keep: bool) -> None:
        """Note that a backward pass is over, and whether others follow."""
        bookings: list[Booking] = []
        done = 0
        for places, booking in self._choices.items():
            bookings += [*bookings_of(books.booked[done : places.start], self.transcript), booking]
            done = places.stop
        bookings += bookings_of(books.booked[done:], self.transcript)
        turn = not self._passes, keep
        self._passes[turn] = _Pass(turn, self._cut(), self._seed, self.transcript.value(gradient), bookings)

    def propagate(self, rule: Rule, flow: Flow) -> Tensor:
        """Have a rule propagate relevance; where it decides by the values at hand, it will be asked again each time."""
        transcript, begun, booked = self.transcript, len(self.transcript.steps), len(flow.books.booked)
        is_only = flow.is_only
        inputs = [transcript.value(tensor) for tensor in tensors_of(flow)] if is_only else []
        result = rule.propagate(flow)
        steps = transcript.steps[begun:]
        if is_only and transcript.problem is None and any(step.is_guard for step in steps):
            made, bookings = transcript.value(result), bookings_of(flow.books.booked[booked:], transcript)
            course = Course.of(steps, inputs, made, bookings)
            if course is not None:
                choice = Choice(rule, flow, transcript.constants)
                choice.note(course)
                entries = Booking(None, "", Value(), 1.0)
                self._choices[range(booked, len(flow.books.booked))] = entries
                step = Step(chosen, (Value(choice), inputs), {}, (made, entries.sums), empties=True)
                transcript.steps[begun:] = [step]
        return result

    def program(self, compiler: Compiler | None = None) -> Program | None:
        """Return what was written as a program, compiled if there is a compiler; None where it cannot be one."""
        if self.transcript.problem is not None or not self._standing.holds():
            return None
        makes = {self._x, *(value for step in self._forward for value in step.made)}
        needs = {turn: done.missing for turn, done in self._passes.items()}
        wanted = {value: None for missed in needs.values() for value in missed}
        needed_later = frozenset(value for (is_first, _), missed in needs.items() for value in missed if not is_first)
        kept = [value for value in wanted if value in makes]
        memo = [value for value in wanted if value not in makes]  # made by the first backward pass for the others
        places: Places = {value: place for place, value in enumerate([*kept, *memo])}
        backwards = {}
        for turn, done in self._passes.items():
            outputs = done.outputs + (memo if turn == (True, True) else [])
            spared = needed_later if turn[1] else frozenset[Value]()
            passage = Passage(done.steps, done.seed, outputs, places, spared)
            # Compiled code may have put two tensors into one piece of memory.
            free = frozenset[int | None]() if compiler else self._own_memory(kept) - {value.memory for value in spared}
            backwards[turn] = Backward(_function(passage, compiler, free), done.bookings)
        forward = _function(Passage(self._forward, self._x, [self._logits, *kept], {}), compiler)
        return Program(self._standing, self._circumstances, forward, backwards)

    def _own_memory(self, kept: Iterable[Value]) -> frozenset[int | None]:
        """Return the memory of values of the forward pass that nobody else has."""
        return frozenset(value.memory for value in kept) - {self._x.memory, self._logits.memory}

    def _cut(self) -> list[Step]:
        """Return the steps since the last cut."""
        steps, self.transcript.steps = self.transcript.steps, []
        return steps


def _function(
    passage: Passage, compiler: Compiler | None, free: frozenset[int | None] = frozenset()
) -> Callable[..., tuple[Any, ...]]:
    steps, outputs, places = passage.steps, passage.outputs, passage.places
    plain = compiled(steps, [passage.input], outputs, places, spared=passage.spared, free=free)
    return plain if compiler is None else compiler.function(plain, passage)
