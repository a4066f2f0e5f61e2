"""Steps of a program done at less cost, with the same results to the last bit.

What works entry by entry writes its result over an argument that nobody needs any more: no fresh memory, and less of
it to go through. And torch's own functions are called rather than the operations behind them, whose way through the
dispatcher takes twice as long, which shows where tensors are small.
"""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from lrp_cli.engine.transcript import Step, Value

_aten = torch.ops.aten

ENTRY_BY_ENTRY: dict[Callable[..., Any], tuple[Callable[..., Any], str]] = {
    _aten.abs.default: (torch.abs, "out"),
    _aten.add.Tensor: (torch.add, "out"),
    _aten.clamp.default: (torch.clamp, "out"),
    _aten.div.Tensor: (torch.div, "out"),
    _aten.maximum.default: (torch.maximum, "out"),
    _aten.minimum.default: (torch.minimum, "out"),
    _aten.mul.Tensor: (torch.mul, "out"),
    _aten.neg.default: (torch.neg, "out"),
    _aten.sign.default: (torch.sign, "out"),
    _aten.sub.Tensor: (torch.sub, "out"),
    _aten.threshold_backward.default: (_aten.threshold_backward.grad_input, "grad_input"),
}
"""Operations that work entry by entry, and how each is told where to put its result: a function, and its argument."""

FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    operation: function for operation, (function, name) in ENTRY_BY_ENTRY.items() if name == "out"
} | {
    _aten._softmax.default: torch._softmax,
    _aten._softmax_backward_data.default: torch._softmax_backward_data,
    _aten._unsafe_view.default: Tensor.view,
    _aten.abs_.default: Tensor.abs_,
    _aten.add_.Tensor: Tensor.add_,
    _aten.addcdiv.out: torch.addcdiv,
    _aten.addcmul_.default: Tensor.addcmul_,
    _aten.addmm.default: torch.addmm,
    _aten.any.default: torch.any,
    _aten.as_strided.default: torch.as_strided,
    _aten.baddbmm.default: torch.baddbmm,
    _aten.bmm.default: torch.bmm,
    _aten.cat.default: torch.cat,
    _aten.clamp_.default: Tensor.clamp_,
    _aten.clone.default: torch.clone,
    _aten.constant_pad_nd.default: torch.constant_pad_nd,
    _aten.convolution.default: torch.convolution,
    _aten.div.out: torch.div,
    _aten.div_.Tensor: Tensor.div_,
    _aten.dot.default: torch.dot,
    _aten.expand.default: Tensor.expand,
    _aten.fill_.Tensor: Tensor.fill_,
    _aten.gelu.default: torch._C._nn.gelu,
    _aten.isnan.default: torch.isnan,
    _aten.lerp.Scalar_out: torch.lerp,
    _aten.log_.default: Tensor.log_,
    _aten.masked_fill.Scalar: torch.masked_fill,
    _aten.maximum.out: torch.maximum,
    _aten.mean.dim: torch.mean,
    _aten.minimum.out: torch.minimum,
    _aten.mm.default: torch.mm,
    _aten.mul_.Tensor: Tensor.mul_,
    _aten.native_batch_norm.default: torch.native_batch_norm,
    _aten.native_layer_norm.default: torch.native_layer_norm,
    _aten.permute.default: torch.permute,
    _aten.roll.default: torch.roll,
    _aten.select.int: torch.select,
    _aten.sub.out: torch.sub,
    _aten.sub_.Tensor: Tensor.sub_,
    _aten.sum.default: torch.sum,
    _aten.sum.dim_IntList: torch.sum,
    _aten.transpose.int: torch.transpose,
    _aten.unsqueeze.default: torch.unsqueeze,
    _aten.view.default: Tensor.view,
}
"""Operations, and torch's functions that do the same given the same arguments."""


def shortened(steps: Sequence[Step], outputs: Iterable[Value], free: Set[int | None] = frozenset()) -> list[Step]:
    """Return steps that do the same at less cost.

    Args:
        steps: all steps of a function, in order.
        outputs: what is needed of them.
        free: numbers of memory that they did not make and may write over; what they make themselves, they may.
    """
    last_use = {value.memory: place for place, step in enumerate(steps) for value in step.arguments}
    last_use |= dict.fromkeys((value.memory for value in outputs), len(steps))
    free, short = {*free}, []
    for place, step in enumerate(steps):
        given = {value.memory for value in step.arguments}
        spent = {memory for memory in given & free if last_use[memory] == place}
        short.append(_with_function(_in_place(step, spent)))
        if isinstance(step.function, OpOverload):
            free |= {value.memory for value in step.made if value.memory not in given}
        else:  # what a choice returns may be what it was given
            free -= given
    return short


def _in_place(step: Step, spent: Set[int | None]) -> Step:
    """Return a step that writes its result over an argument in memory which is spent; the same if there is none."""
    if step.function not in ENTRY_BY_ENTRY or not step.made:
        return step
    function, name = ENTRY_BY_ENTRY[step.function]
    (result,) = step.made
    for value in step.arguments:
        alike = [other.layout == result.layout for other in step.arguments if other.memory == value.memory]
        if value.memory in spent and all(alike):
            return replace(step, function=function, kwargs=step.kwargs | {name: value})
    return step


def _with_function(step: Step) -> Step:
    return replace(step, function=FUNCTIONS.get(step.function, step.function))
