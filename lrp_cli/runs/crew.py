"""The threads that explain: a few side by side, among which the processor's are shared, and new ones for old."""

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

from lrp_cli.engine.processors import multiplies_matrices_well
from lrp_cli.runs.prefetch import threads_at_work

MOST = 2
"""How many hands there are at most: where they are of use, two bring a folder close to the engine's throughput on two
processor cores (``python -m tests.benchmarks.commands``; with ``--hands 1``, without). More were never measured."""

PAUSE = 0.001
"""In seconds: how long whoever waits for the hands sleeps before it looks again."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Crew:
    """Threads, each of which lets torch work with its share of the processor's threads.

    Attributes:
        hands: how many work at once; 1 where there is nothing to share.
    """

    def __init__(self, device: torch.device) -> None:
        """Prepare to work on a device; what runs on a GPU is not shared.

        Nor is what runs on a processor that is better at convolutions than at products of matrices, which torch makes
        of pointwise convolutions where it has one thread.
        """
        self._threads = torch.get_num_threads()
        is_shared = device.type == "cpu" and multiplies_matrices_well()
        self.hands = min(MOST, self._threads) if is_shared else 1
        self._executor = self._begun()
        self._substitute: ThreadPoolExecutor | None = None

    def work(self, on: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return ``on(item)`` for each item, worked on side by side; raises what the first that failed raised.

        All are over when this returns or raises, unless it was interrupted.
        """
        return _results([self._executor.submit(on, item) for item in items])

    def work_alone(self, work: Callable[[], Result]) -> Result:
        """Return ``work()``, for which torch has all of the processor's threads.

        It is done in the thread that asks, until :meth:`renew` is called, and from then on in another.
        """
        if self._substitute is None:
            return work()
        return _results([self._substitute.submit(work)])[0]

    def renew(self) -> None:
        """Have all further work done in threads in which memory has never run out.

        Where there was no memory for machine code, oneDNN never makes any in that thread again: Xbyak, which does it
        for oneDNN, notes the error for the thread, and nobody takes the note away.

        Raises:
            RuntimeError: a thread cannot be started.
        """
        self._end()
        with contextlib.suppress(RuntimeError):
            # OpenMP ends the process where it cannot start its threads. Stacks of threads that are over serve others.
            threads_at_work(self._threads, "lrp-attempt").shutdown()
            self._substitute = threads_at_work(1, "lrp-explain-alone", partial(_begin, self._threads))
        self._executor = self._begun()

    def close(self) -> None:
        """End the threads; further threads of this process have all processor threads again."""
        self._end()
        torch.set_num_threads(self._threads)

    def _begun(self) -> ThreadPoolExecutor:
        return threads_at_work(self.hands, "lrp-explain", partial(_begin, self._threads // self.hands))

    def _end(self) -> None:
        self._executor.shutdown()
        if self._substitute is not None:
            self._substitute.shutdown()
            self._substitute = None


def _begin(share: int) -> None:
    """Have torch work with so many of the processor's threads in the thread that says so.

    It holds for those that begin after it, too: each takes over what was said last when it first asks.
    """
    torch.get_num_threads()
    torch.set_num_threads(share)


def _results(futures: Sequence[Future[Result]]) -> list[Result]:
    """Return the results of all once they are over.

    Looks again and again, since a signal would leave the locks locked that ``concurrent.futures.wait`` takes.
    """
    while not all(future.done() for future in futures):
        time.sleep(PAUSE)
    return [future.result() for future in futures]
