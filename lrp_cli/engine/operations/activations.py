"""Smooth and clipped activations: relevance passes through unchanged."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lrp_cli.engine.books import EPSILON
from lrp_cli.engine.run import Run
from lrp_cli.engine.tracking import tagged

STABILISER = 1e-6


def identity_rule(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``y = f(x)`` elementwise with ``R_x = R_y``, that is ``g_x = g_y y / x``, with its limit where x is zero."""
    x, rest = args[0], args[1:]
    kwargs = {name: value for name, value in kwargs.items() if name != "inplace"}
    y: Tensor = IdentityRule.apply(x, run, lambda x: function(x, *rest, **kwargs))
    return y


def gate(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """An activation that may weigh another one; as an activation of its own it follows the identity rule."""
    y = identity_rule(run, function, args, kwargs)
    tagged(y, run).is_gate = True
    return y


class IdentityRule(torch.autograd.Function):
    """``R_x = R_y`` for an elementwise function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Run, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.x, ctx.run, ctx.account, ctx.function = run.keep(x), run, run.account(x), function
        return function(x.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        if g is None:
            return None, None, None
        x = ctx.x
        if bool((ctx.function(x.new_zeros(1)) == 0).all()):
            # Where x is zero, the ratio next to zero is the derivative there: 0.5 for GELU and SiLU.
            next_to_zero = 1e-20 if torch.finfo(x.dtype).tiny < 1e-20 else 1e-4
            beside = x.new_full((1,), next_to_zero)
            at_zero = ctx.function(beside) / beside
            ratio = ctx.function(x) / x
            if at_zero.numel() == 1:  # in one pass: zero by zero is the only nan
                ratio = ratio.nan_to_num_(nan=at_zero.item(), posinf=float("inf"), neginf=float("-inf"))
            else:  # clamped between tensors
                ratio = torch.where(x == 0, at_zero, ratio)
            return ratio.mul_(g), None, None
        # f(0) is not zero (sigmoid, softplus): y / x has no limit there, and the stabiliser absorbs.
        y = ctx.function(x)
        ratio = y / (x + torch.where(x < 0, -STABILISER, STABILISER))
        ctx.run.books.book(ctx.account, EPSILON, g * (y - x * ratio))
        return g * ratio, None, None
