"""Programs in machine code: torch's inductor fuses the passes over tensors that torch executes one after the other.

What a program decides by values is taken to be decided as it was when it was compiled, and looked at afterwards; where
that was wrong, the program itself is run. Compiled code rounds otherwise than the program, in the last bits.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from lrp_cli.engine.machine_code import Code, Passage
from lrp_cli.engine.unfolding import Unfit
from lrp_cli.errors import UsageError

PATIENCE = 10
"""After so many runs a function is compiled: by then it has shown which rules decide in several ways."""

FAILURES = 3
"""So many times decided otherwise, and the code is given up."""

REDEEMED = 0.4
"""Which part of such a failure a success makes good: what code saves is about that part of what it takes."""

ATTEMPTS = 3
"""How many times a function is compiled, each time with more rules that are asked each time."""

Function = Callable[..., tuple[Any, ...]]
"""A function of a tensor and a box (:func:`lrp_cli.engine.lowering.compiled`)."""


class Compiler:
    """Compiles the functions that programs are made of.

    Attributes:
        count: how many were compiled.
        problem: why one could not be, or was given up, if so.
    """

    def __init__(self) -> None:
        """Prepare to compile.

        Raises:
            UsageError: there is no C++ compiler.
        """
        try:
            from torch._inductor.cpp_builder import get_cpp_compiler

            get_cpp_compiler()
        except Exception as error:
            raise UsageError(f"no C++ compiler, such as g++, to compile with ({_first_line(error)})") from error
        self.count = 0
        self.problem: str | None = None
        self._lock = Lock()

    @property
    def report(self) -> str:
        """What was compiled, in words."""
        if self.problem is not None:
            return f"passes compiled: {self.count}; others not, as {self.problem}"
        if self.count:
            return f"passes compiled: {self.count}"
        return "nothing was compiled, which takes some twenty batches of one size, and a model of known modules alone"

    def function(self, plain: Function, passage: Passage) -> "Native":
        """Return a function that does what ``plain`` does, and is compiled when it is first called."""
        return Native(plain, passage, self)

    def compile(self, plain: Function, passage: Passage, tensor: Tensor, box: Sequence[Any]) -> Code | None:
        """Return the code for a passage; None where there is none, or it does something else than ``plain``."""
        copies = [each.clone() if isinstance(each, Tensor) else each for each in box]
        expected = plain(tensor, copies)  # so that choices are decided as they are for this input
        with self._lock, _quiet():
            try:
                code = Code(passage)
                found = code(tensor, box)
                if found is None or not _agree(found, expected, tensor.dtype):
                    raise Unfit("what was compiled does something else")
                code.lay_out_like(expected)
            except Exception as error:
                self.problem = _first_line(error)
                return None
            self.count += 1
            return code


class Native:
    """A function of a tensor and a box, by code where there is some that fits."""

    def __init__(self, plain: Function, passage: Passage, compiler: Compiler) -> None:
        self._plain, self._passage, self._compiler = plain, passage, compiler
        self._lock = Lock()
        self._code: Code | None = None
        self._runs = self._attempts = 0
        self._failures = 0.0

    @property
    def _is_settled(self) -> bool:
        """Whether it is compiled, or will not be."""
        return self._code is not None or self._attempts >= ATTEMPTS

    def __call__(self, tensor: Tensor, box: list[Any] | None) -> tuple[Any, ...]:
        """Return what the function returns; there is no box in a forward pass."""
        box = [] if box is None else box
        code = self._found_or_made(tensor, box)
        if code is None:
            return self._plain(tensor, box)
        try:
            found = code(tensor, box)
        except AssertionError:  # inductor's word for tensors that lie otherwise in memory
            found = None
        if found is None:
            self._note_failure()
            return self._plain(tensor, box)
        self._failures = max(self._failures - REDEEMED, 0)
        for value, place in self._passage.places.items():
            if value not in self._passage.spared and place < len(box):
                box[place] = None
        return found

    def _found_or_made(self, tensor: Tensor, box: list[Any]) -> Code | None:
        if not self._is_settled:
            with self._lock:
                self._runs += 1
                if not self._is_settled and self._runs > PATIENCE:
                    self._code = self._compiler.compile(self._plain, self._passage, tensor, box)
                    self._attempts = ATTEMPTS if self._code is None else self._attempts + 1
        return self._code

    def _note_failure(self) -> None:
        self._failures += 1
        if self._failures >= FAILURES:
            self._code, self._failures, self._runs = None, 0, 0
            if self._attempts == ATTEMPTS:
                self._compiler.problem = "rules decide otherwise from picture to picture"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from saying on standard error that it found no GPU."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _agree(found: Sequence[Any], expected: Sequence[Any], dtype: torch.dtype) -> bool:
    """Whether what two functions return is equal up to rounding in a type: the first tensor, and all others."""
    tolerance = torch.finfo(dtype).eps ** 0.5
    first, *others = (_floats_in(returned) for returned in zip(found, expected, strict=True))
    return all(_are_close(pairs, tolerance) for pairs in (first, [pair for pairs in others for pair in pairs]))


def _floats_in(pair: tuple[Any, Any]) -> list[tuple[Tensor, Tensor]]:
    """Return the pairs of floating-point tensors in a pair of tensors, or of lists of entries."""
    found, expected = pair
    if isinstance(found, Tensor):
        return [(found, expected)] if found.is_floating_point() else []
    return [(one.sums, other.sums) for one, other in zip(found, expected, strict=True)]


def _are_close(pairs: Sequence[tuple[Tensor, Tensor]], tolerance: float) -> bool:
    """Whether tensors differ by no more than a part of the largest number in any of them; infinities are the same."""
    finite = [expected[expected.isfinite()] for _, expected in pairs]
    largest = max((float(numbers.abs().max()) for numbers in finite if numbers.numel()), default=0.0)
    return all(
        found.shape == expected.shape
        and bool((((found - expected).abs() <= tolerance * largest) | (found == expected)).all())
        for found, expected in pairs
    )
