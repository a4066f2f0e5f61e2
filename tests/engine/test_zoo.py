"""One member of each family of torchvision's classifiers: forward, books, bounds, and the model left as it was.

Batch norms have the statistics of a batch, and whatever torchvision initialises with zeros or ones (biases, gains,
layer scales, class tokens, some heads) has values of its own: else nothing would be tested. Pictures are as small as a
network allows. Every preset, and all the names that torchvision knows, are marked slow.
"""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import torch
import torchvision.models
from networks import (
    BOUNDS,
    Case,
    amplification,
    assert_right,
    assert_samples_independent,
    build,
    explain,
    fingerprint,
    inputs,
)
from torch import Tensor, nn

from lrp_cli.engine import library
from lrp_cli.errors import EngineError
from lrp_cli.explainer import Explainer, Explanation
from lrp_cli.rulesets import presets

CLASSES = 100


@dataclass(frozen=True)
class Family:
    """How a family is tested.

    Attributes:
        side: height and width of the pictures.
        bound: the largest sum of |relevance| that is tolerated at the input, in proportion to the score, under the
            preset that `--config auto` takes.
        attention: whether it has softmax attention.
        heavy: whether the default suite tries the recommended preset only.
    """

    side: int
    bound: float
    attention: bool = False
    heavy: bool = False

    @property
    def recommended(self) -> str:
        return "attnlrp-gamma" if self.attention else "epsilon-gamma-box"


FAMILIES = {
    "alexnet": Family(64, 2),
    "vgg11": Family(32, 2, heavy=True),
    "vgg11_bn": Family(32, 2, heavy=True),
    "resnet18": Family(64, 2),
    "resnet50": Family(64, 2),
    "resnext50_32x4d": Family(64, 2, heavy=True),
    "wide_resnet50_2": Family(64, 2, heavy=True),
    "densenet121": Family(64, 20),
    "googlenet": Family(64, 4),
    "inception_v3": Family(96, 4, heavy=True),
    "mobilenet_v2": Family(64, 4),
    "mobilenet_v3_small": Family(64, 4),
    "mnasnet0_5": Family(64, 4),
    "efficientnet_b0": Family(64, 4),
    "efficientnet_v2_s": Family(64, 4, heavy=True),
    "regnet_x_400mf": Family(64, 4),
    "regnet_y_400mf": Family(64, 4),
    "shufflenet_v2_x0_5": Family(64, 10),
    "squeezenet1_0": Family(64, 2),
    "convnext_tiny": Family(64, 2),
    "swin_t": Family(112, 20, attention=True),
    "swin_v2_t": Family(128, 20, attention=True, heavy=True),
    "vit_b_16": Family(224, 20, attention=True, heavy=True),
    "maxvit_t": Family(224, 20, attention=True, heavy=True),
}

EVERYDAY = ("lrp-0", "epsilon-plus-flat", "epsilon-gamma-box", "epsilon-alpha2-beta1-flat")
"""The presets that the default suite tries on convolutional networks."""

EVERYDAY_ATTENTION = ("cp-lrp", "attnlrp", "attnlrp-gamma")

EVERY = tuple(preset.name for preset in presets())


@dataclass(frozen=True)
class Member:
    """A network in both precisions, with the same two pictures."""

    name: str
    double: Case
    single: Case

    @cached_property
    def explanation(self) -> Explanation:
        """The recommended preset's, in single precision."""
        return explain(self.single, FAMILIES[self.name].recommended)


def make(name: str) -> nn.Module:
    options: dict[str, Any] = {}
    if name in {"googlenet", "inception_v3"}:
        options = {"aux_logits": False, "init_weights": False, "transform_input": True}
    return torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)


@pytest.fixture(scope="module")
def member(request: pytest.FixtureRequest) -> Member:
    """Return the network of the name that a test is parametrised with."""
    name = request.param
    side = FAMILIES[name].side
    model = build(lambda: make(name), inputs(4, 3, side, side, seed=5))
    x = inputs(2, 3, side, side)
    return Member(name, Case(copy.deepcopy(model).double(), x), Case(model, x.float()))


each_family = pytest.mark.parametrize("member", FAMILIES, indirect=True)
each_family_several_times = pytest.mark.parametrize(
    "member",
    [pytest.param(name, marks=[pytest.mark.slow] if family.heavy else []) for name, family in FAMILIES.items()],
    indirect=True,
)
"""For tests of several explanations: those of heavy networks are slow."""


def with_presets() -> list[Any]:
    """Return (family, preset) for every family and every preset, most of them marked slow."""
    pairs = []
    for name, family in FAMILIES.items():
        everyday = EVERYDAY_ATTENTION if family.attention else EVERYDAY
        if family.heavy:
            everyday = (family.recommended,)
        pairs += [
            pytest.param(name, preset, marks=[] if preset in everyday else [pytest.mark.slow], id=f"{name}-{preset}")
            for preset in EVERY
        ]
    return pairs


@pytest.mark.parametrize(("member", "preset"), with_presets(), indirect=["member"])
def test_forward_is_the_plain_models_and_the_books_balance(member: Member, preset: str) -> None:
    assert_right(explain(member.double, preset), member.double)
    assert_right(explain(member.single, preset), member.single)


@each_family
def test_relevance_stays_in_bounds_under_the_recommended_preset(member: Member) -> None:
    assert 1e-2 <= amplification(member.explanation) <= FAMILIES[member.name].bound


@each_family_several_times
def test_the_model_is_left_as_it_was_and_later_runs_are_the_same(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the plan that the first one made; then that is written down, and the next is by the program of that."""
    monkeypatch.setattr(library, "AFTER", 1)
    family, network = FAMILIES[member.name], member.single
    first = member.explanation
    before = fingerprint(network.model)
    explainer = Explainer(network.model, family.recommended, bounds=BOUNDS)
    for _ in range(4):
        again = explainer.explain(network.x)
        assert fingerprint(network.model) == before
        assert torch.equal(first.relevance, again.relevance)
        assert torch.equal(first.logits, again.logits)
        assert first.absorbed.keys() == again.absorbed.keys()
        for layer, absorbed in first.absorbed.items():
            assert torch.equal(absorbed, again.absorbed[layer])
    assert explainer._plans.programs.count == 1


@each_family_several_times
def test_a_pictures_relevance_does_not_depend_on_its_batch(member: Member) -> None:
    """Exactly so in double precision; in single precision as far as torch's own results do not.

    Torch picks its algorithms by the size of the batch. What rounding makes of that in the logits grows a hundredfold
    on the way back, where torch's own gradients differ by up to some percent; where it shows in the logits already, as
    in efficientnet_v2_s with random weights, single precision tells nothing.
    """
    family, network = FAMILIES[member.name], member.single
    with torch.no_grad():
        together = network.model(network.x)
        alone = torch.cat([network.model(x) for x in network.x.split(1)])
    of_logits = ((together - alone).abs().max() / alone.abs().max()).item()
    if of_logits < 1e-3:
        tolerance = max(1e-5, 100 * of_logits, difference_of_gradients(network))
        assert_samples_independent(network, family.recommended, tolerance)
    if not family.heavy or of_logits >= 1e-3:
        assert_samples_independent(member.double, family.recommended, 1e-9)


def difference_of_gradients(network: Case) -> float:
    """Return by how much plain gradients of a picture's best score depend on its batch, relative to the largest."""

    def gradient(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(network.model(x).max(dim=1).values.sum(), x)[0]

    together, alone = gradient(network.x), torch.cat([gradient(x) for x in network.x.split(1)])
    of_each = (together - alone).flatten(1).abs().amax(dim=1) / alone.flatten(1).abs().amax(dim=1)
    return of_each.max().item()


@each_family
def test_nothing_is_trivial(member: Member) -> None:
    """The networks test something: no two pictures, and no two classes, are explained alike; biases absorb."""
    explanation = member.explanation
    assert not torch.allclose(explanation.logits[0], explanation.logits[1], rtol=1e-3)
    assert (explanation.absorbed_sum.abs() > 1e-3 * explanation.scores.abs()).all()


def test_training_mode_is_refused() -> None:
    model = make("shufflenet_v2_x0_5")
    with pytest.raises(EngineError, match="training mode"):
        explain(Case(model, inputs(2, 3, 64, 64).float()))


NAMES = torchvision.models.list_models(module=torchvision.models)


def test_every_name_is_tested() -> None:
    assert len(NAMES) >= 80
    assert set(FAMILIES) <= set(NAMES)
    assert len(EVERY) >= 10


def side_of(name: str) -> int:
    """Return how large pictures have to be for a model."""
    sides = {"swin_v2": 128, "swin": 112, "vit": 224, "maxvit": 224, "inception": 96}
    return next((side for start, side in sides.items() if name.startswith(start)), 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_name(name: str) -> None:
    """All of torchvision's classifiers, in single precision, under the recommended preset."""
    side = side_of(name)
    attention = name.startswith(("swin", "vit", "maxvit"))
    network = Case(build(lambda: make(name), inputs(4, 3, side, side, seed=5)), inputs(2, 3, side, side).float())
    assert_right(explain(network, "attnlrp-gamma" if attention else "epsilon-gamma-box"), network)


LARGEST = ("regnet_y_128gf", "vit_h_14")


@pytest.fixture(scope="module")
def largest(request: pytest.FixtureRequest) -> Case:
    """Return one of the two largest networks, on a small picture."""
    name = request.param
    make_it = (lambda: torchvision.models.vit_h_14(image_size=112, num_classes=CLASSES)) if name == "vit_h_14" else None
    return Case(build(make_it or (lambda: make(name)), inputs(4, 3, 112, 112, seed=5)), inputs(2, 3, 112, 112).float())


@pytest.mark.slow
@pytest.mark.parametrize("preset", EVERY)
@pytest.mark.parametrize("largest", LARGEST, indirect=True)
def test_the_largest_networks_under_every_preset(largest: Case, preset: str) -> None:
    assert_right(explain(largest, preset), largest)
