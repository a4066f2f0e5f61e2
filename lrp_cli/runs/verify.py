"""Does an output directory hold what its manifest says?"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrp_cli.errors import UsageError
from lrp_cli.runs.files import sha256_of
from lrp_cli.runs.lock import LOCK
from lrp_cli.runs.manifest import MANIFEST, File, Line, current_lines, read_lines

BALANCE, ROUGH_BALANCE = 1e-3, 2e-2
"""How far the books may be out of balance, in proportion to the largest of their numbers; roughly with bfloat16."""

ROUNDING = 1e-4
"""How far an array's sum may be from the recorded one, in proportion to the sum of magnitudes: the array may be that of
an earlier explanation, which is another one by rounding, since other pictures went through the network with it."""


@dataclass(frozen=True)
class Problem:
    """Something that is not as the manifest says.

    Attributes:
        kind: "manifest", "incomplete", "missing", "damaged", "books", "outside" or "extra".
        where: the file or the picture that it is about.
        what: what is wrong, in one line.
    """

    kind: str
    where: str
    what: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {"problem": self.kind, "where": self.where, "what": self.what}


class Verification:
    """Checks a directory.

    Attributes:
        directory: what is checked.
        done, failed: the lines that hold, of pictures that were explained and that were not.
    """

    def __init__(self, directory: Path) -> None:
        """Read the manifest.

        Raises:
            UsageError: there is none.
            LrpError: it cannot be read.
        """
        if not (directory / MANIFEST).is_file():
            raise UsageError(f"{directory} holds no {MANIFEST}; give the output directory of a run")
        self.directory = directory
        self._unreadable: list[str] = []
        lines = []
        for line, problem in read_lines(directory):
            if line is None:
                self._unreadable.append(problem)
            else:
                lines.append(line)
        current = current_lines(lines)
        self.done = [line for line in current if line.status == "done"]
        self.failed = [line for line in current if line.status == "failed"]
        self._all = lines

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong: with lines, with outputs and their books, and files that nothing is said about."""
        for problem in self._unreadable:
            yield Problem("manifest", MANIFEST, problem)
        yield from self._incomplete()
        known = {MANIFEST, LOCK}
        for line in self.done:
            for kind, file in line.files.items():
                known.add(file.path)
                yield from self._file(line, kind, file)
            yield from _books(line)
        yield from self._extra(known)

    def _incomplete(self) -> Iterator[Problem]:
        groups: dict[tuple[str, str], list[Line]] = {}
        for line in self._all:
            if line.part == 1:
                groups[line.name, line.settings] = []
            groups.setdefault((line.name, line.settings), []).append(line)
        for (name, _), group in groups.items():
            if len(group) != group[-1].parts:
                yield Problem("incomplete", name, f"{len(group)} of {group[-1].parts} lines are there; run it again")

    def _file(self, line: Line, kind: str, file: File) -> Iterator[Problem]:
        path = file.inside(self.directory)
        if path is None:
            yield Problem("outside", file.path, "leads out of the directory; not looked at")
            return
        try:
            if not path.is_file():
                yield Problem("missing", file.path, "is recorded, but not there")
            elif path.stat().st_size != file.bytes:
                yield Problem("damaged", file.path, f"has {path.stat().st_size} bytes, not {file.bytes}")
            elif sha256_of(path) != file.sha256:
                yield Problem("damaged", file.path, "holds something else than was written")
            elif kind == "npy":
                yield from _array(line, path, file)
        except OSError as error:
            yield Problem("damaged", file.path, error.strerror or str(error))

    def _extra(self, known: set[str]) -> Iterator[Problem]:
        for folder, subfolders, names in os.walk(self.directory):
            subfolders.sort()
            for name in sorted(names):
                path = Path(folder, name).relative_to(self.directory).as_posix()
                if path not in known:
                    yield Problem("extra", path, "is there, but not recorded")


def _books(line: Line) -> Iterator[Problem]:
    values = line.model_extra or {}
    numbers = [values.get(name) for name in ("score", "relevance_sum", "absorbed_sum")]
    if not all(isinstance(number, int | float) for number in numbers):
        yield Problem("manifest", line.name, "its score, relevance_sum or absorbed_sum is no number")
    elif not _balances(
        numbers, ROUGH_BALANCE if values.get("products") else BALANCE, is_contrast=line.versus is not None
    ):
        score, reached, absorbed = numbers
        yield Problem("books", line.name, f"score {score}, but relevance {reached} and absorbed {absorbed}")


def _balances(numbers: Sequence[Any], tolerance: float, *, is_contrast: bool = False) -> bool:
    score, reached, absorbed = numbers
    started = 1.0 if is_contrast else 0.0  # its score may be next to nothing, the difference of two that are not
    return bool(abs(score - reached - absorbed) <= tolerance * max(started, *map(abs, numbers)) + 1e-12)


def _array(line: Line, path: Path, file: File) -> Iterator[Problem]:
    try:
        relevance = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        yield Problem("damaged", file.path, f"is no array: {str(error).splitlines()[0]}")
        return
    recorded = (line.model_extra or {}).get("relevance_sum")
    total = relevance.sum(dtype=np.float64)
    scale = np.abs(relevance).sum(dtype=np.float64)
    if isinstance(recorded, int | float) and abs(total - recorded) > ROUNDING * scale + 1e-12:
        yield Problem("books", file.path, f"sums to {total:.6g}, not to the recorded {recorded:.6g}")
