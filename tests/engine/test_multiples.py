"""Products of matrices, one of which is a multiple of a part of a layer's output: the part is kept, not the multiple.

The reference multiplies by a tensor, which is kept as it comes; nobody writes into what is kept there.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrp_cli.engine import library
from lrp_cli.explainer import Explainer
from tests.engine.test_lifetimes import Alive

Scale = Callable[[Tensor], Tensor]
Write = Callable[[Tensor, Tensor, Tensor], object]
SCALE = 0.7


class Attention(nn.Module):
    """Attention with scaled queries, keys, or both, and something that is done to them before they are multiplied.

    ``write`` is given the layer's output (N, L, 36), the queries (N, 2, L, 6), a part of it, and the scaled queries.
    """

    def __init__(self, scale: Scale, write: Write | None, in_turn: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.qkv, self.leave = nn.Linear(4, 12), nn.Linear(12, 36), nn.Linear(60, 5)
        self.scale, self.write, self.in_turn = scale, write, in_turn

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 5) of tokens (N, 5, 4)."""
        y = self.qkv(self.enter(x).relu())
        q, k, v = y.view(*x.shape[:2], 3, 2, 6).permute(2, 0, 3, 1, 4)
        scaled = self.scale(q)
        if self.write is not None:
            self.write(y, q, scaled)
        if self.in_turn:
            k = self.scale(k)
        attended = (scaled @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.leave((attended + scaled).transpose(1, 2).flatten(1))


def network(scale: Scale, write: Write | None = None, *, in_turn: bool = False) -> nn.Module:
    return Attention(scale, write, in_turn).double().eval().requires_grad_(False)


def x() -> Tensor:
    return torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


SCALES: dict[str, tuple[Scale, Scale]] = {
    "times": (lambda t: t * SCALE, lambda t: t * t.new_tensor(SCALE)),
    "from the left": (lambda t: SCALE * t, lambda t: t.new_tensor(SCALE) * t),
    "torch.mul": (lambda t: torch.mul(t, SCALE), lambda t: torch.mul(t, t.new_tensor(SCALE))),
    "an integer": (lambda t: t * 2, lambda t: t * t.new_tensor(2.0)),
    "divided": (lambda t: t / 1.7, lambda t: t / t.new_tensor(1.7)),
    "twice": (lambda t: t * SCALE * 0.3, lambda t: t * t.new_tensor(SCALE) * t.new_tensor(0.3)),
    "nothing left": (lambda t: t * 0.0, lambda t: t * t.new_tensor(0.0)),
}
WRITES: dict[str, Write] = {
    "the multiple, whole": lambda _, __, scaled: scaled.mul_(3),
    "the multiple, to something else": lambda _, __, scaled: scaled.add_(1.5),
    "a part of the multiple": lambda _, __, scaled: scaled[..., :2].mul_(-2),
    "entries of the multiple": lambda _, __, scaled: scaled.__setitem__((..., 1), 0.25),
    "what it is a multiple of": lambda _, q, __: q.mul_(5),
    "a part of that": lambda _, q, __: q[..., 3:].neg_(),
    "the layer's output": lambda y, _, __: y.mul_(2),
    "the layer's output, anew": lambda y, _, __: y.__setitem__((..., 0), 1.0),
}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "AFTER", 1)


def assert_like(net: nn.Module, reference: nn.Module, config: str = "attnlrp") -> None:
    """The first four explanations, of which a program makes the last, are those of the reference's first one."""
    expected = Explainer(reference, config).explain(x(), 2)
    explainer = Explainer(net, config)
    for _ in range(4):
        found = explainer.explain(x(), 2)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.relevance, expected.relevance, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.absorbed_sum, expected.absorbed_sum, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("in_turn", [False, True], ids=["queries", "queries and keys"])
@pytest.mark.parametrize("config", ["attnlrp", "attnlrp-gamma", "lrp-0"])
@pytest.mark.parametrize("how", SCALES)
def test_multiples(how: str, config: str, in_turn: bool) -> None:
    number, tensor = SCALES[how]
    assert_like(network(number, in_turn=in_turn), network(tensor, in_turn=in_turn), config)


@pytest.mark.parametrize("what", WRITES)
def test_written_into(what: str) -> None:
    number, tensor = SCALES["times"]
    assert_like(network(number, WRITES[what]), network(tensor, WRITES[what]))


@pytest.mark.parametrize("what", [what for what in WRITES if "the multiple" in what])
def test_what_is_written_into_the_multiple_matters(what: str) -> None:
    number, _ = SCALES["times"]
    found, other = (Explainer(network(number, write), "attnlrp").explain(x(), 2) for write in (None, WRITES[what]))
    assert not torch.allclose(found.relevance, other.relevance, rtol=1e-3)


@pytest.mark.parametrize("how", ["times", "from the left", "torch.mul", "an integer", "divided", "twice"])
def test_multiples_are_not_kept(how: str) -> None:
    """By the reference they are: as large as a third of the layer's output, both of them."""
    number, tensor = SCALES[how]
    assert held_by(network(tensor)) - held_by(network(number)) == 2 * 5 * 12 * x().element_size()


BEHIND: dict[str, Scale] = {
    "a product": lambda y: y * 2,
    "an activation": F.gelu,
    "a norm": lambda y: F.layer_norm(y, (36,)),
    "a sum": lambda y: y + y.flip(1),
}


class Similarities(nn.Module):
    """Scaled queries times keys, both of them parts of something behind a layer, of which there is a third part."""

    def __init__(self, scale: Scale, behind: Scale) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Linear(4, 36), nn.Linear(25, 5)
        self.scale, self.behind = scale, behind

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 5) of tokens (N, 5, 4)."""
        q, k, _ = self.behind(self.enter(x)).chunk(3, dim=-1)
        return self.leave((self.scale(q) @ self.scale(k).mT).flatten(1))


@pytest.mark.parametrize("behind", BEHIND)
def test_what_would_be_let_go_of_is_not_kept_for_its_multiples(behind: str) -> None:
    nets = [Similarities(scale, BEHIND[behind]).double().eval().requires_grad_(False) for scale in SCALES["times"]]
    found, expected = map(held_by, nets)
    assert found <= expected


def held_by(net: nn.Module) -> int:
    """Return how much memory tensors take between a forward pass and what follows, in bytes."""
    explainer, tokens = Explainer(net, "attnlrp"), x()
    with Alive() as alive:
        forward = explainer.forward(tokens)
        held = alive.held
    assert forward.logits.shape == (2, 5)
    return held
