"""Files that are whole or not there: written to a temporary name, then renamed."""

import contextlib
import errno
import hashlib
import os
import secrets
import tempfile
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from lrp_cli.errors import LrpError, UsageError

TEMPORARY = (".lrp-", ".part")
"""How the names of files begin and end that are being written."""

_STOPPING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ENODEV, errno.EMFILE})


class StorageError(LrpError):
    """Nothing more can be written: the disk is full, read-only or broken. Ends the run."""


@dataclass(frozen=True)
class FileInfo:
    """A file that was written: its path relative to the output directory, its size in bytes and its SHA-256."""

    path: str
    bytes: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {"path": self.path, "bytes": self.bytes, "sha256": self.sha256}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prepare_directory(directory: Path) -> None:
    """Make the output directory.

    Raises:
        UsageError: something else is in its place, or it cannot be made or written into.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY[0], suffix=TEMPORARY[1], dir=directory)
        os.close(handle)
        os.unlink(name)  # noqa: PTH108
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"--out {directory}: there is a file in its place; give a directory") from None
    except OSError as error:
        raise UsageError(f"cannot write into --out {directory}: {error.strerror or error}") from error


def write_whole(path: Path, data: bytes, root: Path) -> FileInfo:
    """Write ``data`` to ``path``, below the output directory ``root``; no half-written file ever has that name.

    Raises:
        StorageError: no file can be written at all.
        LrpError: this one could not be written, or would lie outside ``root``.
    """
    try:
        if _may_be_outside(path.parent, root) and not path.parent.resolve().is_relative_to(root.resolve()):
            raise LrpError(f"{path} would lie outside {root}, by a link; remove the link or give another --out")
        try:
            _replace(path, data)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, data)
    except OSError as error:
        raise failed_to_write(path, error) from error
    return FileInfo(path.relative_to(root).as_posix(), len(data), hashlib.sha256(data).hexdigest())


def failed_to_write(path: Path, error: OSError) -> LrpError:
    """Return what to raise when writing to ``path`` ended in ``error``."""
    kind = StorageError if error.errno in _STOPPING else LrpError
    return kind(f"cannot write {path}: {error.strerror or error}")


def remove_leftovers(root: Path) -> None:
    """Remove what a killed run was writing; only files with a temporary name, below ``root``, following no links."""
    for folder, _, names in os.walk(root):
        for name in names:
            if name.startswith(TEMPORARY[0]) and name.endswith(TEMPORARY[1]):
                with contextlib.suppress(OSError):
                    Path(folder, name).unlink()


def sync(directory: Path) -> None:
    """Have the system write the names in ``directory`` to the disk; not every system can."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _may_be_outside(folder: Path, root: Path) -> bool:
    """Return whether ``folder`` may lie elsewhere than below ``root``."""
    way = (folder, *folder.parents)
    below = takewhile(lambda place: place != root, way)
    return root not in way or any(place.name == ".." or place.is_symlink() for place in below)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{TEMPORARY[0]}{secrets.token_hex(8)}{TEMPORARY[1]}")
    file = temporary.open("xb", buffering=0)
    try:
        with file:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
