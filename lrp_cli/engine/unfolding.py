"""The steps of a program with the course of each choice put in its place, where the choice never varied."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

import torch

from lrp_cli.engine.choices import Booking, Choice, Course, chosen
from lrp_cli.engine.transcript import Step, Value, with_values


class Unfit(Exception):  # noqa: N818 (it is no error: there is another way)
    """Something that cannot be compiled."""


@dataclass(frozen=True)
class Stretch:
    """Steps in which nothing is decided.

    Attributes:
        steps: the steps.
        guards: which values have to turn out how, or else what comes next is not what a program would do.
    """

    steps: list[Step] = field(default_factory=list)
    guards: dict[Value, float] = field(default_factory=dict)

    @property
    def arguments(self) -> list[Value]:
        """What the steps take, and the guards."""
        return [*self.guards, *(value for step in self.steps for value in step.arguments)]


class Unfolded:
    """Steps in stretches, and between them the choices for which rules are still asked.

    Attributes:
        parts: stretches, and steps that are choices.
        names: what values are called that are the same as others.
        bookings: what a list of entries is made of.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        """Unfold steps.

        Raises:
            Unfit: something other than a number decides, such as the size of a tensor.
        """
        self._stretch = Stretch()
        self.parts: list[Stretch | Step] = [self._stretch]
        self.names: dict[Value, Value] = {}
        self.bookings: dict[Value, list[Booking]] = {}
        self._numbers = count(-1, -1)  # those of memory are not negative
        for step in steps:
            self._add(_renamed(step, self.names))

    def _add(self, step: Step) -> None:
        if step.function is chosen:
            choice: Choice = step.args[0].constant
            if choice.varies:
                self._stretch = Stretch()
                self.parts += [step, self._stretch]
            else:
                self._put_in(step, choice.likeliest)
        elif not step.is_guard:
            if any(value.memory in step.writes for value in self._stretch.guards):
                raise Unfit("what decided is changed in place")  # and it is looked at when all is over
            self._stretch.steps.append(step)
        elif all(value.constant is not None for value in step.arguments):
            return  # it cannot turn out otherwise
        elif step.function is torch.ops.aten._local_scalar_dense.default:
            if self._stretch.guards.setdefault(step.args[0], float(step.expected)) != step.expected:
                raise Unfit("what decided is changed in place")
        else:
            raise Unfit(f"{step.function} decides")

    def _put_in(self, step: Step, course: Course) -> None:
        """Put a course in the place of a choice."""
        _, inputs = step.args
        made, entries = step.results
        names: dict[Value, Value] = {}
        memory: defaultdict[int | None, int] = defaultdict(partial(next, self._numbers))
        for inner, outer in zip(course.inputs, inputs, strict=True):
            names.setdefault(inner, outer)
            if outer.memory is not None:
                memory.setdefault(inner.memory, outer.memory)
        if made.memory is not None:
            memory.setdefault(course.result.memory, made.memory)  # which later steps may write into
        for inner_step in course.steps:
            for value in inner_step.made:
                if value not in names:
                    names[value] = Value(None, memory[value.memory])
            writes = frozenset(memory[number] for number in inner_step.writes)
            self._add(replace(_renamed(inner_step, names), writes=writes))
        self.names[made] = names.get(course.result, course.result)
        self.bookings[entries] = [_renamed_booking(booking, names) for booking in course.bookings]


def _renamed(step: Step, names: dict[Value, Value]) -> Step:
    args, kwargs, results = (
        with_values(part, lambda value: names.get(value, value)) for part in (step.args, step.kwargs, step.results)
    )
    return replace(step, args=args, kwargs=kwargs, results=results)


def _renamed_booking(booking: Booking, names: dict[Value, Value]) -> Booking:
    share = booking.share
    return replace(
        booking,
        sums=names.get(booking.sums, booking.sums),
        share=names.get(share, share) if isinstance(share, Value) else share,
    )
