"""Max pooling hands on what autograd's own does, without holding its input."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_rules import Only
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from lrp_cli.engine.propagation import Propagation
from lrp_cli.engine.rules import LRP0

POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "by default": lambda x: F.max_pool2d(x, 2),
    "overlapping": lambda x: F.max_pool2d(x, 3, 1),
    "padded": lambda x: F.max_pool2d(x, (3, 2), stride=(2, 1), padding=(1, 0)),
    "dilated": lambda x: F.max_pool2d(x, kernel_size=2, stride=2, dilation=2),
    "beyond the end": lambda x: F.max_pool2d(x, 2, None, 0, 1, True),
    "not beyond the end": lambda x: F.max_pool2d(x, 2, stride=3, ceil_mode=False),
    "with places": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "by torch": lambda x: torch.max_pool2d(x, [2], [2]),
    "a module": nn.MaxPool2d(3, 2, 1),
    "channels last": lambda x: F.max_pool2d(x.contiguous(memory_format=torch.channels_last), 2),
    "transposed": lambda x: F.max_pool2d(x.mT, (2, 3)),
    "a single picture at a time": lambda x: torch.stack([F.max_pool2d(one, 3, 2) for one in x]),
    "sizes of numpy's": lambda x: F.max_pool2d(x, np.int64(2), stride=np.int64(1)),
    "sizes in tensors": lambda x: F.max_pool2d(x, torch.tensor(2)),
    "ties": lambda x: F.max_pool2d(x.repeat_interleave(2, dim=2), 3, 1),
}


class Pooled(nn.Module):
    """A pooling between convolutions without biases."""

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(2, 3, 3, bias=False), nn.Conv2d(3, 4, 2, bias=False)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.pool(self.before(x))).flatten(1)


def model_and_input(pool: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Pooled(pool).double().eval(), torch.randn(2, 2, 12, 11).double()


@pytest.mark.parametrize("pool", POOLINGS.values(), ids=POOLINGS.keys())
def test_the_winner_takes_all(pool: Callable[[Tensor], Tensor]) -> None:
    """Where all else is linear, relevance is gradient times input."""
    model, x = model_and_input(pool)
    x.requires_grad_()
    propagation = Propagation(model, x, Only(LRP0()))
    y = model(x)
    for seed in (torch.ones_like(y), torch.randn_like(y)):
        (gradient,) = torch.autograd.grad((y * seed).sum(), x, retain_graph=True)
        assert torch.equal(propagation.propagate(seed).relevance, (x * gradient).detach())


@pytest.mark.parametrize("pool", [POOLINGS["by default"], POOLINGS["padded"]])
def test_the_input_is_let_go(pool: Callable[[Tensor], Tensor]) -> None:
    entered: list[StorageWeakRef] = []

    def noted(x: Tensor) -> Tensor:
        x = x * 1.0
        entered.append(StorageWeakRef(x.untyped_storage()))
        return pool(x)

    model, x = model_and_input(noted)
    propagation = Propagation(model, x, Only(LRP0()))
    assert entered[0].expired()
    assert propagation.logits.isfinite().all()
