"""The Python API on whole models: what it promises about the model, the targets, the books and the operations."""

import copy
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_hooks

from lrp_cli.errors import ConfigError, EngineError, UsageError
from lrp_cli.explainer import Explainer, Explanation
from lrp_cli.rulesets import NamedRuleset, Ruleset, presets

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

BOUNDS = (-2.5, 2.5)
EXACT = {"rtol": 1e-12, "atol": 1e-12}
PRESETS = [preset.name for preset in presets()]


def ruleset(*layers: dict[str, Any]) -> NamedRuleset:
    """Return a config with these entries."""
    return NamedRuleset("test", Path("test.yaml"), Ruleset.model_validate({"layers": list(layers)}), "")


GAMMA = ruleset({"kind": "batch_norm", "rule": "epsilon"}, {"rule": "gamma"})
LRP0 = ruleset({"rule": "lrp-0"})
FLAT_FIRST = ruleset({"first": True, "rule": "flat"}, {"rule": "epsilon"})
BOX_FIRST = ruleset({"first": True, "rule": "zbox"}, {"rule": "epsilon"})


def pictures(n: int = 2, channels: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    """Return pictures in float64, of any sign, within BOUNDS."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, size, size, generator=generator, dtype=torch.float64).clamp(*BOUNDS)


def ready(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Return the model in float64 and eval mode, its batch norms with statistics that are no identity."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().double().eval()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
                    module.weight.normal_().add_(1)
                    module.bias.normal_()
    return model


@pytest.fixture(autouse=True)
def no_test_hangs() -> Iterator[None]:
    """Turn an endless loop into a failure, where the system has alarms."""

    def give_up(*_: Any) -> None:
        raise TimeoutError("the test took more than 10 seconds")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


class Steps(nn.Module):
    """conv -> the step in question -> conv -> pooling -> linear."""

    def __init__(self, step: Callable[["Steps", Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 5, 3)
        self.fc = nn.Linear(5, 6)
        self.extra = nn.ModuleDict(modules)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        x = self.step(self, self.conv1(x))
        return self.fc(F.relu(self.conv2(x)).mean(dim=(2, 3)))


class Residual(nn.Module):
    def __init__(self, channels: int, bias: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + x)


class SmallNet(nn.Module):
    """A bit of everything: conv, batch norm, ReLU6, pooling, a residual block, dropout and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU6())
        self.block = Residual(6)
        self.pool = nn.AvgPool2d(2)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.pool(self.block(self.stem(x)))))


def explain(
    model: nn.Module, x: Tensor, config: str | NamedRuleset = "epsilon", target: Any = None, **options: Any
) -> Explanation:
    return Explainer(model, config, bounds=BOUNDS, **options).explain(x, target)


def assert_same(a: Explanation, b: Explanation, *, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(a.logits, b.logits, rtol=1e-12, atol=1e-12)
    size = b.relevance.abs().max().item()
    assert size > 0
    torch.testing.assert_close(a.relevance, b.relevance, rtol=rtol, atol=1e-10 * size)
    torch.testing.assert_close(a.absorbed_sum, b.absorbed_sum, rtol=rtol, atol=1e-9 * size)


def assert_balanced(explanation: Explanation) -> None:
    size = explanation.scores.abs() + explanation.relevance.abs().flatten(1).sum(1) + explanation.absorbed_sum.abs()
    assert (explanation.imbalance.abs() <= 1e-10 * size).all()
    torch.testing.assert_close(
        explanation.scores,
        explanation.relevance_sum + explanation.absorbed_sum,
        rtol=1e-8,
        atol=1e-10 * size.max().item(),
    )


# Against the plain gradient


def gradient_times_input(model: nn.Module, x: Tensor, target: int) -> Tensor:
    x = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, target].sum(), x)
    return (x * gradient).detach()


BIAS_FREE: dict[str, Callable[[], nn.Module]] = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(16, 5, bias=False),
    ),
    "pooling of all kinds": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.PReLU(),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5, bias=False),
    ),
    "residual": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        Residual(4, bias=False),
        Residual(4, bias=False),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1, bias=False),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 5, bias=False),
    ),
}


@pytest.mark.parametrize("name", BIAS_FREE)
def test_lrp0_is_gradient_times_input_on_relu_nets_without_biases(name: str) -> None:
    model, x = ready(BIAS_FREE[name]), pictures()
    explanation = explain(model, x, "lrp-0", target=3)
    torch.testing.assert_close(explanation.relevance, gradient_times_input(model, x, 3), **EXACT)
    torch.testing.assert_close(explanation.scores, model(x)[:, 3], **EXACT)
    assert torch.equal(explanation.logits, model(x))
    assert explanation.absorbed == {}
    torch.testing.assert_close(explanation.relevance_sum, explanation.scores, **EXACT)


def test_lrp0_with_biases_books_each_layers_bias() -> None:
    """Per sample and per layer: the bias times the gradient with respect to it."""
    model, x = ready(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))), pictures()
    explanation = explain(model, x, "lrp-0", target=1)
    torch.testing.assert_close(explanation.relevance, gradient_times_input(model, x, 1), **EXACT)
    for n in range(len(x)):
        gradients = torch.autograd.grad(model(x[n : n + 1])[0, 1], [model[0].bias, model[3].bias])
        for name, bias, gradient in zip(("0", "3"), (model[0].bias, model[3].bias), gradients, strict=True):
            assert explanation.absorbed[name][n].item() == pytest.approx((bias * gradient).sum().item(), rel=1e-10)


# The model is left as it is


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Return everything about a model that explaining it must not change."""
    return {
        "state": {name: (id(t), t._version, t.clone()) for name, t in model.state_dict(keep_vars=True).items()},
        "gradients": {
            name: (p.requires_grad, None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()
        },
        "training": [module.training for module in model.modules()],
        "hooks": [
            [list(value) for key, value in sorted(vars(module).items()) if key.endswith("_hooks")]
            for module in model.modules()
        ],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "parameter attributes": [sorted(vars(p)) for p in [*model.parameters(), *model.buffers()]],
        "forwards": [type(module).forward for module in model.modules()],
        "global hooks": [
            list(value)
            for key, value in sorted(vars(torch_hooks).items())
            if key.startswith("_global_") and "hooks" in key
        ],
        "modes": (torch.is_grad_enabled(), len(torch.overrides._get_current_function_mode_stack())),
        "dtype": torch.get_default_dtype(),
    }


def assert_unchanged(before: dict[str, Any], model: nn.Module) -> None:
    after = fingerprint(model)
    states = before.pop("state"), after.pop("state")
    gradients = before.pop("gradients"), after.pop("gradients")
    assert before == after
    assert states[0].keys() == states[1].keys()
    for name, (identity, version, value) in states[0].items():
        assert states[1][name][:2] == (identity, version)
        assert torch.equal(states[1][name][2], value)
    for name, (requires_grad, grad) in gradients[0].items():
        assert gradients[1][name][0] == requires_grad
        assert (grad is None) == (gradients[1][name][1] is None)
        assert grad is None or torch.equal(grad, gradients[1][name][1])


@pytest.mark.parametrize("config", PRESETS)
def test_model_and_input_are_left_as_they_were(config: str) -> None:
    model, x = ready(SmallNet), pictures()
    model.stem[0].weight.requires_grad_(False)
    model.head[2].weight.grad = torch.ones_like(model.head[2].weight)
    model.block.register_forward_hook(lambda module, args, output: None)
    before, x_before = fingerprint(model), x.clone()
    explain(model, x, config)
    assert_unchanged(before, model)
    assert torch.equal(x, x_before)
    assert not x.requires_grad
    assert x.grad is None
    assert not vars(x)


@pytest.mark.parametrize("where", ["model", "rule", "backward"])
def test_model_is_left_as_it_was_after_an_exception(where: str) -> None:
    class Failing(SmallNet):
        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(self.block(self.stem(x)))
            if where == "model":
                raise ZeroDivisionError
            if where == "backward":
                x = torch.exp(x)
            return self.head(x)

    model = ready(Failing)
    before = fingerprint(model)
    config = ruleset({"kind": "convolution", "rule": "epsilon"}) if where == "rule" else "epsilon"
    with pytest.raises({"model": ZeroDivisionError, "rule": ConfigError, "backward": EngineError}[where]):
        explain(model, pictures(), config)
    assert_unchanged(before, model)


def test_gradient_mode_of_the_caller_makes_no_difference() -> None:
    model, x = ready(SmallNet), pictures()
    expected = explain(model, x)
    with torch.no_grad():
        assert torch.equal(explain(model, x).relevance, expected.relevance)
        assert not torch.is_grad_enabled()
    assert torch.equal(explain(model, x.clone().requires_grad_()).relevance, expected.relevance)
    assert not expected.relevance.requires_grad
    assert not expected.logits.requires_grad


def test_inference_mode_of_the_caller_works_or_is_named() -> None:
    model, x = ready(SmallNet), pictures()
    with torch.inference_mode(), pytest.raises(EngineError, match="inference"):
        explain(model, x)


# Targets


@pytest.mark.parametrize("config", PRESETS)
def test_several_targets_of_one_forward_pass_are_what_they_are_apart(config: str) -> None:
    model, x = ready(SmallNet), pictures()
    explainer = Explainer(model, config, bounds=BOUNDS)
    forward = explainer.forward(x)
    for target in (0, [3, 1], None, 0):
        together, apart = forward.explain(target), explainer.explain(x, target)
        assert torch.equal(together.relevance, apart.relevance)
        assert torch.equal(together.absorbed_sum, apart.absorbed_sum)
        assert together.absorbed.keys() == apart.absorbed.keys()


def test_the_books_of_one_target_are_not_those_of_the_next() -> None:
    model, x = ready(SmallNet), pictures()
    forward = Explainer(model, "epsilon").forward(x)
    first = forward.explain(0)
    absorbed = first.absorbed_sum.clone()
    forward.explain(1)
    assert torch.equal(first.absorbed_sum, absorbed)


def test_all_spellings_of_a_target() -> None:
    model, x = ready(SmallNet), pictures(3)
    explainer = Explainer(model, "epsilon")
    logits = model(x)
    by_class = [explainer.explain(x, target=c) for c in range(5)]
    for c, explanation in enumerate(by_class):
        assert explanation.target.tolist() == [c] * 3
        assert torch.equal(explanation.scores, logits[:, c])

    mixed = torch.stack([by_class[c].relevance[n] for n, c in enumerate([4, 0, 2])])
    for target in ([4, 0, 2], (4, 0, 2), torch.tensor([4, 0, 2]), torch.tensor([4, 0, 2], dtype=torch.int16)):
        explanation = explainer.explain(x, target)
        assert explanation.target.tolist() == [4, 0, 2]
        torch.testing.assert_close(explanation.relevance, mixed, **EXACT)
    torch.testing.assert_close(explainer.explain(x, torch.tensor(2)).relevance, by_class[2].relevance, **EXACT)

    predicted = explainer.explain(x)
    assert torch.equal(predicted.target, logits.argmax(1))
    assert torch.equal(predicted.scores, logits.amax(1))

    seed = torch.zeros(3, 5)
    seed[:, 1], seed[:, 4] = 2.0, -0.5
    contrast = explainer.explain(x, seed)
    assert contrast.target is None
    torch.testing.assert_close(contrast.scores, 2 * logits[:, 1] - 0.5 * logits[:, 4], **EXACT)
    torch.testing.assert_close(contrast.relevance, 2 * by_class[1].relevance - 0.5 * by_class[4].relevance, **EXACT)
    assert_balanced(contrast)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (5, "classes 0 to 4"),
        (-1, "classes 0 to 4"),
        ([0, 9], "classes 0 to 4"),
        ([0], "1 targets for 2 samples"),
        ([0, 1, 2], "3 targets for 2 samples"),
        ([], "target"),
        (1.5, "class index"),
        (True, "class index"),
        (torch.tensor([0.0, 1.0]), "class index"),
        (torch.zeros(2, 4), r"\(2, 5\)"),
        (torch.zeros(1, 5), r"\(2, 5\)"),
        (torch.zeros(2, 5, 1), "class index"),
        ("cat", "class index"),
    ],
)
def test_wrong_targets(target: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        explain(ready(SmallNet), pictures(), target=target)
    assert "\n" not in str(caught.value)


def test_all_spellings_of_what_a_target_is_held_against() -> None:
    model, x = ready(SmallNet), pictures(2)
    explainer = Explainer(model, "epsilon")
    expected = explainer.explain(x, 2, versus=3).relevance
    assert not torch.equal(expected, explainer.explain(x, 2).relevance)
    for versus in (np.int64(3), torch.tensor(3), [3, 3], torch.tensor([3, 3]), np.array([3, 3]), [np.int8(3), 3]):
        assert torch.equal(explainer.explain(x, 2, versus=versus).relevance, expected)


@pytest.mark.parametrize(
    "versus", [1.5, True, [1.5, 3], [True, 3], torch.tensor(1.5), torch.tensor(True), [[3], [3]], {}]
)
def test_wrong_contrasts(versus: Any) -> None:
    with pytest.raises(UsageError, match=r"held against|hold the target against"):
        Explainer(ready(SmallNet), "epsilon").explain(pictures(2), 2, versus=versus)


@pytest.mark.parametrize(
    ("seed", "options", "message"),
    [
        (torch.eye(5)[:2], {"versus": 3}, "without versus"),
        (torch.eye(5)[:2], {"seed": "one"}, "another kind of seed"),
        (torch.full((2, 5), torch.nan), {}, "not finite"),
    ],
)
def test_wrong_seeds(seed: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Explainer(ready(SmallNet), "epsilon").explain(pictures(2), seed, **options)


@pytest.mark.parametrize("config", [LRP0, "epsilon", "epsilon-plus-flat"], ids=["lrp-0", "epsilon", "zplus"])
def test_after_the_last_target_there_is_none(config: str | NamedRuleset) -> None:
    forward = Explainer(ready(SmallNet), config).forward(pictures())
    with pytest.raises(UsageError, match="classes 0 to 4"):
        forward.explain(9, keep=False)
    forward.explain(1, keep=False)
    with pytest.raises(UsageError, match="forward"):
        forward.explain(2)


def test_what_is_no_model_and_what_is_no_input() -> None:
    with pytest.raises(EngineError, match=r"a torch\.nn\.Module is needed, not function"):
        Explainer(lambda x: x)
    with pytest.raises(UsageError, match=r"a torch\.Tensor, not ndarray"):
        Explainer(ready(SmallNet), "epsilon").explain(pictures().numpy())
    with pytest.raises(EngineError, match=r"\(N, C, ...\), not \(5,\)"):
        Explainer(ready(SmallNet), BOX_FIRST, bounds=BOUNDS).explain(torch.zeros(5).double())


@pytest.mark.parametrize("bounds", [5, (-5,), "ab", (None, 5), (1, 2, 3)])
def test_wrong_bounds(bounds: Any) -> None:
    with pytest.raises(UsageError, match="bounds are"):
        Explainer(ready(SmallNet), BOX_FIRST, bounds=bounds).explain(pictures())


def test_wrong_option() -> None:
    with pytest.raises(UsageError, match="'ignore'"):
        Explainer(ready(SmallNet), on_unknown="ignore")


# Samples, runs, books


@pytest.mark.parametrize("config", PRESETS)
def test_a_pictures_result_does_not_depend_on_its_batch(config: str) -> None:
    model, x = ready(SmallNet), pictures(3)
    together = explain(model, x, config, target=[0, 1, 2])
    for n in range(3):
        alone = explain(model, x[n : n + 1], config, target=n)
        torch.testing.assert_close(together.relevance[n : n + 1], alone.relevance, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(together.absorbed_sum[n : n + 1], alone.absorbed_sum, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("config", PRESETS)
def test_a_second_run_is_identical(config: str) -> None:
    model, x = ready(SmallNet), pictures()
    explainer = Explainer(model, config, bounds=BOUNDS)
    first, second = explainer.explain(x), explainer.explain(x)
    assert torch.equal(first.relevance, second.relevance)
    assert {k: v.tolist() for k, v in first.absorbed.items()} == {k: v.tolist() for k, v in second.absorbed.items()}


@pytest.mark.parametrize("config", PRESETS)
def test_the_books_balance(config: str) -> None:
    model, x = ready(SmallNet), pictures(3)
    for target in (None, 0, torch.ones(3, 5)):
        explanation = explain(model, x, config, target)
        assert_balanced(explanation)
        assert explanation.relevance.abs().sum() > 0
        assert explanation.absorbed.keys() <= dict(model.named_modules()).keys()


@pytest.mark.parametrize("config", PRESETS)
def test_single_precision_is_near_double(config: str) -> None:
    model, x = ready(SmallNet), pictures()
    double = explain(model, x, config, target=1)
    single = explain(copy.deepcopy(model).float(), x.float(), config, target=1)
    assert single.relevance.dtype == torch.float32
    size = double.relevance.abs().max()
    assert (single.relevance.double() - double.relevance).abs().max() < 1e-3 * size


def test_black_pixels_may_carry_relevance_under_flat() -> None:
    """What is exactly zero has a share under rules that ignore the input's value."""
    model = ready(lambda: nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 5)))
    x = pictures(1)
    x[:, :, :4] = 0
    explanation = explain(model, x, FLAT_FIRST)
    expected = explanation.relevance[0, 0, 7, 7]
    torch.testing.assert_close(explanation.relevance, expected.expand(1, 3, 8, 8), rtol=1e-9, atol=1e-12)
    assert (explain(model, x, "epsilon").relevance[:, :, :4].abs() < 1e-100).all()


def test_moving_the_model_to_another_type_between_two_explanations() -> None:
    model, x = ready(SmallNet).float(), pictures()
    explainer = Explainer(model, "excitation-backprop")
    explainer.explain(x.float())
    model.double()
    expected = Explainer(model, "excitation-backprop").explain(x)
    assert torch.equal(explainer.explain(x).relevance, expected.relevance)


# Which layer gets which rule


class OutOfOrder(nn.Module):
    """Executes its layers in another order than it defines them."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 6)
        self.middle = nn.Conv2d(4, 5, 3)
        self.first = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.middle(F.relu(self.first(x)))).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("selector", "by_name"),
    [
        ({"first": True}, {"name": "first"}),
        ({"last": True}, {"name": "last"}),
        ({"first": False}, {"name": ["middle", "last"]}),
        ({"last": False}, {"name": ["first", "middle"]}),
        ({"depth": [0, 0.4]}, {"name": "first"}),
        ({"depth": [0.5, 0.5]}, {"name": "middle"}),
        ({"depth": [0.4, 1]}, {"name": ["middle", "last"]}),
        ({"kind": "linear"}, {"name": "last"}),
        ({"class": "Conv2d"}, {"name": ["first", "middle"]}),
    ],
)
def test_position_is_that_of_execution(selector: dict[str, Any], by_name: dict[str, Any]) -> None:
    model, x = ready(OutOfOrder), pictures()
    rule = {"rule": {"type": "epsilon", "epsilon": 0.5}}
    by_position = explain(model, x, ruleset(selector | rule, {"rule": "zplus"}), target=0)
    expected = explain(model, x, ruleset(by_name | rule, {"rule": "zplus"}), target=0)
    assert_same(by_position, expected)
    assert not torch.allclose(expected.relevance, explain(model, x, ruleset({"rule": "zplus"}), target=0).relevance)


def test_first_layer_under_zbox_is_first_in_execution() -> None:
    assert_balanced(explain(ready(OutOfOrder), pictures(), "epsilon-gamma-box"))


def test_layer_without_a_rule_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'last'.*linear.*Linear"):
        explain(ready(OutOfOrder), pictures(), ruleset({"kind": "convolution", "rule": "epsilon"}))


def test_zbox_needs_bounds() -> None:
    with pytest.raises(ConfigError, match="bounds"):
        Explainer(ready(OutOfOrder), "epsilon-gamma-box")


def test_zbox_in_a_later_layer_is_refused_by_name() -> None:
    deep = ruleset({"first": True, "rule": "zbox"}, {"last": True, "rule": "epsilon"}, {"rule": "zbox"})
    with pytest.raises(ConfigError, match=r"middle: .*another rule"):
        Explainer(ready(OutOfOrder), deep, bounds=(-3, 3)).explain(pictures())


@pytest.mark.parametrize("config", [None, 3, {"layers": []}])
def test_what_is_no_config_is_refused(config: Any) -> None:
    with pytest.raises(UsageError, match="config is a preset's name"):
        Explainer(ready(OutOfOrder), config)


def test_zbox_bounds_by_channel_and_from_the_config() -> None:
    model, x = ready(OutOfOrder), pictures()
    low, high = [-3.0, -2.5, -2.6], [2.5, 3.0, 2.7]
    given = Explainer(model, BOX_FIRST, bounds=(low, high)).explain(x)
    in_config = ruleset({"first": True, "rule": {"type": "zbox", "low": low, "high": high}}, {"rule": "epsilon"})
    assert_same(Explainer(model, in_config).explain(x), given)
    assert_same(Explainer(model, in_config, bounds=(-9, 9)).explain(x), given)
    assert not torch.allclose(given.relevance, explain(model, x, BOX_FIRST).relevance)


# Twins: the same function written in two ways has the same relevance


class Reused(nn.Module):
    """One convolution, one ReLU, used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.relu, self.fc = (
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ReLU(),
            nn.Linear(4, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        for _ in range(3):
            x = self.relu(self.conv(x))
        return self.fc(x.mean(dim=(2, 3)))


class Unrolled(nn.Module):
    def __init__(self, reused: Reused) -> None:
        super().__init__()
        self.layers = nn.Sequential(reused.stem, nn.ReLU())
        for _ in range(3):
            self.layers.extend([copy.deepcopy(reused.conv), nn.ReLU()])
        self.fc = reused.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(x).mean(dim=(2, 3)))


@pytest.mark.parametrize("config", PRESETS)
def test_reused_modules_equal_their_unrolled_twin(config: str) -> None:
    reused = ready(Reused)
    assert_same(explain(reused, pictures(), config), explain(Unrolled(reused).eval(), pictures(), config))


class Functional(nn.Module):
    """SmallNet with functions in place of modules."""

    def __init__(self, net: SmallNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, _ = self.net.stem
        x = F.conv2d(x, conv.weight, stride=(2, 2), padding=1)
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        x = identity = F.relu6(x)
        block, last = self.net.block, self.net.norm
        x = torch.relu(torch.conv2d(input=x, weight=block.conv1.weight, bias=block.conv1.bias, padding=1))
        x = torch.add(F.conv2d(x, block.conv2.weight, block.conv2.bias, padding="same"), identity).relu()
        x = F.avg_pool2d(x, 2)
        x = torch.nn.functional.batch_norm(x, last.running_mean, last.running_var, weight=last.weight, bias=last.bias)
        x = F.dropout(torch.flatten(x, 1), training=False)
        a, b = self.net.head[2], self.net.head[4]
        x = torch.addmm(a.bias, x, a.weight.t()).clamp(min=0)
        return torch.addmm(b.bias, x, b.weight.t())


@pytest.mark.parametrize("config", ["lrp-0", "epsilon", "epsilon-plus-flat", "epsilon-gamma-box"])
def test_functional_calls_equal_modules(config: str) -> None:
    net = ready(SmallNet)
    assert_same(
        explain(Functional(net).eval(), pictures(), config, target=1), explain(net, pictures(), config, target=1)
    )


@pytest.mark.parametrize(
    "transpose",
    [
        lambda w: w.t(),
        lambda w: w.transpose(0, 1),
        lambda w: w.permute(1, 0),
        lambda w: w.T,
        lambda w: w.mT,
    ],
    ids=["t", "transpose", "permute", "T", "mT"],
)
def test_product_with_a_transposed_weight_is_a_linear_layer(transpose: Callable[[Tensor], Tensor]) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(192, 5)

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ transpose(self.fc.weight) + self.fc.bias

    model, x = ready(Product), pictures()
    explanation = explain(model, x, "lrp-0")
    assert_same(explanation, explain(nn.Sequential(nn.Flatten(), model.fc).eval(), x, "lrp-0"))
    assert_balanced(explanation)


def relu_inplace(net: Steps, x: Tensor) -> Tensor:
    F.relu_(x)
    return x


def relu_method(net: Steps, x: Tensor) -> Tensor:
    x.relu_()
    return x


def relu_functional(net: Steps, x: Tensor) -> Tensor:
    F.relu(x, inplace=True)
    return x


def add_statement(net: Steps, x: Tensor) -> Tensor:
    y = F.relu(x)
    y.add_(x)
    return y


def add_operator(net: Steps, x: Tensor) -> Tensor:
    y = F.relu(x)
    y += x
    return y


def add_alpha(net: Steps, x: Tensor) -> Tensor:
    y = F.relu(x)
    y.add_(x, alpha=2)
    return y


def add_into_layer_output(net: Steps, x: Tensor) -> Tensor:
    y = F.relu(x)
    x += y
    return x


def sub_operator(net: Steps, x: Tensor) -> Tensor:
    y = F.relu(x)
    y -= x
    return y


def constant_added(net: Steps, x: Tensor) -> Tensor:
    x += 3
    return x


def scaled_statement(net: Steps, x: Tensor) -> Tensor:
    x.mul_(2.5)
    x /= 2
    return x


def both_used(net: Steps, x: Tensor) -> Tensor:
    y = x.clone()
    y.relu_()
    return x * 0.5 + y


def alias_sees_the_change(net: Steps, x: Tensor) -> Tensor:
    y = x
    y.relu_()
    return x + y


def channels_zeroed(net: Steps, x: Tensor) -> Tensor:
    x[:, :2] = 0
    return x


def channels_set(net: Steps, x: Tensor) -> Tensor:
    x[:, :2] = x[:, 2:] * 2
    return x


def channels_added(net: Steps, x: Tensor) -> Tensor:
    x[:, :2] += x[:, 2:]
    return x


def channels_added_after_use(net: Steps, x: Tensor) -> Tensor:
    y = F.gelu(x)
    x[:, :2] += y[:, 2:]
    return x + y


def channels_added_twice(net: Steps, x: Tensor) -> Tensor:
    x[:, :2] += x[:, 2:]
    x[:, 1:3] *= 0.5
    return x


def rows_of_channels_added(net: Steps, x: Tensor) -> Tensor:
    x[:, :2][..., 1:3, :] += x[:, 2:, 1:3]
    return x


def rows_of_channels_seen_by_all(net: Steps, x: Tensor) -> Tensor:
    half, last = x[:, :2], x[:, 1:]
    rows = half[:, :, :4]
    rows += x[:, 2:, :4]
    half[:, :, :4] *= 2
    return torch.cat([half, F.relu(last), rows.repeat(1, 1, 2, 1)], dim=1)[:, 1:5] + x


def rows_of_channels_by_hand(net: Steps, x: Tensor) -> Tensor:
    rows = 2 * (x[:, :2, :4] + x[:, 2:, :4])
    half = torch.cat([rows, x[:, :2, 4:]], dim=2)
    x = torch.cat([half, x[:, 2:]], dim=1)
    return torch.cat([half, F.relu(x[:, 1:]), rows.repeat(1, 1, 2, 1)], dim=1)[:, 1:5] + x


def half_added(x: Tensor) -> Tensor:
    return torch.cat([x[:, :2] + x[:, 2:], x[:, 2:]], dim=1)


def channels_constant(net: Steps, x: Tensor) -> Tensor:
    x[:, 1] = 0.7
    return x


def channels_constant_tensor(net: Steps, x: Tensor) -> Tensor:
    x[:, 1] = torch.full((8, 8), 0.7, dtype=x.dtype)
    return x


def channels_filled(net: Steps, x: Tensor) -> Tensor:
    x[:, 1].fill_(0.7)
    return x


def buffer_constant_copied(net: Steps, x: Tensor) -> Tensor:
    x[:, 1:2].copy_(torch.full_like(x[:, 1:2], 0.7))
    return x


def buffer_view_and_whole(net: Steps, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    half = out[:, :2]
    half += x[:, :2]
    return out + x


def buffer_filled(net: Steps, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 4, 8, 8, dtype=x.dtype)
    out[:, :3] = x[:, 1:]
    return out


def buffer_filled_twice(net: Steps, x: Tensor) -> Tensor:
    out = x.new_zeros(x.shape)
    out[:, 2:] = x[:, :2]
    out[:, :2] = F.relu(x[:, 2:])
    return out


def buffer_like(net: Steps, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[..., 1:, :] = x[..., :-1, :]
    return out


def buffer_of_ones(net: Steps, x: Tensor) -> Tensor:
    out = torch.ones_like(x)
    out[:, :2] = x[:, :2]
    return out


def buffer_copy(net: Steps, x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    out.copy_(x)
    return out


def buffer_copy_into_view(net: Steps, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :2].copy_(x[:, :2])
    return out


def buffer_view_kept(net: Steps, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    half = out[:, :2]
    half += x[:, :2]
    return out


def view_relu(net: Steps, x: Tensor) -> Tensor:
    x[:, :2].relu_()
    return x


def view_relu_named(net: Steps, x: Tensor) -> Tensor:
    half = x[:, :2]
    F.relu_(half)
    return x


def view_added(net: Steps, x: Tensor) -> Tensor:
    flat = x.view(len(x), -1)
    flat += 1
    return x


def view_flat_relu(net: Steps, x: Tensor) -> Tensor:
    flat = x.view(len(x), -1)
    flat.relu_()
    return x


def view_zeroed(net: Steps, x: Tensor) -> Tensor:
    x[:, :2].zero_()
    return x


def chunk_relu(net: Steps, x: Tensor) -> Tensor:
    a, b = x.split(2, dim=1)
    return torch.cat([a, F.relu(b)], dim=1)


def view_read_after_change(net: Steps, x: Tensor) -> Tensor:
    half = x[:, :2]
    x.relu_()
    return torch.cat([half, half], dim=1)


def masked_in_place(net: Steps, x: Tensor) -> Tensor:
    x.masked_fill_(x.detach() < -0.1, 0.0)
    return x


def masked_assignment(net: Steps, x: Tensor) -> Tensor:
    x[x.detach() < -0.1] = 0
    return x


def masked_constant(net: Steps, x: Tensor) -> Tensor:
    x[x.detach() < -0.1] = 0.7
    return x


def masked_values(net: Steps, x: Tensor) -> Tensor:
    low = x.detach() < -0.1
    x[low] = torch.full((int(low.sum()),), 0.7, dtype=x.dtype)
    return x


def masked_activations(net: Steps, x: Tensor) -> Tensor:
    low = x.detach() < -0.1
    x[low] = x[low] * 0.5
    return x


def clamped(net: Steps, x: Tensor) -> Tensor:
    x.clamp_(min=0)
    return x


def kept_then_changed(net: Steps, x: Tensor) -> Tensor:
    y = F.gelu(x)
    x.relu_()
    return x + y


def dropout_in_place(net: Steps, x: Tensor) -> Tensor:
    return nn.Dropout(0.5, inplace=True).eval()(x)


def out_argument(net: Steps, x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    torch.mul(x, 2.0, out=out)
    return out


def half_zeroed(net: Steps, x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x[:, :2]), x[:, 2:]], dim=1)


def half_relu(net: Steps, x: Tensor) -> Tensor:
    return torch.cat([F.relu(x[:, :2]), x[:, 2:]], dim=1)


def with_constant(x: Tensor, value: float) -> Tensor:
    return torch.cat([x[:, :1], torch.full_like(x[:, :1], value), x[:, 2:]], dim=1)


Step = Callable[[Steps, Tensor], Tensor]

TWINS: list[tuple[Step, Step]] = [
    (lambda net, x: nn.ReLU(inplace=True)(x), lambda net, x: F.relu(x)),
    (lambda net, x: nn.ReLU6(inplace=True)(x), lambda net, x: F.relu6(x)),
    (lambda net, x: nn.SiLU(inplace=True)(x), lambda net, x: F.silu(x)),
    (lambda net, x: nn.Hardswish(inplace=True)(x), lambda net, x: F.hardswish(x)),
    (dropout_in_place, lambda net, x: x),
    (relu_inplace, lambda net, x: F.relu(x)),
    (relu_method, lambda net, x: F.relu(x)),
    (relu_functional, lambda net, x: F.relu(x)),
    (add_statement, lambda net, x: F.relu(x) + x),
    (add_operator, lambda net, x: F.relu(x) + x),
    (add_alpha, lambda net, x: F.relu(x) + 2 * x),
    (add_into_layer_output, lambda net, x: x + F.relu(x)),
    (sub_operator, lambda net, x: F.relu(x) - x),
    (constant_added, lambda net, x: x + 3),
    (scaled_statement, lambda net, x: x * 2.5 / 2),
    (both_used, lambda net, x: x * 0.5 + F.relu(x)),
    (alias_sees_the_change, lambda net, x: F.relu(x) + F.relu(x)),
    (channels_zeroed, half_zeroed),
    (channels_set, lambda net, x: torch.cat([x[:, 2:] * 2, x[:, 2:]], dim=1)),
    (channels_added, lambda net, x: torch.cat([x[:, :2] + x[:, 2:], x[:, 2:]], dim=1)),
    (
        channels_added_after_use,
        lambda net, x: torch.cat([x[:, :2] + F.gelu(x)[:, 2:], x[:, 2:]], dim=1) + F.gelu(x),
    ),
    (
        channels_added_twice,
        lambda net, x: half_added(x) * torch.tensor([1, 0.5, 0.5, 1])[:, None, None],
    ),
    (
        rows_of_channels_added,
        lambda net, x: torch.cat([x[..., :1, :], half_added(x[..., 1:3, :]), x[..., 3:, :]], dim=2),
    ),
    (rows_of_channels_seen_by_all, rows_of_channels_by_hand),
    (channels_constant, lambda net, x: with_constant(x, 0.7)),
    (channels_constant_tensor, lambda net, x: with_constant(x, 0.7)),
    (channels_filled, lambda net, x: with_constant(x, 0.7)),
    (buffer_constant_copied, lambda net, x: with_constant(x, 0.7)),
    (buffer_view_and_whole, lambda net, x: torch.cat([2 * x[:, :2], x[:, 2:]], dim=1)),
    (buffer_filled, lambda net, x: torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], dim=1)),
    (buffer_filled_twice, lambda net, x: torch.cat([F.relu(x[:, 2:]), x[:, :2]], dim=1)),
    (buffer_like, lambda net, x: F.pad(x[..., :-1, :], (0, 0, 1, 0))),
    (buffer_of_ones, lambda net, x: torch.cat([x[:, :2], torch.ones_like(x[:, 2:])], dim=1)),
    (buffer_copy, lambda net, x: x),
    (buffer_copy_into_view, lambda net, x: torch.cat([x[:, :2], torch.zeros_like(x[:, 2:])], dim=1)),
    (buffer_view_kept, lambda net, x: torch.cat([x[:, :2], torch.zeros_like(x[:, 2:])], dim=1)),
    (view_relu, half_relu),
    (view_relu_named, half_relu),
    (view_added, lambda net, x: x + 1),
    (view_flat_relu, lambda net, x: F.relu(x)),
    (view_zeroed, half_zeroed),
    (chunk_relu, lambda net, x: torch.cat([x[:, :2], F.relu(x[:, 2:])], dim=1)),
    (view_read_after_change, lambda net, x: torch.cat([F.relu(x[:, :2]), F.relu(x[:, :2])], dim=1)),
    (masked_in_place, lambda net, x: x * (x.detach() >= -0.1)),
    (masked_assignment, lambda net, x: x * (x.detach() >= -0.1)),
    (masked_activations, lambda net, x: torch.where(x.detach() < -0.1, x * 0.5, x)),
    (clamped, lambda net, x: F.relu(x)),
    (kept_then_changed, lambda net, x: F.relu(x) + F.gelu(x)),
    (out_argument, lambda net, x: x * 2.0),
    # Not in place: other spellings of the same
    (lambda net, x: x.sub(1.5), lambda net, x: x - 1.5),
    (lambda net, x: 2 - x, lambda net, x: -x + 2),
    (lambda net, x: x.new_tensor(3.0) + x, lambda net, x: x + 3),
    (lambda net, x: torch.where(x.detach() > 0, x, 0.0), lambda net, x: F.relu(x)),
    (lambda net, x: x.maximum(torch.zeros_like(x)), lambda net, x: F.relu(x)),
    (lambda net, x: F.threshold(x, 0, 0), lambda net, x: F.relu(x)),
    (lambda net, x: torch.stack([x, F.relu(x)]).sum(0), lambda net, x: x + F.relu(x)),
    (lambda net, x: sum([x, F.relu(x)]), lambda net, x: x + F.relu(x)),
    (
        lambda net, x: torch.einsum("nchw,c->nchw", x, torch.arange(4.0).double()),
        lambda net, x: x * torch.arange(4.0)[:, None, None],
    ),
    (
        lambda net, x: torch.roll(x, 1, 2).flip(3),
        lambda net, x: torch.cat([x[:, :, -1:], x[:, :, :-1]], 2)[..., torch.arange(7, -1, -1)],
    ),
]


def _name(twin: object) -> str:
    name = getattr(twin, "__name__", "")
    return "" if name == "<lambda>" else name


CONFIGS = {"lrp-0": LRP0, "epsilon": "epsilon", "gamma": GAMMA}

MAY_BE_REFUSED = {out_argument}
"""What may end in a clear error."""


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize(
    ("step", "plain"), TWINS, ids=[f"{number} {_name(step)}".strip() for number, (step, _) in enumerate(TWINS)]
)
def test_twins_agree_or_the_engine_refuses(step: Step, plain: Step, config: NamedRuleset | str) -> None:
    """Forward and relevance are those of the plain twin, or there is a clear error; never a silent difference."""
    model, twin = ready(lambda: Steps(step)), ready(lambda: Steps(plain))
    x = pictures()
    with torch.no_grad():
        torch.testing.assert_close(model(x), twin(x), **EXACT)
    expected = explain(twin, x, config, target=2)
    try:
        explanation = explain(model, x, config, target=2)
    except EngineError as error:
        if step not in MAY_BE_REFUSED:
            raise
        assert any(name in str(error) for name in ("conv1", "conv2", "Steps"))
        assert "change the model" in str(error)
        return
    assert_same(explanation, expected)
    assert_balanced(explanation)


def complex_view_scaled(net: Steps, x: Tensor) -> Tensor:
    torch.view_as_complex(x.unflatten(3, (4, 2))).mul_(2)
    return x


def view_reshaped(net: Steps, x: Tensor) -> Tensor:
    x[:, :2].unsqueeze_(0)
    return x


@pytest.mark.parametrize("step", [complex_view_scaled, view_reshaped])
def test_changes_of_views_that_cannot_be_followed_are_refused(step: Step) -> None:
    model = ready(lambda: Steps(step))
    with pytest.raises(EngineError, match=r"in place in Steps \(Steps\).*change the model"):
        explain(model, pictures(), "epsilon")


class Bottlenecks(nn.Module):
    """Two residual blocks with batch norms, written in place as in torchvision, or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1, bias=False) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(4))
        self.fc, self.in_place = nn.Linear(6, 5), in_place
        self.relu = nn.ReLU(inplace=in_place)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        for i in (0, 2):
            y = self.relu(self.norms[i](self.convs[i](x)))
            y = self.norms[i + 1](self.convs[i + 1](y))
            if self.in_place:
                y += x
            else:
                y = y + x
            x = self.relu(y)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("config", PRESETS)
def test_residual_networks_in_place(config: str) -> None:
    in_place, twin = ready(lambda: Bottlenecks(True)), ready(lambda: Bottlenecks(False))
    assert_same(explain(in_place, pictures(), config), explain(twin, pictures(), config))


@pytest.mark.parametrize("step", [masked_constant, masked_values])
@pytest.mark.parametrize("config", [LRP0, "epsilon"], ids=["lrp-0", "epsilon"])
def test_constants_written_through_a_mask(step: Step, config: NamedRuleset | str) -> None:
    model, twin = (
        ready(lambda: Steps(step)),
        ready(lambda: Steps(lambda net, x: torch.where(x.detach() < -0.1, 0.7, x))),
    )
    assert_same(explain(model, pictures(), config), explain(twin, pictures(), config))


# Constants


def test_a_constant_summand_is_booked() -> None:
    """Against LRP-0 by hand: the share of a constant is the constant times the gradient with respect to it."""

    class Summand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 8, bias=False), nn.Linear(4, 5, bias=False)
            self.position = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).flatten(1) + self.position)

    model, x = ready(Summand), pictures()
    explanation = explain(model, x, "lrp-0", target=2)
    expected = (model.fc.weight[2] * model.position).sum().detach()
    assert set(explanation.absorbed) == {"Summand"}
    torch.testing.assert_close(explanation.absorbed["Summand"], expected.expand(2), **EXACT)
    torch.testing.assert_close(explanation.relevance_sum, explanation.scores - expected, **EXACT)


class Tokens(nn.Module):
    """A class token put in front, position embeddings added, everything mixed by a linear layer, the token read."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.register_buffer("position", torch.randn(1, 5, 4))
        self.mix, self.head, self.join = nn.Linear(5, 5), nn.Linear(4, 6), join

    def forward(self, x: Tensor) -> Tensor:
        t = self.patches(x).flatten(2).transpose(1, 2)
        t = self.join(self.token.expand(len(t), -1, -1), t) + self.position
        t = F.relu(self.mix(t.transpose(1, 2)).transpose(1, 2))
        return self.head(t[:, 0])


@pytest.mark.parametrize(
    "config", ["lrp-0", "epsilon", "epsilon-plus", GAMMA], ids=["lrp-0", "epsilon", "plus", "gamma"]
)
@pytest.mark.parametrize(
    "join",
    [
        lambda token, t: torch.cat([token, t], dim=1),
        lambda token, t: torch.cat(tensors=(token, t), dim=1),
        lambda token, t: torch.concatenate([token, t], 1),
    ],
    ids=["cat", "keywords", "concatenate"],
)
def test_class_token_and_position_embedding_are_booked(join: Any, config: NamedRuleset | str) -> None:
    explanation = explain(ready(lambda: Tokens(join)), pictures(), config)
    assert_balanced(explanation)
    assert (explanation.absorbed["Tokens"].abs() > 0).all()


@pytest.mark.parametrize("config", PRESETS)
def test_constant_after_a_layer_is_booked(config: str) -> None:
    for step in (
        lambda net, x: F.relu(x) + 3,
        lambda net, x: 1 - F.relu(x),
        lambda net, x: x - net.conv2.weight.mean(),
    ):
        explanation = explain(ready(lambda step=step: Steps(step)), pictures(), config)
        assert_balanced(explanation)
        assert "Steps" in explanation.absorbed


def test_a_tensor_made_of_a_parameter_beforehand_is_a_constant() -> None:
    class Prepared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
            self.scale = nn.Parameter(torch.rand(4, 1, 1))

        def prepare(self) -> None:
            self.prepared = self.scale * 2

        def forward(self, x: Tensor) -> Tensor:
            return self.fc((self.conv(x) * self.prepared).mean((2, 3)))

    model = ready(Prepared)
    model.prepare()
    explanation = explain(model, pictures(), "lrp-0")
    model.prepared = model.prepared.detach()
    assert_same(explanation, explain(model, pictures(), "lrp-0"))


# Gates


class SqueezeExcitation(nn.Module):
    def __init__(self, gate: Callable[[Tensor], Tensor], held: bool, gate_first: bool = False) -> None:
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1), gate
        self.held, self.gate_first = held, gate_first

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gate(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        scale = scale.detach() if self.held else scale
        return scale * x if self.gate_first else x * scale


@pytest.mark.parametrize(
    "gate", [torch.sigmoid, F.hardsigmoid, torch.tanh, lambda t: t.softmax(1)], ids=lambda g: g.__name__
)
@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("config", ["lrp-0", "epsilon-plus"])
def test_squeeze_excitation_holds_its_gate_constant(gate: Any, gate_first: bool, config: str) -> None:
    held, free = (
        ready(lambda held=held: Steps(lambda net, x: net.extra["se"](x), se=SqueezeExcitation(gate, held, gate_first)))
        for held in (True, False)
    )
    assert_same(explain(free, pictures(), config), explain(held, pictures(), config))


def test_product_of_two_activations_gives_half_to_each() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x[:, :3]) * self.b(x[:, 3:])

    model = ready(Product)
    x = torch.tensor([[1.0, 2.0, 3.0, -1.0, 0.5, 2.0]], dtype=torch.float64)
    explanation = explain(model, x, "lrp-0", target=0)
    halves = explanation.relevance[0].reshape(2, 3).sum(1)
    torch.testing.assert_close(halves, (explanation.scores / 2).expand(2), **EXACT)


# Operations that no rule is known for

UNKNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "cumprod": lambda x: torch.cumprod(x, dim=3),
    "sin": lambda x: x.sin(),
    "log1p": lambda x: torch.log1p(x.abs()),
    "erf": torch.special.erf,
}


class Odd(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_operation_on_the_path(name: str) -> None:
    model, x = ready(lambda: Steps(lambda net, x: net.extra["odd"](x), odd=Odd(UNKNOWN[name]))), pictures()
    with pytest.raises(EngineError) as caught:
        explain(model, x)
    message = str(caught.value)
    assert name in message
    assert "extra.odd" in message
    assert "Odd" in message
    assert "on_unknown" in message
    assert "\n" not in message

    explanation = explain(model, x, on_unknown="gradient")
    assert_balanced(explanation)
    assert "extra.odd" in explanation.absorbed


def test_gradient_of_an_unknown_operation_is_its_gradient() -> None:
    """With LRP-0 and no other operation that is not linear, input relevance is then plain gradient times input."""
    model, x = (
        ready(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4), Odd(torch.exp), nn.Linear(4, 5))),
        pictures(),
    )
    explanation = explain(model, x, "lrp-0", target=0, on_unknown="gradient")
    torch.testing.assert_close(explanation.relevance, gradient_times_input(model, x, 0), **EXACT)
    assert_balanced(explanation)


HARMLESS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "denominator": (
        lambda x: x / x.exp().mean((1, 2, 3), keepdim=True),
        lambda x: x / x.exp().mean((1, 2, 3), keepdim=True).detach(),
    ),
    "gate": (lambda x: x * torch.sigmoid(x.sin()), lambda x: x * torch.sigmoid(x.sin()).detach()),
    "mask": (lambda x: x * (x.exp() > 1.2), lambda x: x * (x.exp() > 1.2).detach()),
    "unused": (lambda x: (x.exp().cumprod(1), x)[1], lambda x: x),
    "detached": (lambda x: x * x.exp().detach(), lambda x: x * x.exp().detach()),
    "index": (
        lambda x: x[:, x.exp().mean((0, 2, 3)).argsort()],
        lambda x: x[:, x.detach().exp().mean((0, 2, 3)).argsort()],
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_unknown_operation_beside_the_path_does_no_harm(name: str) -> None:
    function, twin = (ready(lambda f=f: Steps(lambda net, x: f(x))) for f in HARMLESS[name])
    assert_same(explain(function, pictures()), explain(twin, pictures()))


def test_homogeneous_operations_pass_without_being_known() -> None:
    """The norm over channels is homogeneous of degree one; LRP-0 is then the gradient times the input."""
    model = ready(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False),
            Odd(lambda x: torch.linalg.vector_norm(x, dim=1)),
            nn.Flatten(),
            nn.Linear(36, 5, bias=False),
        )
    )
    x = pictures()
    torch.testing.assert_close(
        explain(model, x, "lrp-0", target=0).relevance, gradient_times_input(model, x, 0), **EXACT
    )


# Models and inputs that cannot be explained


def test_training_mode_is_refused() -> None:
    model = ready(SmallNet)
    model.block.train()
    with pytest.raises(EngineError, match=r"training mode.*block.*eval\(\)"):
        explain(model, pictures())
    model.eval()
    explain(model, pictures())


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda y: (y, y), "tuple"),
        (lambda y: {"logits": y}, "dict"),
        (lambda y: [y], "list"),
        (lambda y: y[:, :, None], r"\(2, 5, 1\)"),
        (lambda y: y[:1], r"\(1, 5\)"),
        (lambda y: y.detach(), "detached"),
        (lambda y: torch.ones(2, 5), "does not depend"),
        (lambda y: None, "NoneType"),
    ],
)
def test_outputs_that_are_no_logits(wrap: Callable[[Tensor], Any], message: str) -> None:
    class Wrapped(SmallNet):
        def forward(self, x: Tensor) -> Any:
            return wrap(super().forward(x))

    with pytest.raises(EngineError, match=message) as caught:
        explain(ready(Wrapped), pictures())
    assert "\n" not in str(caught.value)


def test_nan_in_the_input() -> None:
    x = pictures()
    x[1, 0, 3, 3] = float("nan")
    with pytest.raises(EngineError, match="finite") as caught:
        explain(ready(SmallNet), x)
    assert "input" in str(caught.value)


def test_nan_in_the_parameters() -> None:
    model = ready(SmallNet)
    with torch.no_grad():
        model.block.conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(EngineError, match="finite") as caught:
        explain(model, pictures())
    assert "block.conv1" in str(caught.value) or "output" in str(caught.value)


@pytest.mark.parametrize("config", ["lrp-0", "epsilon-plus-flat"])
def test_infinite_activations(config: str) -> None:
    model = ready(lambda: Steps(lambda net, x: x * 1e308 * 1e308))
    with pytest.raises(EngineError, match="finite"):
        explain(model, pictures(), config)


def test_integers_are_refused_or_explained() -> None:
    with pytest.raises((EngineError, UsageError), match="floating"):
        explain(ready(SmallNet), (pictures() * 50).to(torch.int64))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*deprecated")
def test_scripted_models_are_refused() -> None:
    model = torch.jit.script(ready(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))))
    with pytest.raises(EngineError, match=r"(?i)script"):
        explain(model, pictures())


# What happens before the first layer


class Normalising(nn.Module):
    """Takes pictures from 0 to 1 and normalises them itself."""

    def __init__(self, net: nn.Module, style: str) -> None:
        super().__init__()
        self.net, self.style = net, style
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "operators":
            x = (x - self.mean) / self.std
        elif self.style == "methods":
            x = x.sub(self.mean).div(self.std)
        elif self.style == "multiplied":
            x = (x - self.mean) * (1 / self.std)
        elif self.style == "in place":
            x = x.clone()
            x -= self.mean
            x /= self.std
        elif self.style == "torchvision":
            torchvision = pytest.importorskip("torchvision", reason="torchvision's normalize is part of this test")
            x = torchvision.transforms.functional.normalize(
                x, self.mean.flatten().tolist(), self.std.flatten().tolist()
            )
        elif self.style == "by channel":
            channels = [(x[:, c : c + 1] - self.mean[:, c : c + 1]) / self.std[:, c : c + 1] for c in range(3)]
            x = torch.cat(channels, dim=1)
        elif self.style == "by channel, in place":
            x = x.clone()
            for c in range(3):
                x[:, c] -= self.mean[0, c].item()
                x[:, c] /= self.std[0, c].item()
        return self.net(x)


@pytest.mark.parametrize(
    "style", ["operators", "methods", "multiplied", "in place", "torchvision", "by channel", "by channel, in place"]
)
@pytest.mark.parametrize("config", [FLAT_FIRST, BOX_FIRST, "epsilon"], ids=["flat", "z-box", "epsilon"])
def test_normalisation_inside_the_model_is_the_same_as_outside(style: str, config: NamedRuleset | str) -> None:
    """Relevance of the pixels, and the bounds of z-box, go through the normalisation; none is lost to the mean."""
    net = ready(SmallNet)
    model = Normalising(net, style).double().eval()
    x = 0.2 + 0.8 * pictures().abs() / 2.5
    normalised = (x - model.mean) / model.std
    low, high = (((end - model.mean) / model.std).flatten().tolist() for end in (0.0, 1.0))
    inside = Explainer(model, config, bounds=(0.0, 1.0)).explain(x, target=1)
    outside = Explainer(net, config, bounds=(low, high)).explain(normalised, target=1)
    torch.testing.assert_close(inside.logits, outside.logits, **EXACT)
    # A stabiliser of 1e-6 keeps the division by the pixel in check.
    torch.testing.assert_close(inside.relevance, outside.relevance, rtol=1e-4, atol=1e-9)
    assert_balanced(inside)


@pytest.mark.parametrize("config", [FLAT_FIRST, BOX_FIRST, "epsilon"], ids=["flat", "z-box", "epsilon"])
@pytest.mark.parametrize("value", [0.0, 0.5], ids=["black", "at the mean"])
def test_black_pixels_and_a_normalisation_inside_the_model(config: NamedRuleset | str, value: float) -> None:
    """Black pixels have their share inside as outside, and so have those that the normalisation maps to zero."""
    net = ready(SmallNet)
    model = Normalising(net, "operators").double().eval()
    x = 0.2 + 0.8 * pictures().abs() / 2.5
    x[:, :, 2:5, 2:5] = value
    normalised = (x - model.mean) / model.std
    low, high = (((end - model.mean) / model.std).flatten().tolist() for end in (0.0, 1.0))
    inside = Explainer(model, config, bounds=(0.0, 1.0)).explain(x, target=1)
    outside = Explainer(net, config, bounds=(low, high)).explain(normalised, target=1)
    torch.testing.assert_close(inside.relevance, outside.relevance, rtol=1e-4, atol=1e-9)


PADDINGS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor]]] = {
    "zeros": (
        lambda: nn.Conv2d(3, 4, 3, padding=1),
        lambda conv, x: F.conv2d(F.pad(x, (1, 1, 1, 1)), conv.weight, conv.bias),
    ),
    "same": (
        lambda: nn.Conv2d(3, 4, (4, 2), padding="same"),
        lambda conv, x: F.conv2d(F.pad(x, (0, 1, 1, 2)), conv.weight, conv.bias),
    ),
    "same, dilated": (
        lambda: nn.Conv2d(3, 4, (2, 3), padding="same", dilation=3),
        lambda conv, x: F.conv2d(F.pad(x, (3, 3, 1, 2)), conv.weight, conv.bias, dilation=3),
    ),
    "valid": (
        lambda: nn.Conv2d(3, 4, 3, padding="valid"),
        lambda conv, x: F.conv2d(x, conv.weight, conv.bias),
    ),
    "reflect": (
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        lambda conv, x: F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), conv.weight, conv.bias),
    ),
    "circular": (
        lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="circular"),
        lambda conv, x: F.conv2d(F.pad(x, (2, 2, 1, 1), "circular"), conv.weight, conv.bias),
    ),
    "zero padding module": (
        lambda: nn.Sequential(nn.ZeroPad2d((1, 0, 0, 2)), nn.Conv2d(3, 4, 3)),
        lambda conv, x: F.conv2d(
            torch.cat([torch.zeros_like(x[..., :1]), x], 3), conv[1].weight, conv[1].bias, padding=(2, 0)
        )[..., 2:, :],
    ),
}


class Padded(nn.Module):
    def __init__(self, conv: nn.Module, call: Callable[[nn.Module, Tensor], Tensor] | None) -> None:
        super().__init__()
        self.conv, self.call, self.fc = conv, call, nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x) if self.call is None else self.call(self.conv, x)
        return self.fc(F.relu(x).mean((2, 3)))


@pytest.mark.parametrize("name", PADDINGS)
@pytest.mark.parametrize(
    "config", [FLAT_FIRST, BOX_FIRST, LRP0, "excitation-backprop"], ids=["flat", "z-box", "lrp-0", "plus"]
)
def test_padding_in_the_convolution_and_before_it(name: str, config: NamedRuleset | str) -> None:
    make, explicit = PADDINGS[name]
    model = ready(lambda: Padded(make(), None))
    twin = ready(lambda: Padded(make(), explicit))
    a, b = explain(model, pictures(), config, target=0), explain(twin, pictures(), config, target=0)
    assert_same(a, b)
    assert_balanced(a)


@pytest.mark.parametrize("name", ["zeros", "same", "reflect"])
def test_flat_over_padding_by_hand(name: str) -> None:
    """Every output hands its relevance in equal parts to the pixels that it sees; padding with zeros is no pixel."""
    make, _ = PADDINGS[name]
    conv = ready(make)
    x = pictures(1)
    model = nn.Sequential(conv, nn.Flatten()).eval()
    seed = torch.ones_like(model(x)).detach()
    explanation = explain(model, x, FLAT_FIRST, target=seed)

    ones = copy.deepcopy(conv)
    with torch.no_grad():
        ones.weight.fill_(1.0)
    ones.bias = None
    counts = torch.autograd.functional.jacobian(lambda pixels: ones(pixels).flatten(), torch.ones_like(x)).flatten(1)
    shares = counts / counts.sum(1, keepdim=True)
    expected = (explanation.logits[0, :, None] * shares).sum(0).reshape(x.shape)
    torch.testing.assert_close(explanation.relevance, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("config", [FLAT_FIRST, BOX_FIRST], ids=["flat", "z-box"])
def test_padding_before_the_first_layer_keeps_its_bounds(config: NamedRuleset) -> None:
    """Padding that another module does is still padding: zero, with zero bounds, and no relevance of its own."""
    inner = nn.Conv2d(3, 4, 3, padding=2)
    together = ready(lambda: nn.Sequential(inner, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)))
    conv = nn.Conv2d(3, 4, 3).double()
    conv.weight, conv.bias = together[0].weight, together[0].bias
    apart = nn.Sequential(nn.Identity(), nn.ZeroPad2d(2), conv, *together[1:]).eval()
    assert_same(explain(apart, pictures(), config), explain(together, pictures(), config))


@pytest.mark.parametrize("seed", ["one", "probability", "logit"])
def test_books_of_contrasts_balance_where_hardly_anything_is_absorbed(seed: str) -> None:
    """The score of a contrast may be nothing, and so may be what is absorbed: rounding is small against the whole."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5, bias=False))

    model, x = ready(make).float(), pictures(4).float()
    forward = Explainer(model, "epsilon-plus-flat", bounds=BOUNDS).forward(x)
    for versus in (1, "rest"):
        explanation = forward.explain(0, versus=versus, seed=seed)
        size = explanation.relevance.abs().flatten(1).sum(dim=1)
        assert (explanation.imbalance.abs() < 1e-4 * size).all()


# Inputs and bounds that do not fit


@pytest.mark.parametrize("bounds", [([0, 0], [1, 1]), (1.0, -1.0), ([0, 0, 0, 0], [1, 1, 1, 1])])
def test_bounds_that_do_not_fit(bounds: Any) -> None:
    with pytest.raises(UsageError, match="bounds"):
        Explainer(ready(SmallNet), "epsilon-gamma-box", bounds=bounds).explain(pictures())


def test_an_empty_batch() -> None:
    with pytest.raises(EngineError, match="empty"):
        explain(ready(SmallNet), pictures()[:0])


def test_an_input_of_another_type_than_the_model() -> None:
    with pytest.raises(EngineError, match=r"float32.*float64"):
        explain(ready(SmallNet), pictures().float())


def test_autocast_is_refused() -> None:
    model, x = ready(SmallNet).float(), pictures().float()
    with torch.autocast("cpu"), pytest.raises(EngineError, match="autocast"):
        explain(model, x)


def test_clamping_between_tensors_hands_on_all_relevance() -> None:
    """The bounds may differ by channel, and an entry may be exactly zero."""

    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 5, bias=False)
            self.register_buffer("high", torch.tensor([0.5, 1.0, 2.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(x).clamp(-self.high, self.high))

    model = ready(Clamped)
    x = torch.tensor([[0.7, -1.0, 3.0], [0.1, 0.2, 0.3]], dtype=torch.float64)
    explanation = explain(model, x, LRP0, target=2)
    expected = F.relu(x).minimum(model.high) * model.fc.weight[2].detach()
    torch.testing.assert_close(explanation.relevance, expected, **EXACT)
