"""The books: which layer absorbed how much of a score, so that ``score = input relevance + absorbed``."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lrp_cli.engine.linear_maps import LinearMap

BIAS, EPSILON, CONSTANT = "bias", "epsilon", "constant"
NORMALISATION, UNKNOWN = "normalisation", "unknown operation"
"""What absorbs: a bias; a stabiliser, or a rule with nowhere to send relevance; a constant; a softmax's offset; the
gradient of an operation that no rule is known for."""


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
        self._enter(account, kind, self._summed(account, relevance, factor), times)

    def book_product(self, account: Account, kind: str, values: Tensor, g: Tensor, factor: float = 1) -> None:
        """Add ``factor values g``, of one shape; nothing has no share of infinity, which is what masks hold."""
        sums = self._summed(account, g, values.expand_as(g))
        if bool(sums.isnan().any()):  # 0 times infinity
            sums = self._summed(account, torch.where(g == 0, 0.0, values * g))
        self._enter(account, kind, sums, factor)

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

    def _enter(self, account: Account, kind: str, sums: Tensor, times: float = 1) -> None:
        self.booked.append(Entry(account, kind, sums[:, None], times))

    def _dot(self, relevance: Tensor, factor: Tensor) -> Tensor:
        """Sum ``relevance * factor`` over everything but the batch, without making the product where it is large."""
        if factor.shape == relevance.shape:
            order = _order_in_memory(relevance)
            flat = [tensor.permute(order).reshape(self.samples, -1) for tensor in (relevance, factor)]
            product: Tensor = torch.linalg.vecdot(*flat)
            return product.double()
        if factor.dim() == 1 and relevance.dim() > 1 and factor.shape[0] == relevance.shape[-1]:  # (..., C) by (C,)
            sums = relevance.reshape(self.samples, -1, len(factor)).sum(dim=1)
            return sums.double() @ factor.double()
        if factor.dim() < relevance.dim() and factor.shape[1:].numel() == 1:  # one value a channel, (C, 1, ...)
            planes = tuple(range(relevance.dim() - factor.dim() + 1, relevance.dim()))
            relevance = relevance.sum(dim=planes, keepdim=True) if planes else relevance
        return per_sample(relevance * factor, self.samples)


def _order_in_memory(tensor: Tensor) -> list[int]:
    """Return the dimensions behind the first in the order in which they lie in memory: so flattened, none is copied."""
    return [0, *sorted(range(1, tensor.dim()), key=tensor.stride, reverse=True)]


@dataclass(frozen=True)
class _Sums:
    """Entries added up.

    Attributes:
        count: how many entries.
        entries, layers: what was absorbed, by account and kind, and by layer.
        by_layer: the same as ``layers``, shape (N, layers).
    """

    count: int
    entries: dict[Account, dict[str, Tensor]]
    layers: dict[str, Tensor]
    by_layer: Tensor


def _add_up(booked: Sequence[Entry], samples: int) -> _Sums:
    """Add up entries, by a few operations for all of them."""
    if not booked:
        return _Sums(0, {}, {}, torch.zeros(samples, 0, dtype=torch.float64))
    keys: dict[tuple[Account, str], int] = {}
    layers: dict[str, int] = {}
    for entry in booked:
        keys.setdefault((entry.account, entry.kind), len(keys))
        layers.setdefault(entry.account.layer, len(layers))
    in_parts = sorted(booked, key=lambda entry: not isinstance(entry.share, Tensor))
    values = torch.cat([entry.sums for entry in in_parts], dim=1).double()
    shares = [entry.share for entry in in_parts if isinstance(entry.share, Tensor)]
    if shares:
        factors = torch.cat(shares)
        values[:, : len(factors)].mul_(factors)
    widths = torch.tensor([entry.sums.shape[1] for entry in in_parts])
    numbers = [1.0 if isinstance(entry.share, Tensor) else entry.share for entry in in_parts]
    values *= torch.tensor(numbers, dtype=torch.float64).repeat_interleave(widths).to(values.device)
    key_of_column = torch.tensor([keys[entry.account, entry.kind] for entry in in_parts]).repeat_interleave(widths)
    sums = _gathered(values, key_of_column, len(keys))
    by_layer = _gathered(sums, torch.tensor([layers[account.layer] for account, _ in keys]), len(layers))
    entries: dict[Account, dict[str, Tensor]] = {}
    for (account, kind), of_key in zip(keys, sums.unbind(dim=1), strict=True):
        entries.setdefault(account, {})[kind] = of_key
    return _Sums(len(booked), entries, dict(zip(layers, by_layer.unbind(dim=1), strict=True)), by_layer)


def _gathered(values: Tensor, places: Tensor, count: int) -> Tensor:
    """Add up the columns of values, shape (N, columns), that have the same place: shape (N, count)."""
    gathered = values.new_zeros(len(values), count)
    return gathered.scatter_add_(1, places.to(values.device).expand_as(values), values)
