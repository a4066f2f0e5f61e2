"""On a GPU: the results of double precision on a processor, batches that fit, and no waiting picture by picture."""

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models
from torch import Tensor, nn

from lrp_cli.engine import library
from lrp_cli.engine.programs import ProgramRun
from lrp_cli.explainer import Explainer
from lrp_cli.runs.explaining import Explaining

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

BOUNDS = (-2.5, 2.5)
PRESETS = ("epsilon", "epsilon-plus-flat", "epsilon-gamma-box", "epsilon-alpha2-beta1", "attnlrp-gamma")
SIDES = {
    "vgg11_bn": 64,
    "resnet18": 64,
    "mobilenet_v2": 64,
    "efficientnet_b0": 64,
    "densenet121": 64,
    "shufflenet_v2_x0_5": 64,
    "convnext_tiny": 64,
    "swin_t": 64,
    "vit_b_16": 224,
}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have programs made as soon as there is a plan that held."""
    monkeypatch.setattr(library, "AFTER", 1)


@pytest.fixture
def runs_of_programs(monkeypatch: pytest.MonkeyPatch) -> list[ProgramRun]:
    """The explanations that a program gave."""
    done: list[ProgramRun] = []
    hand_down = ProgramRun.hand_down

    def noting(self: ProgramRun, seed: Tensor, *, keep: bool) -> Any:
        found = hand_down(self, seed, keep=keep)
        done.extend([self] * (found is not None))
        return found

    monkeypatch.setattr(ProgramRun, "hand_down", noting)
    return done


def network(name: str) -> nn.Module:
    """Return a network in double precision, in eval mode, whose batch norms have statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torchvision.models.get_model(name, weights=None, num_classes=10).double()
        for parameter in net.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        with torch.no_grad():
            net.train()(pictures(8, SIDES[name], seed=1))
    return net.eval()


def pictures(count: int, side: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, side, side, generator=generator, dtype=torch.float64).clamp(*BOUNDS)


def error(found: Tensor, right: Tensor) -> float:
    """Return the sum of the differences' magnitudes, in proportion."""
    return float((found.double().cpu() - right).abs().sum() / right.abs().sum())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", SIDES)
def test_relevance_is_that_of_double_precision_on_a_processor(
    name: str, preset: str, runs_of_programs: list[ProgramRun]
) -> None:
    net, x = network(name), pictures(2, SIDES[name])
    right = Explainer(net, preset, bounds=BOUNDS).explain(x, target=[3, 4])
    single = Explainer(copy.deepcopy(net).float(), preset, bounds=BOUNDS).explain(x.float(), target=[3, 4])
    for dtype, tolerance in (
        (torch.float64, 1e-9),
        (torch.float32, max(1e-3, 5 * error(single.relevance, right.relevance))),
    ):
        explainer = Explainer(copy.deepcopy(net).to("cuda", dtype), preset, bounds=BOUNDS)
        for _ in range(5):  # at first step by step, then by a plan, then by a program
            found = explainer.explain(x.to("cuda", dtype), target=[3, 4])
            assert found.relevance.device.type == "cuda"
            assert error(found.relevance, right.relevance) <= tolerance
            assert error(found.absorbed_sum, right.absorbed_sum) <= tolerance
    assert len(runs_of_programs) >= 4


def test_several_targets_of_one_forward_pass(runs_of_programs: list[ProgramRun]) -> None:
    net, x = network("resnet18"), pictures(2, 64)
    right = Explainer(net, "epsilon-plus-flat").forward(x)
    explainer = Explainer(copy.deepcopy(net).to("cuda"), "epsilon-plus-flat")
    for _ in range(5):
        forward = explainer.forward(x.to("cuda"))
        for target in (3, 4, 5):
            wanted = right.explain(target, versus=[None, "rest"]).relevance
            assert error(forward.explain(target, versus=[None, "rest"], keep=target < 5).relevance, wanted) <= 1e-9
    assert len(runs_of_programs) >= 6


def test_books_without_an_entry() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False)).to("cuda").eval()
    explanation = Explainer(net, "lrp-0").explain(torch.rand(2, 3, 2, 2, device="cuda"))
    torch.testing.assert_close(explanation.imbalance.cpu(), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.fixture
def rounding() -> Iterator[None]:
    """Have torch round all products to TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


@pytest.mark.parametrize("preset", ["epsilon-plus-flat", "epsilon-alpha2-beta1"])
@pytest.mark.usefixtures("rounding")
def test_products_are_not_rounded_to_tf32(preset: str) -> None:
    net, x = network("resnet18"), pictures(2, 64)
    right = Explainer(net, preset).explain(x, target=3)
    single = copy.deepcopy(net).to("cuda", torch.float32)
    found = Explainer(single, preset).explain(x.to("cuda", torch.float32), target=3)
    with torch.no_grad():
        rounded = single(x.to("cuda", torch.float32))
    assert error(found.logits, right.logits) < 1e-5 < 1e-4 < error(rounded, right.logits)
    assert error(found.relevance, right.relevance) <= 1e-3
    assert torch.backends.cudnn.allow_tf32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_picture: Callable[..., Path]) -> Path:
    """A folder of 90 pictures."""
    made = tmp_path_factory.mktemp("pictures")
    for number in range(90):
        make_picture(made / f"{number:02}.png", seed=number)
    return made


def test_a_run_writes_what_it_writes_on_a_processor(lrp, folder: Path, tmp_path: Path) -> None:
    listed = [folder / f"{number:02}.png" for number in range(5)]
    sums = {}
    for device in ("cpu", "cuda"):
        done = lrp.explain(*listed, "--json", "--device", device, "-o", tmp_path / device)
        assert done.code == 0, done.err
        sums[device] = {Path(record["image"]).name: record["relevance_sum"] for record in done.records}
        assert lrp("verify", tmp_path / device).code == 0
    assert sums["cuda"] == pytest.approx(sums["cpu"], rel=1e-3)
    line = json.loads((tmp_path / "cuda" / "manifest.jsonl").read_text().splitlines()[-1])
    assert line["device"] == "cuda"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures went through the network at once, each time."""
    counts: list[int] = []
    explain = Explaining.explain

    def counting(self: Explaining, pictures: Any) -> Any:
        found = explain(self, pictures)
        counts.append(len(pictures))
        return found

    monkeypatch.setattr(Explaining, "explain", counting)
    return counts


def test_batches_grow_to_what_fits(lrp, folder: Path, tmp_path: Path, at_once: list[int]) -> None:
    done = lrp.explain(folder, "--device", "cuda", "-o", tmp_path)
    assert done.code == 0, done.err
    assert at_once == [8, 64, 18]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Leave 400 MiB of a GPU's memory to this process."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(400 * 2**20 / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("little_memory")
def test_out_of_memory_halves_batches(lrp, folder: Path, tmp_path: Path, at_once: list[int]) -> None:
    """At 224 pixels."""
    done = lrp("explain", folder, "--config", "epsilon", "--device", "cuda", "-b", 64, "-o", tmp_path)
    assert done.code == 0, done.err
    assert done.err.count("out of memory: going on with smaller batches") == 1
    assert sum(at_once) == 90
    assert max(at_once) < 64


def test_no_waiting_for_the_gpu_picture_by_picture(lrp, folder: Path, tmp_path: Path) -> None:
    """However many pictures go through the network at once, the processor waits for the GPU as often."""
    waits = []
    for count in (4, 16):
        listed = [folder / f"{number:02}.png" for number in range(count)]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                done = lrp.explain(*listed, "--device", "cuda", "-b", count, "-o", tmp_path / str(count))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert done.code == 0, done.err
        waits.append(sum("called a synchronizing CUDA operation" in str(warning.message) for warning in said))
    assert waits[0] == waits[1] > 0
