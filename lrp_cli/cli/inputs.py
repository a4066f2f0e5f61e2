"""Which pictures the user named, wherever they were named."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrp_cli.cli.progress import Progress
from lrp_cli.cli.report import Report
from lrp_cli.errors import UsageError
from lrp_cli.images import Found, find_images
from lrp_cli.images.lists import LIST_SUFFIXES, Listed, read_list, split_paths
from lrp_cli.runs.manifest import MANIFEST, read_lines
from lrp_cli.runs.naming import is_named_as_output, output_stems
from lrp_cli.runs.pictures import Picture
from lrp_cli.runs.records import Failure

MOST_BYTES = 512 * 2**20
"""The largest picture that is read from standard input."""


@dataclass(frozen=True)
class Named:
    """What the user named.

    Attributes:
        paths: files, directories, patterns, and lists by their suffix; "-" stands for paths on standard input, one a
            line.
        lists: files that list pictures.
        stdin0: whether there are paths on standard input, separated by NULs.
        image_name: what to call the picture on standard input, if there is one.
        recursive, include, exclude, targets: see :func:`~lrp_cli.images.find_images`.
    """

    paths: tuple[str, ...] = ()
    lists: tuple[Path, ...] = ()
    stdin0: bool = False
    image_name: str | None = None
    recursive: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()


def find(named: Named, out: Path, progress: Progress, report: Report) -> list[Picture]:
    """Find the pictures; each path that leads to none is reported and counted.

    Raises:
        UsageError: nothing was named or found, standard input was asked for twice, or a list cannot be read.
    """
    if named.image_name is not None:
        if named.paths or named.stdin0 or named.lists:
            raise UsageError("--image-stdin is one picture; it goes with no others")
        path = Path(Path(named.image_name).name or "stdin")
        of_files = {name: None for name, source in _Outputs(out).names.items() if source and os.path.lexists(source)}
        return [Picture(path, output_stems([path], (), of_files)[path], data=_read_image())]
    outputs = _Outputs(out)
    found = _found(named, outputs)
    for path, reason in found.missing:
        report.add([Failure(path, reason)])
        progress.error(f"{path}: {reason}")
    if not found.images:
        raise UsageError("no pictures were found")
    folders = [Path(path) for path in named.paths]
    stems = output_stems(found.images, [folder for folder in folders if folder.is_dir()], outputs.names)
    return [Picture(path, stems[path], found.targets.get(path, ())) for path in found.images]


def _found(named: Named, outputs: "_Outputs") -> Found:
    if not (named.paths or named.stdin0 or named.lists):
        raise UsageError("name pictures or directories (or '-', --stdin0, --list FILE, --image-stdin)")
    return find_images(
        _listed(named),
        recursive=named.recursive,
        include=named.include,
        exclude=named.exclude,
        skip=outputs.__contains__,
        targets=named.targets,
    )


def _listed(named: Named) -> Sequence[Path | Listed]:
    if named.paths.count("-") + named.stdin0 > 1:
        raise UsageError("standard input can be read once only: give '-' or --stdin0")
    paths: list[Path | Listed] = []
    for path in named.paths:
        if path == "-":
            paths += split_paths(sys.stdin.buffer.read(), b"\n")
        elif Path(path).suffix.lower() in LIST_SUFFIXES and Path(path).is_file():
            paths += read_list(Path(path))
        else:
            paths.append(Path(path))
    if named.stdin0:
        paths += split_paths(sys.stdin.buffer.read(), b"\0")
    for file in named.lists:
        paths += read_list(file)
    return paths


class _Outputs:
    """What earlier runs have written into a directory.

    Attributes:
        names: what names of outputs begin with -> absolute path of the picture, or None where it came from standard
            input; as recorded one after the other.
    """

    def __init__(self, out: Path) -> None:
        self._root = root = out.resolve()
        self._was_used = (out / MANIFEST).exists()
        self._files: set[Path] = set()
        self.names: dict[str, str | None] = {}
        for line, _ in read_lines(out) if out.is_dir() else ():
            if line is None:
                continue
            self._files |= {root / file.path for file in line.files.values()}
            self.names.pop(line.name, None)
            self.names[line.name] = line.source

    def __contains__(self, path: Path) -> bool:
        """Say whether a file is an output: a search of folders is not to find it.

        A run that was killed has outputs that its manifest does not name.
        """
        if not self._was_used:
            return False
        place = path.parent.resolve() / path.name
        return place in self._files or (place.is_relative_to(self._root) and is_named_as_output(path.name))


def _read_image() -> bytes:
    data = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise UsageError(f"the picture on standard input has more than {MOST_BYTES // 2**20} MiB")
    return data
