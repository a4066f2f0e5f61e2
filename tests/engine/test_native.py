"""Compiled explanations are those of programs up to rounding, also where something is decided otherwise."""

import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from weakref import ref

import pytest
import torch
from networks import BOUNDS
from torch import Tensor, nn
from torch.testing import assert_close

from lrp_cli.engine import library, native, standing
from lrp_cli.engine.lowering import compiled
from lrp_cli.engine.machine_code import Code, Passage, Unfit
from lrp_cli.engine.native import FAILURES, Compiler
from lrp_cli.engine.transcript import Transcript
from lrp_cli.errors import UsageError
from lrp_cli.explainer import Explainer, Explanation

pytest.importorskip("torch._inductor")
try:
    Compiler()
except UsageError as error:
    pytest.skip(str(error), allow_module_level=True)

UNTIL_THEN = 3
"""After so many explanations there is a program: the first one makes a plan, the others follow it."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have programs made as soon as there is a plan that held, of this module's networks, too."""
    monkeypatch.setattr(library, "AFTER", 1)
    monkeypatch.setattr(native, "PATIENCE", 0)
    monkeypatch.setattr(standing, "KNOWN", (*standing.KNOWN, "test_native"))


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is compiled out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


class Network(nn.Module):
    """A bit of everything that rules decide about: signs, batch norms, a branch, a smooth activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.relu(x + self.branch(x))
        return self.head(x.mean(dim=(2, 3)))


def network() -> Network:
    torch.manual_seed(0)
    net = Network()
    with torch.no_grad():
        net(torch.randn(8, 3, 12, 12))
    return net.eval()


def picture(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def explained(explainer: Explainer, x: Tensor, times: int = UNTIL_THEN + 1) -> Explanation:
    for _ in range(times):
        explanation = explainer.explain(x, 3)
    return explanation


def assert_same(found: Explanation, expected: Explanation) -> None:
    assert_close(found.relevance, expected.relevance, rtol=1e-4, atol=1e-6)
    assert [*found.absorbed] == [*expected.absorbed]
    for name, absorbed in expected.absorbed.items():
        assert_close(found.absorbed[name], absorbed, rtol=1e-4, atol=1e-6)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each run of code whether it fitted."""
    done: list[bool] = []
    call = Code.__call__

    def noting(self: Code, *args: Any) -> Any:
        found = call(self, *args)
        done.append(found is not None)
        return found

    monkeypatch.setattr(Code, "__call__", noting)
    return done


@pytest.mark.parametrize("preset", ["epsilon", "epsilon-gamma-box", "epsilon-alpha2-beta1-flat"])
def test_what_is_compiled_gives_what_a_first_explanation_gives(preset: str, runs: list[bool]) -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    explainer = Explainer(net, preset, bounds=BOUNDS, compile=True)
    explained(explainer, picture())
    assert explainer.compiler is not None
    assert (explainer.compiler.count, explainer.compiler.problem) == (2, None)
    for seed in range(3):
        runs.clear()
        found = explainer.explain(picture(seed), 3)
        assert_same(found, Explainer(net, preset, bounds=BOUNDS).explain(picture(seed), 3))
        assert len(runs) == 2
        assert runs[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


def depthwise() -> nn.Module:
    """Return a network some outputs of which are weak (:mod:`lrp_cli.engine.weak`)."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 1), nn.SiLU(), nn.Conv2d(16, 16, 3, groups=16), nn.SiLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()


@pytest.mark.parametrize(
    ("make", "preset"),
    [
        pytest.param(network, "epsilon-plus-flat", id="plus"),
        pytest.param(depthwise, "epsilon-alpha2-beta1", id="weak", marks=pytest.mark.slow),
    ],
)
def test_several_targets(make: Callable[[], nn.Module], preset: str, runs: list[bool]) -> None:
    explainer, plain = (Explainer(make(), preset, compile=compile) for compile in (True, False))
    for _ in range(UNTIL_THEN + 2):
        runs.clear()
        found, expected = (
            [forward.explain(target, keep=target < 4) for target in (1, 2, 3, 4)]
            for forward in (explainer.forward(picture()), plain.forward(picture()))
        )
    assert explainer.compiler is not None
    assert explainer.compiler.problem is None
    assert len(runs) == 5  # one forward pass and four backward passes
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


PRECARIOUS = "epsilon-alpha2-beta1"


def precarious() -> nn.Module:
    """Return a network in which it depends on the values whether one product is precise enough for both signs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(256, 5)).eval()
    with torch.no_grad():
        net[2].weight.abs_()
        net[0].bias.fill_(0.5)
    return net


def test_what_is_decided_otherwise_is_left_to_the_program(runs: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ATTEMPTS", 1)
    net = precarious()
    explainer, plain = (Explainer(net, PRECARIOUS, compile=compile) for compile in (True, False))
    for each in (explainer, plain):
        explained(each, picture())
    runs.clear()
    for _ in range(FAILURES):
        found, expected = (each.explain(1e-3 * picture(), 3) for each in (explainer, plain))
        assert_same(found, expected)
    assert runs == [True, False] * FAILURES
    assert explainer.compiler is not None
    assert "decide otherwise" in explainer.compiler.report
    runs.clear()
    assert_same(explainer.explain(picture(), 3), plain.explain(picture(), 3))
    assert runs == [True]  # the code of the backward pass was given up


def test_a_rule_that_decides_in_several_ways_is_asked_each_time(runs: list[bool]) -> None:
    net = precarious()
    explainer, plain = (Explainer(net, PRECARIOUS, compile=compile) for compile in (True, False))
    for each in (explainer, plain):
        explained(each, picture())
    for _ in range(FAILURES):
        explainer.explain(1e-3 * picture(), 3)
    assert explainer.compiler is not None
    assert explainer.compiler.count == 2
    explainer.explain(picture(), 3)
    assert (explainer.compiler.count, explainer.compiler.problem) == (3, None)  # the backward pass once more
    runs.clear()
    for scale in (1, 1e-3, -1, 1e-3, 1, 1e3):
        assert_same(explainer.explain(scale * picture(), 3), plain.explain(scale * picture(), 3))
    assert runs == [True, True] * 6


def test_it_is_compiled_once_it_was_seen_what_varies(monkeypatch: pytest.MonkeyPatch, runs: list[bool]) -> None:
    monkeypatch.setattr(native, "PATIENCE", 2)
    explainer = Explainer(precarious(), PRECARIOUS, compile=True)
    for turn in range(UNTIL_THEN + 2):
        assert not runs, turn
        explainer.explain((1, 1e-3)[turn % 2] * picture(), 3)
    for scale in (1, 1e-3, 1, 1e-3, 1):
        explainer.explain(scale * picture(), 3)
    assert all(runs)
    assert explainer.compiler is not None
    assert (explainer.compiler.count, explainer.compiler.problem) == (2, None)


def test_successes_make_failures_good(runs: list[bool]) -> None:
    explainer = Explainer(precarious(), PRECARIOUS, compile=True)
    explained(explainer, picture())
    runs.clear()
    for _ in range(FAILURES + 1):
        for scale in (1, 1, 1, 1e-3):
            explainer.explain(scale * picture(), 3)
    assert runs.count(False) == FAILURES + 1
    assert explainer.compiler is not None
    assert explainer.compiler.count == 2


def test_changed_weights_are_used() -> None:
    net = network()
    explainer = Explainer(net, "epsilon-plus", compile=True)
    explained(explainer, picture())
    with torch.no_grad():
        net.head[0].weight.mul_(2)
    assert_same(explainer.explain(picture(), 3), Explainer(net, "epsilon-plus").explain(picture(), 3))


def failing(*args: Any, **options: Any) -> Any:
    raise RuntimeError("no header files\nCommand: g++")


def wrong(module: nn.Module, arguments: list[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
    return lambda *given: tuple(2 * tensor for tensor in module(*given))


@pytest.mark.parametrize(
    ("compile", "problem"), [(failing, "no header files"), (wrong, "what was compiled does something else")]
)
def test_what_cannot_be_compiled_or_is_wrong_is_not_used(
    monkeypatch: pytest.MonkeyPatch, compile: Callable[..., Any], problem: str
) -> None:
    monkeypatch.setattr(torch._inductor, "compile", compile)
    explainer, plain = (Explainer(network(), "epsilon-plus", compile=each) for each in (True, False))
    found, expected = (explained(each, picture()) for each in (explainer, plain))
    assert torch.equal(found.relevance, expected.relevance)
    assert explainer.compiler is not None
    assert (explainer.compiler.count, explainer.compiler.problem) == (0, problem)
    assert problem in explainer.compiler.report


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder

    def missing() -> str:
        raise RuntimeError("No working C++ compiler found in torch._inductor.config.cpp.cxx")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(UsageError, match=r"no C\+\+ compiler, such as g\+\+"):
        Explainer(network(), compile=True)
    Explainer(network())


def test_two_threads_at_once_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[str] = []
    compile = torch._inductor.compile

    def noting(*args: Any, **options: Any) -> Any:
        began.append(threading.current_thread().name)
        return compile(*args, **options)

    monkeypatch.setattr(torch._inductor, "compile", noting)
    explainer = Explainer(network(), "epsilon-plus", compile=True)
    explained(explainer, picture(), UNTIL_THEN)
    assert not began  # there is a program, and it was not run yet
    found: list[Explanation] = []
    threads = [threading.Thread(target=lambda: found.append(explainer.explain(picture(), 3))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(began) == 2  # the forward and the backward pass
    assert_same(found[0], found[1])


def test_tensors_that_lie_otherwise_in_memory_are_left_to_the_program() -> None:
    task, plain = passage(lambda x: x * 2 + 1, torch.randn(4, 6))
    function = Compiler().function(plain, task)
    for x in (torch.randn(4, 6), torch.randn(6, 4).T, torch.randn(8, 6)[::2], torch.randn(4, 6)):
        assert torch.equal(function(x, None)[0], x * 2 + 1)


def test_weights_go_with_their_explainer() -> None:
    net = network()
    explainer = Explainer(net, "epsilon-plus", compile=True)
    explained(explainer, picture())
    weight = ref(net.head[0].weight)
    del net, explainer
    gc.collect()
    assert weight() is None


def passage(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Passage, Callable[..., Any]]:
    """Return a function of one tensor as a passage, and as what programs are made of."""
    transcript = Transcript([])
    given = transcript.new_input(x)
    with transcript:
        result = function(x)
    assert transcript.problem is None
    found = Passage(transcript.steps, given, [transcript.value(result)], {})
    return found, compiled(found.steps, [given], found.outputs)


def read_before_it_is_written(x: Tensor) -> Tensor:
    y = x * 2
    total = y.view(-1).sum()
    y.add_(1)
    return y * total


def read_after_it_is_written(x: Tensor) -> Tensor:
    y = x * 2
    flat = y.view(-1)
    y.add_(1)
    return flat.cumsum(0)


def written_by_a_view(x: Tensor) -> Tensor:
    y = x * 2
    y.view(-1).add_(1)
    return y + 1


def written_by_a_view_of_a_view(x: Tensor) -> Tensor:
    y = x * 2
    y.view(-1)[::2].add_(1)
    return y + 1


def returned_after_it_is_written(x: Tensor) -> Tensor:
    y = x * 2
    flat = y.view(-1)
    y.add_(1)
    return flat


@pytest.mark.parametrize(
    "function",
    [
        read_before_it_is_written,
        read_after_it_is_written,
        written_by_a_view,
        written_by_a_view_of_a_view,
        returned_after_it_is_written,
    ],
)
def test_views_of_what_is_changed_in_place(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 6)
    task, plain = passage(function, x.clone())
    (found,) = Code(task)(x.clone(), [])  # type: ignore[misc]
    assert_close(found, function(x.clone()))
    assert_close(found, plain(x.clone(), None)[0])


def test_inputs_are_not_changed_in_place() -> None:
    task, _ = passage(lambda x: x.mul_(2).sum(), torch.ones(4))
    x = torch.ones(4)
    assert Code(task)(x, []) == (8,)
    assert x.tolist() == [1, 1, 1, 1]
    with pytest.raises(Unfit, match="changed in place"):
        Code(replace(task, spared=frozenset({task.input}), places={task.input: 0}))


def changed_and_asked_again(x: Tensor) -> Tensor:
    is_large = x.sum() > 4
    y = x * 3 if is_large else x
    is_large.fill_(False)
    return y * 5 if is_large else y


def changed_afterwards(x: Tensor) -> Tensor:
    is_large = x.sum() > 4
    y = x * 3 if is_large else x
    is_large.fill_(True)
    return y


@pytest.mark.parametrize("function", [changed_and_asked_again, changed_afterwards])
def test_what_decided_is_not_changed_before_it_is_looked_at(function: Callable[[Tensor], Tensor]) -> None:
    task, _ = passage(function, 2 * torch.ones(4))
    with pytest.raises(Unfit, match="what decided is changed"):
        Code(task)


@pytest.mark.slow
def test_programs_that_follow_compiled_ones_find_tensors_as_ever(runs: list[bool]) -> None:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    net = VisionTransformer(12, 4, 2, 2, 16, 32, num_classes=5).eval()
    torch.nn.init.normal_(net.heads.head.weight, std=0.1)
    explainer, plain = (Explainer(net, "attnlrp", compile=compile) for compile in (True, False))
    for each in (explainer, plain):
        explained(each, picture())
    assert explainer.compiler is not None
    assert (explainer.compiler.count, explainer.compiler.problem) == (2, None)
    runs.clear()
    assert_same(explainer.explain(picture(1), 3), plain.explain(picture(1), 3))
    assert runs == [True, True]


def test_numbers_that_decide_are_looked_at() -> None:
    x = torch.full((4,), 2.0)
    task, _ = passage(lambda x: x + 1 if bool((x > 0).all()) else x - 1, x)
    code = Code(task)
    assert code(x, []) is not None
    assert code(-x, []) is None


def test_constants_decide_nothing() -> None:
    task, _ = passage(lambda x: x.to(torch.promote_types(torch.float32, torch.float64)), torch.ones(4))
    (found,) = Code(task)(torch.ones(4), [])  # type: ignore[misc]
    assert found.dtype == torch.float64


def test_tensors_of_differing_numbers_do_not_agree() -> None:
    ones = torch.ones(3)
    assert native._agree([ones, ones], [ones, ones], torch.float32)
    assert not native._agree([ones, ones], [ones, 1.01 * ones], torch.float32)
    assert not native._agree([ones * float("nan"), ones], [ones, ones], torch.float32)
