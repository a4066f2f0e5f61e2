"""Work side by side: a few threads, among which the processor's threads are shared."""

import time
from collections.abc import Callable, Sequence
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
        self._executor = threads_at_work(self.hands, "lrp-explain", self._begin)

    def work(self, on: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return ``on(item)`` for each item, worked on side by side; raises what the first that failed raised.

        All are over when this returns or raises, unless it was interrupted. Looks again and again, since a signal would
        leave the locks locked that ``concurrent.futures.wait`` takes.
        """
        futures = [self._executor.submit(on, item) for item in items]
        while not all(future.done() for future in futures):
            time.sleep(PAUSE)
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the threads; further threads of this process have all processor threads again."""
        self._executor.shutdown()
        torch.set_num_threads(self._threads)

    def _begin(self) -> None:
        # Holds for this thread, and for those that begin after it.
        torch.set_num_threads(self._threads // self.hands)
