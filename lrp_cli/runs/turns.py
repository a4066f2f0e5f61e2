"""Turns: the network, and then everything else, on a processor that both want all of."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Turns:
    """A gate that is closed while it is the network's turn.

    Torch gives each of its threads an equal part of an operation, and all of them wait for the last. Whatever else
    takes one of their cores for a while holds up all of them: a picture that is decoded or drawn meanwhile costs as
    much as if nothing had run beside it. In turns it has all cores.
    """

    def __init__(self, *, are_taken: bool) -> None:
        """Prepare; the gate never closes where turns are not taken."""
        self._are_taken = are_taken
        self._is_open = threading.Event()
        self._is_open.set()

    @contextmanager
    def network(self, before: Callable[[], None]) -> Iterator[None]:
        """Keep the gate closed, from when ``before`` has returned; it is waited for only where turns are taken."""
        try:
            if self._are_taken:
                before()
                self._is_open.clear()
            yield
        finally:
            self._is_open.set()

    def wait(self) -> None:
        """Return when it is not the network's turn."""
        self._is_open.wait()


def usable_cores() -> int:
    """Return how many of the processor's cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
