"""Inputs that are known not to be negative: what is known of a tensor is true, however it came about."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_rules import Only, seeded, signed
from torch import Tensor, nn

from lrp_cli.engine.propagation import Propagation
from lrp_cli.engine.rules import AlphaBeta, Gamma, Rule, ZPlus

RULES: dict[str, Rule] = {
    "z+": ZPlus(1e-3),
    "alpha 2 beta 1": AlphaBeta(2, 1, 1e-3),
    "gamma 0.25": Gamma(0.25, 1e-3),
    "gamma 3, no bias": Gamma(3.0, 1e-3, use_bias=False),
}

Step = Callable[[Tensor], Tensor]


def sibling_negated(x: Tensor) -> Tensor:
    a = F.relu(x)
    b, c = a[:, :2], a[:, 2:]
    c.neg_()
    return torch.cat([b, c], dim=1)


def overlapping_sibling_negated(x: Tensor) -> Tensor:
    a = F.relu(x)
    b, c = a[:, :3], a[:, 2:]
    c.neg_()
    return torch.cat([b, a[:, 3:]], dim=1)


def sibling_of_a_sum_negated(x: Tensor) -> Tensor:
    a = F.relu(x) + F.relu(-x)
    b, c = a[:, :3], a[:, 2:]
    c.neg_()
    return torch.cat([b, c[:, 1:]], dim=1)


def whole_negated(x: Tensor) -> Tensor:
    a = F.relu(x) + F.relu(x)
    b = a.flatten(2)
    a.neg_()
    return b.view_as(a)


def shifted_in_place(x: Tensor) -> Tensor:
    a = F.relu(x)
    b = a.view(a.shape)
    a.sub_(0.5)
    return b


def constant_written(x: Tensor) -> Tensor:
    a = F.relu(x)
    b = a.view(a.shape)
    a[:, 1] = -1.0
    return b


def signed_written(x: Tensor) -> Tensor:
    a = F.relu(x)
    b = a[:, :2]
    b[:, 1] = x[:, 0]
    return a


def signed_written_into_a_sum(x: Tensor) -> Tensor:
    a = F.relu(x) + F.relu(-x)
    b = a[:, 1:]
    a[:, 1] = x[:, 0]
    return torch.cat([a[:, :1], b], dim=1)


def copied_over(x: Tensor) -> Tensor:
    a = F.relu(x)
    b = a.view(a.shape)
    a.copy_(x)
    return b


def multiplied_in_place(x: Tensor) -> Tensor:
    a = F.relu(x)
    a.mul_(-1)
    return a


def signed_added_in_place(x: Tensor) -> Tensor:
    a = F.relu(x)
    a += x
    return a


def signed_multiplied_in_place(x: Tensor) -> Tensor:
    a = F.relu(x)
    a *= x
    return a


def negated_by_alpha(x: Tensor) -> Tensor:
    return torch.add(F.relu(x), F.relu(x), alpha=-2)


def rectified_then_read_before(x: Tensor) -> Tensor:
    y = x + 0.1
    kept = y * 1.0
    y.relu_()
    return y + kept


def constant_of_parts(x: Tensor) -> Tensor:
    return torch.cat([F.relu(x[:, :2]), -torch.ones_like(x[:, :2])], dim=1)


STEPS: dict[str, Step] = {
    **{
        step.__name__: step
        for step in (
            sibling_negated,
            overlapping_sibling_negated,
            sibling_of_a_sum_negated,
            whole_negated,
            shifted_in_place,
            constant_written,
            signed_written,
            signed_written_into_a_sum,
            copied_over,
            multiplied_in_place,
            signed_added_in_place,
            signed_multiplied_in_place,
            negated_by_alpha,
            rectified_then_read_before,
            constant_of_parts,
        )
    },
    "relu": F.relu,
    "cat": lambda x: torch.cat([F.relu(x[:, :2]), x[:, 2:]], dim=1),
    "cat of two that are not negative": lambda x: torch.cat([F.relu(x[:, :2]), x[:, 2:].abs()], dim=1),
    "stack": lambda x: torch.stack([F.relu(x), x], dim=2).flatten(1, 2)[:, 1:5],
    "sum": lambda x: F.relu(x) + x,
    "sum of two that are not negative": lambda x: F.relu(x) + F.relu(-x),
    "product": lambda x: F.relu(x) * x,
    "product with a gate": lambda x: F.relu(x) * torch.sigmoid(x),
    "product with a tanh": lambda x: F.relu(x) * torch.tanh(x),
    "product with a constant": lambda x: F.relu(x) * torch.tensor([1.0, -1, 2, -2])[:, None, None].to(x),
    "negative number added": lambda x: F.relu(x) + -0.5,
    "negative number added from the left": lambda x: -0.5 + F.relu(x),
    "negative tensor added": lambda x: F.relu(x) + torch.full_like(x, -0.5),
    "number subtracted": lambda x: F.relu(x) - 1,
    "subtracted from a number": lambda x: 0.5 - F.relu(x),
    "difference": lambda x: F.relu(x) - F.relu(-x),
    "negated": lambda x: -F.relu(x),
    "divided": lambda x: F.relu(x) / -2,
    "padded with a negative number": lambda x: F.pad(F.relu(x), (0, 1), value=-1.0)[..., 1:],
    "max pooling, padded": lambda x: F.max_pool2d(F.relu(x), 3, stride=1, padding=1),
    "max pooling of any sign": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "average pooling": lambda x: F.avg_pool2d(F.relu(x), 3, stride=1, padding=1),
    "average pooling of any sign": lambda x: F.avg_pool2d(x, 3, stride=1, padding=1),
    "bicubic interpolation": lambda x: F.interpolate(F.relu(x), scale_factor=2, mode="bicubic")[..., 1:5, 1:5],
    "unfold": lambda x: F.unfold(F.relu(x), 3, padding=1)[:, ::9].reshape(x.shape),
    "windows": lambda x: F.relu(x).unfold(3, 2, 1)[..., 1].repeat(1, 1, 1, 2)[..., :4],
    "dropout": lambda x: F.dropout(F.relu(x), 0.5, training=False),
    "dropout of any sign": lambda x: F.dropout(x, 0.5, training=False),
    "clamp": lambda x: x.clamp(min=0),
    "clamp from below zero": lambda x: x.clamp(min=-0.5),
    "hardtanh": lambda x: F.hardtanh(x, -1, 1),
    "hardtanh from zero": lambda x: F.hardtanh(x, 0, 1),
    "hardtanh by name": lambda x: F.hardtanh(x, min_val=-0.5, max_val=2.0),
    "leaky": lambda x: F.leaky_relu(F.relu(x) - 0.2, 0.3),
    "silu": F.silu,
    "square": lambda x: x.square(),
    "cube": lambda x: x.pow(3),
    "mean": lambda x: F.relu(x).mean(dim=1, keepdim=True).expand(-1, 4, -1, -1),
    "view": lambda x: F.relu(x).transpose(2, 3).flip(1),
    "where": lambda x: torch.where(x.detach() > 0, F.relu(x), x),
}


class Between(nn.Module):
    """A convolution, what is made of its output, and a wide layer, whose rule may know the signs of its input."""

    def __init__(self, step: Step, hide: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3)
        self.step, self.hide = step, hide
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.step(self.first(x))
        y = y * 1.0 if self.hide else y
        return self.head(F.relu(self.second(y)).flatten(1))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_knowing_the_signs_of_an_input_makes_no_difference(step: Step, rule: Rule) -> None:
    x, seed = signed(2, 3, 4, 4), signed(2, 3, seed=1)
    known, hidden = (
        Propagation(seeded(lambda hide=hide: Between(step, hide)), x, Only(rule)).propagate(seed, keep=False)
        for hide in (False, True)
    )
    size = hidden.relevance.abs().max().item()
    torch.testing.assert_close(known.relevance, hidden.relevance, rtol=1e-9, atol=1e-11 * size)
    torch.testing.assert_close(known.books.total(), hidden.books.total(), rtol=1e-9, atol=1e-9 * size)
