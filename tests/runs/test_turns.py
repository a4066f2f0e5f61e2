"""The network and the rest of a run, one after the other."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lrp_cli.errors import LrpError
from lrp_cli.explainer import Explainer
from lrp_cli.images.preprocessing import Preprocessing
from lrp_cli.runs import crew, network, outputs, pipeline
from lrp_cli.runs.prefetch import Behind
from lrp_cli.runs.turns import Turns

Make = Callable[..., Path]
PICTURES = 24
BATCH = "4"


@pytest.fixture
def pictures(tmp_path: Path, make_picture: Make) -> Path:
    for seed in range(PICTURES):
        make_picture(tmp_path / f"in/{seed:02}.png", seed)
    return tmp_path / "in"


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with two cores, on which both work on one operation."""
    monkeypatch.setattr(crew, "multiplies_matrices_well", lambda: False)
    monkeypatch.setattr(network, "usable_cores", lambda: 2)
    monkeypatch.setattr(pipeline, "THREADS", 2)


class Diary:
    """What ran while the network did."""

    def __init__(self) -> None:
        self.explaining = threading.Event()
        self.beside: list[str] = []
        self.done: list[str] = []

    def watch(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            is_beside = self.explaining.is_set()
            result = work(*arguments, **options)
            self.done.append(name)
            if is_beside:
                self.beside.append(name)
            return result

        return watched

    def slowly(self, explain: Callable[..., Any]) -> Callable[..., Any]:
        """Leave so much time that all that may run beside it does."""

        def explaining(*arguments: Any, **options: Any) -> Any:
            self.explaining.set()
            try:
                time.sleep(0.2)
                return explain(*arguments, **options)
            finally:
                self.explaining.clear()

        return explaining


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> Diary:
    kept = Diary()
    monkeypatch.setattr(network.Network, "explain", kept.slowly(network.Network.explain))
    monkeypatch.setattr(pipeline, "draw", kept.watch("draw", outputs.draw))
    monkeypatch.setattr(Preprocessing, "view", kept.watch("view", Preprocessing.view))
    return kept


def test_nothing_is_prepared_or_drawn_while_the_network_has_all_cores(
    lrp, pictures: Path, tmp_path: Path, diary: Diary
) -> None:
    result = lrp.explain(pictures, "-o", tmp_path / "out", "--json", "-b", BATCH, "--threads", "2")
    assert result.code == 0, result.err
    assert len(result.records) == PICTURES
    assert sorted(diary.done) == ["draw"] * PICTURES + ["view"] * PICTURES
    assert "draw" not in diary.beside
    assert lrp("verify", tmp_path / "out").code == 0


@pytest.mark.parametrize("threads", ["1", "3"])
def test_other_numbers_of_threads_take_no_turns(
    lrp, pictures: Path, tmp_path: Path, diary: Diary, threads: str
) -> None:
    """One leaves a core for everything else; with three, fewer would work on everything else."""
    result = lrp.explain(pictures, "-o", tmp_path / "out", "-b", BATCH, "--threads", threads)
    assert result.code == 0, result.err
    assert {"draw", "view"} <= set(diary.beside)


def test_a_disk_that_is_full_ends_the_run(
    lrp, pictures: Path, tmp_path: Path, diary: Diary, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lrp_cli.runs.files import StorageError

    def full(path: Path, *_: object) -> None:
        raise StorageError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(pipeline, "write_whole", full)
    result = lrp.explain(pictures, "-o", tmp_path / "out", "-b", BATCH, "--threads", "2")
    assert result.code == 1
    assert "No space left" in result.err
    assert len(diary.done) < 2 * PICTURES


def test_a_batch_that_cannot_be_explained_leaves_the_gate_open(
    lrp, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Explainer.forward
    failed: list[int] = []

    def failing(self: Explainer, x: torch.Tensor, **options: Any) -> object:
        if not failed or (len(failed) < 2 and len(x) == 1):
            failed.append(len(x))
            raise LrpError("a value is not finite")
        return forward(self, x, **options)

    monkeypatch.setattr(Explainer, "forward", failing)
    result = lrp.explain(pictures, "-o", tmp_path / "out", "--json", "-b", BATCH, "--threads", "2")
    assert result.code == 1
    assert failed == [4, 1]
    assert len(result.records) == PICTURES - 1


def test_the_gate() -> None:
    turns, came = Turns(are_taken=True), threading.Event()
    before: list[bool] = []
    waiting = threading.Thread(target=lambda: (turns.wait(), came.set()))
    turns.wait()
    with pytest.raises(KeyError), turns.network(lambda: before.append(came.is_set())):
        waiting.start()
        assert not came.wait(0.2)
        raise KeyError
    assert came.wait(10)
    assert before == [False]


def test_a_gate_that_stays_open() -> None:
    turns = Turns(are_taken=False)

    def never() -> None:
        raise AssertionError("nobody is to be waited for")

    with turns.network(never):
        turns.wait()


def test_what_was_put_in_is_drawn_but_need_not_be_written() -> None:
    drawn: list[int] = []
    may_write = threading.Event()

    def draw(value: int) -> int:
        time.sleep(0.05)
        drawn.append(value)
        return -value

    def write(value: int) -> int:
        may_write.wait(30)
        return value

    seen: list[int] = []
    with Behind(draw, write, seen.append, threads=2, ahead=8) as behind:
        for value in range(5):
            behind.put(value)
        behind.wait_until_drawn()
        assert sorted(drawn) == [0, 1, 2, 3, 4]
        assert seen == []
        may_write.set()
    assert seen == [0, -1, -2, -3, -4]


def test_what_cannot_be_drawn_does_not_hold_up_whoever_waits() -> None:
    def draw(value: int) -> int:
        raise KeyError(value)

    with pytest.raises(KeyError), Behind(draw, lambda value: value, print, threads=1, ahead=8) as behind:
        behind.put(1)
        behind.wait_until_drawn()
