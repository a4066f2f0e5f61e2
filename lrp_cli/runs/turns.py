"""Turns: the network, and then everything else, on a processor that both want all of."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PAUSE = 0.02
"""In seconds: how long whoever waits for its turn sleeps before it looks again. Looking takes a core, too."""


class Turns:
    """A gate that is closed while it is the network's turn.

    Torch gives each of its threads an equal part of an operation, and all of them wait for the last. Whatever else
    takes one of their cores for a while holds up all of them: a picture that is decoded or drawn meanwhile costs as
    much as if nothing had run beside it. In turns it has all cores. Those who are past the gate already carry on; files
    that are slow to read are read in their turn, too, and the network waits for them.

    The gate has no lock: a signal may break off whatever the main thread does, and would leave it locked.
    """

    def __init__(self, *, are_taken: bool) -> None:
        """Prepare; the gate never closes where turns are not taken."""
        self._are_taken = are_taken
        self._is_closed = False

    @contextmanager
    def network(self, before: Callable[[], None]) -> Iterator[None]:
        """Keep the gate closed, from when ``before`` has returned, which is called only where turns are taken."""
        if self._are_taken:
            before()
        try:
            self._is_closed = self._are_taken
            yield
        finally:
            self._is_closed = False

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
