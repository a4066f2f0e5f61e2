"""``torch.utils.checkpoint``: the forward pass is kept, so that nothing need be computed again on the way back.

A checkpoint puts hooks in place of what autograd saves, and on the way back runs the plain model to have it again. What
the engine saves is not what the plain model saves; so while operations are executed, no hooks of the model's apply.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks, saved_tensors_hooks

from lrp_cli.errors import EngineError

REFUSAL = "the model uses torch.utils.checkpoint, which hides what it computes; switch gradient checkpointing off"

_top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
"""Returns the hooks that are in force, or None. Torch before 2.8 does not tell."""


def hooks_in_force() -> Any:
    """Return what autograd hands the tensors to that it saves, or None, as nearly always."""
    hooks = None if _top_hooks is None else _top_hooks(False)
    return None if hooks is None else hooks[0]


class Checkpoints:
    """Keeps the hooks of a model's checkpoints from operations; those that were in force before are left alone."""

    def __init__(self) -> None:
        self._before = hooks_in_force()

    def kept_out(self) -> AbstractContextManager[Any]:
        """Return a context in which no hooks of the model's apply."""
        return saved_tensors_hooks(_unchanged, _unchanged) if self.are_running else nullcontext()

    @property
    def are_running(self) -> bool:
        """Whether hooks of the model's are in force, or have been kept out."""
        hooks = hooks_in_force()
        return hooks is not None and hooks is not self._before


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def guarded() -> AbstractContextManager[None]:
    """Return a context in which a checkpoint is an error where torch does not tell which hooks are in force."""
    return nullcontext() if _top_hooks is not None else _refused()


@contextmanager
def _refused() -> Iterator[None]:
    with ExitStack() as stack:
        with suppress(RuntimeError):  # hooks of the caller's own (save_on_cpu) cannot be forbidden, and do no harm
            stack.enter_context(disable_saved_tensors_hooks(REFUSAL))
        try:
            yield
        except RuntimeError as error:
            if REFUSAL in str(error):
                raise EngineError(REFUSAL) from None
            raise
