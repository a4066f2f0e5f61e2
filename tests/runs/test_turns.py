"""The network and the rest of a run, one after the other."""

import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lrp_cli.errors import ConfigError
from lrp_cli.images.preprocessing import Preprocessing
from lrp_cli.runs import loading, network, outputs, pipeline
from lrp_cli.runs import turns as turns_module
from lrp_cli.runs.files import StorageError
from lrp_cli.runs.prefetch import Behind
from lrp_cli.runs.signals import Interrupted
from lrp_cli.runs.turns import Turns

Make = Callable[..., Path]
PICTURES = 24


@pytest.fixture
def pictures(tmp_path: Path, make_picture: Make) -> Path:
    for seed in range(PICTURES):
        make_picture(tmp_path / f"in/{seed:02}.png", seed)
    return tmp_path / "in"


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine with two cores, on which both work on one operation; threads are left as they were."""
    monkeypatch.setattr(network, "usable_cores", lambda: 2)
    monkeypatch.setattr(pipeline, "usable_cores", lambda: 2)
    monkeypatch.setattr(pipeline, "THREADS", 2)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def explain(lrp, pictures: Path, tmp_path: Path) -> Callable[..., Any]:
    """Explain all pictures, with as many threads as there are cores."""

    def explain(*options: str, threads: str = "2") -> Any:
        return lrp.explain(
            pictures, "-o", tmp_path / "out", "--json", "-b", "4", "--threads", threads, "--device", "cpu", *options
        )

    return explain


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


def test_nothing_is_drawn_while_the_network_has_all_cores(lrp, explain, tmp_path: Path, diary: Diary) -> None:
    result = explain()
    assert result.code == 0, result.err
    assert len(result.records) == PICTURES
    assert sorted(diary.done) == ["draw"] * PICTURES + ["view"] * PICTURES
    assert "draw" not in diary.beside
    assert lrp("verify", tmp_path / "out").code == 0


def test_every_picture_waits_for_its_turn_before_it_is_read(explain, monkeypatch: pytest.MonkeyPatch) -> None:
    done: dict[str, list[str]] = defaultdict(list)

    def noting(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            done[threading.current_thread().name].append(name)
            return work(*arguments)

        return noted

    monkeypatch.setattr(Turns, "wait", noting("wait", Turns.wait))
    monkeypatch.setattr(loading, "read_picture", noting("read", loading.read_picture))
    assert explain().code == 0
    assert sum(map(len, done.values())) == 2 * PICTURES
    assert all(steps == ["wait", "read"] * (len(steps) // 2) for steps in done.values())


def test_one_thread_leaves_a_core_for_everything_else(explain, diary: Diary) -> None:
    assert explain(threads="1").code == 0
    assert {"draw", "view"} <= set(diary.beside)


def test_more_cores_than_readers_are_not_left_idle(explain, diary: Diary, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (network, pipeline):
        monkeypatch.setattr(module, "usable_cores", lambda: 3)
    assert explain(threads="3").code == 0
    assert {"draw", "view"} <= set(diary.beside)


def test_several_targets_are_written_one_by_one(explain, diary: Diary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn and not yet written, they would fill the memory."""
    monkeypatch.setattr(pipeline, "write_whole", diary.watch("write", pipeline.write_whole))
    result = explain("--target", "top:3", "--save", "overlay", "-b", "1")
    assert result.code == 0, result.err
    steps = [step for step in diary.done if step != "view"]
    assert len(steps) == 2 * 3 * PICTURES
    pending = [sum(1 if step == "draw" else -1 for step in steps[:end]) for end in range(len(steps))]
    assert max(pending) <= pipeline.THREADS


def test_a_disk_that_is_full_ends_the_run(explain, diary: Diary, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object) -> None:
        raise StorageError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(pipeline, "write_whole", full)
    result = explain()
    assert result.code == 1
    assert "No space left" in result.err
    assert len(diary.done) < 2 * PICTURES


@pytest.mark.parametrize(
    ("problem", "code"), [(ConfigError("the config does not fit"), 4), (Interrupted(signal.SIGINT), 130)]
)
def test_whatever_ends_the_run_while_pictures_wait(
    explain, monkeypatch: pytest.MonkeyPatch, problem: BaseException, code: int
) -> None:
    def failing(*_: object) -> None:
        time.sleep(0.1)  # the readers reach the gate
        raise problem

    monkeypatch.setattr(network.Network, "explain", failing)
    assert explain().code == code


def test_the_gate() -> None:
    turns, came = Turns(are_taken=True), threading.Event()
    waiting = threading.Thread(target=lambda: (turns.wait(), came.set()), daemon=True)
    turns.wait()
    with pytest.raises(KeyError), turns.network(1, turns.wait):
        waiting.start()
        assert not came.wait(0.2)
        raise KeyError
    assert came.wait(10)


def test_a_gate_that_a_signal_has_left_closed_is_opened_at_the_end(explain, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Turns, *_: object) -> None:
        self._is_closed = True
        time.sleep(0.1)  # the readers reach the gate
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(Turns, "network", broken)
    codes: list[int] = []
    running = threading.Thread(target=lambda: codes.append(explain().code), daemon=True)
    running.start()
    running.join(60)
    assert codes == [130]


@pytest.mark.parametrize("options", [("--save", "panel"), ("--full",), ("--target", "top:2"), ("-b", "1")])
def test_no_turns_where_drawing_leaves_cores_idle_or_waits_for_the_disk(
    explain, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    waited: list[Behind[Any, Any, Any]] = []

    def noted(self: Behind[Any, Any, Any]) -> None:
        waited.append(self)

    monkeypatch.setattr(Behind, "wait_until_drawn", noted)
    assert explain().code == 0
    assert waited
    waited.clear()
    assert explain("--force", *options).code == 0
    assert not waited


@pytest.mark.parametrize(
    ("batches", "seconds", "expected"),
    [(1, 2.0, 1), (1, 0.4, 2), (2, 0.8, 2), (2, 1.0, 2), (1, 0.01, turns_module.MOST), (4, 8.0, 1)],
)
def test_a_turn_takes_as_many_batches_as_make_it_last_a_second(
    monkeypatch: pytest.MonkeyPatch, batches: int, seconds: float, expected: int
) -> None:
    clock = iter([10.0, 10.0 + seconds])
    monkeypatch.setattr(turns_module.time, "perf_counter", lambda: next(clock))
    turns = Turns(are_taken=True)
    with turns.network(batches, lambda: None):
        pass
    assert turns.batches == expected


def test_small_batches_go_through_the_network_in_one_turn(explain, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    network_of = Turns.network

    def noted(self: Turns, batches: int, before: Callable[[], None]) -> Any:
        taken.append(batches)
        return network_of(self, batches, before)

    monkeypatch.setattr(Turns, "network", noted)
    monkeypatch.setattr(turns_module, "LENGTH", 1000.0)
    result = explain()
    assert result.code == 0, result.err
    assert [record["image"] for record in result.records] == sorted(record["image"] for record in result.records)
    assert taken == [1, 4, 1]
    assert len(result.records) == PICTURES == 4 * sum(taken)


def test_what_was_explained_before_a_turn_failed_is_recorded(
    lrp, explain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    explained: list[int] = []
    explain_batch = network.Network.explain

    def failing(self: network.Network, batch: Any) -> Any:
        if len(explained) == 3:
            raise ConfigError("the config does not fit")
        explained.append(len(batch))
        return explain_batch(self, batch)

    monkeypatch.setattr(network.Network, "explain", failing)
    monkeypatch.setattr(turns_module, "LENGTH", 1000.0)
    assert explain().code == 4
    manifest = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert len(manifest) == sum(explained) == 12
    assert lrp("verify", tmp_path / "out").code == 0


def test_batches_with_several_results_are_not_held_together(
    lrp, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[int] = []
    turn_of = pipeline.Pipeline._turn

    def noted(self: Any, batches: Any, before: Any) -> Any:
        together.append(len(batches))
        return turn_of(self, batches, before)

    monkeypatch.setattr(pipeline.Pipeline, "_turn", noted)
    monkeypatch.setattr(turns_module, "LENGTH", 1000.0)
    rows = [f"{pictures}/{seed:02}.png,{'top:2' if seed >= PICTURES // 2 else 'predicted'}" for seed in range(PICTURES)]
    (tmp_path / "list.csv").write_text("\n".join(["image,target", *rows]))
    result = lrp.explain(tmp_path / "list.csv", "-o", tmp_path / "out", "-b", "4", "--threads", "2", "--device", "cpu")
    assert result.code == 0, result.err
    assert together == [1, 2, 1, 1, 1]  # the second turn takes what is there before those with two targets each


def test_turns_with_slow_networks_stay_short(explain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "LENGTH", 1e-6)
    waited: list[Behind[Any, Any, Any]] = []

    def noted(self: Behind[Any, Any, Any]) -> None:
        waited.append(self)

    monkeypatch.setattr(Behind, "wait_until_drawn", noted)
    assert explain().code == 0
    assert len(waited) == PICTURES // 4


def test_a_gate_that_stays_open() -> None:
    turns = Turns(are_taken=False)

    def never() -> None:
        raise AssertionError("nobody is to be waited for")

    with turns.network(1, never):
        turns.wait()
    assert turns.batches == 1


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
    with Behind(draw, write, seen.append, threads=2, writers=2, ahead=lambda: 8) as behind:
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

    with (
        pytest.raises(KeyError),
        Behind(draw, lambda value: value, print, threads=1, writers=1, ahead=lambda: 8) as behind,
    ):
        behind.put(1)
        behind.wait_until_drawn()


def test_what_is_not_drawn_yet_is_left_when_the_run_has_failed() -> None:
    drawn: list[int] = []
    all_are_in = threading.Event()

    def draw(value: int) -> int:
        if value > 0:
            all_are_in.wait(30)
            time.sleep(0.2)
        drawn.append(value)
        return value

    def write(value: int) -> int:
        all_are_in.wait(30)
        raise KeyError(value)

    with pytest.raises(KeyError), Behind(draw, write, print, threads=1, writers=1, ahead=lambda: 64) as behind:
        for value in range(32):
            behind.put(value)
        all_are_in.set()
    assert len(drawn) < 8
