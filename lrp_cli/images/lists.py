"""Lists of pictures: paths on a pipe, one a line or NUL-separated, and files that list paths and perhaps targets."""

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from lrp_cli.errors import UsageError

LIST_SUFFIXES = (".txt", ".csv")
PATH_COLUMNS = ("image", "path", "file", "filename", "picture")
TARGET_COLUMNS = ("target", "targets", "label", "class")
DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Listed:
    """One path of a list.

    Attributes:
        path: a picture, or a folder.
        targets: what to explain of it, as text; empty where the list does not say.
        is_pattern: whether ``*``, ``?`` and ``[`` in a path that does not exist stand for other letters.
    """

    path: Path
    targets: tuple[str, ...] = ()
    is_pattern: bool = False


def split_paths(data: bytes, separator: bytes) -> list[Listed]:
    """Return the paths in ``data``, separated by newlines or NULs; empty ones are left out.

    Bytes that are no UTF-8 are kept as they are: a file's name may be anything.
    """
    names = data.split(separator)
    if separator == b"\n":
        names = [name.removesuffix(b"\r") for name in names]
    return [Listed(Path(os.fsdecode(name))) for name in names if name]


def read_list(file: Path) -> list[Listed]:
    """Read a list of pictures: a CSV where the name ends in ``.csv``, else a path a line.

    A CSV has the path in its first column and perhaps a target in its second, or says with a header which column is
    which: ``image`` (or ``path``, ``file``) and ``target`` (or ``label``); several targets are separated by ``;``.
    Under a header, semicolons or tabs may take the place of commas; several targets then stand in quotes. Relative
    paths are relative to the folder of the list.

    Raises:
        UsageError: the file cannot be read, its header has no column of paths or one that may be of targets, or
            a row has no path, or more cells than there are columns (two without a header).
    """
    try:
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot read the list {file}: {reason}") from error
    data = data.removeprefix(b"\xef\xbb\xbf")
    listed = _read_csv(data, file) if file.suffix.lower() == ".csv" else split_paths(data, b"\n")
    return [Listed(file.parent / one.path, one.targets) for one in listed]


def _read_csv(data: bytes, file: Path) -> list[Listed]:
    text = os.fsdecode(data)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
        rows = [row for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise UsageError(f"cannot read the list {file}: {error}") from error
    if not rows:
        return []
    header = _names(rows[0])
    place, target = _find(header, PATH_COLUMNS), _find(header, TARGET_COLUMNS)
    if place is None and target is not None:
        raise UsageError(f"{file}: none of its columns holds paths; call one of them 'image'")
    if place is not None and target is None:
        near = [name for name in header if get_close_matches(name, TARGET_COLUMNS, cutoff=0.8)]
        if near:
            raise UsageError(f"{file}: if the column {near[0]!r} holds targets, call it 'target'; else leave it out")
    columns = len(header)
    if place is not None:
        rows = rows[1:]
    else:
        place, target, columns = 0, 1, 2
    for row in rows:
        if len(row) <= place or not row[place]:
            raise UsageError(f"{file}: there is no path in the row {','.join(row)!r}")
        if any(cell.strip() for cell in row[columns:]):
            raise UsageError(
                f"{file}: more cells than columns for {row[place]!r}; several targets are separated by ';' (in quotes "
                "where that separates cells); for other columns, give a header that calls the one of paths 'image'"
            )
    return [Listed(Path(row[place]), _targets(row, target)) for row in rows]


def _delimiter(text: str) -> str:
    """Return what separates cells: a comma, or what a header shows, as spreadsheets write where a comma is decimal."""
    first = next((line for line in text.splitlines() if any(map(str.isalnum, line))), "")
    headers = {mark: _names(next(csv.reader([first], delimiter=mark), [])) for mark in DELIMITERS}
    return next((mark for mark, names in headers.items() if len(names) > 1 and {*names} & {*PATH_COLUMNS}), ",")


def _names(header: Iterable[str]) -> list[str]:
    return [cell.strip().lower() for cell in header]


def _find(header: list[str], names: Iterable[str]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _targets(row: list[str], column: int | None) -> tuple[str, ...]:
    if column is None or column >= len(row):
        return ()
    return tuple(dict.fromkeys(part.strip() for part in row[column].split(";") if part.strip()))
