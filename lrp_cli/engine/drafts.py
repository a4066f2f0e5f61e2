"""Explanations that are carried out and written down at once, to make a program of."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from lrp_cli.engine.books import Books
from lrp_cli.engine.flow import Flow
from lrp_cli.engine.programs import (
    Booking,
    Choice,
    Course,
    Descent,
    Places,
    Program,
    Turn,
    bookings_of,
    compiled,
    entries_of,
    missing,
    tensors_of,
    values_of,
)
from lrp_cli.engine.rules import Rule
from lrp_cli.engine.standing import Standing, is_known, is_plain, kind_of
from lrp_cli.engine.transcript import Step, Transcript, Value

AFTER = 10
"""After so many passes by a plan over inputs of one kind a program is made: to make it takes about as long as so many
explanations by it save."""

FAILURES = 3
"""So many more failures than half the successes, and no program is tried any more for inputs of a kind."""

LIMIT = 4
"""How many programs are kept, for as many kinds of inputs."""


Circumstances = tuple[Any, ...]
"""What an explanation depends on besides the input and the model's standing, to be compared by identity."""


@dataclass(frozen=True)
class _Leg:
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
        self._ascent: list[Step] = []
        self._logits = self._seed = Value()
        self._legs: dict[Turn, _Leg] = {}
        self._choices: dict[range, Booking] = {}

    def end_ascent(self, logits: Tensor) -> None:
        """Note that the forward pass is over."""
        self._logits, self._ascent = self.transcript.value(logits), self._cut()

    def is_new(self, *, keep: bool) -> bool:
        """Whether a backward pass is another one than those that were written down."""
        return self.transcript.problem is None and (not self._legs, keep) not in self._legs

    def begin_descent(self, seed: Tensor) -> Tensor:
        """Note that a backward pass begins; return the seed that is to be used."""
        seed = seed.clone()
        self._seed, self._choices = self.transcript.new_input(seed), {}
        return seed

    def end_descent(self, gradient: Tensor, books: Books, *, keep: bool) -> None:
        """Note that a backward pass is over, and whether others follow."""
        bookings: list[Booking] = []
        done = 0
        for places, booking in self._choices.items():
            bookings += [*bookings_of(books.booked[done : places.start], self.transcript), booking]
            done = places.stop
        bookings += bookings_of(books.booked[done:], self.transcript)
        turn = not self._legs, keep
        self._legs[turn] = _Leg(turn, self._cut(), self._seed, self.transcript.value(gradient), bookings)

    def propagate(self, rule: Rule, flow: Flow) -> Tensor:
        """Have a rule propagate relevance; where it decides by the values at hand, it will be asked again each time."""
        transcript, begun, booked = self.transcript, len(self.transcript.steps), len(flow.books.booked)
        inputs = [transcript.value(tensor) for tensor in tensors_of(flow)]
        is_alone = flow.is_last and not flow.memo
        result = rule.propagate(flow)
        steps = transcript.steps[begun:]
        if is_alone and transcript.problem is None and any(step.is_guard for step in steps):
            made, bookings = transcript.value(result), bookings_of(flow.books.booked[booked:], transcript)
            course = Course.of(steps, inputs, made, bookings)
            if course is not None:
                choice = Choice(rule, flow, transcript.constants)
                choice.note(course)
                entries = Booking(None, "", Value(), 1.0)
                self._choices[range(booked, len(flow.books.booked))] = entries
                transcript.steps[begun:] = [Step(choice, (*inputs,), {}, (made, entries.sums))]
        return result

    def program(self) -> Program | None:
        """Return what was written as a program; None where it cannot be one."""
        if self.transcript.problem is not None or not self._standing.holds():
            return None
        makes = {self._x, *(value for step in self._ascent for value in step.made)}
        wanted = {value: None for leg in self._legs.values() for value in leg.missing}
        kept = [value for value in wanted if value in makes]
        memo = [value for value in wanted if value not in makes]  # made by the first backward pass for the others
        places: Places = {value: place for place, value in enumerate([*kept, *memo])}
        descents = {}
        for turn, leg in self._legs.items():
            outputs = leg.outputs + (memo if turn == (True, True) else [])
            function = compiled(leg.steps, [leg.seed], outputs, places, lets_go=not turn[1])
            descents[turn] = Descent(function, leg.bookings)
        ascent = compiled(self._ascent, [self._x], [self._logits, *kept])
        return Program(self._standing, self._circumstances, ascent, descents)

    def _cut(self) -> list[Step]:
        """Return the steps since the last cut."""
        steps, self.transcript.steps = self.transcript.steps, []
        return steps


class Programs:
    """The programs for one explainer, by the kind of input, and whether one target is explained or several."""

    def __init__(self) -> None:
        self._programs: dict[Hashable, Program] = {}
        self._passes: Counter[Hashable] = Counter()
        self._failures: defaultdict[Hashable, float] = defaultdict(float)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._programs)

    def perform(self, x: Tensor, circumstances: Circumstances, *, only: bool) -> "Performance | None":
        """Run the forward pass by the program for inputs like x, if there is one and all stands as it did.

        Args:
            x: the input.
            circumstances: what else the explanation depends on.
            only: whether a single backward pass follows.
        """
        kind = kind_of(x), only
        program = self._programs.get(kind)
        if program is None or _is_watched():
            return None
        if not (program.standing.holds() and all(map(is_, program.circumstances, circumstances))):
            self._programs.pop(kind, None)
            self._passes[kind] = 0
            self.note_failure(kind)
            return None
        try:
            return Performance(program, x, self, kind)
        except Exception:
            self.note_failure(kind)
            return None

    def draft(
        self,
        model: nn.Module,
        circumstances: Circumstances,
        constants: Callable[[], Iterable[Tensor]],
        x: Tensor,
        *,
        only: bool,
    ) -> Draft | None:
        """Return a draft if it is time to write one: after some passes, for a model that is known.

        Args:
            model: the model.
            circumstances: what else the explanation depends on.
            constants: gives the tensors that are the same in every explanation, apart from the model's.
            x: the input.
            only: whether a single backward pass follows.
        """
        kind = kind_of(x), only
        self._passes[kind] += 1
        if self._passes[kind] <= AFTER or kind in self._programs or self._failures[kind] >= FAILURES or _is_watched():
            return None
        standing, known = Standing(model), [*model.parameters(), *model.buffers(), *constants()]
        if not is_known(model) or not standing.is_plain or not all(map(is_plain, (x, *known))):
            self._failures[kind] = FAILURES
            return None
        self.note_failure(kind)  # until it turns out otherwise
        return Draft(standing, circumstances, known, x, kind)

    def keep(self, draft: Draft) -> None:
        """Make a program of a draft, and keep it."""
        try:
            program = draft.program()
        except Exception:
            program = None
        if program is None:
            return
        if len(self._programs) >= LIMIT and draft.kind not in self._programs:
            self._programs.pop(next(iter(self._programs)), None)
        self._programs[draft.kind] = program
        self._failures[draft.kind] = 0

    def note_success(self, kind: Hashable) -> None:
        """Note that a program did what it was to do."""
        self._failures[kind] = max(self._failures[kind] - 0.5, 0)

    def note_failure(self, kind: Hashable) -> None:
        """Note that a program did not fit, or that none could be made."""
        self._failures[kind] += 1
        if self._failures[kind] >= FAILURES:
            self._programs.pop(kind, None)


def _is_watched() -> bool:
    """Whether somebody else intercepts torch functions, which a program does not call."""
    return torch._C._len_torch_function_stack() > 0


class Performance:
    """One forward pass by a program, and the backward passes over it.

    Attributes:
        logits: shape (N, classes).
    """

    def __init__(self, program: Program, x: Tensor, programs: Programs, kind: Hashable) -> None:
        """Run the forward pass.

        Raises:
            Differs: something turned out otherwise than when the program was made; other errors may be due to that.
        """
        self._program, self._programs, self._kind = program, programs, kind
        self._samples, self._is_first = x.shape[0], True
        with torch.no_grad():
            self.logits, *self._box = program.ascent(x, None)

    @property
    def still_stands(self) -> bool:
        """Whether the model is as it was in the forward pass."""
        return self._program.standing.holds()

    def hand_down(self, seed: Tensor, *, keep: bool) -> tuple[Tensor, Books] | None:
        """Return the modified gradient of the input, and the books; None where the program does not fit.

        Args:
            seed: the modified gradient of the logits.
            keep: whether further backward passes follow.
        """
        try:
            found = self._descend(seed, keep)
        except Exception:
            self._programs.note_failure(self._kind)
            return None
        self._programs.note_success(self._kind)
        return found

    def _descend(self, seed: Tensor, keep: bool) -> tuple[Tensor, Books]:
        descent = self._program.descents[self._is_first, keep]
        self._is_first = False
        with torch.no_grad():
            gradient, *found = descent.function(seed, self._box)
        count = len(values_of(descent.bookings))
        self._box += found[count:]
        return gradient, Books(self._samples, entries_of(descent.bookings, found[:count]))
