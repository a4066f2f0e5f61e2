"""One name for the many spellings of a torch function: ``torch.add``, ``Tensor.add_``, ``Tensor.__iadd__``, ``+=``."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

_IN_PLACE_OPERATORS = {"iadd", "isub", "imul", "itruediv", "ipow", "imatmul", "ifloordiv", "imod"}
_SPELLINGS = {
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "rtruediv": "rdiv",
    "subtract": "sub",
    "multiply": "mul",
    "rmul": "mul",
    "radd": "add",
    "negative": "neg",
    "concat": "cat",
    "concatenate": "cat",
    "clip": "clamp",
    "swapdims": "transpose",
    "swapaxes": "transpose",
    "moveaxis": "movedim",
}

_OPERANDS = (("input",), ("other", "mat1", "mat2", "exponent"), ("mat2",))
"""What torch calls the first, the second and the third operand."""


def arguments(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, given the names of those that were passed by position."""
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def with_operands_in_place(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with the operands passed by position: ``torch.mul(x, other=y)`` is ``(x, y)``."""
    rest = dict(kwargs)
    for place, names in enumerate(_OPERANDS):
        given = next((name for name in names if name in rest), None)
        if given is not None and len(args) == place:
            args += (rest.pop(given),)
    return args, rest


@cache
def operation_name(function: Callable[..., Any]) -> str:
    """Return the name of a torch function: ``add`` for all the spellings of addition, in place or not.

    Properties of tensors are called ``get shape``, ``get T`` and so on.
    """
    name = function.__name__
    if name in {"__get__", "__set__", "__delete__"}:
        return f"{name.strip('_')} {getattr(function, '__self__').__name__}"  # noqa: B009 (mypy knows no __self__)
    name = name.strip("_")
    if name in _IN_PLACE_OPERATORS:
        name = name[1:]
    return _SPELLINGS.get(name, name)


@cache
def writes_in_place(function: Callable[..., Any]) -> bool:
    """Whether a torch function writes into its first argument (apart from an ``inplace=True``)."""
    name = function.__name__
    if name.startswith("__"):
        return name.strip("_") in _IN_PLACE_OPERATORS or name == "__setitem__"
    return name.endswith("_")
