"""Sums and joins in which a constant takes part: the constant's share of the relevance is booked."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrp_cli.engine.naming import arguments
from lrp_cli.engine.run import Run
from lrp_cli.engine.tracking import tag_of


def add(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``a + b``; relevance goes to each summand's share in the gradient form without further ado."""
    return _sum(run, args[0], args[1], kwargs.get("alpha", 1))


def subtract(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``a - b``."""
    return _sum(run, args[0], args[1], -kwargs.get("alpha", 1))


def subtract_reflected(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``b - a``, called as ``a.__rsub__(b)``."""
    return _sum(run, args[1], args[0], -kwargs.get("alpha", 1))


def _sum(run: Run, a: Any, b: Any, alpha: float) -> Tensor:
    """``a + alpha b``."""
    if run.carries(a) and run.carries(b):
        return torch.add(a, b, alpha=alpha)
    variable, constant = (a, b) if run.carries(a) else (b, a)
    if not isinstance(constant, Tensor) and constant == 0:
        return torch.add(a, b, alpha=alpha)
    if _is_input_normalisation(run, variable, constant):
        # The picture is shifted as a whole before any layer sees it: relevance stays with its pixel.
        factor = alpha if variable is b else 1
        offset = constant if variable is b else alpha * constant
        shifted: Tensor = _Shift.apply(variable, factor, offset)
        return shifted
    shape = _broadcast(a, b)
    booked = run.constant(constant, variable.expand(shape))
    return torch.add(variable, booked, alpha=alpha) if variable is a else torch.add(booked, variable, alpha=alpha)


def _broadcast(*values: Any) -> torch.Size:
    shape: torch.Size = torch.broadcast_shapes(*(v.shape for v in values if isinstance(v, Tensor)))  # type: ignore[no-untyped-call]
    return shape


def _is_input_normalisation(run: Run, variable: Tensor, constant: Any) -> bool:
    """Whether a constant shifts the model's input as a whole or by channel, before any layer."""
    tag = tag_of(variable, run)
    if tag is None or not tag.is_input:
        return False
    return not isinstance(constant, Tensor) or all(size == 1 for size in constant.shape[-2:])


class _Shift(torch.autograd.Function):
    """``y = factor x + offset``, entry by entry, with ``R_x = R_y``. Neither x nor y is ever exactly zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float, offset: Any) -> Tensor:
        ctx.set_materialize_grads(False)
        y = nudged(x * factor + offset)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        x, y = ctx.saved_tensors
        return (None if g is None else g * (y / x)), None, None


def nudged(x: Tensor) -> Tensor:
    """Return x with its zeros moved away from zero by next to nothing: relevance is x times the modified gradient."""
    return torch.where(x == 0, torch.finfo(x.dtype).tiny ** 0.5, x)


def join(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``torch.cat`` and ``torch.stack``; class tokens and the like are constants."""
    tensors = args[0] if args else kwargs["tensors"]
    joined = [t if run.carries(t) or not t.is_floating_point() else run.constant(t, t) for t in tensors]
    if args:
        return function(joined, *args[1:], **kwargs)
    return function(**(kwargs | {"tensors": joined}))


def where(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``torch.where(condition, a, b)``."""
    given = [*args, *(kwargs[name] for name in ("condition", "input", "other") if name in kwargs)]
    condition, a, b = given if given[0].dtype == torch.bool else (given[1], given[0], given[2])  # x.where(condition, b)
    shape = _broadcast(*given)
    like = (a if run.carries(a) else b).expand(shape)
    return torch.where(condition, *(t if run.carries(t) else run.constant(t, like) for t in (a, b)))


def masked_fill(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``x.masked_fill(mask, value)``."""
    a = arguments(("input", "mask", "value"), args, kwargs)
    if not run.carries(a["input"]):
        return function(*args, **kwargs)
    return where(run, torch.where, (a["mask"], run.constant(a["value"], a["input"]), a["input"]), {})


def pad(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``F.pad``: with zeros, or with copies of the border."""
    a = arguments(("input", "pad", "mode", "value"), args, kwargs)
    if a.get("mode", "constant") == "constant" and a.get("value"):
        around = F.pad(torch.zeros_like(a["input"]), a["pad"], value=a["value"])
        return F.pad(a["input"], a["pad"]) + run.constant(around, around)
    return function(*args, **kwargs)
