"""The books: which layer absorbed how much of a score, so that ``score = input relevance + absorbed``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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


class _Open(NamedTuple):
    """What is entered once somebody looks into the books: ``sum_c sums_c share_c``, sums of shape (N, channels)."""

    account: Account
    kind: str
    sums: Tensor
    share: Tensor | float

    def factors(self) -> Tensor:
        """Return one factor a channel, shape (channels,); numbers in float64."""
        if isinstance(self.share, Tensor):
            return self.share
        return self.sums.new_full(self.sums.shape[1:], self.share, dtype=torch.float64)


@dataclass
class Books:
    """What every layer absorbed in one backward pass.

    Attributes:
        samples: N, the number of samples in the batch.
    """

    samples: int
    _entries: dict[Account, dict[str, Tensor]] = field(default_factory=dict)
    _open: list[_Open] = field(default_factory=list)
    _absorbed: dict[str, Tensor] | None = None

    @property
    def entries(self) -> Mapping[Account, Mapping[str, Tensor]]:
        """Account -> kind of absorption -> relevance absorbed, shape (N,), float64; top layer first."""
        if self._open:  # all at once: a few operations instead of a few for every layer
            sums = torch.cat([item.sums for item in self._open], dim=1).double()
            shares = sums.mul_(torch.cat([item.factors() for item in self._open]).double())
            of_each = torch.split(shares, [item.sums.shape[1] for item in self._open], dim=1)
            for item, share in zip(self._open, of_each, strict=True):
                self._enter(item.account, item.kind, share.sum(dim=1))
            self._open = []
        return self._entries

    def book(self, account: Account, kind: str, relevance: Tensor, factor: Tensor | None = None) -> None:
        """Add relevance, times a factor that broadcasts if one is given, to what is absorbed on an account."""
        self._enter(account, kind, self._sums(account, relevance, factor))

    def book_product(self, account: Account, kind: str, values: Tensor, g: Tensor, factor: float = 1) -> None:
        """Add ``factor values g``, of one shape; nothing has no share of infinity, which is what masks hold."""
        sums = self._sums(account, g, values.expand_as(g))
        if not bool(sums.isfinite().all()):
            sums = self._sums(account, torch.where(g == 0, 0.0, values * g))
        self._enter(account, kind, sums * factor)

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
        self._entries.setdefault(account, {})
        self._absorbed = None
        self._open += [_Open(account, kind, sums, share) for kind, share in shares.items()]

    def _enter(self, account: Account, kind: str, sums: Tensor) -> None:
        kinds = self._entries.setdefault(account, {})
        kinds[kind] = kinds[kind] + sums if kind in kinds else sums
        self._absorbed = None

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
        entries = self.entries
        if self._absorbed is None:
            layers: dict[str, Tensor] = {}
            for account, kinds in entries.items():
                for sums in kinds.values():
                    layers[account.layer] = layers[account.layer] + sums if account.layer in layers else sums
            self._absorbed = layers
        return self._absorbed

    def total(self) -> Tensor:
        """Return the relevance absorbed by all layers together, shape (N,), float64."""
        sums = list(self.absorbed().values())
        return torch.stack(sums).sum(dim=0) if sums else torch.zeros(self.samples, dtype=torch.float64)
