"""Smooth and clipped activations: relevance passes through unchanged."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lrp_cli.engine.books import EPSILON
from lrp_cli.engine.layers import ActivatedNode, Activation, Made
from lrp_cli.engine.naming import arguments, operation_name
from lrp_cli.engine.run import Run
from lrp_cli.engine.tracking import tag_of, tagged

STABILISER = 1e-6

THROUGH_ZERO = frozenset({"relu6", "silu", "gelu", "hardswish", "elu", "selu", "celu", "mish", "softsign"})
"""Activations with f(0) = 0 whatever their parameters, which the layer in front of them can take along."""

MAY_TURN = frozenset({"elu", "celu"})
"""Those of them that may make something positive of what is negative, by their parameter."""

RELU = Activation(torch.relu, rectifies=True, is_relu=True, keeps_signs=True)


def rectify(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``relu``: one with the layer that feeds it, else plain autograd."""
    y = _behind_layer(run, args[0], RELU)
    return function(*args, **kwargs) if y is None else y


def rectify_in_place(run: Run, x: Tensor) -> Tensor | None:
    """``relu_`` on what nothing else reads, one with the layer that feeds it; None where there is none."""
    return _behind_layer(run, x, RELU, in_place=True)


def identity_rule(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``y = f(x)`` elementwise with ``R_x = R_y``, that is ``g_x = g_y y / x``, with its limit where x is zero."""
    x, rest = args[0], args[1:]
    kwargs = {name: value for name, value in kwargs.items() if name != "inplace"}

    def activate(x: Tensor) -> Tensor:
        activated: Tensor = function(x, *rest, **kwargs)
        return activated

    name = operation_name(function)
    through_zero, rectifies = _at_zero(name, args, kwargs)
    activation = Activation(activate, rectifies, keeps_signs=name not in MAY_TURN)
    y = _behind_layer(run, x, activation) if through_zero else None
    return IdentityRule.apply(x, run, activate) if y is None else y


def _at_zero(name: str, args: Any, kwargs: Any) -> tuple[bool, bool]:
    """Return whether an activation is zero at zero, and whether it is so below."""
    if name == "hardtanh":
        a = arguments(("input", "min_val", "max_val"), args, kwargs)
        low, high = a.get("min_val", -1.0), a.get("max_val", 1.0)
        return low <= 0 <= high, low == 0
    return name in THROUGH_ZERO, name == "relu6"


def _behind_layer(run: Run, x: Tensor, activation: Activation, *, in_place: bool = False) -> Tensor | None:
    """Execute an activation as one with the layer that x is the output of; None where there is no such layer."""
    tag = tag_of(x, run)
    call = None if tag is None else tag.layer_call
    if tag is None or call is None or tag.layer_input is None or not call.use or run.trace is not None:
        return None
    run.note_made(Made(call, None, call, activation, in_place))
    y: Tensor = ActivatedNode.apply(tag.layer_input, x, call, activation, tag.uses.is_single, in_place)
    tagged(y, run).kept = "any"
    return y


def gate(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """An activation that may weigh another one; as an activation of its own it follows the identity rule."""
    x, rest = args[0], args[1:]
    y: Tensor = IdentityRule.apply(x, run, lambda x: function(x, *rest, **kwargs))
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
