"""Max pooling: the winner takes all. Autograd would hold the input until relevance comes back, for its shape alone."""

from typing import Any

import torch
from torch import Tensor

from lrp_cli.engine.naming import arguments
from lrp_cli.engine.run import Run
from lrp_cli.engine.stand_ins import hollow

NAMES = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")

Window = tuple[Any, Any, Any, Any, bool]
"""Kernel size, stride, padding, dilation, and whether windows may begin in the padding at the far end."""


def max_pool(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``F.max_pool2d``; its input is let go on a processor, where that is laid out as its shape says."""
    a = arguments(NAMES, args, kwargs)
    x, stride = a["input"], a.get("stride")
    sizes = a["kernel_size"], () if stride is None else stride, a.get("padding", 0), a.get("dilation", 1)
    is_plain = not a.get("return_indices") and all(isinstance(size, (int, list, tuple)) for size in sizes)
    if not is_plain or x.device.type != "cpu" or not x.is_contiguous():
        return function(*args, **kwargs)
    return MaxPool.apply(x, (*sizes, a.get("ceil_mode", False)))


class MaxPool(torch.autograd.Function):
    """Max pooling of which only the places of the winners are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window) -> Tensor:
        ctx.set_materialize_grads(False)
        y: Tensor
        y, winners = torch.ops.aten.max_pool2d_with_indices.default(x, *map(_pair, window[:4]), window[4])
        ctx.save_for_backward(winners)
        ctx.shape, ctx.window = x.shape, window
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        if g is None:
            return None, None
        kernel, *others = map(_pair, ctx.window[:4])
        backward = torch.ops.aten.max_pool2d_with_indices_backward.default
        return backward(g, hollow(ctx.shape, g), kernel, *others, ctx.window[4], *ctx.saved_tensors), None


def _pair(sizes: Any) -> list[int]:
    return [sizes] if isinstance(sizes, int) else [*sizes]
