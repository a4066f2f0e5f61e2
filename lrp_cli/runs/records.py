"""What a run says about each picture and target."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

from lrp_cli.runs.files import FileInfo


@dataclass(frozen=True)
class Record:
    """One picture, one target, explained.

    Attributes:
        image: the picture's path, as it was found.
        model, weights, config: what explained it.
        target, label: the explained class: its index and its name.
        versus: what the class is held against: the index of another, "rest" for all others, or None.
        seed: what the relevance starts with: "logit", "one" or "probability".
        score: the explained score, which is the relevance that the output starts with: with the seed "logit" the
            target's logit, or of a contrast the difference.
        logit: the target's logit, whatever the seed and what the target is held against.
        probability: softmax probability of the target.
        relevance_sum: the relevance that reached the pixels.
        absorbed_sum: the relevance that did not; ``score = relevance_sum + absorbed_sum``.
        outputs: kind of output -> path.
        files: kind of output -> what was written; empty until it is.
        seconds: the time that the network and its explanation took, shared among the pictures of a batch.
    """

    image: Path
    model: str
    weights: str
    config: str
    target: int
    label: str
    versus: int | str | None
    seed: str
    score: float
    logit: float
    probability: float
    relevance_sum: float
    absorbed_sum: float
    outputs: dict[str, Path]
    files: dict[str, FileInfo] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data, as ``--json`` prints it."""
        values = {name: getattr(self, name) for name in REPORTED}
        outputs = {kind: str(path) for kind, path in self.outputs.items()}
        return values | {"image": str(self.image), "outputs": outputs}


REPORTED = tuple(part.name for part in fields(Record) if part.name not in {"files", "seconds"})
"""The fields that ``--json`` prints, in this order."""


@dataclass(frozen=True)
class Failure:
    """A picture, or one of its targets, that could not be explained, and why, in one line."""

    image: Path
    reason: str


@dataclass(frozen=True)
class Skipped:
    """A picture that an earlier run explained, with the same settings and intact outputs; its records as JSON."""

    image: Path
    records: tuple[dict[str, Any], ...]


Outcome: TypeAlias = Record | Failure | Skipped
