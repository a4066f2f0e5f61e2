"""Rule-transformed weights, computed once per model and kept within a bounded memory."""

from collections.abc import Callable, Hashable, MutableMapping

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class WeightCache:
    """Tensors derived from a parameter (its positive part, its square, ...), recomputed when the parameter changes.

    A tensor that does not fit into ``limit_bytes`` any more is computed anew each time: in a cyclic order of use, which
    is a network's, throwing out the oldest entry would throw out the one needed next.
    """

    def __init__(self, limit_bytes: int = 2**30) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._derived: MutableMapping[Tensor, dict[Hashable, tuple[Hashable, Tensor]]] = WeakTensorKeyDictionary()

    def get(self, parameter: Tensor, name: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return the tensor ``name`` derived from ``parameter``, from the cache where the parameter is unchanged.

        Args:
            parameter: the tensor that the result is derived from; the entry dies with it.
            name: names the derivation.
            compute: makes the tensor.
        """
        entries = self._derived.get(parameter)
        if entries is None:
            entries = self._derived[parameter] = {}
        # Moving a module to another type or device exchanges a parameter's data without counting up its version.
        state = (parameter._version, parameter.data_ptr(), parameter.dtype)
        made_from, derived = entries.get(name, (None, None))
        if derived is not None and made_from == state:
            return derived
        if derived is not None:
            self.used_bytes -= derived.nbytes
            del entries[name]
        derived = compute()
        if self.used_bytes + derived.nbytes <= self.limit_bytes:
            entries[name] = (state, derived)
            self.used_bytes += derived.nbytes
        return derived
