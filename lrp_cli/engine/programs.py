"""Programs: an explanation as one straight line of tensor operations, for inputs of one shape and one model.

A forward pass by its plan (:mod:`lrp_cli.engine.replay`) still runs the model's Python, the interception's and the
rules', which on a small network takes as long as the arithmetic. A program is made of a transcript of one explanation
and holds none of it. What a rule decides by the values at hand is decided anew each time
(:mod:`lrp_cli.engine.choices`); everything else must turn out as it did, or the program is not used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrp_cli.engine.books import Books
from lrp_cli.engine.choices import Booking, entries_of, values_of
from lrp_cli.engine.standing import Standing

Circumstances = tuple[Any, ...]
"""What an explanation depends on besides the input and the model's standing, to be compared by identity."""

Turn = tuple[bool, bool]
"""Which backward pass over a forward pass: whether it is the first one, and whether others follow."""


@dataclass(frozen=True)
class Backward:
    """One backward pass: ``function`` returns the gradient, the values of the bookings, and what is kept for others."""

    function: Callable[..., tuple[Any, ...]]
    bookings: Sequence[Booking]


@dataclass(frozen=True)
class Program:
    """An explanation as functions of tensors.

    Attributes:
        standing: how the model has to be.
        circumstances: what else has to be as it was.
        forward: returns the logits of an input, and what the backward passes need.
        backwards: the backward passes.
    """

    standing: Standing
    circumstances: tuple[Any, ...]
    forward: Callable[..., tuple[Any, ...]]
    backwards: dict[Turn, Backward]


class ProgramRun:
    """One forward pass by a program, and the backward passes over it.

    Attributes:
        logits: shape (N, classes).
    """

    def __init__(self, program: Program, x: Tensor, note: Callable[[bool], None]) -> None:
        """Run the forward pass; ``note`` will be told of each backward pass whether the program did it.

        Raises:
            Differs: something turned out otherwise than when the program was made; other errors may be due to that.
        """
        self._program, self._note = program, note
        self._samples, self._is_first = x.shape[0], True
        with torch.no_grad():
            self.logits, *self._box = program.forward(x, None)

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
            found = self._run_backward(seed, keep)
        except Exception:
            self._note(False)
            return None
        self._note(True)
        return found

    def _run_backward(self, seed: Tensor, keep: bool) -> tuple[Tensor, Books]:
        backward = self._program.backwards[self._is_first, keep]
        self._is_first = False
        with torch.no_grad():
            gradient, *found = backward.function(seed, self._box)
        count = len(values_of(backward.bookings))
        self._box += found[count:]
        return gradient, Books(self._samples, entries_of(backward.bookings, found[:count]))
