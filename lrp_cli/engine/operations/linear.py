"""Convolutions, linear layers and batch norms: the operations with a configurable rule."""

from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrp_cli.engine.layers import (
    BATCH_NORM,
    CONVOLUTION,
    LINEAR,
    Compute,
    Layer,
    LayerCall,
    LayerNode,
    Made,
    MergedNode,
)
from lrp_cli.engine.linear_maps import Convolution, Linear, LinearMap, Scaling
from lrp_cli.engine.naming import arguments
from lrp_cli.engine.operations.unknown import unknown
from lrp_cli.engine.rules import OutputUse
from lrp_cli.engine.run import Run
from lrp_cli.engine.tracking import source_of, tag_of, tagged
from lrp_cli.engine.weights import number_of, version_of


def _parameter(weight: Tensor) -> Tensor | None:
    """Return the parameter that a weight is, so that what is derived from it can be kept with it."""
    return weight if isinstance(weight, torch.nn.Parameter) else source_of(weight)


def _depends_on_input(run: Run, *tensors: Tensor | None) -> bool:
    return any(run.carries(tensor) for tensor in tensors)


def _constant(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def run_layer(run: Run, layer: Layer, linear_map: LinearMap, x: Tensor, compute: Compute | None = None) -> Tensor:
    """Execute a layer: ``compute`` (by default the map itself) makes the output, the layer's rule the way back."""
    compute = compute or linear_map.output
    tag = tag_of(x, run)
    if run.trace is not None:
        run.trace.add_layer(layer)
    call = LayerCall(run, layer, lambda: linear_map, x, bounds=tag.bounds if tag else None)
    run.note_made(Made(call, compute))
    y: Tensor = LayerNode.apply(x, call, compute)
    note_layer(run, y, call, x)
    return y


def note_layer(run: Run, y: Tensor, call: LayerCall, x: Tensor) -> None:
    """Note on a layer's output which layer it is the output of, so that what follows can be made one with it."""
    tag = tagged(y, run)
    tag.layer_call, tag.layer_input = call, x
    tag.kept = {OutputUse.NONE: None, OutputUse.ACTIVE: "output", OutputUse.WHOLE: "any"}[call.use]


def linear(run: Run, function: Any, args: Any, kwargs: Any, *, suffix: str = "") -> Any:
    """``F.linear(input, weight, bias)``."""
    a = arguments(("input", "weight", "bias"), args, kwargs)
    x, weight, bias = a["input"], a["weight"], a.get("bias")
    if _depends_on_input(run, weight, bias) or x.dim() == 1:
        return unknown(run, function, args, kwargs)
    linear_map = Linear(weight.detach(), _constant(bias), run.cache, _parameter(weight), products=run.products)
    return run_layer(run, run.new_layer(LINEAR, suffix), linear_map, x)


def product_with_weight(run: Run, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight + bias`` with a constant weight, shape (in, out): a linear layer under another name."""
    linear_map = Linear(
        weight.detach().t(),
        _constant(bias),
        run.cache,
        _parameter(weight),
        origin="transposed",
        products=run.products,
    )
    return run_layer(run, run.new_layer(LINEAR), linear_map, x)


def addmm(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``torch.addmm(bias, x, weight)``."""
    bias, x, weight = args
    if kwargs or _depends_on_input(run, bias, weight) or not run.carries(x):
        return unknown(run, function, args, kwargs)
    return product_with_weight(run, x, weight, bias)


def convolution(run: Run, function: Any, args: Any, kwargs: Any, *, dimensions: int, transposed: bool = False) -> Any:
    """``F.conv1d`` to ``F.conv3d`` and their transposed counterparts."""
    last = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    names = ("input", "weight", "bias", "stride", "padding", *last)
    a = arguments(names, args, kwargs)
    x, weight, bias = a["input"], a["weight"], a.get("bias")
    if _depends_on_input(run, weight, bias) or x.dim() != dimensions + 2:
        return unknown(run, function, args, kwargs)
    repeat = partial(_per_dimension, dimensions)
    dilation, padding = repeat(a.get("dilation", 1)), a.get("padding", 0)
    if isinstance(padding, str):
        x, padding = _explicit_padding(run, x, weight, dilation, padding)
    linear_map = Convolution(
        weight.detach(),
        _constant(bias),
        run.cache,
        _parameter(weight),
        products=run.products,
        stride=repeat(a.get("stride", 1)),
        padding=repeat(padding),
        dilation=dilation,
        transposed=transposed,
        output_padding=repeat(a.get("output_padding", 0)),
        groups=a.get("groups", 1),
    )

    return run_layer(run, run.new_layer(CONVOLUTION), linear_map, x)


def _per_dimension(dimensions: int, value: int | tuple[int, ...]) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * dimensions if len(values) == 1 else values


def _explicit_padding(
    run: Run, x: Tensor, weight: Tensor, dilation: tuple[int, ...], padding: str
) -> tuple[Tensor, Any]:
    """Resolve ``padding="same"`` and ``"valid"`` into numbers; what is not symmetric is padded beforehand."""
    if padding == "valid":
        return x, 0
    totals = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
    if all(total % 2 == 0 for total in totals):
        return x, tuple(total // 2 for total in totals)
    pads = [pad for total in reversed(totals) for pad in (total // 2, total - total // 2)]
    padded = F.pad(x, pads)
    tag = tag_of(x, run)
    if tag is not None and tag.bounds is not None:
        tagged(padded, run).bounds = F.pad(tag.bounds[0], pads), F.pad(tag.bounds[1], pads)
    return padded, 0


def batch_norm(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``F.batch_norm`` in eval mode: part of the linear layer that feeds it, or else a layer of its own."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    a = arguments(names, args, kwargs)
    t, mean, variance = a["input"], a["running_mean"], a["running_var"]
    if a.get("training") or mean is None or variance is None:
        return unknown(run, function, args, kwargs)
    gain, shift, eps = _constant(a.get("weight")), _constant(a.get("bias")), a.get("eps", 1e-5)

    def compute(t: Tensor) -> Tensor:
        return F.batch_norm(t, mean, variance, gain, shift, False, 0.0, eps)

    def statistics() -> tuple[Tensor, Tensor]:
        scale = torch.rsqrt(variance + eps)
        scale = scale if gain is None else scale * gain
        offset = -mean * scale
        return scale, offset if shift is None else offset + shift

    layer_alone = run.new_layer(BATCH_NORM)
    tag = tag_of(t, run)
    if tag is None or tag.layer_call is None or tag.layer_input is None or not _same_channels(tag.layer_call.map, t):
        return run_layer(run, layer_alone, Scaling(*statistics(), run.cache), t, compute)

    fed_by = tag.layer_call

    def alone() -> LayerCall:
        return LayerCall(run, layer_alone, lambda: Scaling(*statistics(), run.cache), fed_by.output())

    version = (*(_version(tensor) for tensor in (mean, variance, a.get("weight"), a.get("bias"))), eps)
    merged = fed_by.followed_by(lambda: _merge(fed_by.map, statistics, version), tag.uses.is_single)
    if run.trace is not None:
        run.trace.add_layer(layer_alone)
        run.trace.merge(fed_by.account.operation)
    run.note_made(Made(merged, compute, follows=fed_by))
    y: Tensor = MergedNode.apply(tag.layer_input, t, merged, alone, compute)
    note_layer(run, y, merged, tag.layer_input)
    return y


def _version(tensor: Tensor | None) -> Hashable:
    if tensor is None:
        return None
    source = source_of(tensor)
    return number_of(tensor if source is None else source), version_of(tensor), tensor.data_ptr()


def _same_channels(linear_map: LinearMap, t: Tensor) -> bool:
    """Whether the linear map's output channels are the dimension that a batch norm of ``t`` works on."""
    return isinstance(linear_map, Convolution) or (isinstance(linear_map, Linear) and t.dim() == 2)


def _merge(linear_map: LinearMap, statistics: Callable[[], tuple[Tensor, Tensor]], version: Hashable) -> LinearMap:
    """Return the linear map followed by the batch norm ``y = t * scale + offset`` as one linear map."""

    def merged_scale() -> Tensor:
        scale = statistics()[0]
        return scale if linear_map.scale is None else linear_map.scale * scale

    def merged_bias() -> Tensor:
        scale, offset = statistics()
        return offset if linear_map.bias is None else linear_map.bias * scale + offset

    return replace(
        linear_map,
        scale=linear_map.derived((version, "scale"), merged_scale),
        # The layer's own bias may change without its weight, which is what the cache looks at.
        bias=merged_bias() if linear_map.bias is not None else linear_map.derived((version, "bias"), merged_bias),
        origin=(linear_map.origin, version),
    )
