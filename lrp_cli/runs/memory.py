"""What becomes of memory between one tensor and the next, and what is done where there is no more of it."""

import contextlib
import ctypes
from pathlib import Path
from typing import ClassVar

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # mallopt's numbers for them, from glibc's malloc.h
_NEVER = 2**31 - 1
_LARGEST = 2**30
_TAKEN_BACK = 2**18  # bytes from which on memory is handed back at once

RESERVE, STEPS = 2**29, 4
"""Bytes of free memory, at most, that are left for when it has run out, and in how many steps: for batches of another
size oneDNN makes machine code anew, some 40 MB for a network."""

GROUP = Path("/sys/fs/cgroup")
"""What a container may take, in files; memory.max says "max", or is not there, where it has no limit."""

_OUT_OF_MEMORY = "out of memory", "defaultcpuallocator", "can't start new thread", "could not create a primitive"
"""What torch says of a GPU, and torch, Python and oneDNN where a processor's memory has run out; in small letters."""


def keep_freed_memory() -> None:
    """Have the process keep the memory of tensors that are gone, for those that come next.

    A network asks for the same sizes again and again. By default glibc hands large blocks back to the system each time,
    which clears every page before it lends it again: a fifth to almost half of the time of explaining a batch with the
    default model, as measured on one and on two processor cores. The peak is the same, but memory is not returned
    before the end, so this is for a command, not for a library. C libraries other than glibc are left as they are.

    All threads share that memory. By default each has an arena of its own, and what one has freed serves no other
    (``tests/runs/test_memory.py`` shows the difference).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, _NEVER)
    mallopt(_ARENA_MAX, 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory, a processor's or a GPU's, has run out."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in said for words in _OUT_OF_MEMORY)
    )


def make_room() -> None:
    """Have the process keep no freed memory any more, and allow for a little more memory than before.

    What has failed leaves the memory in pieces, which serve smaller tensors, but no new machine code and no threads.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _TAKEN_BACK)
        libc.mallopt(_TRIM_THRESHOLD, _TAKEN_BACK)
        libc.malloc_trim(0)
    if _Limit.steps:
        _Limit.set(_Limit.most + _Limit.steps.pop())


class _Limit:
    """The limit that this process has set itself, in bytes; and what is added to it each time that memory runs out."""

    most = -1
    steps: ClassVar[list[int]] = []

    @classmethod
    def set(cls, most: int) -> bool:
        """Set the limit, unless somebody else has set a lower one; return whether it is set."""
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        is_ours = soft in {resource.RLIM_INFINITY, cls.most}
        if not (is_ours or soft > most) or (hard != resource.RLIM_INFINITY and most > hard):
            return False
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
        cls.most = most
        return True


def limit_to_free_memory() -> None:
    """Have allocations fail once the memory that is free now is used up: a run can go on with smaller batches then.

    Linux promises more memory than there is, and kills who uses it. On other systems nothing is done.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):  # no Linux, or one that does not tell
        free, used = free_memory(), _kibibytes(Path("/proc/self/status"), "VmData")
        reserve = min(RESERVE, free // 2)
        if _Limit.set(used + free - reserve):
            _Limit.steps = [reserve // STEPS] * STEPS


def free_memory() -> int:
    """Return how many bytes of memory this process may take besides what it has.

    Raises:
        OSError, ValueError: the system does not tell as Linux does.
    """
    system = Path("/proc/meminfo")
    free = _kibibytes(system, "MemAvailable") + _kibibytes(system, "SwapFree")
    with contextlib.suppress(OSError, ValueError):
        most, taken = (int((GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, most - taken + _cached(GROUP / "memory.stat"))
    return max(free, 0)


def _kibibytes(file: Path, name: str) -> int:
    """Return the bytes that a line such as ``VmData:  1024 kB`` tells."""
    for line in file.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{file} does not tell {name}")


def _cached(statistics: Path) -> int:
    """Return how many bytes of a group's memory hold files, and are given back when they are asked for."""
    lines = dict(line.split() for line in statistics.read_text().splitlines())
    return sum(int(lines.get(name, 0)) for name in ("inactive_file", "active_file", "slab_reclaimable"))
