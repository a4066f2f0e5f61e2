"""Finds the operation that a model's activations are not finite from: the model is run again, and watched.

Infinities may be meant: an attention mask is minus infinity where it lets nothing through. They are no fault as long as
no operation makes nan of them.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from math import isinf
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from lrp_cli.engine.naming import operation_name
from lrp_cli.engine.tracking import ModuleTracker, tensors_in


@dataclass(frozen=True)
class Origin:
    """The operation that values which are not finite come from.

    Attributes:
        number: place in the order of execution.
        operation: name of the torch function.
        layer, class_name: the module that was running.
        is_meant: whether the values are infinities that the model put there.
        is_nan: whether there is a nan among the values.
    """

    number: int
    operation: str
    layer: str
    class_name: str
    is_meant: bool
    is_nan: bool

    def __str__(self) -> str:
        what = "it makes nan of this input" if self.is_nan else "it overflows on this input"
        return (
            f"activations are not finite from layer '{self.layer}' ({self.class_name}, operation {self.operation}) on: "
            f"{what}"
        )


def origin_of_output(model: nn.Module, x: Tensor) -> Origin | None:
    """Return where the values of a model's output that are not finite come from; None where it is not to be seen."""
    output, watch = _watched(model, x)
    return watch.origins[output] if isinstance(output, Tensor) and output in watch.origins else None


def first_origin(model: nn.Module, x: Tensor) -> Origin | None:
    """Return the first operation that makes values which are not finite and not meant to be; None if there is none."""
    return _watched(model, x)[1].first


def _watched(model: nn.Module, x: Tensor) -> tuple[Any, "_Watch"]:
    modules = ModuleTracker(model)
    watch = _Watch(modules)
    with torch.no_grad(), modules.watching(), watch:
        output = model(x.detach().clone())
    return output, watch


class _Watch(TorchFunctionMode):
    """Notes where tensors that are not finite come from."""

    def __init__(self, modules: ModuleTracker) -> None:
        super().__init__()
        self.origins: MutableMapping[Tensor, Origin] = WeakTensorKeyDictionary()
        self.first: Origin | None = None
        self._modules = modules
        self._count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Execute a torch function and look at what it returns."""
        kwargs = kwargs or {}
        inputs = list(tensors_in((args, kwargs)))
        causes = [tensor for tensor in inputs if not _is_finite(tensor)]
        known = [self.origins[tensor] for tensor in causes if tensor in self.origins]
        result = func(*args, **kwargs)
        self._count += 1
        for tensor in tensors_in(args[0] if result is None and args else result):  # an assignment returns nothing
            if _is_finite(tensor):
                if tensor in self.origins:  # written over
                    del self.origins[tensor]
                continue
            is_meant = bool(causes) or not inputs or _holds_infinity((args, kwargs))
            origin = self._origin(func, tensor, known, is_meant)
            self.origins[tensor] = origin
            if tensor._base is not None and tensor._base not in self.origins:
                self.origins[tensor._base] = origin
        return result

    def _origin(self, func: Any, tensor: Tensor, known: list[Origin], is_meant: bool) -> Origin:
        """Return where a result comes from: from where its inputs come, or from the operation itself."""
        faults = [origin for origin in known if not origin.is_meant]
        if faults:
            return min(faults, key=lambda origin: origin.number)
        is_nan = bool(tensor.isnan().any())
        if known and not is_nan:
            return min(known, key=lambda origin: origin.number)
        names = operation_name(func), self._modules.name, self._modules.class_name
        origin = Origin(self._count, *names, is_meant and not is_nan, is_nan)
        if not origin.is_meant and self.first is None:
            self.first = origin
        return origin


def _is_finite(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all())


def _holds_infinity(value: Any) -> bool:
    """Whether an argument is an infinite number, or holds one."""
    if isinstance(value, (list, tuple)):
        return any(map(_holds_infinity, value))
    if isinstance(value, dict):
        return _holds_infinity(list(value.values()))
    return isinstance(value, float) and isinf(value)
