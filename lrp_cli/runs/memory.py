"""What becomes of memory between one tensor and the next, and what is done where there is no more of it."""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # mallopt's numbers for them, from glibc's malloc.h
_NEVER = 2**31 - 1
_LARGEST = 2**30
_TAKEN_BACK = 2**18  # bytes from which on memory is handed back at once
_STACK = 2**21  # bytes of a thread's stack where the system sets none

RESERVE, LEAST = 2**29, 2**24
"""Bytes of free memory, at most, that are left for when it has run out: for batches of another size oneDNN makes
machine code anew, some 40 MB for a network. And how many more than before are worth another attempt."""

GROUPS = Path("/proc/self/cgroup")
"""Which control groups this process is in."""

HIERARCHIES = Path("/sys/fs/cgroup")
"""What control groups may take, in files."""


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


def limit_to_free_memory(threads: int) -> None:
    """Have allocations fail once the memory that is free now is used up: a run can go on with smaller batches then.

    Linux promises more memory than there is, and kills who uses it. On other systems nothing is done.

    Args:
        threads: how many threads may still be started. Memory is promised to their stacks, and hardly any of it used.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):  # no Linux, or one that does not tell
        _Limit.set_up(threads)


def make_room() -> bool:
    """Have the process keep no freed memory any more; return whether it may take more memory than before.

    What has failed leaves the memory in pieces, which serve smaller tensors, but no new machine code and no threads.
    Half of what is in reserve may be used from now on, and what others have given back.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _TAKEN_BACK)
        libc.mallopt(_TRIM_THRESHOLD, _TAKEN_BACK)
        libc.malloc_trim(0)
    with contextlib.suppress(ImportError, OSError, ValueError):
        return _Limit.renew()
    return False


class _Limit:
    """The limit that this process has set itself.

    Attributes:
        most: the limit, in bytes; None where none is set.
        allowed: the limit that was there before, which is the user's.
        promised: how many bytes the process may hold besides, without using them.
        reserve: how many free bytes are not to be used yet.
    """

    most: int | None = None
    allowed = promised = reserve = 0

    @classmethod
    def set_up(cls, threads: int) -> None:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
        stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
        if soft != cls.most:
            cls.allowed = soft
        cls.promised = max(_in_status("VmData") - _used(), 0) + threads * max(stack, _STACK)
        cls.reserve = min(RESERVE, free_memory() // 2)
        cls._set()

    @classmethod
    def renew(cls) -> bool:
        """Set the limit anew, with half of the reserve; return whether it is higher by more than a little."""
        if cls.most is None:
            return False
        before = cls.most
        cls.reserve = cls.reserve // 2 if cls.reserve > 2 * LEAST else 0
        cls._set()
        return cls.most > before + LEAST

    @classmethod
    def _set(cls) -> None:
        import resource

        most = _used() + free_memory() - cls.reserve + cls.promised
        if cls.allowed != resource.RLIM_INFINITY:
            most = min(most, cls.allowed)
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))
        cls.most = most


def free_memory() -> int:
    """Return how many bytes of memory this process may take besides what it has.

    Raises:
        OSError, ValueError: the system does not tell as Linux does.
    """
    system = Path("/proc/meminfo")
    free = [_kibibytes(system, "MemAvailable") + _kibibytes(system, "SwapFree")]
    for group in _groups():
        for names in ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # it has no such file, or no limit: "max"
                most, taken = (int((group / name).read_text()) for name in names)
                free.append(most - taken + _cached(group / "memory.stat"))
    return max(min(free), 0)


def _groups() -> Iterator[Path]:
    """Yield where the files of the control groups lie that this process is in, those of version 1 and 2."""
    with contextlib.suppress(OSError):
        for line in GROUPS.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" or "memory" in controllers.split(","):
                hierarchy = HIERARCHIES if number == "0" else HIERARCHIES / "memory"
                group = PurePosixPath(path.lstrip("/"))
                # In a container the path may be the one outside it; what it has is the hierarchy's root then.
                yield from (hierarchy / part for part in (group, *group.parents))


def _used() -> int:
    """Return how many bytes this process has used of what it was promised, and not given back."""
    return _in_status("RssAnon") + _in_status("VmSwap")


def _in_status(name: str) -> int:
    return _kibibytes(Path("/proc/self/status"), name)


def _kibibytes(file: Path, name: str) -> int:
    """Return the bytes that a line such as ``VmData:  1024 kB`` tells."""
    for line in file.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{file} does not tell {name}")


def _cached(statistics: Path) -> int:
    """Return how many bytes of a group's memory hold files, and are given back when they are asked for."""
    lines = dict(line.split() for line in statistics.read_text().splitlines())
    names = ("inactive_file", "active_file", "slab_reclaimable")
    return sum(int(lines.get(f"total_{name}", lines.get(name, 0))) for name in names)
