"""SIGINT and SIGTERM (and SIGHUP) end a run in good order."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(BaseException):
    """A signal asked the process to end. No Exception, so that nothing takes it for a failed picture.

    Attributes:
        exit_code: 128 and the signal's number, as shells have it: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class _Asked:
    """The signal that asked the process to end, if one has come."""

    number: int | None = None


def raise_if_interrupted() -> None:
    """Raise :class:`Interrupted` if a signal has come within :func:`interruptible`.

    It was raised when it came, wherever the main thread was then, and code in C may pass over that. Of some three
    hundred signals that came while the first pictures were explained, two had no effect; it is not known why.
    """
    if _Asked.number is not None:
        raise Interrupted(_Asked.number)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within, the first signal raises :class:`Interrupted` in the main thread; a second one ends the process at once.

    Signals that the caller has set to be ignored (as ``nohup`` does with SIGHUP) stay so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _: FrameType | None) -> None:
        if _Asked.number is not None:
            os._exit(128 + number)
        _Asked.number = number
        raise Interrupted(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    taken = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])
        _Asked.number = None
