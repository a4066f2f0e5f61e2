"""Transcripts: the tensor operations that an explanation comes down to, written down while they are executed.

What torch's dispatcher is asked for holds no Python any more: neither the model's nor the rules'. Whether a transcript
may stand for them later is for :mod:`lrp_cli.engine.programs` to say.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from lrp_cli.engine.stand_ins import hollow
from lrp_cli.engine.standing import is_plain
from lrp_cli.engine.tracking import tensors_in, with_tensors

ONLY_SHAPE = {
    torch.ops.aten.max_pool2d_with_indices_backward.default: 1,
    torch.ops.aten.max_pool3d_with_indices_backward.default: 1,
    torch.ops.aten.avg_pool2d_backward.default: 1,
    torch.ops.aten.avg_pool3d_backward.default: 1,
}
"""Operations that read nothing but the shape of an argument, on a processor: its place."""

SMALL = 2**16
"""Up to so many entries what is made of constants alone is kept, and not made anew each time."""


@dataclass(eq=False)
class Value:
    """A tensor of a transcript, or what a step returns in place of one.

    Attributes:
        constant: the tensor, or what else it is, where it is the same in every explanation.
        memory: number of the memory that it lies in.
        layout: how it lies there, where it is a tensor.
    """

    constant: Any = None
    memory: int | None = None
    layout: Hashable = None


@dataclass(eq=False)
class Step:
    """One operation.

    Attributes:
        function: what is called.
        args, kwargs: with what; values stand for tensors.
        results: what it returns, values standing for tensors; None where it returns none.
        expected: what it has to return for the transcript to hold, where it returns no tensor.
        writes: the memory that it changes.
        empties: whether it lets go of the tensors in the lists that it is given, as soon as it needs them no more.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: Any
    expected: Any = None
    writes: frozenset[int] = frozenset()
    empties: bool = False

    @property
    def is_guard(self) -> bool:
        """Whether it returns something that decides what is done next."""
        return self.results is None

    @property
    def made(self) -> list[Value]:
        """The values among the results that are not constant."""
        return [value for value in values_in(self.results) if value.constant is None]

    @property
    def arguments(self) -> list[Value]:
        """The values among the arguments."""
        return values_in((self.args, self.kwargs))


@dataclass
class _Memory:
    """A piece of memory that tensors lie in.

    Attributes:
        reference: keeps the number of the memory from being given to another one, and not the memory.
        is_constant: whether it holds the same in every explanation.
        is_folded: whether that is so because it was made of constants.
        values: what lies there, by layout.
    """

    reference: StorageWeakRef
    is_constant: bool
    is_folded: bool = False
    values: dict[Hashable, Value] = field(default_factory=dict)


class Transcript(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, writes down what is executed.

    A tensor is known by the memory it lies in and its layout there: autograd makes new tensors of old memory behind
    the dispatcher's back.

    Attributes:
        steps: the operations in order of execution.
        constants: the tensors that are the same in every explanation.
        problem: why this cannot be used, or None.
    """

    def __init__(self, constants: Iterable[Tensor]) -> None:
        """Begin a transcript; ``constants`` are the tensors that are the same in every explanation."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.problem: str | None = None
        self._memories: dict[int, _Memory] = {}
        self.constants = [*constants]
        for tensor in self.constants:
            self._memory(tensor, is_constant=True)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Tell torch not to wrap what follows for its compiler, which takes a second to import; nothing is compiled."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Execute an operation and write it down."""
        kwargs = kwargs or {}
        known = self._noted(func, args, kwargs) if self.problem is None else None
        out = func(*args, **kwargs)
        if known is not None and self.problem is None:
            self._enter(func, *known, out)
        return out

    def value(self, tensor: Tensor) -> Value:
        """Return what stands for a tensor."""
        if not self._is_plain(tensor):
            return Value()
        number = tensor.untyped_storage()._cdata
        memory = self._memories.get(number)
        if memory is None:
            self.refuse("a tensor made out of sight")
            return Value()
        layout = _layout(tensor)
        found = memory.values.get(layout)
        if found is None:
            if memory.is_constant:
                found = Value(tensor.detach(), number, layout)
            elif memory.values:
                found = self._part(memory, tensor)
            else:
                self.refuse("memory that no operation wrote")
                return Value()
            memory.values[layout] = found
        return found

    def _is_plain(self, tensor: Tensor) -> bool:
        if not is_plain(tensor):
            self.refuse(f"a {type(tensor).__name__} of layout {tensor.layout}")
        return self.problem is None

    def new_input(self, tensor: Tensor) -> Value:
        """Return the value that stands for a tensor which is another one each time."""
        memory = self._memory(tensor, is_constant=False)
        layout = _layout(tensor)
        return memory.values.setdefault(layout, Value(None, tensor.untyped_storage()._cdata, layout))

    def refuse(self, reason: str) -> None:
        """Note why this cannot be used."""
        self.problem = self.problem or reason

    def _part(self, memory: _Memory, tensor: Tensor) -> Value:
        """Return a value for a part of known memory that no operation was seen to cut out."""
        layout, whole = next(iter(memory.values.items()))
        found = Value(None, whole.memory, _layout(tensor))
        args = (whole, [*tensor.shape], [*tensor.stride()], tensor.storage_offset())
        if layout[3] != tensor.dtype or tensor.is_conj() or tensor.is_neg():  # type: ignore[index]
            self.refuse("memory read as another type")
        self.steps.append(Step(torch.ops.aten.as_strided.default, args, {}, found))
        return found

    def _memory(self, tensor: Tensor, *, is_constant: bool) -> _Memory:
        storage = tensor.untyped_storage()
        memory = self._memories.get(storage._cdata)
        if memory is None:
            memory = self._memories[storage._cdata] = _Memory(StorageWeakRef(storage), is_constant)  # type: ignore[no-untyped-call]
        return memory

    def _noted(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, frozenset[int]] | None:
        """Return the arguments with values in place of tensors, and which memory will be changed."""
        if torch.Tag.nondeterministic_seeded in func.tags and _argument("dropout_p", func, args, kwargs) != 0:
            self.refuse(f"{func} draws random numbers")
            return None
        if func is torch.ops.aten.lift_fresh.default:  # a tensor made of numbers in Python
            self._memory(args[0], is_constant=True)
        if not all(map(self._is_plain, tensors_in((args, kwargs)))):
            return None
        written = frozenset(self._note_writes(func, args, kwargs)) if func._schema.is_mutable else frozenset[int]()
        values = with_tensors(args, self.value)
        if func in ONLY_SHAPE:
            values = _with_stand_in(values, ONLY_SHAPE[func], args)
        return values, with_tensors(kwargs, self.value), written

    def _enter(self, func: Any, args: Any, kwargs: Any, written: frozenset[int], out: Any) -> None:
        tensors = tensors_in(out)
        if not all(map(self._is_plain, tensors)):
            return
        if not tensors and not written:
            if not isinstance(out, (bool, int, float)):
                self.refuse(f"{func} returns a {type(out).__name__}")
            self.steps.append(Step(func, args, kwargs, None, expected=out))
            return
        made_of = values_in((args, kwargs))
        is_the_same = bool(made_of) and not written and all(value.constant is not None for value in made_of)
        is_folded = is_the_same and sum(tensor.numel() for tensor in tensors) <= SMALL
        results = with_tensors(out, lambda tensor: self._result(tensor, is_folded))
        self.steps.append(Step(func, args, kwargs, results, writes=written))
        if torch.Tag.dynamic_output_shape in func.tags and not is_the_same:
            self.steps += [Step(shape_of, (self.value(t),), {}, None, expected=t.shape) for t in tensors]

    def _result(self, tensor: Tensor, is_folded: bool) -> Value:
        memory = self._memories.get(tensor.untyped_storage()._cdata)
        if memory is None:
            memory = self._memory(tensor, is_constant=is_folded)
            memory.is_folded = is_folded
        layout = _layout(tensor)
        if layout not in memory.values:
            number = tensor.untyped_storage()._cdata
            memory.values[layout] = Value(tensor.detach() if memory.is_constant else None, number, layout)
        return memory.values[layout]

    def _note_writes(self, func: Any, args: Any, kwargs: Any) -> Iterator[int]:
        """Yield the numbers of the memories that an operation is about to change."""
        for argument in func._schema.arguments:
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            for tensor in tensors_in(_argument(argument.name, func, args, kwargs)):
                number = tensor.untyped_storage()._cdata
                yield number
                memory = self._memories.get(number)
                if memory is None or not memory.is_constant:
                    continue
                if not memory.is_folded:
                    self.refuse(f"{func} writes into what should stay the same")
                memory.is_constant = memory.is_folded = False  # it is made anew each time, after all
                for value in memory.values.values():
                    value.constant = None


def _with_stand_in(values: Any, place: int, args: Any) -> Any:
    """Return the values of arguments with one that is of the shape of the argument and holds nothing, at a place."""
    tensor: Tensor = args[place]
    if tensor.device.type != "cpu" or (any(tensor.stride()) and not tensor.is_contiguous()):  # it might be copied first
        return values
    return *values[:place], Value(hollow(tensor.shape, tensor)), *values[place + 1 :]


def shape_of(tensor: Tensor) -> torch.Size:
    """Return a tensor's shape."""
    return tensor.shape


def _argument(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """Return what an operation is given under a name, its default if nothing; None where there is no such argument."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            return args[place] if place < len(args) else kwargs.get(name, argument.default_value)
    return None


def _layout(tensor: Tensor) -> tuple[Hashable, ...]:
    memory = tensor.untyped_storage()
    kind = tensor.dtype, tensor.is_conj(), tensor.is_neg()
    return tensor.storage_offset(), tensor.shape, tensor.stride(), *kind, memory.nbytes(), memory.device


def values_in(value: Any) -> list[Value]:
    """Return the values in an argument: one, or lists, tuples and dictionaries of them."""
    if isinstance(value, Value):
        return [value]
    if isinstance(value, dict):
        value = [*value.values()]
    return [found for item in value for found in values_in(item)] if isinstance(value, (list, tuple)) else []


def with_values(value: Any, replace: Callable[[Value], Any]) -> Any:
    """Return the argument with ``replace`` applied to each value in it."""
    if isinstance(value, Value):
        return replace(value)
    if isinstance(value, dict):
        return {key: with_values(item, replace) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(with_values(item, replace) for item in value)
    return value
