"""Arithmetic as exact as its type: no TF32 on a GPU, nor bfloat16 on a processor, in place of single precision.

Torch rounds the inputs of convolutions on a GPU to TF32, with eleven bits, unless it is told otherwise. Sums that are
taken from differences (:mod:`lrp_cli.engine.halves`) would have no digits left, and books would not balance.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from operator import attrgetter
from threading import Lock
from typing import Any, NamedTuple

import torch

PER_OPERATION = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
"""Where ``torch.backends`` has a precision for each kind of operation, in those releases of torch that do."""


class _Setting(NamedTuple):
    """A setting of torch's: how to read it, how to change it, and what makes it exact."""

    read: Callable[[], Any]
    change: Callable[[Any], Any]
    exact: Any


@cache
def _settings() -> list[_Setting]:
    """Return the settings in the order in which they are to be changed: the older ones also change the newer ones."""
    backends = torch.backends
    older = [
        _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
        _Setting(lambda: backends.cudnn.allow_tf32, partial(setattr, backends.cudnn, "allow_tf32"), False),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.9 says, once, that the older ones are to go
        for setting in older:
            _readable(setting)
    places = [_place(name) for name in PER_OPERATION]
    newer = [
        _Setting(partial(getattr, place, "fp32_precision"), partial(setattr, place, "fp32_precision"), "ieee")
        for place in places
        if hasattr(place, "fp32_precision")
    ]
    return older + newer


def _place(name: str) -> Any:
    try:
        return attrgetter(name)(torch.backends)
    except AttributeError:
        return None


_lock = Lock()
_before: list[tuple[_Setting, Any]] = []
_count = 0


@contextmanager
def exactly() -> Iterator[None]:
    """Have torch compute products exactly meanwhile, in all threads; afterwards it is set as it was."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _count  # noqa: PLW0603 (torch's settings are global, too)
    with _lock:
        _count += 1
        if _count > 1:
            return
        _before[:] = [(setting, value) for setting in _settings() for value in _readable(setting)]
        for setting, _ in _before:
            _change(setting, setting.exact)


def _leave() -> None:
    global _count  # noqa: PLW0603
    with _lock:
        _count -= 1
        if _count == 0:
            for setting, value in _before:
                _change(setting, value)


def _readable(setting: _Setting) -> list[Any]:
    """Return the value of a setting; none where newer ones say what it has no word for."""
    try:
        return [setting.read()]
    except RuntimeError:
        return []


def _change(setting: _Setting, value: Any) -> None:
    """Change a setting, unless torch was told that nobody may (``torch.backends.disable_global_flags``)."""
    with suppress(RuntimeError):
        setting.change(value)
