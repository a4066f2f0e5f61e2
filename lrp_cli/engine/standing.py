"""Whether a model computes what it did: the same modules with the same attributes, parameters and buffers.

Only a model whose classes are known to compute nothing but a function of these can be said to; see :func:`is_known`.
"""

from collections.abc import Hashable
from functools import partial
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from lrp_cli.engine.weights import version_of

KNOWN = ("torch", "torchvision", "timm", "lrp_cli", "efficientnet_lite_pytorch")
"""Packages whose modules, in eval mode, compute a function of their input, attributes, parameters and buffers alone:
no globals, counters, caches or files."""

_GLOBAL_HOOKS = (
    global_hooks._global_forward_hooks,
    global_hooks._global_forward_pre_hooks,
    global_hooks._global_backward_hooks,
    global_hooks._global_backward_pre_hooks,
)


def is_known(model: nn.Module) -> bool:
    """Whether all code of the model's forward pass comes from packages that are known (:data:`KNOWN`)."""
    return all(_is_known(module) for module in model.modules())


def _is_known(module: nn.Module) -> bool:
    kind, own = type(module), vars(module)
    if any(own[hooks] for hooks in _HOOKS):
        return False
    code = [*kind.__mro__, kind.forward, kind.__call__, kind.__getattr__]
    code += [value for value in own.values() if callable(value) and not isinstance(value, nn.Module)]
    return all(_is_of_known_package(part) for part in code)


def _is_of_known_package(part: Any) -> bool:
    while isinstance(part, partial):
        part = part.func
    origin = getattr(part, "__module__", None) or type(part).__module__
    return origin.partition(".")[0] in (*KNOWN, "builtins", "_operator", "math")


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Standing:
    """What a model's forward pass depends on, at one time."""

    def __init__(self, model: nn.Module) -> None:
        """Note how the model is now."""
        self._parts: list[tuple[Any, tuple[Any, ...]]] = []
        self._empty: list[Any] = [*_GLOBAL_HOOKS]
        self._tensors: dict[int, Tensor] = {}
        self._noted: set[int] = set()
        self._kinds = [(module, type(module)) for module in model.modules()]
        for module, _ in self._kinds:
            self._note(vars(module))
        self._state = [*map(_state, self._tensors.values())]
        self._ambient = _ambient()

    def holds(self) -> bool:
        """Whether nothing has changed since."""
        return (
            not any(self._empty)
            and all(type(module) is kind for module, kind in self._kinds)
            and all(len(part) == len(values) and all(map(is_, _items(part), values)) for part, values in self._parts)
            and all(state == _state(tensor) for tensor, state in zip(self._tensors.values(), self._state, strict=True))
            and self._ambient == _ambient()
        )

    def _note(self, part: Any) -> None:
        """Note what an object holds, and what the containers in it hold."""
        if id(part) in self._noted:
            return
        self._noted.add(id(part))
        if not part:
            self._empty.append(part)
            return
        items = (*_items(part),)
        self._parts.append((part, items))
        for item in items:
            if isinstance(item, Tensor):
                self._tensors[id(item)] = item
            elif isinstance(item, (dict, list, set)):
                self._note(item)


def _items(part: Any) -> Any:
    return part.values() if isinstance(part, dict) else part


def _state(tensor: Tensor) -> tuple[int, int, torch.dtype]:
    return version_of(tensor), tensor.data_ptr(), tensor.dtype


def _ambient() -> tuple[Any, ...]:
    return torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()


def kind_of(x: Tensor) -> Hashable:
    """Return what inputs have in common that makes one explanation go like another."""
    return x.shape, x.stride(), x.dtype, x.device
