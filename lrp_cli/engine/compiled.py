"""``torch.compile``: a compiled model is run as it was written, since compiled code has no operations to intercept."""

import sys
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

_WRAPPED = "_orig_mod"
"""Under which name ``torch.compile`` keeps the module that it wraps."""


def uncompiled() -> AbstractContextManager[None]:
    """Return a context in which what was compiled runs as it was written."""
    # Nothing was compiled where torch has not imported its compiler, which takes a second. Torch 2.5 has no stances.
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        return nullcontext()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def as_written(model: nn.Module) -> nn.Module:
    """Return the module that a compiled model was made of; any other model is returned as it is."""
    module: nn.Module = getattr(model, _WRAPPED, model)
    return module


def plain_name(name: str) -> str:
    """Return a module's dotted name without the wrappers of compiled modules."""
    return ".".join(part for part in name.split(".") if part != _WRAPPED)
