"""What a model computes without torch functions: autograd Functions of its own, scripted functions, checkpoints."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import (
    LRP0,
    Case,
    assert_right,
    assert_samples_independent,
    assert_twins,
    build,
    case,
    explain,
    fingerprint,
    inputs,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lrp_cli.engine import checkpoints
from lrp_cli.errors import EngineError
from lrp_cli.explainer import Explainer
from lrp_cli.inspection import inspect

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        return gradients[0] * torch.cos(x)


class Doubled(torch.autograd.Function):
    """Saves nothing: its input may be gone when its output is used."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * 2


class Weighted(torch.autograd.Function):
    """A sum of two inputs, one of them times a parameter; written with setup_context."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, gain: Tensor) -> Tensor:
        return a + b * gain

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[1], inputs[2])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        b, gain = ctx.saved_tensors
        return gradients[0], gradients[0] * gain, (gradients[0] * b).sum((0, 2, 3), keepdim=True)[0]


class Halves(torch.autograd.Function):
    """Two outputs, the second one not linear."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        return x[:, :2] * 3, torch.exp(x[:, 2:])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        return torch.cat([gradients[0] * 3, gradients[1] * torch.exp(x[:, 2:])], dim=1)


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * 2


class ForwardOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.sin(x)


sine, doubled = Sine.apply, Doubled.apply
"""As people keep them, from before the engine is asked anything."""


@torch.jit.script
def scripted_sine(x: Tensor) -> Tensor:
    return torch.sin(x * 2)


@torch.jit.script
def scripted_scaling(x: Tensor) -> Tensor:
    return (x * 2).transpose(2, 3) * 0.5


@torch.jit.script
def scripted_doubling(x: Tensor) -> Tensor:
    return x * 2


class Called(nn.Module):
    """A module that is one function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Net(nn.Module):
    """conv -> the step in question -> conv -> pooling -> linear."""

    def __init__(self, step: Callable[["Net", Tensor], Tensor], modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3), nn.Linear(5, 6)
        self.gain = nn.Parameter(torch.randn(4, 1, 1))
        self.m = nn.ModuleDict(modules)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv2(self.step(self, self.conv1(x)))).mean(dim=(2, 3)))


Step = Callable[[Net, Tensor], Tensor]


def net(step: Step, **modules: nn.Module) -> Case:
    return case(lambda: Net(step, modules), 3, 3, 8, 8)


# Refused or booked


NOT_LINEAR: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], str]] = {
    "Function": (lambda x: Sine.apply(x) * 1, torch.sin, "Sine"),
    "Function, kept": (sine, torch.sin, "Sine"),
    "Function, view of its output": (lambda x: Sine.apply(x)[:, :, 1:], lambda x: torch.sin(x)[:, :, 1:], "Sine"),
    "two Functions": (lambda x: sine(doubled(x)), lambda x: torch.sin(x * 2), "Sine"),
    "scripted": (scripted_sine, lambda x: torch.sin(x * 2), "Backward"),
    "Function of a scripted function": (lambda x: sine(scripted_scaling(x)), lambda x: torch.sin(turned(x)), "Sine"),
}
"""Function, the same by torch functions, and a part of its name."""


def turned(x: Tensor) -> Tensor:
    return x.transpose(2, 3)


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_what_has_no_rule_is_refused_by_name(name: str) -> None:
    function, _, called = NOT_LINEAR[name]
    with pytest.raises(EngineError, match=rf"no rule is known for .*{called}.* in m\.own \(Called\)") as caught:
        explain(net(lambda net, x: net.m["own"](x), own=Called(function)))
    assert "--on-unknown gradient" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_what_has_no_rule_is_booked_as_torchs_own_would_be(name: str) -> None:
    function, by_torch, _ = NOT_LINEAR[name]
    network = net(lambda net, x: net.m["own"](x), own=Called(function))
    twin = net(lambda net, x: net.m["own"](x), own=Called(by_torch))
    explanation = explain(network, LRP0, 2, on_unknown="gradient")
    assert_right(explanation, network)
    assert_twins(explanation, explain(twin, LRP0, 2, on_unknown="gradient"))
    assert explanation.absorbed["m.own"].abs().min() > 0
    assert_samples_independent(network, "epsilon", 1e-9, on_unknown="gradient")


def test_the_module_that_runs_is_named_where_there_is_no_module_of_its_own() -> None:
    for step in (lambda net, x: Sine.apply(x), lambda net, x: sine(x), lambda net, x: scripted_sine(x)):
        with pytest.raises(EngineError, match=r"in Net \(Net\)|in conv2 \(Conv2d\)"):
            explain(net(step))


def test_functions_off_the_path_of_relevance_are_none_of_its_business() -> None:
    network = net(lambda net, x: x * sine(x).detach() + scripted_sine(net.gain))
    assert_twins(
        explain(network, LRP0), explain(net(lambda net, x: x * sine(x).detach() + torch.sin(net.gain * 2)), LRP0)
    )


# Found to be linear


LINEAR: dict[str, tuple[Step, Step]] = {
    "Function": (lambda net, x: Doubled.apply(x), lambda net, x: x * 2),
    "Function, kept": (lambda net, x: doubled(x), lambda net, x: x * 2),
    "of a layer with a norm": (lambda net, x: norm(x) + doubled(x), lambda net, x: norm(x) + x * 2),
    "one after another": (lambda net, x: doubled(doubled(x)), lambda net, x: x * 4),
    "used again by another": (lambda net, x: reused(doubled(x)), lambda net, x: x * 8),
    "two inputs, parameter": (
        lambda net, x: Weighted.apply(F.relu(x), x, net.gain),
        lambda net, x: x.relu() + x * net.gain,
    ),
    "two inputs, one Function's": (
        lambda net, x: Weighted.apply(doubled(x), x, net.gain),
        lambda net, x: 2 * x + x * net.gain,
    ),
    "one of two outputs": (lambda net, x: Halves.apply(x)[0].repeat(1, 2, 1, 1), lambda net, x: x[:, [0, 1, 0, 1]] * 3),
    "parameters": (
        lambda net, x: x * doubled(net.gain) + scripted_doubling(net.gain),
        lambda net, x: x * 2 * net.gain + 2 * net.gain,
    ),
    "scripted": (lambda net, x: scripted_scaling(x), lambda net, x: x.transpose(2, 3)),
    "scripted, of a Function": (lambda net, x: scripted_scaling(doubled(x)), lambda net, x: x.transpose(2, 3) * 2),
    "changed in place afterwards": (lambda net, x: doubled(x).abs_(), lambda net, x: (x * 2).abs()),
    "channels changed in place": (lambda net, x: halved_in_place(doubled(x)), lambda net, x: halved_in_place(x * 2)),
    "batch second": (
        lambda net, x: doubled(x.transpose(0, 1)).transpose(0, 1),
        lambda net, x: x * 2,
    ),
}


def norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, torch.linspace(-1, 1, 4).to(x), torch.linspace(0.5, 2, 4).to(x))


def reused(x: Tensor) -> Tensor:
    """8 x, if x is read by a torch function first, and then by a Function that never reads what stands for it."""
    return x + doubled(x) + x


def halved_in_place(x: Tensor) -> Tensor:
    x[:, :2] *= 0.5
    return x


@pytest.mark.parametrize("config", [LRP0, "epsilon"], ids=["lrp-0", "epsilon"])
@pytest.mark.parametrize("name", LINEAR)
def test_what_is_linear_is_right(name: str, config: Any) -> None:
    step, plain = LINEAR[name]
    network = net(step)
    explanation = explain(network, config, 1)
    assert_right(explanation, network)
    assert_twins(explanation, explain(net(plain), config, 1))
    assert_twins(explain(network, config, 1, on_unknown="gradient"), explanation)


def test_only_the_output_that_is_linear_passes() -> None:
    with pytest.raises(EngineError, match="'Halves'"):
        explain(net(lambda net, x: torch.cat(Halves.apply(x), dim=1)))
    network = net(lambda net, x: torch.cat(Halves.apply(x), dim=1))
    twin = net(lambda net, x: torch.cat([x[:, :2] * 3, torch.exp(x[:, 2:])], dim=1))
    explanation = explain(network, LRP0, 1, on_unknown="gradient")
    assert_twins(explanation, explain(twin, LRP0, 1, on_unknown="gradient"))


@pytest.mark.parametrize("size", [1e-2, 0.1])
def test_what_is_almost_linear_is_not(size: float) -> None:
    with pytest.raises(EngineError, match="'Sine'"):
        explain(net(lambda net, x: sine(x * size) / size))


def test_targets_one_after_another_are_as_each_alone() -> None:
    network = net(lambda net, x: sine(x) + doubled(x))
    explainer = Explainer(network.model, LRP0, on_unknown="gradient")
    forward = explainer.forward(network.x)
    for target in (1, 2, 1):
        assert_twins(forward.explain(target), explainer.explain(network.x, target))


def test_single_precision() -> None:
    network = net(lambda net, x: doubled(x) + scripted_scaling(x))
    single = Case(network.model.float(), network.x.float())
    assert_right(explain(single), single)


def test_operations_out_of_sight_have_a_row() -> None:
    network = net(lambda net, x: net.m["own"](x), own=Called(sine))
    inspection = inspect(Explainer(network.model, LRP0, on_unknown="gradient"), network.x[:1], 2)
    (row,) = [row for row in inspection.rows if row.operation == "Sine"]
    assert (row.layer, row.shape) == ("m.own", (1, 4, 8, 8))
    assert row.relevance_in == pytest.approx(row.relevance_out + sum(row.absorbed.values()), rel=1e-9)
    assert row.relevance_in != pytest.approx(row.relevance_out)
    (before,) = [row for row in inspection.rows if row.layer == "conv1"]
    assert before.relevance_in == pytest.approx(row.relevance_out, rel=1e-9)


def test_changes_of_views_are_traced() -> None:
    network = net(lambda net, x: halved_in_place(F.gelu(x)))
    explainer = Explainer(network.model, LRP0)
    inspection = inspect(explainer, network.x[:1], 2)
    assert_twins(inspection.explanation, explainer.explain(network.x[:1], 2))


# What cannot be accounted for


def input_gone(function: Callable[[Tensor], Tensor]) -> Step:
    def step(net: Net, x: Tensor) -> Tensor:
        y = function(x * 0.5)
        return x * 2 + y

    return step


def test_a_function_whose_input_is_gone_is_refused() -> None:
    network = net(input_gone(doubled))
    with pytest.raises(EngineError, match=r"'Doubled' in Net \(Net\).*--on-unknown"):
        explain(network)
    with pytest.raises(EngineError, match=r"the books cannot be kept for .*'Doubled' in Net \(Net\).*change the model"):
        explain(network, on_unknown="gradient")


def changed_before(net: Net, x: Tensor) -> Tensor:
    y = F.gelu(x)
    x.mul_(2)
    return y + doubled(x)


def own_output_changed_before(net: Net, x: Tensor) -> Tensor:
    y = doubled(x)
    y.mul_(2)
    return y + doubled(y)


def changed_after(net: Net, x: Tensor) -> Tensor:
    z = doubled(x)
    y = F.gelu(x)
    x.mul_(2)
    return y + z + x


def test_a_function_that_reads_what_was_to_be_changed_in_place_is_refused() -> None:
    for step in (changed_before, own_output_changed_before):
        with pytest.raises(EngineError, match=r"'Doubled' in Net \(Net\) reads a tensor that was changed in place"):
            explain(net(step))
    assert_twins(explain(net(changed_after)), explain(net(lambda net, x: F.gelu(x) + x * 4)))


def test_a_function_that_changes_its_input_is_refused() -> None:
    with pytest.raises(EngineError, match=r"'mul' in Net \(Net\) changes a tensor in place .*change the model"):
        explain(net(lambda net, x: InPlace.apply(x * 1)))


def test_a_function_without_a_gradient_is_refused() -> None:
    network = net(lambda net, x: net.m["own"](x), own=Called(ForwardOnly.apply))
    for on_unknown in ("error", "gradient"):
        with pytest.raises(EngineError, match=r"'ForwardOnly' in m\.own"):
            explain(network, on_unknown=on_unknown)


# Checkpoints


def block() -> nn.Module:
    """Holds what autograd saves tensors for (ReLU, max pooling, a product), and what the engine has functions for."""
    return nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.GELU(), nn.MaxPool2d(2), Called(lambda x: x * x.sigmoid())
    )


@pytest.mark.parametrize("config", [LRP0, "epsilon"], ids=["lrp-0", "epsilon"])
def test_checkpoints_are_right(config: Any) -> None:
    if checkpoints._top_hooks is None:
        pytest.skip("torch before 2.8 does not tell which hooks are in force")
    network = net(lambda net, x: checkpoint(net.m["own"], x, use_reentrant=False), own=block())
    twin = net(lambda net, x: net.m["own"](x), own=block())
    twin.model.load_state_dict(network.model.state_dict())
    explainer = Explainer(network.model, config)
    forward = explainer.forward(network.x)
    for target in (1, 2):
        assert_twins(forward.explain(target), explain(twin, config, target))


def test_hooks_of_the_callers_own_are_in_force() -> None:
    network = net(lambda net, x: F.leaky_relu(x))
    expected, packed = explain(network), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.shape) or t, lambda t: t):
        assert_twins(explain(network), expected)
    assert torch.Size([3, 4, 8, 8]) in packed


@pytest.mark.parametrize("on_unknown", ["error", "gradient"])
def test_reentrant_checkpoints_are_refused(on_unknown: str) -> None:
    network = net(lambda net, x: checkpoint(net.m["own"], x, use_reentrant=True), own=block())
    with pytest.raises(EngineError, match="switch gradient checkpointing off"):
        explain(network, on_unknown=on_unknown)


def test_functions_in_checkpoints_are_refused() -> None:
    whole = nn.Sequential(nn.Conv2d(4, 4, 1), Called(sine), nn.Conv2d(4, 4, 1))
    network = net(lambda net, x: checkpoint(net.m["own"], x, use_reentrant=False), own=whole)
    with pytest.raises(EngineError, match="switch gradient checkpointing off"):
        explain(network, on_unknown="gradient")


def test_checkpoints_are_refused_where_torch_does_not_tell_of_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_top_hooks", None)
    network = net(lambda net, x: checkpoint(net.m["own"], x, use_reentrant=False), own=block())
    with pytest.raises(EngineError, match="switch gradient checkpointing off"):
        explain(network)
    assert torch._C._autograd._saved_tensors_hooks_is_enabled()
    with torch.autograd.graph.save_on_cpu():
        explain(net(lambda net, x: F.relu(x)))


# Scripted modules


@pytest.mark.parametrize("compile_", [torch.jit.script, lambda module: torch.jit.trace(module, inputs(2, 4, 8, 8))])
def test_scripted_modules_are_refused_by_name(compile_: Callable[[nn.Module], nn.Module]) -> None:
    network = net(lambda net, x: net.m["own"](x), own=compile_(nn.Conv2d(4, 4, 1).double().eval()))
    with pytest.raises(EngineError, match=r"^m\.own is a scripted or traced module \(Conv2d\).*pass the original"):
        explain(network)
    whole = Case(compile_(build(lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 5)).double())), inputs(2, 4, 8, 8))
    with pytest.raises(EngineError, match=r"^the model is a scripted or traced module \(Sequential\)"):
        explain(whole)


# Nothing is left behind


def test_torch_and_the_model_are_as_they_were() -> None:
    network = net(lambda net, x: net.m["own"](doubled(x)), own=Called(scripted_scaling))
    before, apply = fingerprint(network.model), torch.autograd.Function.__dict__["apply"]
    explain(network)
    with pytest.raises(EngineError):
        explain(net(lambda net, x: sine(x)))
    assert fingerprint(network.model) == before
    assert torch.autograd.Function.__dict__["apply"] is apply
    assert torch._C._autograd._saved_tensors_hooks_is_enabled()


def test_two_threads_at_once() -> None:
    """Each sees its own Functions; numbers are a thread's own."""
    network, failures = net(lambda net, x: doubled(x) + scripted_scaling(x)), []
    expected = explain(network, LRP0, 1)
    start = threading.Barrier(2)

    def work() -> None:
        start.wait()
        for _ in range(20):
            try:
                assert_twins(explain(network, LRP0, 1), expected)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
