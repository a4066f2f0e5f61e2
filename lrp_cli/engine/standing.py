"""Whether a model computes what it did: the same modules with the same attributes, parameters and buffers.

Only a model whose classes are known to compute nothing but a function of these can be said to; see :func:`is_known`.
"""

from collections.abc import Hashable, Iterable
from functools import partial
from itertools import chain
from operator import attrgetter, is_
from types import (
    BuiltinFunctionType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    WrapperDescriptorType,
)
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from lrp_cli.engine.weights import versions_of

KNOWN = ("torch", "torchvision", "timm", "lrp_cli", "efficientnet_lite_pytorch")
"""Packages whose modules, in eval mode, compute a function of their input, attributes, parameters and buffers alone:
no globals, counters, caches or files."""

_OF_PYTHON = ("builtins", "abc", "collections", "contextlib", "enum", "functools", "math", "typing")

_GLOBAL_HOOKS = (
    global_hooks._global_forward_hooks,
    global_hooks._global_forward_pre_hooks,
    global_hooks._global_backward_hooks,
    global_hooks._global_backward_pre_hooks,
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_C_FUNCTIONS = (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType, MethodWrapperType)


def is_known(model: nn.Module) -> bool:
    """Whether all code of the model's forward pass comes from packages that are known (:data:`KNOWN`)."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    return all(map(_is_known_class, kinds)) and all(map(_is_known, model.modules()))


def _is_known_class(kind: type) -> bool:
    return _is_of_known_package(kind.__module__) and all(map(_is_known_function, vars(kind).values()))


def _is_known(module: nn.Module) -> bool:
    own = vars(module)
    if any(own[hooks] for hooks in _HOOKS):
        return False
    return all(_is_known_callable(value) for value in own.values() if callable(value))


def _is_known_callable(value: Any) -> bool:
    if isinstance(value, partial):
        return _is_known_callable(value.func)
    if isinstance(value, MethodType):
        return _is_known_function(value.__func__)
    if isinstance(value, FunctionType):
        return _is_known_function(value)
    if isinstance(value, type):
        return all(map(_is_known_class, value.__mro__))
    return isinstance(value, _C_FUNCTIONS) or all(map(_is_known_class, type(value).__mro__))


def _is_known_function(function: Any) -> bool:
    """Whether a function, if it is one, is of a known package, and so are those that it wraps and has its name from."""
    if isinstance(function, (staticmethod, classmethod)):
        function = function.__func__
    elif isinstance(function, property):
        function = function.fget
    while isinstance(function, FunctionType):
        if not _is_of_known_package(function.__globals__.get("__name__", "")):
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def _is_of_known_package(name: str) -> bool:
    return name.partition(".")[0] in (*KNOWN, *_OF_PYTHON)


class Standing:
    """What a model's forward pass depends on, at one time."""

    def __init__(self, model: nn.Module) -> None:
        """Note how the model is now."""
        self._modules = [*model.modules()]
        self._kinds = [*map(type, self._modules)]
        self._classes = [*map(vars, {of: None for kind in self._kinds for of in kind.__mro__})]
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
        return chain(self._dicts, self._lists, self._classes)

    def _held(self) -> Iterable[Any]:
        """Return what the containers hold, and the classes."""
        keys, values = chain.from_iterable(self._dicts), chain.from_iterable(map(dict.values, self._dicts))
        of_classes = chain.from_iterable(kind.values() for kind in self._classes)
        return chain(keys, values, chain.from_iterable(self._lists), of_classes)

    @property
    def is_plain(self) -> bool:
        """Whether all tensors are of torch's own types, with values that lie in memory as they are."""
        return all(map(is_plain, self._tensors))

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

    def _state_of_tensors(self) -> list[Hashable]:
        tensors = self._tensors
        plain = tensors if all(map(is_plain, tensors)) else [tensor for tensor in tensors if is_plain(tensor)]
        return [*versions_of(tensors), *map(Tensor.data_ptr, plain), *map(attrgetter("dtype"), tensors)]


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is of one of torch's own types, and its values lie in memory as they are."""
    return type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout == torch.strided


def _ambient() -> tuple[Any, ...]:
    autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    return torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), *autocast


def kind_of(x: Tensor) -> Hashable:
    """Return what inputs have in common that makes one explanation go like another."""
    return x.shape, x.stride(), x.dtype, x.device
