"""What happens to the relevance, operation by operation."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lrp_cli.engine.operations.registry import CONVENTIONS
from lrp_cli.engine.trace import Operation, Trace
from lrp_cli.explainer import Explainer, Explanation
from lrp_cli.seeds import Target


@dataclass(frozen=True)
class Row:
    """One operation, as the first sample of the batch saw it.

    Attributes:
        number: place in the order of execution.
        layer: dotted name of the module, or of the layer where a module holds several.
        operation: name of the torch function.
        rule: how it hands on relevance.
        reason: why: the entry of the config that chose the rule, or what the operation is.
        shape: shape of the output.
        relevance_in: relevance that arrives at the output.
        absorbed: kind -> relevance absorbed.
        relevance_out: relevance handed to the inputs.
    """

    number: int
    layer: str
    operation: str
    rule: str
    reason: str
    shape: tuple[int, ...]
    relevance_in: float
    absorbed: dict[str, float]
    relevance_out: float

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON data."""
        return self.__dict__ | {"shape": list(self.shape)}


@dataclass(frozen=True)
class Inspection:
    """An explanation with its operations."""

    explanation: Explanation
    rows: list[Row]

    @property
    def books_error(self) -> float:
        """How far the books are out of balance, in proportion to the score."""
        explanation = self.explanation
        return abs(explanation.imbalance[0].item() / (explanation.scores[0].item() or 1.0))

    @property
    def amplification(self) -> float:
        """Sum of the absolute relevance of the input, in proportion to the score."""
        explanation = self.explanation
        return abs(explanation.relevance.double().abs().sum().item() / (explanation.scores[0].item() or 1.0))


def inspect(explainer: Explainer, x: Tensor, target: Target = None) -> Inspection:
    """Explain one sample and record what every operation does with the relevance.

    Args:
        explainer: the explainer.
        x: one sample, shape (1, ...).
        target: which score to explain.

    Raises:
        LrpError: as :meth:`Explainer.explain` does.
    """
    trace = Trace()
    explanation = explainer.forward(x, trace=trace).explain(target, keep=False)
    count = sum(layer.kind != "batch_norm" for operation in trace.operations for layer in operation.layers)
    return Inspection(explanation, [_row(explainer, trace, operation, count) for operation in trace.operations])


def _row(explainer: Explainer, trace: Trace, operation: Operation, count: int) -> Row:
    rules = [explainer.assignment.explain(layer, count) for layer in operation.layers]
    if operation.merged_into is not None and not operation.relevance_in.any():
        merged = trace.operations[operation.merged_into].layers
        rule, reason = "merged", f"part of {merged[0].name}" if merged else "part of the layer before"
    elif rules:
        rule, reason = ("; ".join(dict.fromkeys(words)) for words in zip(*rules, strict=True))
    else:
        rule, reason = _convention(explainer, operation)
    return Row(
        number=operation.number,
        layer=operation.layers[0].name if len(operation.layers) == 1 else operation.module,
        operation=operation.name,
        rule=rule,
        reason=reason,
        shape=operation.shape,
        relevance_in=operation.relevance_in[0].item(),
        absorbed={kind: sums[0].item() for kind, sums in operation.absorbed.items()},
        relevance_out=operation.relevance_out[0].item(),
    )


def _convention(explainer: Explainer, operation: Operation) -> tuple[str, str]:
    if operation.name in {"scaled_dot_product_attention", "multi_head_attention_forward"}:
        return explainer.config.ruleset.attention, "attention of the config"
    if operation.name in CONVENTIONS:
        return CONVENTIONS[operation.name], operation.name
    return "gradient", "found to be linear here, or on_unknown"


def notable(rows: list[Row]) -> Iterator[Row]:
    """Yield the rows that say something: layers, and what absorbs relevance or changes its amount."""
    for row in rows:
        absorbs = any(abs(value) > 0 for value in row.absorbed.values())
        if absorbs or row.rule not in {"linear", "merged", "in proportion", "winner takes all"}:
            yield row
