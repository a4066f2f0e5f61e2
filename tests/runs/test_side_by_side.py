"""Halves of a batch, explained side by side."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrp_cli import load_run
from lrp_cli.engine import library
from lrp_cli.errors import EngineError
from lrp_cli.explainer import Explainer
from lrp_cli.runs import crew
from lrp_cli.runs.crew import Crew

Make = Callable[..., Path]

NET = """
import torch

def build():
    torch.manual_seed(0)
    return Net().eval()

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 62 * 62, 1000)
        )

    def forward(self, x):
        return self.layers(x)
"""


@dataclass(frozen=True)
class Pass:
    """A forward pass: in which thread, with how many processor threads, over how many pictures."""

    thread: str
    share: int
    pictures: int


@pytest.fixture
def pictures(tmp_path: Path, make_picture: Make) -> Path:
    for seed in range(30):
        make_picture(tmp_path / f"in/{seed:02}.png", seed)
    return tmp_path / "in"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs are made as soon as there is a plan, on any processor; and threads are left as they were."""
    monkeypatch.setattr(library, "AFTER", 0)
    monkeypatch.setattr(crew, "multiplies_matrices_well", lambda: True)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Pass]:
    """Note forward passes; those of the crew wait until two are under way."""
    noted: list[Pass] = []
    forward, together = Explainer.forward, threading.Barrier(2, timeout=30)

    def noting(self: Explainer, x: torch.Tensor, **options: Any) -> object:
        noted.append(Pass(threading.current_thread().name, torch.get_num_threads(), len(x)))
        if is_of_crew(noted[-1]):
            together.wait()
        return forward(self, x, **options)

    monkeypatch.setattr(Explainer, "forward", noting)
    return noted


def is_of_crew(noted: Pass) -> bool:
    return noted.thread.startswith("lrp-explain")


def threads_of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(torch.get_num_threads).result()


def relevance_of(directory: Path) -> dict[str, np.ndarray]:
    return {Path(record["image"]).name: record.relevance for record in load_run(directory)}


def test_halves_of_a_batch_in_two_threads_at_once(lrp, pictures: Path, tmp_path: Path, passes: list[Pass]) -> None:
    result = lrp.explain(pictures, "-o", tmp_path / "out", "--json", "-b", "4", "--threads", "2")
    assert result.code == 0
    assert [Path(record["image"]).name for record in result.records] == sorted(path.name for path in pictures.iterdir())
    first = next(number for number, noted in enumerate(passes) if is_of_crew(noted))
    assert 2 <= first <= 8
    assert {noted.pictures for noted in passes} == {2}
    assert {noted.share for noted in passes[:first]} == {2}
    assert {noted.share for noted in passes if is_of_crew(noted)} == {1}
    assert sum(map(is_of_crew, passes)) >= 6
    assert torch.get_num_threads() == threads_of_a_new_thread() == 2


def test_they_give_what_one_after_the_other_gives(lrp, pictures: Path, tmp_path: Path, passes: list[Pass]) -> None:
    together = lrp.explain(pictures, "-o", tmp_path / "a", "--json", "-b", "4", "--threads", "2")
    assert any(map(is_of_crew, passes))
    passes.clear()
    alone = lrp.explain(pictures, "-o", tmp_path / "b", "--json", "-b", "2", "--threads", "1")
    assert not any(map(is_of_crew, passes))
    assert [record["label"] for record in together.records] == [record["label"] for record in alone.records]
    expected = relevance_of(tmp_path / "b")
    found = relevance_of(tmp_path / "a")
    assert found.keys() == expected.keys()
    assert len(found) == 30
    for name, relevance in found.items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(relevance, expected[name], atol=1e-4 * scale, err_msg=name)


def test_several_targets(lrp, pictures: Path, tmp_path: Path, passes: list[Pass]) -> None:
    result = lrp.explain(pictures, "-o", tmp_path / "out", "--json", "-b", "4", "--threads", "2", "--target", "top:2")
    assert result.code == 0
    assert len(result.records) == 60
    assert any(map(is_of_crew, passes))
    assert lrp("verify", tmp_path / "out").code == 0


def test_a_model_of_ones_own_runs_in_one_thread(lrp, pictures: Path, tmp_path: Path, passes: list[Pass]) -> None:
    (tmp_path / "net.py").write_text(NET)
    result = lrp.explain(
        pictures, "-o", tmp_path / "out", "--model", f"{tmp_path / 'net.py'}:build", "-b", "4", "--threads", "2"
    )
    assert result.code == 0, result.err
    assert not any(map(is_of_crew, passes))
    assert [noted.pictures for noted in passes[-4:]] == [4, 4, 4, 2]


def test_one_thread_is_not_shared(lrp, pictures: Path, tmp_path: Path, passes: list[Pass]) -> None:
    result = lrp.explain(pictures, "-o", tmp_path / "out", "-b", "4", "--threads", "1")
    assert result.code == 0
    assert not any(map(is_of_crew, passes))
    assert [noted.pictures for noted in passes] == [4, 4, 4, 4, 4, 4, 4, 2]


def test_no_memory_for_one_of_them(lrp, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Explainer.forward

    def hungry(self: Explainer, x: torch.Tensor, **options: Any) -> object:
        if threading.current_thread().name.startswith("lrp-explain_1") and len(x) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(self, x, **options)

    monkeypatch.setattr(Explainer, "forward", hungry)
    result = lrp.explain(pictures, "-o", tmp_path / "out", "--json", "-b", "4", "--threads", "2")
    assert result.code == 0, result.err
    assert len(result.records) == 30
    assert result.err.count("out of memory") == 1


def test_a_picture_that_cannot_be_explained(
    lrp, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails in the thread, and when it is tried alone."""
    forward = Explainer.forward
    marked = torch.zeros(3, 64, 64)

    def picky(self: Explainer, x: torch.Tensor, **options: Any) -> object:
        if threading.current_thread().name.startswith("lrp-explain") and not marked.any():
            marked.copy_(x[1])
        if any(torch.equal(one, marked) for one in x):
            raise EngineError("a value is not finite")
        return forward(self, x, **options)

    monkeypatch.setattr(Explainer, "forward", picky)
    result = lrp.explain(pictures, "-o", tmp_path / "out", "--json", "-b", "4", "--threads", "2")
    assert result.code == 1
    assert len(result.records) == 29
    assert result.err.count("a value is not finite") == 1


def test_work_is_over_when_an_error_is_raised() -> None:
    torch.set_num_threads(2)
    hands, over = Crew(torch.device("cpu")), []

    def work(number: int) -> None:
        if number == 0:
            raise ValueError("the first")
        threading.Event().wait(0.2)
        over.append(number)

    with pytest.raises(ValueError, match="the first"):
        hands.work(work, [0, 1])
    assert over == [1]
    assert threads_of_a_new_thread() == 1
    hands.close()
    assert torch.get_num_threads() == threads_of_a_new_thread() == 2


def test_a_gpu_is_not_shared() -> None:
    torch.set_num_threads(2)
    assert Crew(torch.device("cuda")).hands == 1


def test_a_processor_is_not_shared_where_one_thread_alone_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    assert Crew(torch.device("cpu")).hands == 2
    monkeypatch.setattr(crew, "multiplies_matrices_well", lambda: False)
    assert Crew(torch.device("cpu")).hands == 1
