"""Seeds: the relevance that the output starts with.

A target weighs the classes: 1 for the class explained and, in a contrast, less than zero for what it is held against.
The seed turns the weights ``v`` into the modified gradient ``g`` of the logits ``z``, so that class c starts with the
relevance ``z_c g_c``:

=============  ==================================  ==========================================
seed           g_c                                 relevance at the start
=============  ==================================  ==========================================
logit          v_c                                 the logits themselves, weighed
one            v_c / z_c                           v_c, whatever the logit
probability    sum_k v_k dp_k/dz_c (p = softmax)   the logits, by their weight in the probability
=============  ==================================  ==========================================
"""

from collections.abc import Sequence
from operator import index as as_integer
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lrp_cli.errors import UsageError, closest

SeedKind: TypeAlias = Literal["logit", "one", "probability"]
SEED_KINDS: tuple[str, ...] = get_args(SeedKind)

REST = "rest"

Target: TypeAlias = int | Sequence[int] | Tensor | None
"""A class index for all samples, one each (N,), a ready-made seed (N, classes), or None: the predicted class."""

Versus: TypeAlias = int | str | Sequence[int | str | None] | Tensor | None
"""What a target is held against: a class index, "rest" (the mean of all others) or None; one, or one a sample."""


def make_seed(logits: Tensor, target: Target, versus: Versus, kind: str) -> tuple[Tensor | None, Tensor]:
    """Return the explained classes, shape (N,), and the seed, shape (N, classes).

    Args:
        logits: the model's output, shape (N, classes).
        target: what to explain; with a ready-made seed, the classes returned are None.
        versus: what to hold it against; a ready-made seed says that itself.
        kind: one of :data:`SEED_KINDS`; a ready-made seed goes with the first only.

    Raises:
        UsageError: an index is out of range, a shape or a type does not fit, the kind is unknown, or a ready-made seed
            is not finite, or comes with what it would leave without effect.
    """
    if kind not in SEED_KINDS:
        raise UsageError(f"unknown seed {kind!r}: choose from {', '.join(SEED_KINDS)}{closest(kind, SEED_KINDS)}")
    if isinstance(target, Tensor) and target.dim() == 2:
        if target.shape != logits.shape:
            raise UsageError(f"a seed has the shape of the logits, {tuple(logits.shape)}, not {tuple(target.shape)}")
        if versus is not None or kind != "logit":
            raise UsageError("a ready-made seed goes without versus, and without another kind of seed")
        if not bool(target.isfinite().all()):
            raise UsageError("the seed holds values that are not finite")
        return None, target.to(logits)
    indices = _indices(logits, target)
    weights = torch.nn.functional.one_hot(indices, logits.shape[1]).to(logits)
    rivals = _rivals(versus, len(logits))
    if len(rivals) != len(logits):
        raise UsageError(f"{len(rivals)} classes to hold the target against, for {len(logits)} samples")
    if any(rival is not None for rival in rivals):
        for row, (index, rival) in enumerate(zip(indices.tolist(), rivals, strict=True)):
            weights[row] -= _against(rival, index, logits[row])
    return indices, _seed(weights, logits, kind)


def _indices(logits: Tensor, target: Any) -> Tensor:
    samples, classes = logits.shape
    if target is None:
        return logits.argmax(dim=1)
    if isinstance(target, str):
        raise UsageError(f"a target is a class index, not {target!r}; the engine knows no class names")
    indices = torch.as_tensor(target, device=logits.device)
    if indices.is_floating_point() or indices.dtype == torch.bool or indices.dim() > 1:
        raise UsageError("a target is a class index, one a sample, or a seed of shape (N, classes)")
    if indices.dim() == 1 and len(indices) != samples:
        raise UsageError(f"{len(indices)} targets for {samples} samples")
    indices = indices.long().expand(samples)
    if bool(((indices < 0) | (indices >= classes)).any()):
        raise UsageError(f"target out of range: the model has the classes 0 to {classes - 1}")
    return indices


def _rivals(versus: Any, samples: int) -> list[int | str | None]:
    """Return what each sample's target is held against: one for all, or one a sample."""
    is_single = isinstance(versus, str) or not hasattr(versus, "__len__") or getattr(versus, "ndim", 1) == 0
    return [_rival(each) for each in ([versus] * samples if is_single else versus)]


def _rival(given: Any) -> int | str | None:
    if given is None or isinstance(given, str):
        return given
    try:
        if not isinstance(given, bool) and getattr(given, "dtype", None) != torch.bool:
            return as_integer(given)
    except TypeError:
        pass
    raise UsageError(f"a target is held against a class index or {REST!r}, not {given!r}")


def _against(rival: int | str | None, index: int, like: Tensor) -> Tensor:
    """Return the weights, shape (classes,), of what class ``index`` is held against."""
    weights = torch.zeros_like(like)
    if rival is None:
        return weights
    if rival == REST:
        weights += 1 / max(len(like) - 1, 1)
        weights[index] = 0
        return weights
    if isinstance(rival, str) or not 0 <= rival < len(like):
        raise UsageError(f"a target is held against a class from 0 to {len(like) - 1} or {REST!r}, not {rival!r}")
    if rival == index:
        raise UsageError(f"class {index} cannot be held against itself")
    weights[rival] = 1
    return weights


def _seed(weights: Tensor, logits: Tensor, kind: str) -> Tensor:
    if kind == "one":
        if bool(((logits == 0) & (weights != 0)).any()):
            raise UsageError("the seed 'one' needs logits other than zero")
        return torch.where(weights == 0, 0.0, weights / logits)
    if kind == "probability":
        probabilities = logits.softmax(dim=1)
        return probabilities * (weights - (weights * probabilities).sum(dim=1, keepdim=True))
    return weights
