"""Layer, group, instance and RMS norm: the scale is held constant, what is left is linear (Ali et al. 2022)."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrp_cli.engine.books import BIAS
from lrp_cli.engine.naming import arguments
from lrp_cli.engine.operations.unknown import unknown
from lrp_cli.engine.run import Run

_NAMES = ("input", "normalized_shape", "weight", "bias", "eps")


class Standardised(torch.autograd.Function):
    """``y = (x - mean(x)) r gain + shift`` over groups of entries, with the scale r = 1 / std held constant.

    Without ``centred``, ``y = x r gain``. The way back is ``(h - mean(h)) r`` with ``h = g gain``; the shift is booked.
    ``x`` is viewed as (groups, entries of the group), with r of shape (groups, 1).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        compute: Callable[[Tensor], tuple[Tensor, Tensor]],
        gain: Tensor | None,
        shift: Tensor | None,
        centred: bool,
        run: Run,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        y, ctx.r = compute(x.detach())
        ctx.gain, ctx.shift, ctx.centred = gain, shift, centred
        ctx.run, ctx.account = run, run.account(x)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        if g is None:
            return (None,) * 6
        if ctx.shift is not None:
            ctx.run.books.book(ctx.account, BIAS, g, ctx.shift)
        h = g.clone() if ctx.gain is None else g * ctx.gain
        grouped = h.reshape(ctx.r.shape[0], -1)
        if ctx.centred:
            grouped.sub_(grouped.mean(dim=1, keepdim=True))
        return grouped.mul_(ctx.r).view(g.shape), *(None,) * 5


def layer_norm(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``F.layer_norm``."""
    a = arguments(_NAMES, args, kwargs)
    x, shape, gain, shift = a["input"], a["normalized_shape"], a.get("weight"), a.get("bias")

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        y, _, r = torch.native_layer_norm(x, shape, gain, shift, a.get("eps", 1e-5))
        return y, r.reshape(-1, 1)

    return Standardised.apply(x, compute, gain, shift, True, run)


def rms_norm(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``F.rms_norm``."""
    a = arguments(("input", "normalized_shape", "weight", "eps"), args, kwargs)
    x, gain = a["input"], a.get("weight")
    eps = torch.finfo(x.dtype).eps if a.get("eps") is None else a["eps"]

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        grouped = x.reshape(-1, prod(a["normalized_shape"]))
        r = torch.rsqrt(grouped.square().mean(dim=1, keepdim=True) + eps)
        return F.rms_norm(x, a["normalized_shape"], gain, a.get("eps")), r

    return Standardised.apply(x, compute, gain, None, False, run)


def group_norm(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``F.group_norm``."""
    a = arguments(("input", "num_groups", "weight", "bias", "eps"), args, kwargs)
    return _per_group(run, a["input"], a["num_groups"], a.get("weight"), a.get("bias"), a.get("eps", 1e-5))


def instance_norm(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``F.instance_norm`` with the statistics of the input: a group norm with one channel a group."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
    a = arguments(names, args, kwargs)
    if not a.get("use_input_stats", True):
        return unknown(run, function, args, kwargs)
    x = a["input"]
    return _per_group(run, x, x.shape[1], a.get("weight"), a.get("bias"), a.get("eps", 1e-5))


def _per_group(run: Run, x: Tensor, groups: int, gain: Tensor | None, shift: Tensor | None, eps: float) -> Tensor:
    weight, bias = gain, shift

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        grouped = x.reshape(x.shape[0] * groups, -1)
        r = torch.rsqrt(grouped.var(dim=1, correction=0, keepdim=True) + eps)
        return F.group_norm(x, groups, weight, bias, eps), r

    by_channel = (-1, *[1] * (x.dim() - 2))
    gain = None if gain is None else gain.view(by_channel)
    shift = None if shift is None else shift.view(by_channel)
    normalised: Tensor = Standardised.apply(x, compute, gain, shift, True, run)
    return normalised


def normalize(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``F.normalize``: division by a norm, which is held constant."""
    a = arguments(("input", "p", "dim", "eps"), args, kwargs)
    x, p, dim, eps = a["input"], a.get("p", 2.0), a.get("dim", 1), a.get("eps", 1e-12)
    return x / x.detach().norm(p, dim, keepdim=True).clamp_min(eps)


def local_response_norm(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``F.local_response_norm``: a positive factor for every entry, held constant."""
    x, *rest = args
    y = function(x.detach(), *rest, **kwargs)
    factor = torch.where(x.detach() == 0, 1.0, y / x.detach())
    return x * factor


def with_mean(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``torch.var_mean`` and ``torch.std_mean``: the mean is linear, the other a statistic that scales are made of."""
    x, *rest = args
    statistic = torch.var if function.__name__ == "var_mean" else torch.std
    spread = unknown(run, statistic, args, kwargs)
    dims = rest[0] if rest else kwargs.get("dim")
    return spread, x.mean(dim=dims, keepdim=kwargs.get("keepdim", False))
