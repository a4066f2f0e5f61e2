"""Explanations by a program are first explanations to the last bit; and nothing else when the model differs."""

import functools
import gc
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
import torch
import torch.fx
import torch.nn.functional as F
import torchvision
from networks import BOUNDS, build, inputs
from test_plans import Choosing, Variety, assert_same, fresh, tied_weights
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode

from lrp_cli.engine import library, standing
from lrp_cli.engine.choices import Choice
from lrp_cli.engine.library import FAILURES
from lrp_cli.engine.programs import ProgramRun
from lrp_cli.errors import EngineError
from lrp_cli.explainer import Explainer, Explanation

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated", "ignore:Using padding=.same.")

PRESETS = ("epsilon", "epsilon-plus-flat", "epsilon-gamma-box", "epsilon-alpha2-beta1", "lrp-0", "attnlrp-gamma")
UNTIL_THEN = 3
"""After so many explanations there is a program: the first one makes a plan, the others follow it."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have programs made as soon as there is a plan that held."""
    monkeypatch.setattr(library, "AFTER", 1)


@pytest.fixture
def performances(monkeypatch: pytest.MonkeyPatch) -> list[ProgramRun]:
    """The explanations that a program gave, in order."""
    done: list[ProgramRun] = []
    hand_down = ProgramRun.hand_down

    def noting(self: ProgramRun, seed: Tensor, *, keep: bool) -> Any:
        found = hand_down(self, seed, keep=keep)
        done.extend([self] * (found is not None))
        return found

    monkeypatch.setattr(ProgramRun, "hand_down", noting)
    return done


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the networks of the tests for networks that compute a function of their attributes, which they are."""
    monkeypatch.setattr(standing, "KNOWN", (*standing.KNOWN, "test_programs", "test_plans"))


def prepared(model: nn.Module, x: Tensor, config: str = "epsilon-plus", **options: Any) -> Explainer:
    """Return an explainer that has a program for inputs like x."""
    explainer = Explainer(model, config, bounds=BOUNDS, **options)
    for _ in range(UNTIL_THEN):
        explainer.explain(x)
    return explainer


def test_a_program_is_made_where_it_pays(monkeypatch: pytest.MonkeyPatch, performances: list[ProgramRun]) -> None:
    monkeypatch.setattr(library, "AFTER", 4)
    explainer = Explainer(nn.Sequential(nn.Flatten(), nn.Linear(48, 4)).eval(), "epsilon")
    counts = []
    for _ in range(9):
        explainer.explain(inputs(2, 3, 4, 4, dtype=torch.float32))
        counts.append(len(performances))
    assert counts == [0] * 6 + [1, 2, 3]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("config", PRESETS)
def test_explanations_by_a_program_are_the_first_ones(config: str, performances: list[ProgramRun]) -> None:
    x = inputs(3, 3, 12, 12, dtype=torch.float32)
    model = build(Variety, x)
    explainer = prepared(model, x, config)
    assert not performances
    for seed in range(4):
        other = inputs(3, 3, 12, 12, seed=seed, dtype=torch.float32)
        assert_same(explainer.explain(other), fresh(model, other, config))
    assert len(performances) == 4


@pytest.mark.parametrize("config", ["epsilon-gamma-box", "epsilon-alpha2-beta1-flat", "attnlrp-gamma"])
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v2",
        "efficientnet_b0",
        "densenet121",
        "shufflenet_v2_x0_5",
        "vgg11_bn",
        "convnext_tiny",
        "swin_t",
    ],
)
def test_whole_networks(name: str, config: str, performances: list[ProgramRun]) -> None:
    x = inputs(2, 3, 64, 64, dtype=torch.float32)
    model = build(lambda: torchvision.models.get_model(name), x)
    explainer = prepared(model, x, config)
    other = inputs(2, 3, 64, 64, seed=3, dtype=torch.float32)
    assert_same(explainer.explain(other), fresh(model, other, config))
    assert len(performances) == 1


def targets(explainer: Explainer, x: Tensor, count: int) -> list[Explanation]:
    """Explain several targets of one forward pass, the last one as the last."""
    forward = explainer.forward(x)
    return [forward.explain(target, keep=target < count - 1) for target in range(count)]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("config", PRESETS)
@pytest.mark.parametrize("counts", [(1, 1, 1, 1, 1, 3, 3, 1), (4, 4, 4, 4, 2, 4, 1, 1), (2, 2, 2, 2, 3, 3)])
def test_any_number_of_targets(counts: tuple[int, ...], config: str, performances: list[ProgramRun]) -> None:
    """What a program was not made for is explained without it."""
    x = inputs(2, 3, 12, 12, dtype=torch.float32)
    model = build(Variety, x)
    explainer = Explainer(model, config, bounds=BOUNDS)
    expected = targets(Explainer(model, config, bounds=BOUNDS), x, 4)
    for count in counts:
        for found, right in zip(targets(explainer, x, count), expected, strict=False):
            assert_same(found, right)
    assert performances


@pytest.mark.usefixtures("known")
def test_a_forward_pass_that_is_explained_without_end(performances: list[ProgramRun]) -> None:
    """``keep`` is true by default: nobody says which target is the last."""
    x = inputs(2, 3, 12, 12, dtype=torch.float32)
    model = build(Variety, x)
    explainer = prepared(model, x)
    forward, first = explainer.forward(x), Explainer(model, "epsilon-plus").forward(x)
    for target in (0, 1, 2, 1):
        assert_same(forward.explain(target), first.explain(target))


CHANGES: dict[str, Callable[[Variety], Any]] = {
    "a weight in place": lambda net: net.conv2.weight.mul_(1.5),
    "a weight exchanged": lambda net: setattr(net.conv2, "weight", nn.Parameter(net.conv2.weight * 0.5)),
    "a weight's data exchanged": lambda net: setattr(net.conv2.weight, "data", net.conv2.weight.data * 0.5),
    "a bias left out": lambda net: setattr(net.conv2, "bias", None),
    "statistics": lambda net: net.norm3.running_mean.add_(0.5),
    "an option": lambda net: setattr(net.norm3, "eps", 0.5),
    "a module exchanged": lambda net: setattr(net, "norm1", nn.BatchNorm2d(6).eval()),
    "a forward of its own": lambda net: setattr(net.norm1, "forward", lambda x: x * 2),
    "a hook": lambda net: net.norm1.register_forward_hook(lambda module, args, output: output * 2),
    "a hook before": lambda net: net.conv2.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
    "another class": lambda net: setattr(net.norm1, "__class__", Doubled),
    "pruned": lambda net: prune.l1_unstructured(net.conv2, "weight", 0.5),
}


class Doubled(nn.BatchNorm2d):
    """Does twice what its parent does."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_was_changed(change: str, performances: list[ProgramRun]) -> None:
    x = inputs(2, 3, 12, 12, dtype=torch.float32)
    model = build(Variety, x)
    explainer = prepared(model, x)
    before = explainer.explain(x)
    assert len(performances) == 1
    with torch.no_grad():
        CHANGES[change](model)
    for _ in range(UNTIL_THEN + 1):
        after = explainer.explain(x)
        assert_same(after, fresh(model, x, "epsilon-plus"))
        assert not torch.equal(after.relevance, before.relevance)


@pytest.mark.usefixtures("known")
def test_global_hooks_and_training_mode(performances: list[ProgramRun]) -> None:
    x = inputs(2, 3, 12, 12, dtype=torch.float32)
    model = build(Variety, x)
    explainer, seen = prepared(model, x), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module))
    explainer.explain(x)
    handle.remove()
    assert seen and not performances
    model.norm2.train()
    with pytest.raises(EngineError, match="training mode \\(norm2\\)"):
        explainer.explain(x)


class Deciding(nn.Module):
    """A network that looks at its values to decide what to do."""

    def __init__(self, decide: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.conv, self.norm, self.head, self.decide = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5), decide

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.norm(self.conv(x)))
        return self.head((F.silu(z) if self.decide(x) else z).mean(dim=(2, 3)))


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    "decide",
    [
        lambda x: x.sum() > 0,
        lambda x: bool((x > 0).float().mean() > 0.5),
        lambda x: x.detach().mean().item() > 0,
        lambda x: float(x[0, 0, 0, 0]) > 0,
        lambda x: x.sum().tolist() > 0,
        lambda x: x.detach().cpu().numpy().sum() > 0,
        lambda x: torch.equal(x, x.abs()),
        lambda x: len(x[0, 0, 0, :1].detach().clamp(min=0).nonzero()) > 0,
        lambda x: (x[:, :1, :1, :1].detach() > 0).nonzero().shape[0] > 0,
        lambda x: x.detach()[x.detach() > 0].numel() > x.numel() / 2,
        lambda x: len(x.detach().sign()[:, 0, 0, 0].unique()) > 1,
        lambda x: next(iter(x.detach()[0, 0, 0])) > 0,
    ],
)
def test_a_model_that_decides_by_its_values(decide: Callable[[Tensor], bool]) -> None:
    x = inputs(2, 3, 8, 8, dtype=torch.float32)
    model = build(lambda: Deciding(decide), x)
    for first, second in ((x.abs(), -x.abs()), (-x.abs(), x.abs())):
        explainer = prepared(model, first, "epsilon")
        for values in (first, second, first, second):
            assert_same(explainer.explain(values), fresh(model, values))


def test_a_class_that_nobody_knows_has_no_program(performances: list[ProgramRun]) -> None:
    """It may do what only its own code tells, when it runs."""
    x = inputs(2, 3, 12, 12, dtype=torch.float32)
    prepared(build(Variety, x), x).explain(x)

    class Own(nn.ReLU):
        pass

    def halved(x: Tensor) -> Tensor:
        return torch.relu(x) / 2

    models = {
        "torch's alone": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)),
        "a class": nn.Sequential(nn.Conv2d(3, 4, 3), Own(), nn.Flatten(), nn.Linear(400, 3)),
        "a function": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)),
        "a hook": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)),
    }
    models["a function"][1].forward = halved
    models["a hook"][1].register_forward_hook(lambda *_: None)
    for name, model in models.items():
        performances.clear()
        prepared(model.eval(), x).explain(x)
        assert len(performances) == (name == "torch's alone"), name


@pytest.mark.usefixtures("known")
def test_random_numbers_are_drawn_anew(performances: list[ProgramRun]) -> None:
    x = inputs(2, 3, 12, 12, dtype=torch.float32)
    model = build(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Noise(), nn.Flatten(), nn.Linear(400, 3)), x)
    explainer = prepared(model, x)
    assert not torch.equal(explainer.explain(x).logits, explainer.explain(x).logits)
    assert not performances


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


@pytest.mark.usefixtures("known")
def test_a_rule_decides_anew_each_time(performances: list[ProgramRun], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether one product is precise enough for both signs of contributions depends on the values."""
    decided: list[bool] = []
    take = Choice._take

    def noting(self: Choice, *tensors: Tensor) -> Any:
        decided.append(True)
        return take(self, *tensors)

    monkeypatch.setattr(Choice, "_take", noting)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(256, 3)).eval()
    with torch.no_grad():
        model[2].weight.abs_()
        model[0].bias.fill_(0.5)
    x = inputs(2, 3, 12, 12, dtype=torch.float32)
    explainer = prepared(model, x, "epsilon-alpha2-beta1")
    for scale in (1.0, 1e-3, 1.0, 1e3, -1.0, 1e-3, 1.0):
        assert_same(explainer.explain(x * scale), fresh(model, x * scale, "epsilon-alpha2-beta1"))
    assert len(performances) == 7


class Padded(nn.Module):
    """Pads its input, and so the bounds of its input, which are too large to be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(F.pad(x, (1, 1, 1, 1)))).mean(dim=(2, 3)))


@pytest.mark.usefixtures("known")
def test_pixels_at_the_end_of_their_range(performances: list[ProgramRun]) -> None:
    """There the z-box rule may have nowhere to send relevance, and decides otherwise than for the picture before."""
    x = inputs(2, 3, 160, 160, dtype=torch.float32)
    model = build(Padded, x)
    explainer = prepared(model, x, "epsilon-gamma-box")
    dark = x.clone()
    dark[:, :, 40:80, 40:80] = BOUNDS[0]
    for picture in (x, dark, torch.full_like(x, BOUNDS[1]), x, dark):
        assert_same(explainer.explain(picture), fresh(model, picture, "epsilon-gamma-box"))
    assert len(performances) == 5


@pytest.mark.usefixtures("known")
def test_errors_are_the_same(performances: list[ProgramRun]) -> None:
    x = inputs(2, 3, 12, 12, dtype=torch.float32)
    explainer = prepared(build(Variety, x), x)
    for bad in (x * float("nan"), torch.full_like(x, 3e38)):
        with pytest.raises(EngineError) as found:
            explainer.explain(bad)
        with pytest.raises(EngineError) as expected:
            fresh(explainer.model, bad, "epsilon-plus")
        assert str(found.value) == str(expected.value)
    with torch.inference_mode(), pytest.raises(EngineError, match="inference_mode"):
        explainer.explain(x)
    with torch.autocast("cpu"), pytest.raises(EngineError, match="autocast"):
        explainer.explain(x)
    with torch.no_grad():
        assert not explainer.explain(x).relevance.requires_grad
    assert performances


@pytest.mark.usefixtures("known")
def test_a_program_that_does_not_fit_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[bool] = []

    def failing(self: ProgramRun, *rest: Any) -> None:
        tries.append(True)
        raise MemoryError

    monkeypatch.setattr(ProgramRun, "__init__", failing)
    x = inputs(2, 3, 12, 12, dtype=torch.float32)
    model = build(Variety, x)
    explainer = prepared(model, x)
    for _ in range(10):
        assert_same(explainer.explain(x), fresh(model, x, "epsilon-plus"))
    assert len(tries) == FAILURES


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(("every", "is_kept"), [(12, True), (3, False)])
def test_a_program_that_fits_too_seldom_is_given_up(every: int, is_kept: bool) -> None:
    """A success saves little, and a failure wastes a pass."""
    x = inputs(2, 3, 8, 8, dtype=torch.float32).abs()
    explainer = prepared(build(lambda: Deciding(lambda x: bool(x.sum() > 0)), x), x)
    for turn in range(60):
        explainer.explain(-x if turn % every == 0 else x)
    assert explainer._plans.programs.count == is_kept


@pytest.mark.usefixtures("known")
def test_modules_that_share_parameters(performances: list[ProgramRun]) -> None:
    x = inputs(2, 4, dtype=torch.float32)
    model = build(lambda: Choosing(tied_weights), x)
    explainer = prepared(model, x, "epsilon")
    assert_same(explainer.explain(x), fresh(model, x))
    model.way = 1
    assert_same(explainer.explain(x), fresh(model, x))
    assert len(performances) == 1


@pytest.mark.usefixtures("known")
def test_what_an_explanation_returns_is_its_own() -> None:
    """No later explanation changes it, and what is done with it changes no later one."""
    x = inputs(2, 3, 12, 12, dtype=torch.float32)
    model = build(Variety, x)
    explainer = prepared(model, x)
    one, other = explainer.explain(x), explainer.explain(x * 0.5)
    assert_same(one, fresh(model, x, "epsilon-plus"))
    for explanation in (one, other):
        for tensor in (explanation.relevance, explanation.logits, *explanation.absorbed.values()):
            tensor.zero_()
    assert_same(explainer.explain(x), fresh(model, x, "epsilon-plus"))


@pytest.mark.usefixtures("known")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", ["epsilon-plus", "epsilon-alpha2-beta1"])
def test_nothing_of_an_explanation_stays_in_memory(config: str, performances: list[ProgramRun]) -> None:
    """A program holds weights and what is made of them, and no activation."""
    x = inputs(37, 3, 12, 12, dtype=torch.float32)
    explainer = prepared(build(Variety, x), x, config)
    explainer.explain(x)
    assert len(performances) == 1
    performances.clear()
    del x
    gc.collect()
    of_batch = [thing for thing in gc.get_objects() if type(thing) is Tensor and 37 in thing.shape]
    assert not [tensor for tensor in of_batch if tensor.stride(tensor.shape.index(37))]  # but weights that are expanded


def plain(seed: int = 0) -> nn.Sequential:
    """Return a network of torch's modules alone."""
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 5)
    return nn.Sequential(*layers).eval()


X = inputs(2, 3, 10, 10, dtype=torch.float32)


def test_a_model_that_was_changed_after_its_forward_pass(performances: list[ProgramRun]) -> None:
    """There is no explaining that pass any more, unless it was prepared for; never is it mixed with the new model."""
    model = plain()
    explainer = prepared(model, X)
    forward = explainer.forward(X, single=True)
    with torch.no_grad():
        model[5].weight.mul_(1.0005)
    with pytest.raises(EngineError, match="changed after the forward pass"):
        forward.explain(0, keep=True)
    assert not performances


def test_forward_passes_that_may_have_several_targets_have_programs_of_their_own(
    performances: list[ProgramRun],
) -> None:
    model = plain()
    explainer = prepared(model, X)
    right = Explainer(model, "epsilon-plus").forward(X).explain(0)
    for count in range(UNTIL_THEN + 2):
        assert_same(explainer.forward(X).explain(0), right)
        assert len(performances) == max(0, count + 1 - AFTER_PLANNED)
    model.train()
    with pytest.raises(EngineError, match="training mode"):
        explainer.forward(X)


AFTER_PLANNED = 2
"""After so many forward passes of one kind there is a program, where there is a plan from the start."""


def test_a_forward_pass_of_many_targets_is_not_written_down_for_each() -> None:
    explainer = Explainer(plain(), "epsilon-plus")
    for _ in range(UNTIL_THEN - 1):
        explainer.forward(X).explain(0)
    forward = explainer.forward(X)
    for _ in range(3):
        for target in range(5):
            forward.explain(target)
    draft = forward._propagation._draft
    assert draft is not None
    assert [*draft._passes] == [(True, True), (False, True)]


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {}])
@pytest.mark.parametrize("config", ["epsilon", "epsilon-plus", "epsilon-gamma-box"])
def test_after_a_step_of_training(optimiser: Any, options: dict[str, bool], config: str) -> None:
    """Fused optimisers change parameters without torch's counting it."""
    model = plain()
    explainer = prepared(model, X, config)
    model(X).sum().backward()
    optimiser(model.parameters(), lr=0.05, **options).step()
    for _ in range(2):
        assert_same(explainer.explain(X), fresh(model, X, config))


def test_other_kinds_of_tensors() -> None:
    model = plain()
    model.register_buffer("adjacency", torch.eye(3).to_sparse())
    explainer = Explainer(model, "epsilon")
    for _ in range(UNTIL_THEN + 1):
        assert_same(explainer.explain(X), fresh(model, X))


def test_a_module_under_another_name() -> None:
    model = plain()
    explainer = prepared(model, X, "epsilon")
    model.add_module("head", model._modules.pop("5"))
    assert_same(explainer.explain(X), fresh(model, X))


def test_an_explainer_whose_model_or_rules_are_exchanged() -> None:
    explainer = prepared(plain(), X, "epsilon")
    explainer.model = plain(1)
    assert_same(explainer.explain(X), fresh(explainer.model, X))
    explainer, other = prepared(plain(), X, "epsilon"), Explainer(plain(), "epsilon-plus")
    explainer.assignment, explainer.config = other.assignment, other.config
    assert_same(explainer.explain(X), other.explain(X))


FACTOR = {"by": 1.0}


def scaled(x: Tensor) -> Tensor:
    """Depend on what no model knows of."""
    return x * FACTOR["by"]


torch.fx.wrap("scaled")


def wrapped(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    @functools.wraps(function)
    def scaled_too(x: Tensor) -> Tensor:
        return scaled(function(x))

    return scaled_too


def traced() -> nn.Module:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain()

        def forward(self, x: Tensor) -> Tensor:
            return scaled(self.inner(x))

    return torch.fx.symbolic_trace(Scaled().eval()).eval()


def with_a_wrapped_forward() -> nn.Module:
    model = plain()
    model[2].forward = wrapped(model[2].forward)
    return model


@pytest.mark.parametrize("make", [traced, with_a_wrapped_forward])
def test_code_of_the_users_own_goes_by_no_other_name(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch, performances: list[Any]
) -> None:
    model = make()
    explainer = prepared(model, X, "epsilon")
    monkeypatch.setitem(FACTOR, "by", 3.0)
    assert_same(explainer.explain(X), fresh(model, X))
    assert not performances


@pytest.mark.parametrize("is_first", [True, False])
def test_a_class_that_was_patched(is_first: bool, monkeypatch: pytest.MonkeyPatch, performances: list[Any]) -> None:
    model = build(lambda: torchvision.models.resnet18(num_classes=5), X)
    forward = torchvision.models.ResNet._forward_impl

    def patch() -> None:
        monkeypatch.setattr(torchvision.models.ResNet, "_forward_impl", lambda self, x: scaled(forward(self, x)))

    if is_first:
        patch()
    explainer = prepared(model, X, "epsilon")
    if not is_first:
        patch()
    monkeypatch.setitem(FACTOR, "by", 3.0)
    assert_same(explainer.explain(X), fresh(model, X))
    assert not performances


class Twice(TorchFunctionMode):
    """Doubles what pools return."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result * 2 if func.__name__ == "adaptive_avg_pool2d" else result


def test_functions_that_somebody_else_intercepts() -> None:
    model = plain()
    explainer = prepared(model, X, "epsilon")
    with Twice():
        assert_same(explainer.explain(X), fresh(model, X))
        explainer = Explainer(model, "epsilon")
        for _ in range(UNTIL_THEN + 1):
            explainer.explain(X)
    assert_same(explainer.explain(X), fresh(model, X))


def test_an_explainer_and_its_model_are_freed_at_once() -> None:
    """Without waiting for garbage to be collected."""
    gc.collect()
    gc.disable()
    try:
        for config in ("epsilon-plus", "epsilon-alpha2-beta1"):
            model = plain()
            explainer = prepared(model, X, config)
            explainer.explain(X)
            weight, memory = ref(model[5].weight), StorageWeakRef(model[5].weight.untyped_storage())
            del model, explainer
            assert weight() is None, config
            assert memory.expired(), config
    finally:
        gc.enable()
