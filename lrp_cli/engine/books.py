"""The books: which layer absorbed how much of a score, so that ``score = input relevance + absorbed``."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from lrp_cli.engine.linear_maps import LinearMap

BIAS, EPSILON, CONSTANT = "bias", "epsilon", "constant"
NORMALISATION, UNKNOWN = "normalisation", "unknown operation"
"""What absorbs: a bias; a stabiliser, or a rule with nowhere to send relevance; a constant; a softmax's offset; the
gradient of an operation that no rule is known for."""

LONG = 2**20
"""At most so many products of one sample are added up at once, as they are made, without a tensor of them all. Where
all are of one sign, rounding takes some 2e-6 of their sum; of more it would take more."""

MANY = 2**17
"""From so many products of a sample on they are added up sample by sample on a processor."""


class Account(NamedTuple):
    """Who absorbs.

    Attributes:
        layer: name of the layer.
        operation: number of the operation in order of execution, where operations are traced.
        batch_dim: which dimension of the tensors that are booked is the batch.
    """

    layer: str
    operation: int | None = None
    batch_dim: int = 0


def per_sample(relevance: Tensor, samples: int) -> Tensor:
    """Sum relevance over everything but the batch, in float64.

    Args:
        relevance: any shape whose first dimension is the batch, or a multiple of it with the samples in order (windows
            of one picture stay together).
        samples: N, the number of samples.

    Returns:
        Shape (N,).
    """
    if relevance.shape == (samples,):
        return relevance.to(torch.float64, copy=True)
    flat = relevance.reshape(samples, -1)
    # Rows of moderate length in the type at hand, the rest in float64: as precise, and several times as fast.
    row = next((size for size in (512, 256, 128, 64, 49, 32, 16) if flat.shape[1] % size == 0), 1)
    return flat.reshape(samples, -1, row).sum(dim=2).sum(dim=1, dtype=torch.float64)


class Entry(NamedTuple):
    """What was booked: ``sum_c sums_c share_c``.

    Attributes:
        account: who absorbs.
        kind: as what.
        sums: shape (N, columns).
        share: one value a column, shape (columns,), or one for all.
    """

    account: Account
    kind: str
    sums: Tensor
    share: Tensor | float


class Books:
    """What every layer absorbed in one backward pass.

    Attributes:
        samples: N, the number of samples in the batch.
        booked: the entries, in order. They are added up once somebody looks, all at once.
    """

    def __init__(self, samples: int, booked: Iterable[Entry] = ()) -> None:
        self.samples = samples
        self.booked = [*booked]
        self._sums: _Sums | None = None

    @property
    def entries(self) -> Mapping[Account, Mapping[str, Tensor]]:
        """Account -> kind of absorption -> relevance absorbed, shape (N,), float64; top layer first."""
        return self._added_up().entries

    def absorbed(self) -> Mapping[str, Tensor]:
        """Return layer name -> relevance absorbed, shape (N,), float64, in order of booking (top layer first)."""
        return self._added_up().layers

    def by_layer(self) -> Tensor:
        """Return the relevance absorbed by each layer, in the order of :meth:`absorbed`: shape (N, layers), float64."""
        return self._added_up().by_layer

    def total(self) -> Tensor:
        """Return the relevance absorbed by all layers together, shape (N,), float64."""
        return self.by_layer().sum(dim=1)

    def _added_up(self) -> "_Sums":
        if self._sums is None or self._sums.count != len(self.booked):
            self._sums = _add_up(self.booked, self.samples)
        return self._sums

    def book(
        self, account: Account, kind: str, relevance: Tensor, factor: Tensor | None = None, *, times: float = 1
    ) -> None:
        """Add relevance, times a factor that broadcasts if one is given, to what is absorbed on an account."""
        if factor is not None and _is_of_last(factor, relevance) and not account.batch_dim and times == 1:
            sums = relevance.reshape(self.samples, -1, len(factor)).sum(dim=1)
            self.booked.append(Entry(account, kind, sums, factor.detach()))
        else:
            self.enter(account, kind, self._summed(account, relevance, factor)[:, None], times)

    def enter(self, account: Account, kind: str, sums: Tensor, times: float = 1) -> None:
        """Add ``times`` what was added up already: sums, shape (N, 1), which are kept as they are."""
        self.booked.append(Entry(account, kind, sums, times))

    def book_product(self, account: Account, kind: str, values: Tensor, g: Tensor, factor: float = 1) -> None:
        """Add ``factor values g``, of one shape; nothing has no share of infinity, which is what masks hold."""
        sums = self._summed(account, g, values.expand_as(g))
        if bool(sums.isnan().any()):  # 0 times infinity
            sums = self._summed(account, torch.where(g == 0, 0.0, values * g))
        self.enter(account, kind, sums[:, None], factor)

    def _summed(self, account: Account, relevance: Tensor, factor: Tensor | None = None) -> Tensor:
        if account.batch_dim:
            same = factor is not None and factor.shape == relevance.shape
            factor = factor.movedim(account.batch_dim, 0) if factor is not None and same else factor
            relevance = relevance.movedim(account.batch_dim, 0)
        return per_sample(relevance, self.samples) if factor is None else self._dot(relevance, factor)

    def book_channels(
        self, account: Account, layer: "LinearMap", s: Tensor, shares: Mapping[str, Tensor | float]
    ) -> None:
        """Add ``sum_j s_j c_j`` for each kind of absorption; c is one value a channel of the layer, or one for all.

        Args:
            account: who absorbs.
            layer: the layer whose output s has the shape of.
            s: what the relevance is distributed by.
            shares: kind -> c, shape (channels,), or a number.
        """
        s = s.movedim(account.batch_dim, 0) if account.batch_dim else s
        sums = layer.sums(s, self.samples)
        self.booked += [Entry(account, kind, sums, share) for kind, share in shares.items()]

    def _dot(self, relevance: Tensor, factor: Tensor) -> Tensor:
        """Sum ``relevance * factor`` over everything but the batch, without making the product where it is large."""
        if factor.shape == relevance.shape:
            order = _order_in_memory(relevance)
            one, other = (tensor.permute(order) for tensor in (relevance, factor))
            if self.samples == 1:
                return _dot_of_one(one.reshape(-1), other.reshape(-1))
            return _dots(*(tensor.reshape(self.samples, -1) for tensor in (one, other)))
        if _is_of_last(factor, relevance):
            sums = relevance.reshape(self.samples, -1, len(factor)).sum(dim=1)
            return sums.double() @ factor.double()
        if factor.dim() < relevance.dim() and factor.shape[1:].numel() == 1:  # one value a channel, (C, 1, ...)
            planes = tuple(range(relevance.dim() - factor.dim() + 1, relevance.dim()))
            relevance = relevance.sum(dim=planes, keepdim=True) if planes else relevance
        return per_sample(relevance * factor, self.samples)


def _dots(one: Tensor, other: Tensor) -> Tensor:
    """Return ``sum_i one_ni other_ni``, shape (N,): torch does many at once by way of a tensor of all products."""
    if one.device.type != "cpu" or one.shape[1] < MANY:
        together: Tensor = torch.linalg.vecdot(one, other)
        return together
    return torch.cat([_dot_of_one(a, b) for a, b in zip(one, other, strict=True)])


def _dot_of_one(one: Tensor, other: Tensor) -> Tensor:
    """Return ``sum_i one_i other_i``, shape (1,), without making the products."""
    if len(one) <= LONG:
        return torch.dot(one, other).view(1)
    begins = range(0, len(one), LONG)
    sums = torch.stack([torch.dot(one[begin : begin + LONG], other[begin : begin + LONG]) for begin in begins])
    return sums.sum(dim=0, keepdim=True, dtype=torch.float64)


def _is_of_last(factor: Tensor, relevance: Tensor) -> bool:
    """Whether a factor has one value for each entry of the last dimension, and relevance has others before it."""
    return factor.dim() == 1 and relevance.dim() > 1 and factor.shape[0] == relevance.shape[-1]


def _order_in_memory(tensor: Tensor) -> list[int]:
    """Return the dimensions behind the first in the order in which they lie in memory: so flattened, none is copied."""
    return [0, *sorted(range(1, tensor.dim()), key=tensor.stride, reverse=True)]


@dataclass(frozen=True)
class _Sums:
    """Entries added up.

    Attributes:
        count: how many entries.
        keys: by whom and as what was absorbed.
        sums: how much, shape (N, keys), float64.
        names: the layers.
        by_layer: how much each of them absorbed, shape (N, layers), float64.
    """

    count: int
    keys: list[tuple[Account, str]]
    sums: Tensor
    names: list[str]
    by_layer: Tensor

    @property
    def entries(self) -> dict[Account, dict[str, Tensor]]:
        """What was absorbed, by account and kind."""
        entries: dict[Account, dict[str, Tensor]] = {}
        for (account, kind), of_key in zip(self.keys, self.sums.unbind(dim=1), strict=True):
            entries.setdefault(account, {})[kind] = of_key
        return entries

    @property
    def layers(self) -> dict[str, Tensor]:
        """What was absorbed, by layer."""
        return dict(zip(self.names, self.by_layer.unbind(dim=1), strict=True))


def _add_up(booked: Sequence[Entry], samples: int) -> _Sums:
    """Add up entries, by a few operations for all of them."""
    keys: dict[tuple[Account, str], int] = {}
    layers: dict[str, int] = {}
    for entry in booked:
        keys.setdefault((entry.account, entry.kind), len(keys))
        layers.setdefault(entry.account.layer, len(layers))
    if not booked:
        nothing = torch.zeros(samples, 0, dtype=torch.float64)
        return _Sums(0, [], nothing, [], nothing)
    weighed = [entry for entry in booked if isinstance(entry.share, Tensor)]
    counted = [entry for entry in booked if not isinstance(entry.share, Tensor)]
    parts = [_by_key(part, keys) for part in (weighed, counted) if part]
    sums = torch.stack(parts).sum(dim=0)
    by_layer = _gathered(sums, [layers[account.layer] for account, _ in keys], len(layers))
    return _Sums(len(booked), [*keys], sums, [*layers], by_layer)


def _by_key(booked: Sequence[Entry], keys: Mapping[tuple[Account, str], int]) -> Tensor:
    """Add up entries whose shares are tensors, all of them, or numbers: shape (N, keys), float64."""
    booked = sorted(booked, key=lambda entry: entry.sums.dtype.itemsize)  # torch.cat is slow for a mixture of types
    values = _side_by_side([entry.sums for entry in booked])
    widths = [entry.sums.shape[1] for entry in booked]
    shares = [entry.share for entry in booked if isinstance(entry.share, Tensor)]
    numbers = [entry.share for entry in booked if not isinstance(entry.share, Tensor)]
    values *= torch.cat(shares) if shares else torch.from_numpy(np.repeat(np.array(numbers), widths)).to(values.device)
    return _gathered(values, np.repeat([keys[entry.account, entry.kind] for entry in booked], widths), len(keys))


def _side_by_side(sums: Sequence[Tensor]) -> Tensor:
    """Return sums, each of shape (N, columns), as one tensor in float64, new."""
    kinds = [[*group] for _, group in groupby(sums, key=lambda each: each.dtype)]
    return torch.cat([torch.cat(group, dim=1).double() for group in kinds], dim=1)


def _gathered(values: Tensor, places: Sequence[int] | NDArray[Any], count: int) -> Tensor:
    """Add up the columns of values, shape (N, columns), that have the same place: shape (N, count)."""
    gathered = values.new_zeros(len(values), count)
    return gathered.scatter_add_(1, torch.as_tensor(places, device=values.device).expand_as(values), values)
