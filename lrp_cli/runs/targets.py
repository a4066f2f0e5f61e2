"""Which scores of each picture to explain: what was asked for, settled by the model's output."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lrp_cli.models import ClassIndex, Contrast, Predicted, Target, Top
from lrp_cli.runs.naming import Score
from lrp_cli.seeds import REST


@dataclass(frozen=True)
class Wanted:
    """The scores of one picture to explain, each once, in the order asked for; and what cannot be, with the reason."""

    scores: tuple[Score, ...]
    problems: tuple[str, ...] = ()


def settle(asked: Sequence[Sequence[Target]], logits: Tensor) -> list[Wanted]:
    """Return which scores to explain for each sample, given what is asked for each; logits have shape (N, classes)."""
    most = max((_count(target) for targets in asked for target in targets), default=1)
    ranked = logits.topk(most, dim=1).indices.tolist()
    return [_settle(targets, best) for targets, best in zip(asked, ranked, strict=True)]


def is_single(asked: Sequence[Sequence[Target]]) -> bool:
    """Whether no more than one score is asked for of any sample."""
    return all(sum(map(_count, targets)) <= 1 for targets in asked)


def _settle(targets: Sequence[Target], best: Sequence[int]) -> Wanted:
    scores: dict[Score, None] = {}
    problems = []
    for target in targets:
        side, versus = (target.target, _versus(target, best)) if isinstance(target, Contrast) else (target, None)
        classes = _classes(side, best)
        apart = [index for index in classes if index != versus]
        scores.update(dict.fromkeys(Score(index, versus) for index in apart))
        if not apart:
            problems.append(f"class {classes[0]} cannot be held against itself")
    return Wanted(tuple(scores), tuple(dict.fromkeys(problems)))


def _count(target: Target) -> int:
    side = target.target if isinstance(target, Contrast) else target
    return side.count if isinstance(side, Top) else 1


def _classes(side: Predicted | Top | ClassIndex, best: Sequence[int]) -> Sequence[int]:
    if isinstance(side, ClassIndex):
        return [side.index]
    return best[: side.count] if isinstance(side, Top) else best[:1]


def _versus(contrast: Contrast, best: Sequence[int]) -> int | str:
    if isinstance(contrast.versus, ClassIndex):
        return contrast.versus.index
    return best[0] if isinstance(contrast.versus, Predicted) else REST
