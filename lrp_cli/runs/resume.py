"""What an earlier run has done already."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lrp_cli.runs.files import sha256_of
from lrp_cli.runs.manifest import Line
from lrp_cli.runs.records import REPORTED


class Resume:
    """Knows which pictures are recorded, by what their outputs are called and by the settings."""

    def __init__(self, lines: Iterable[Line], directory: Path, kinds: Sequence[str]) -> None:
        """Take what the manifest says; ``kinds`` of outputs are wanted of each picture."""
        self._directory = directory
        self._kinds = kinds
        self._groups: dict[tuple[str, str], list[Line]] = {}
        for line in lines:
            key = line.name, line.settings
            if line.part == 1:
                self._groups[key] = []
            self._groups.setdefault(key, []).append(line)

    def knows(self, name: str, settings: str) -> bool:
        """Say whether a picture of that name was explained with the same settings."""
        return any(line.status == "done" for line in self._groups.get((name, settings), []))

    def records(self, name: str, settings: str, sha256: str, image: Path) -> tuple[dict[str, Any], ...] | None:
        """Return the records of a picture with these contents, as ``--json`` has them, or None where it is to be done.

        All its targets must be recorded, with the same settings, and every output that is wanted there and intact.
        """
        group = self._groups.get((name, settings), [])
        complete = group and [line.part for line in group] == list(range(1, group[0].parts + 1))
        if not complete or not all(self._is_done(line, sha256) for line in group):
            return None
        return tuple(self._record(line, image) for line in group)

    def _record(self, line: Line, image: Path) -> dict[str, Any]:
        values = line.model_dump(mode="json")
        outputs = {kind: str(self._directory / line.files[kind].path) for kind in self._kinds}
        kept = {name: values[name] for name in REPORTED if name in values}
        return kept | {"image": str(image), "outputs": outputs, "skipped": True}

    def has_failed_so(self, name: str, settings: str, reason: str) -> bool:
        """Say whether the last word on a picture is that it failed for the same reason."""
        group = self._groups.get((name, settings), [])
        return len(group) == 1 and group[0].status == "failed" and group[0].reason == reason

    def _is_done(self, line: Line, sha256: str) -> bool:
        if line.status != "done" or line.input is None or line.input.sha256 != sha256:
            return False
        files = [line.files.get(kind) for kind in self._kinds]
        return all(file and is_intact(file.inside(self._directory), file.bytes, file.sha256) for file in files)


def is_intact(path: Path | None, size: int, sha256: str) -> bool:
    """Say whether a file is there with this size, in bytes, and SHA-256."""
    try:
        return path is not None and path.is_file() and path.stat().st_size == size and sha256_of(path) == sha256
    except OSError:
        return False
