"""The embedded model on the sample pictures: what a person sees first."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lrp_cli import Explainer
from lrp_cli.images import decode
from lrp_cli.models import load_model
from lrp_cli.rulesets import NamedRuleset, presets

SAMPLES = Path(__file__).resolve().parents[1] / "sample_images"


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model()


@pytest.fixture(scope="module")
def pictures(model: Any) -> torch.Tensor:
    views = [model.preprocessing.view(decode(SAMPLES / name)) for name in ("cat.jpg", "coffee.png")]
    return torch.stack([model.preprocessing.tensor(view) for view in views])


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_books_balance_in_single_precision(model: Any, pictures: torch.Tensor, preset: NamedRuleset) -> None:
    explanation = Explainer(model.network, preset, bounds=model.preprocessing.bounds).explain(pictures)
    assert explanation.relevance.dtype == torch.float32
    assert explanation.relevance.isfinite().all()
    assert (explanation.imbalance.abs() <= 1e-3 * explanation.scores.abs()).all()
    assert explanation.relevance.abs().amax() > 0


def test_relevance_of_the_cat_lies_on_its_eyes_and_nose(model: Any, pictures: torch.Tensor) -> None:
    """More than half of it, in three boxes with less than a quarter of the pixels."""
    explanation = Explainer(model.network, bounds=model.preprocessing.bounds).explain(pictures[:1], 282)
    positive = explanation.relevance[0].sum(dim=0).clamp(min=0)
    face = torch.zeros(224, 224, dtype=torch.bool)
    for top, bottom, left, right in ((40, 105, 25, 95), (60, 125, 165, 224), (175, 224, 105, 165)):
        face[top:bottom, left:right] = True
    assert face.float().mean() < 0.25
    assert positive[face].sum() > 0.5 * positive.sum()


def test_classes_are_told_apart(model: Any, pictures: torch.Tensor) -> None:
    forward = Explainer(model.network, bounds=model.preprocessing.bounds).forward(pictures)
    cat, espresso = forward.explain(282), forward.explain(967)
    for one, other in zip(cat.relevance, espresso.relevance, strict=True):
        similarity = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)
        assert similarity < 0.9
