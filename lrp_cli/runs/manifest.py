"""``manifest.jsonl``: what lies in an output directory, one line for each picture and target.

Lines are only ever appended, all those of a picture at once and after its outputs are in place. What a line says holds
until a later line has the same picture and target, or the same picture with other contents. A line that was torn by a
crash is no line.
"""

import contextlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lrp_cli.errors import LrpError
from lrp_cli.runs.files import failed_to_write, sync

MANIFEST = "manifest.jsonl"
LONGEST_LINE = 4 * 2**20
"""In bytes; those that are written have a few thousand."""

_FLAGS = ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY")
"""Where the system has them: a link would lead out of the directory."""


class File(BaseModel):
    """An output: its path relative to the directory, its size in bytes and its SHA-256."""

    path: str
    bytes: int
    sha256: str

    def inside(self, directory: Path) -> Path | None:
        """Return where the file is, or None where its path leads out of ``directory``: a manifest may lie."""
        path = PurePosixPath(self.path)
        if path.is_absolute() or ".." in path.parts or "\0" in self.path or not path.name:
            return None
        whole = directory / path
        try:
            is_inside = whole.resolve().is_relative_to(directory.resolve())
        except (RuntimeError, ValueError):  # a link to itself, before Python 3.13, or what no file can be called
            return whole  # where there is nothing to be read
        return whole if is_inside else None


class Input(BaseModel):
    """The picture's file: its size in bytes and its SHA-256."""

    bytes: int
    sha256: str


class Line(BaseModel):
    """What is read back of a line; the rest of it is kept as it stands."""

    model_config = ConfigDict(extra="allow")

    status: Literal["done", "failed"]
    name: str
    """What the names of the picture's outputs begin with: the same in every run over the same pictures."""
    image: str
    source: str | None = None
    """The picture's absolute path, if it has one."""
    settings: str
    """Digest of everything that decides what the outputs look like."""
    part: int = Field(default=1, ge=1)
    parts: int = Field(default=1, ge=1)
    """The line is number ``part`` of the ``parts`` lines of this picture."""
    reason: str | None = None
    input: Input | None = None
    target: int | None = None
    versus: int | str | None = None
    files: dict[str, File] = Field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int | None, int | str | None]:
        """What a later line supersedes this one by."""
        return self.name, self.target, self.versus


class Manifest:
    """The manifest of a directory, open for appending. Only the holder of the directory's lock may."""

    def __init__(self, directory: Path) -> None:
        """Open it, and drop a line that a crash has torn.

        Raises:
            LrpError: it cannot be written.
        """
        self.path = directory / MANIFEST
        self._lock = threading.Lock()
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | sum(getattr(os, name, 0) for name in _FLAGS)
            self._handle = os.open(self.path, flags, 0o666)
            self._end = _whole_lines(self._handle)
            if self._end < os.fstat(self._handle).st_size:
                os.ftruncate(self._handle, self._end)
        except OSError as error:
            raise failed_to_write(self.path, error) from error

    def append(self, entries: Iterable[dict[str, Any]]) -> None:
        """Append the lines of one picture.

        Raises:
            LrpError: they could not be written; the manifest is then as it was before.
        """
        data = b"".join(json.dumps(entry, allow_nan=False).encode() + b"\n" for entry in entries)
        with self._lock:
            try:
                written = os.write(self._handle, data)
                while written < len(data):  # what did not fit is an error the next time
                    written += os.write(self._handle, data[written:])
                self._end += len(data)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._handle, self._end)
                raise failed_to_write(self.path, error) from error

    def close(self) -> None:
        """Have it written to the disk; whoever still appends gets an error.

        Raises:
            LrpError: it cannot be written.
        """
        with self._lock:
            handle, self._handle = self._handle, -1
            try:
                os.fsync(handle)
            except OSError as error:
                raise failed_to_write(self.path, error) from error
            finally:
                os.close(handle)
        sync(self.path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _whole_lines(handle: int) -> int:
    """Return where the last whole line ends."""
    end = os.fstat(handle).st_size
    while end > 0:
        start = max(0, end - 65536)
        os.lseek(handle, start, os.SEEK_SET)
        found = os.read(handle, end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def read_lines(directory: Path) -> Iterator[tuple[Line | None, str]]:
    """Yield each line of a manifest with what is wrong with it, "" where nothing is; a file that is absent has none.

    Raises:
        LrpError: the manifest cannot be read.
    """
    path = directory / MANIFEST
    try:
        with path.open("rb") as file:
            number = 0
            while data := file.readline(LONGEST_LINE):
                number += 1
                line, problem = _parse(data)
                yield line, problem and f"line {number}: {problem}"
    except FileNotFoundError:
        return
    except OSError as error:
        raise LrpError(f"cannot read {path}: {error.strerror or error}") from error


def _parse(data: bytes) -> tuple[Line | None, str]:
    if not data.endswith(b"\n"):
        return None, "is torn or too long"
    try:
        return Line.model_validate(json.loads(data)), ""
    except ValidationError as error:
        first = error.errors()[0]
        return None, f"{'.'.join(map(str, first['loc'])) or 'line'}: {first['msg']}"
    except (ValueError, RecursionError):  # ValueError: no JSON, no UTF-8, or a number with thousands of digits
        return None, "is not JSON"


def current_lines(lines: Iterable[Line]) -> list[Line]:
    """Return the lines that hold, in their order: the last for each picture and target, of its latest contents.

    A failure holds as long as nothing has been said about the picture since.
    """
    by_name: dict[str, list[Line]] = {}
    for line in lines:
        before = by_name.setdefault(line.name, [])
        before[:] = [old for old in before if not supersedes(line, old)]
        before.append(line)
    return [line for group in by_name.values() for line in group]


def supersedes(new: Line, old: Line) -> bool:
    """Say whether ``new``, a later line on the same picture, leaves nothing of ``old``."""
    if old.status == "failed":
        return new.part == 1 or new.key == old.key
    if new.status == "failed":
        return False
    other_contents = new.input is not None and old.input is not None and new.input.sha256 != old.input.sha256
    return new.key == old.key or other_contents
