"""One run at a time in an output directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lrp_cli.errors import UsageError

LOCK = ".lrp.lock"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of an output directory; the system lets go of it even where the process is killed.

    Raises:
        UsageError: another run holds it, or there can be no lock.
    """
    lock = FileLock(directory / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"another run is writing into {directory}; wait for it, or give another --out") from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot lock {directory}: {reason}") from error
    try:
        yield
    finally:
        lock.release()
