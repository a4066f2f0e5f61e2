"""What a run says about each picture and target."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """One picture, one target, explained.

    Attributes:
        image: the picture's path, as it was found.
        model, weights, config: what explained it.
        target, label: the explained class: its index and its name.
        score: the explained score (the target's logit).
        probability: softmax probability of the target.
        relevance_sum: the relevance that reached the pixels.
        absorbed_sum: the relevance that did not; ``score = relevance_sum + absorbed_sum``.
        outputs: kind of output -> path.
    """

    image: Path
    model: str
    weights: str
    config: str
    target: int
    label: str
    score: float
    probability: float
    relevance_sum: float
    absorbed_sum: float
    outputs: dict[str, Path]

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        return self.__dict__ | {
            "image": str(self.image),
            "outputs": {kind: str(path) for kind, path in self.outputs.items()},
        }


@dataclass(frozen=True)
class Failure:
    """A picture that could not be explained, and why, in one line."""

    image: Path
    reason: str
