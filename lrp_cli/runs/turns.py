"""Turns: the network, and then everything else, on a processor that both want all of."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PAUSE = 0.02
"""In seconds: how long whoever waits for its turn sleeps before it looks again. Looking takes a core, too."""

LENGTH = 1.0
"""In seconds: how long a turn of the network is to last, for which it takes several batches..."""

MOST = 4
"""...but no more than these, which wait for it in memory."""


class Turns:
    """A gate that is closed while it is the network's turn.

    Torch gives each of its threads an equal part of an operation, and all of them wait for the last. Whatever else
    takes one of their cores for a while holds up all of them: a picture that is decoded or drawn meanwhile costs as
    much as if nothing had run beside it. In turns it has all cores. Those who are past the gate already carry on; files
    that are slow to read are read in their turn, too, and the network waits for them.

    Each turn begins with caches full of something else, and ends with threads that have nothing left to do: the shorter
    turns are, the more of that there is. The longer they are, the more is lost when a run is broken off.

    The gate has no lock: a signal may break off whatever the main thread does, and would leave it locked.

    Attributes:
        batches: how many batches the next turn is to take; 1 where turns are not taken.
    """

    def __init__(self, *, are_taken: bool) -> None:
        """Prepare; the gate never closes where turns are not taken."""
        self.batches = 1
        self._are_taken = are_taken
        self._is_closed = False

    @contextmanager
    def network(self, batches: int, before: Callable[[], None]) -> Iterator[None]:
        """Keep the gate closed while so many batches are explained.

        From when ``before`` has returned, that is, which is called only where turns are taken.
        """
        if not self._are_taken:
            yield
            return
        before()
        begun = time.perf_counter()
        try:
            self._is_closed = True
            yield
        finally:
            self._is_closed = False
        self.batches = min(max(round(LENGTH * batches / (time.perf_counter() - begun)), 1), MOST)

    def wait(self) -> None:
        """Return when it is not the network's turn."""
        while self._is_closed:
            time.sleep(PAUSE)

    def close(self) -> None:
        """End the turns: the gate is open, even where a signal came between two steps of :meth:`network`."""
        self._is_closed = False


def usable_cores() -> int:
    """Return how many of the processor's cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
