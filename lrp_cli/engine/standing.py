"""Whether a model computes what it did: the same modules with the same attributes, parameters and buffers.

Only a model whose classes are known to compute nothing but a function of these can be said to; see :func:`is_known`.
"""

from collections.abc import Hashable, Iterable
from functools import partial
from itertools import chain
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
        self._modules = [*model.modules()]
        self._kinds = [*map(type, self._modules)]
        self._empty: list[Any] = [*_GLOBAL_HOOKS]
        self._dicts: list[dict[Any, Any]] = []
        self._lists: list[Any] = []
        self._tensors: list[Tensor] = []
        self._noted: set[int] = set()
        for module in self._modules:
            self._note(vars(module))
        self._sizes, self._items = [*map(len, self._containers)], [*self._held()]
        self._state, self._ambient = self._state_of_tensors(), _ambient()

    def holds(self) -> bool:
        """Whether nothing has changed since."""
        return (
            not any(self._empty)
            and all(map(is_, map(type, self._modules), self._kinds))
            and [*map(len, self._containers)] == self._sizes
            and all(map(is_, self._held(), self._items))
            and self._state_of_tensors() == self._state
            and _ambient() == self._ambient
        )

    @property
    def _containers(self) -> Iterable[Any]:
        return chain(self._dicts, self._lists)

    def _held(self) -> Iterable[Any]:
        """Return what the containers hold."""
        return chain(chain.from_iterable(map(dict.values, self._dicts)), chain.from_iterable(self._lists))

    def _note(self, container: Any) -> None:
        """Note a container, what it holds, and the containers in it."""
        if id(container) in self._noted:
            return
        self._noted.add(id(container))
        if not container:
            self._empty.append(container)
            return
        is_dict = isinstance(container, dict)
        (self._dicts if is_dict else self._lists).append(container)
        for item in container.values() if is_dict else container:
            if isinstance(item, (dict, list, set)):
                self._note(item)
            elif isinstance(item, Tensor) and id(item) not in self._noted:
                self._noted.add(id(item))
                self._tensors.append(item)

    def _state_of_tensors(self) -> list[tuple[int, int, torch.dtype]]:
        return [(version_of(tensor), tensor.data_ptr(), tensor.dtype) for tensor in self._tensors]


def _ambient() -> tuple[Any, ...]:
    return torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()


def kind_of(x: Tensor) -> Hashable:
    """Return what inputs have in common that makes one explanation go like another."""
    return x.shape, x.stride(), x.dtype, x.device
