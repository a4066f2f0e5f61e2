"""Operands that are given by name: the same relevance as where they stand in their places."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrp_cli.explainer import Explainer

MATRIX = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
BATCH = MATRIX.expand(2, 6, 6)
Step = Callable[[Tensor, Tensor], Tensor]

STEPS: dict[str, tuple[Step, Step]] = {
    "gelu": (lambda a, b: F.gelu(input=a), lambda a, b: F.gelu(a)),
    "relu": (lambda a, b: torch.relu(input=a), lambda a, b: torch.relu(a)),
    "gate": (lambda a, b: torch.mul(a, other=torch.sigmoid(input=b)), lambda a, b: a * torch.sigmoid(b)),
    "gate by name": (lambda a, b: torch.mul(other=a, input=b.sigmoid()), lambda a, b: b.sigmoid() * a),
    "method": (lambda a, b: a.mul(other=b), lambda a, b: a * b),
    "sum": (lambda a, b: torch.add(a, other=b, alpha=2), lambda a, b: torch.add(a, b, alpha=2)),
    "difference": (lambda a, b: torch.sub(input=a, other=b), lambda a, b: a - b),
    "quotient": (lambda a, b: torch.div(a, other=1 + b.exp()), lambda a, b: a / (1 + b.exp())),
    "number": (lambda a, b: torch.div(input=a, other=2), lambda a, b: a / 2),
    "power": (lambda a, b: torch.pow(a, exponent=2), lambda a, b: torch.pow(a, 2)),
    "matmul": (lambda a, b: torch.matmul(a, other=MATRIX), lambda a, b: a @ MATRIX),
    "mm": (lambda a, b: torch.mm(input=a, mat2=MATRIX), lambda a, b: torch.mm(a, MATRIX)),
    "addmm": (lambda a, b: torch.addmm(a, mat1=b, mat2=MATRIX), lambda a, b: torch.addmm(a, b, MATRIX)),
    "bmm": (
        lambda a, b: torch.bmm(a[:, None], mat2=BATCH)[:, 0],
        lambda a, b: torch.bmm(a[:, None], BATCH)[:, 0],
    ),
    "where": (lambda a, b: torch.where(b > 0, input=a, other=b), lambda a, b: torch.where(b > 0, a, b)),
    "all of where": (
        lambda a, b: torch.where(condition=b > 0, input=a, other=b),
        lambda a, b: torch.where(b > 0, a, b),
    ),
    "method where": (
        lambda a, b: a.where(condition=b > 0, other=b),
        lambda a, b: torch.where(b > 0, a, b),
    ),
    "in place": (lambda a, b: F.relu(input=a + b, inplace=True), lambda a, b: F.relu(a + b)),
}


class Network(nn.Module):
    """Two layers, whose outputs of shape (N, 6) go through a step."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 3)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 3) of inputs (N, 5)."""
        return self.head(self.step(self.one(x), self.two(x)))


@pytest.mark.parametrize("preset", ["epsilon", "epsilon-plus", "attnlrp"])
@pytest.mark.parametrize("name", STEPS)
def test_named_operands_are_operands(name: str, preset: str) -> None:
    x = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    named, placed = (Explainer(Network(step).double().eval(), preset).explain(x, 1).relevance for step in STEPS[name])
    assert placed.abs().sum() > 0
    torch.testing.assert_close(named, placed)
