"""``torch.compile``: a compiled model is run as it was written, since compiled code has no operations to intercept."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import nn

_WRAPPED = "_orig_mod"
"""Under which name ``torch.compile`` keeps the module that it wraps."""


class _Stance:
    """Torch's stance on compilation: one for all threads. The first to need another sets it, the last resets it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._holders = 0
        self._changed: Any = None

    def hold(self) -> None:
        """Have what is compiled run as it was written."""
        with self._lock:
            if not self._holders:
                self._changed = torch.compiler.set_stance("force_eager")
            self._holders += 1

    def release(self) -> None:
        """Undo one :meth:`hold`."""
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self._changed.__exit__(None, None, None)


_stance = _Stance()


@contextmanager
def uncompiled() -> Iterator[None]:
    """In this context what was compiled runs as it was written."""
    # Nothing was compiled where torch has not imported its compiler, which takes a second. Torch 2.5 has no stances.
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        yield
        return
    _stance.hold()
    try:
        yield
    finally:
        _stance.release()


def as_written(model: nn.Module) -> nn.Module:
    """Return the module that a compiled model was made of; any other model is returned as it is."""
    module: nn.Module = getattr(model, _WRAPPED, model)
    return module


def plain_name(name: str) -> str:
    """Return a module's dotted name without the wrappers of compiled modules."""
    return ".".join(part for part in name.split(".") if part != _WRAPPED)
