"""Rule-transformed weights: computed once per model, or a few times at first, and kept within a bounded memory."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter
from typing import Any
from weakref import ref

from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

_numbers = count()
_number_of: WeakIdKeyDictionary = WeakIdKeyDictionary()


def number_of(tensor: Tensor) -> int:
    """Return a number that no other tensor of this process has or will have: ids are given out again."""
    number: int | None = _number_of.get(tensor)  # type: ignore[no-untyped-call]
    if number is None:
        number = _number_of[tensor] = next(_numbers)
    return number


class _Steps:
    """How many steps optimisers have taken in this process."""

    taken = 0


def _count_step(*_: Any) -> None:
    _Steps.taken += 1


register_optimizer_step_post_hook(_count_step)  # fused optimisers change parameters without torch's counting it


def version_of(tensor: Tensor) -> tuple[int, int]:
    """Return what tells whether a tensor was changed in place: how often it was, and how often optimisers took a step.

    The first is 0 where torch does not count (``torch.inference_mode``).
    """
    return (0 if tensor.is_inference() else tensor._version), _Steps.taken


def versions_of(tensors: Sequence[Tensor]) -> list[int]:
    """Return the same for many tensors, at a fraction of the time."""
    if any(map(Tensor.is_inference, tensors)):
        return [_Steps.taken, *(version_of(tensor)[0] for tensor in tensors)]
    return [_Steps.taken, *map(attrgetter("_version"), tensors)]


SMALL = 2**20
"""Bytes up to which a tensor is kept from the first time on."""

FEW = 5
"""So many targets of the first forward pass have large tensors computed anew."""


@dataclass
class _Derived:
    """What was derived from one parameter: name -> (the parameter's state then, the tensor), and its bytes."""

    parameter: "ref[Tensor]"
    tensors: dict[Hashable, tuple[Hashable, Tensor]] = field(default_factory=dict)
    bytes: int = 0


class WeightCache:
    """Tensors derived from a parameter (its positive part, its square, ...), recomputed when the parameter changes.

    What is not small is kept from the second forward pass on, or from the target after the first :data:`FEW`: where
    there are no more, keeping would take more memory than anything else, and save little.
    A tensor that does not fit into ``limit_bytes`` any more is computed anew each time: in a cyclic order of use, which
    is a network's, throwing out the oldest entry would throw out the one needed next.
    """

    def __init__(self, limit_bytes: int = 2**30) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._passes = self._targets = 0
        self._derived: dict[int, _Derived] = {}  # by id: tensors compare entry by entry

    def begin_forward(self) -> None:
        """Note that what is asked for from now on is for another forward pass and its targets."""
        self._passes += 1

    def begin_target(self) -> None:
        """Note that what is asked for from now on is for another target."""
        self._targets += 1

    def get(self, parameter: Tensor, name: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return the tensor ``name`` derived from ``parameter``, from the cache where the parameter is unchanged.

        Args:
            parameter: the tensor that the result is derived from; the entry dies with it.
            name: names the derivation.
            compute: makes the tensor.
        """
        known = self._known(parameter)
        # Moving a module to another type or device exchanges a parameter's data without counting up its version.
        state = (version_of(parameter), parameter.data_ptr(), parameter.dtype)
        made_from, derived = known.tensors.get(name, (None, None))
        if derived is not None and made_from == state:
            return derived
        if derived is not None:
            self._use(known, -derived.nbytes)
            del known.tensors[name]
        derived = compute()
        is_awaited = derived.nbytes <= SMALL or self._passes > 1 or self._targets > FEW
        if is_awaited and self.used_bytes + derived.nbytes <= self.limit_bytes:
            known.tensors[name] = (state, derived)
            self._use(known, derived.nbytes)
        return derived

    def tensors(self) -> list[Tensor]:
        """Return all that is kept."""
        return [tensor for derived in self._derived.values() for _, tensor in derived.tensors.values()]

    def _use(self, known: _Derived, bytes: int) -> None:
        known.bytes += bytes
        self.used_bytes += bytes

    def _known(self, parameter: Tensor) -> _Derived:
        key = id(parameter)
        found = self._derived.get(key)
        if found is None or found.parameter() is not parameter:
            self._forget(key)
            cache = ref(self)  # else the cache would hold itself

            def forget(_: "ref[Tensor]") -> None:
                alive = cache()
                if alive is not None:
                    alive._forget(key)

            found = self._derived[key] = _Derived(ref(parameter, forget))
        return found

    def _forget(self, key: int) -> None:
        # Runs at any time, in the middle of a forward pass, too: it must not ask tensors anything.
        gone = self._derived.pop(key, None)
        if gone is not None:
            self.used_bytes -= gone.bytes
