"""The books: which layer absorbed how much of a score, so that ``score = input relevance + absorbed``."""

from collections.abc import Iterable, Mapping
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
        self._added_up: tuple[int, dict[Account, dict[str, Tensor]]] = (0, {})

    @property
    def entries(self) -> Mapping[Account, Mapping[str, Tensor]]:
        """Account -> kind of absorption -> relevance absorbed, shape (N,), float64; top layer first."""
        if self._added_up[0] != len(self.booked):
            self._added_up = len(self.booked), self._add_up()
        return self._added_up[1]

    def _add_up(self) -> dict[Account, dict[str, Tensor]]:
        """Add up each entry, by a few operations for all of them, and the entries of one account and kind."""
        booked = sorted(self.booked, key=lambda entry: not isinstance(entry.share, Tensor))
        values = torch.cat([entry.sums for entry in booked], dim=1).double()
        shares = [entry.share for entry in booked if isinstance(entry.share, Tensor)]
        if shares:
            factors = torch.cat(shares)
            values[:, : len(factors)].mul_(factors)
        widths = torch.tensor([entry.sums.shape[1] for entry in booked])
        entry_of_column = torch.arange(len(booked)).repeat_interleave(widths).to(values.device)
        sums = values.new_zeros(len(booked), self.samples).T.scatter_add_(1, entry_of_column.expand_as(values), values)
        numbers = [1.0 if isinstance(entry.share, Tensor) else entry.share for entry in booked]
        sums *= sums.new_tensor(numbers)
        of_entry = dict(zip(map(id, booked), sums.unbind(dim=1), strict=True))
        added_up: dict[Account, dict[str, Tensor]] = {}
        for entry in self.booked:
            kinds, sums = added_up.setdefault(entry.account, {}), of_entry[id(entry)]
            kinds[entry.kind] = kinds[entry.kind] + sums if entry.kind in kinds else sums
        return added_up

    def book(
        self, account: Account, kind: str, relevance: Tensor, factor: Tensor | None = None, *, times: float = 1
    ) -> None:
        """Add relevance, times a factor that broadcasts if one is given, to what is absorbed on an account."""
        self._enter(account, kind, self._sums(account, relevance, factor), times)

    def book_product(self, account: Account, kind: str, values: Tensor, g: Tensor, factor: float = 1) -> None:
        """Add ``factor values g``, of one shape; nothing has no share of infinity, which is what masks hold."""
        sums = self._sums(account, g, values.expand_as(g))
        if not bool(sums.isfinite().all()):
            sums = self._sums(account, torch.where(g == 0, 0.0, values * g))
        self._enter(account, kind, sums, factor)

    def _sums(self, account: Account, relevance: Tensor, factor: Tensor | None = None) -> Tensor:
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
            flat = relevance.reshape(self.samples, -1), factor.reshape(self.samples, -1)
            product: Tensor = torch.linalg.vecdot(*flat)
            return product.double()
        if factor.dim() == 1 and relevance.dim() > 1 and factor.shape[0] == relevance.shape[-1]:  # (..., C) by (C,)
            sums = relevance.reshape(self.samples, -1, len(factor)).sum(dim=1)
            return sums.double() @ factor.double()
        if factor.dim() < relevance.dim() and factor.shape[1:].numel() == 1:  # one value a channel, (C, 1, ...)
            planes = tuple(range(relevance.dim() - factor.dim() + 1, relevance.dim()))
            relevance = relevance.sum(dim=planes, keepdim=True) if planes else relevance
        return per_sample(relevance * factor, self.samples)

    def absorbed(self) -> Mapping[str, Tensor]:
        """Return layer name -> relevance absorbed, shape (N,), float64, in order of booking (top layer first)."""
        layers: dict[str, Tensor] = {}
        for account, kinds in self.entries.items():
            for sums in kinds.values():
                layers[account.layer] = layers[account.layer] + sums if account.layer in layers else sums
        return layers

    def total(self) -> Tensor:
        """Return the relevance absorbed by all layers together, shape (N,), float64."""
        sums = list(self.absorbed().values())
        return torch.stack(sums).sum(dim=0) if sums else torch.zeros(self.samples, dtype=torch.float64)
