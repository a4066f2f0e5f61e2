"""What a run holds is freed as soon as its results are dropped, without the garbage collector."""

import gc
from collections.abc import Callable, Iterator
from typing import Any
from weakref import ref

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import lrp_cli.engine.propagation
from lrp_cli.engine.run import Run
from lrp_cli.explainer import Explainer


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list["ref[Run]"]]:
    """The runs that were begun, while the garbage collector is off."""
    begun = []

    def begin(*args: Any, **kwargs: Any) -> Run:
        run = Run(*args, **kwargs)
        begun.append(ref(run))
        return run

    monkeypatch.setattr(lrp_cli.engine.propagation, "Run", begin)
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    yield begun
    if was_on:
        gc.enable()


class Residual(nn.Module):
    """Residual sums, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.norm1(self.conv1(x)), inplace=True))
        y += x
        return F.relu_(y)


class Halves(nn.Module):
    """A half of the channels changed in place, and a product with a gate."""

    def forward(self, x: Tensor) -> Tensor:
        x[:, :2].relu_()
        x[:, 2:] *= 2
        return x * torch.sigmoid(x.mean(dim=(2, 3), keepdim=True))


def behind(*modules: nn.Module) -> nn.Sequential:
    """Return a small network with these modules behind its first convolution and batch norm."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        *modules,
        nn.Conv2d(4, 4, 3),
        *modules,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "relu in place": lambda: behind(nn.ReLU(inplace=True)),
    "relu": lambda: behind(nn.ReLU()),
    "relu6 in place": lambda: behind(nn.ReLU6(inplace=True)),
    "silu in place": lambda: behind(nn.SiLU(inplace=True)),
    "gelu": lambda: behind(nn.GELU()),
    "residual sums in place": lambda: behind(Residual()),
    "halves in place": lambda: behind(Halves()),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(weights=None),
    "resnet18": lambda: torchvision.models.resnet18(weights=None),
    "vision transformer": lambda: torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 16),
}

CONFIGS = ("lrp-0", "epsilon-gamma-box")


def used(make: Callable[[], nn.Module], config: str) -> tuple[Explainer, Tensor]:
    """Return an explainer that was used before: what torch sets up once is set up."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        explainer, x = Explainer(make().eval(), config, bounds=(-3, 3)), torch.randn(2, 3, 32, 32).clamp(-3, 3)
    explainer.explain(x)
    return explainer, x


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_a_run_is_freed_with_its_results(runs: list["ref[Run]"], make: Callable[[], nn.Module], config: str) -> None:
    explainer, x = used(make, config)
    forward = explainer.forward(x)
    assert runs[-1]() is not None
    del forward
    assert runs[-1]() is None
    forward = explainer.forward(x)
    explanations = [forward.explain(1), forward.explain(2)]
    del forward, explanations
    assert runs[-1]() is None
    explanation = explainer.explain(x)
    assert explanation.relevance.shape == x.shape
    del explanation
    assert [run() for run in runs] == [None] * len(runs)


def test_an_explainer_is_freed_with_what_it_derived_of_weights(runs: list["ref[Run]"]) -> None:
    explainer, x = used(NETWORKS["relu"], "epsilon-gamma-box")
    explainer.explain(x)
    model, cache = explainer.model, ref(explainer._cache)
    assert explainer._cache.used_bytes > 0
    del explainer
    assert cache() is None
    assert next(model.parameters()) is not None
