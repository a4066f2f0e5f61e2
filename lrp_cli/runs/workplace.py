"""The thread that explains: the run's own, and another once memory has run out in it."""

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

from lrp_cli.runs.prefetch import threads_at_work

PAUSE = 0.001
"""In seconds: how long whoever waits for the other thread sleeps before it looks again."""

Result = TypeVar("Result")


class Workplace:
    """A thread in which memory has not run out yet; torch has all the threads there that it has elsewhere."""

    def __init__(self) -> None:
        """Begin with the thread that asks."""
        self._threads = torch.get_num_threads()
        self._substitute: ThreadPoolExecutor | None = None

    def work(self, work: Callable[[], Result]) -> Result:
        """Return ``work()``, which is done in the thread that asks, or in the one that stands in for it.

        Looks again and again, since a signal would leave the locks locked that ``concurrent.futures.wait`` takes.
        """
        if self._substitute is None:
            return work()
        future = self._substitute.submit(work)
        while not future.done():
            time.sleep(PAUSE)
        return future.result()

    def renew(self) -> None:
        """Have all further work done in a thread in which memory has never run out.

        Where there was no memory for machine code, oneDNN never makes any in that thread again: Xbyak, which does it
        for oneDNN, notes the error for the thread, and nobody takes the note away. Where no thread can be started, work
        goes on in the one that asks.
        """
        self.close()
        with contextlib.suppress(RuntimeError):  # no thread can be started
            # OpenMP ends the process where it cannot start its threads. Stacks of threads that are over serve others.
            threads_at_work(self._threads, "lrp-attempt").shutdown()
            self._substitute = threads_at_work(1, "lrp-explain", partial(_begin, self._threads))

    def close(self) -> None:
        """End the other thread, if there is one."""
        if self._substitute is not None:
            self._substitute.shutdown()
            self._substitute = None


def _begin(threads: int) -> None:
    """Have torch work with so many of the processor's threads in the thread that says so.

    It takes over what was said last when it first asks, and forgets what was said before.
    """
    torch.get_num_threads()
    torch.set_num_threads(threads)
