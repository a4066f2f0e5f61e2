"""Signals, kills and pipes: whatever happens, the manifest is valid and the run can go on."""

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from lrp_cli.runs.explaining import Loaded, Results
from lrp_cli.runs.manifest import read_lines
from lrp_cli.runs.network import Network
from lrp_cli.runs.signals import Interrupted, interruptible, raise_if_interrupted

SMALL = ("-c", "epsilon", "--resize", "64", "--crop", "64")


@pytest.fixture
def pictures(tmp_path: Path, make_picture: Callable[..., Path]) -> Path:
    for seed in range(60):
        make_picture(tmp_path / f"in/{seed:02}.png", seed)
    return tmp_path / "in"


def finished(out: Path) -> list[str]:
    """The names of the pictures that are recorded, one for each line."""
    lines = [line for line, _ in read_lines(out)] if out.exists() else []
    return [line.name for line in lines if line is not None]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_in_good_order(lrp, pictures: Path, tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "out"
    process = lrp.process("explain", pictures, *SMALL, "-o", out, "--json", "-b", "1")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"interrupted" in err
    assert b"goes on from there" in err
    assert b"Traceback" not in err
    done = finished(out)
    assert 1 <= len(done) < 60
    assert lrp("verify", out, "--json").code in {0, 1}
    assert {problem["problem"] for problem in lrp("verify", out, "--json").records} <= {"extra"}
    rest = lrp.explain(pictures, "-o", out, "--json")
    assert sum(record.get("skipped", False) for record in rest.records) == len(done)
    assert lrp("verify", out).code == 0


def test_a_signal_that_was_passed_over_is_raised_again() -> None:
    raise_if_interrupted()
    with pytest.raises(Interrupted) as caught, interruptible():
        with contextlib.suppress(Interrupted):  # as C++ code may
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        raise_if_interrupted()
    assert caught.value.exit_code == 143
    raise_if_interrupted()


def test_a_run_looks_whether_a_signal_was_passed_over(lrp, pictures: Path, tmp_path: Path, monkeypatch) -> None:
    explain, batches = Network.explain, []

    def passing_over(self: Network, batch: Sequence[Loaded]) -> list[Results]:
        batches.append(batch)
        if len(batches) == 2:
            with contextlib.suppress(Interrupted):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
        return explain(self, batch)

    monkeypatch.setattr(Network, "explain", passing_over)
    assert lrp.explain(pictures, "-o", tmp_path / "out", "-b", "4").code == 143
    assert len(batches) == 2
    assert len(finished(tmp_path / "out")) == 8  # what was explained is recorded


def test_a_signal_before_the_first_picture(lrp, pictures: Path, tmp_path: Path) -> None:
    process = lrp.process("explain", "-", *SMALL, "-o", tmp_path / "out", stdin=subprocess.PIPE)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in {130, -signal.SIGINT}  # the latter where Python itself was still starting
    if process.returncode == 130:
        assert b"Traceback" not in err


def test_a_second_signal_does_not_wait(lrp, pictures: Path, tmp_path: Path) -> None:
    # Nobody reads the pipe: the recording thread stands still, and a first signal waits for it.
    listing = b"\n".join([os.fsencode(path) for path in sorted(pictures.iterdir())])
    process = lrp.process(
        "explain", "-", *SMALL, "-t", "top:40", "-s", "npy", "-o", tmp_path / "out", "--json", stdin=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(listing)
    process.stdin.close()
    deadline = time.monotonic() + 60
    while not finished(tmp_path / "out") and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()


def test_results_are_seen_as_they_come(lrp, pictures: Path, tmp_path: Path) -> None:
    process = lrp.process("explain", pictures, *SMALL, "-o", tmp_path / "out", "--json", "-b", "4")
    assert process.stdout is not None
    arrivals = []
    for line in process.stdout:
        arrivals.append((time.monotonic(), json.loads(line)))
    process.communicate(timeout=60)
    assert len(arrivals) == 60
    first, last = arrivals[0][0], arrivals[-1][0]
    # The first is there long before the last: it has not waited for more than a batch or two.
    early = sum(moment - first < (last - first) / 2 for moment, _ in arrivals)
    assert 4 <= early <= 56


def test_a_result_does_not_wait_for_later_batches() -> None:
    from lrp_cli.runs.prefetch import Behind

    seen: list[int] = []
    arrived = threading.Event()

    def sink(value: int) -> None:
        seen.append(value)
        arrived.set()

    with Behind(
        lambda value: 2 * value, lambda value: value + 1, sink, threads=2, writers=2, ahead=lambda: 16
    ) as behind:
        behind.put(1)
        assert arrived.wait(10)
        assert seen == [3]
        behind.put(2)
    assert seen == [3, 5]


def test_what_the_sink_raises_stops_the_run_and_nothing_more_is_handed_on() -> None:
    from lrp_cli.runs.prefetch import Behind

    seen = []

    def sink(value: int) -> None:
        if value == 3:
            raise KeyError(value)
        seen.append(value)

    with (
        pytest.raises(KeyError),
        Behind(lambda value: value, lambda value: value, sink, threads=3, writers=3, ahead=lambda: 2) as behind,
    ):
        for value in range(1000):
            behind.wait_for_room()
            behind.put(value)
    assert seen == [0, 1, 2]


def test_whoever_is_far_ahead_waits_for_room() -> None:
    from lrp_cli.runs.prefetch import Behind

    may_write = threading.Event()
    put: list[int] = []

    def write(value: int) -> int:
        assert may_write.wait(30)
        return value

    def put_all(behind: Behind[int, int, int]) -> None:
        for value in range(20):
            behind.wait_for_room()
            behind.put(value)
            put.append(value)

    with Behind(lambda value: value, write, lambda _: None, threads=1, writers=1, ahead=lambda: 5) as behind:
        thread = threading.Thread(target=put_all, args=(behind,), daemon=True)
        thread.start()
        thread.join(0.3)
        assert len(put) in {5, 6}  # the one that is being written is in the queue no more
        may_write.set()
        thread.join(30)
    assert put == [*range(20)]


def test_items_are_taken_only_so_far_ahead() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from lrp_cli.runs.prefetch import in_order

    taken: list[int] = []
    ahead = [6]

    def items() -> Iterator[int]:
        for item in range(30):
            taken.append(item)
            yield item

    with ThreadPoolExecutor(2) as executor:
        results = in_order(executor, lambda item: -item, items(), lambda: ahead[0])
        assert next(results) == 0
        assert len(taken) == 7
        ahead[0] = 2
        assert [next(results) for _ in range(4)] == [-1, -2, -3, -4]
        assert len(taken) == 7
        ahead[0] = 10
        assert next(results) == -5
        assert len(taken) == 16
        assert list(results) == [-item for item in range(6, 30)]


def test_what_was_begun_before_the_sink_raised_is_handed_on_late() -> None:
    from lrp_cli.runs.prefetch import Behind

    begun: set[int] = set()
    late: list[int] = []
    go_on = threading.Event()

    def draw(value: int) -> int:
        begun.add(value)
        return value

    def write(value: int) -> int:
        assert go_on.wait(10)
        return value

    def sink(value: int) -> None:
        raise KeyError(value)

    with (
        pytest.raises(KeyError),
        Behind(draw, write, sink, threads=2, writers=2, ahead=lambda: 8, late=late.append) as behind,
    ):
        for value in range(4):
            behind.put(value)
        while len(begun) < 4:
            time.sleep(0.001)
        go_on.set()
    assert late == [1, 2, 3]


def kill_and_resume(lrp, pictures: Path, out: Path, times: int, seed: int) -> None:
    """Kill a run ``times`` over at random moments, go on, and check that nothing is lost and nothing done twice."""
    moments = random.Random(seed)
    recorded: list[str] = []
    for _ in range(times):
        process = lrp.process("explain", pictures, *SMALL, "-o", out, "-b", "2", "-q", stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(finished(out)) <= len(recorded) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.15))
        process.kill()
        process.communicate()
        now = finished(out)
        assert now[: len(recorded)] == recorded, "what is recorded stays recorded"
        recorded = now
        # No final name has half a file: each that is recorded is as it was written, the others open.
        assert {problem["problem"] for problem in lrp("verify", out, "--json").records} <= {"extra", "manifest"}
    assert lrp.explain(pictures, "-o", out, "-q").code == 0
    names = Counter(finished(out))
    assert len(names) == len(list(pictures.iterdir()))
    assert set(names.values()) == {1}, "no picture was explained again after it had been recorded"
    assert lrp("verify", out).code == 0
    assert not list(out.rglob(".lrp-*.part"))


def test_kills_and_resumptions(lrp, pictures: Path, tmp_path: Path) -> None:
    kill_and_resume(lrp, pictures, tmp_path / "out", times=2, seed=1)


@pytest.mark.slow
def test_twenty_kills_and_resumptions(lrp, tmp_path: Path, make_picture: Callable[..., Path]) -> None:
    for seed in range(400):
        make_picture(tmp_path / f"in/{seed:03}.png", seed)
    kill_and_resume(lrp, tmp_path / "in", tmp_path / "out", times=20, seed=2)
