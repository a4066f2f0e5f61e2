"""Which programs an explainer has, when one is made, and when it is given up."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from operator import is_

import torch
from torch import Tensor, nn

from lrp_cli.engine.drafts import Draft
from lrp_cli.engine.native import Compiler
from lrp_cli.engine.programs import Circumstances, Program, ProgramRun
from lrp_cli.engine.standing import Standing, is_known, is_plain, kind_of

AFTER = 10
"""After so many passes by a plan over inputs of one kind a program is made: to make it takes about as long as so many
explanations by it save."""

FAILURES = 3
"""So many failures, and no program is tried any more for inputs of a kind."""

REDEEMED = 0.1
"""Which part of a failure a success makes good: what a failure wastes is several times what a success saves."""

LIMIT = 4
"""How many programs are kept, for as many kinds of inputs."""


class Programs:
    """The programs for one explainer, by the kind of input, and whether one target is explained or several."""

    def __init__(self, compiler: Compiler | None = None) -> None:
        """Begin with none; they will be compiled if there is a compiler."""
        self._compiler = compiler
        self._programs: dict[Hashable, Program] = {}
        self._passes: Counter[Hashable] = Counter()
        self._failures: defaultdict[Hashable, float] = defaultdict(float)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._programs)

    def run(self, x: Tensor, circumstances: Circumstances, *, single: bool) -> "ProgramRun | None":
        """Run the forward pass by the program for inputs like x, if there is one and all stands as it did.

        Args:
            x: the input.
            circumstances: what else the explanation depends on.
            single: whether a single backward pass follows.
        """
        kind = kind_of(x), single
        program = self._programs.get(kind)
        if program is None or _is_watched():
            return None
        if not (program.standing.holds() and all(map(is_, program.circumstances, circumstances))):
            self._programs.pop(kind, None)
            self._passes[kind] = 0
            self._note_failure(kind)
            return None
        try:
            return ProgramRun(program, x, partial(self._note, kind))
        except Exception:
            self._note_failure(kind)
            return None

    def draft(
        self,
        model: nn.Module,
        circumstances: Circumstances,
        constants: Callable[[], Iterable[Tensor]],
        x: Tensor,
        *,
        single: bool,
    ) -> Draft | None:
        """Return a draft if it is time to write one: after some passes, for a model that is known.

        Args:
            model: the model.
            circumstances: what else the explanation depends on.
            constants: gives the tensors that are the same in every explanation, apart from the model's.
            x: the input.
            single: whether a single backward pass follows.
        """
        kind = kind_of(x), single
        self._passes[kind] += 1
        if self._passes[kind] <= AFTER or kind in self._programs or self._failures[kind] >= FAILURES or _is_watched():
            return None
        standing, known = Standing(model), [*model.parameters(), *model.buffers(), *constants()]
        if not is_known(model) or not standing.is_plain or not all(map(is_plain, (x, *known))):
            self._failures[kind] = FAILURES
            return None
        self._note_failure(kind)  # until it turns out otherwise
        return Draft(standing, circumstances, known, x, kind)

    def keep(self, draft: Draft) -> None:
        """Make a program of a draft, and keep it."""
        try:
            program = draft.program(self._compiler)
        except Exception:
            program = None
        if program is None:
            return
        if len(self._programs) >= LIMIT and draft.kind not in self._programs:
            self._programs.pop(next(iter(self._programs)), None)
        self._programs[draft.kind] = program
        self._failures[draft.kind] = 0

    def _note(self, kind: Hashable, is_success: bool) -> None:
        """Note whether a program did what it was to do."""
        if is_success:
            self._failures[kind] = max(self._failures[kind] - REDEEMED, 0)
        else:
            self._note_failure(kind)

    def _note_failure(self, kind: Hashable) -> None:
        """Note that a program did not fit, or that none could be made."""
        self._failures[kind] += 1
        if self._failures[kind] >= FAILURES:
            self._programs.pop(kind, None)


def _is_watched() -> bool:
    """Whether somebody else intercepts torch functions, which a program does not call."""
    return torch._C._len_torch_function_stack() > 0
