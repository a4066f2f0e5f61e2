"""What the manifest says about each picture; called in one thread only."""

import contextlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lrp_cli.runs.explaining import Loaded
from lrp_cli.runs.manifest import Line, Manifest, current_lines, supersedes
from lrp_cli.runs.pictures import Picture
from lrp_cli.runs.records import Failure, Outcome, Record, Skipped
from lrp_cli.runs.resume import Resume, is_intact
from lrp_cli.runs.settings import MAKERS, Provenance


class Recorder:
    """Appends to the manifest, and removes outputs that no longer say anything about their picture."""

    def __init__(
        self, manifest: Manifest, provenance: Provenance, resume: Resume, earlier: Sequence[Line], directory: Path
    ) -> None:
        """Take what the manifest said ``earlier``, before this run."""
        self._manifest = manifest
        self._provenance = provenance
        self._resume = resume
        self._directory = directory
        self._current: dict[str, list[Line]] = {}
        for line in current_lines(earlier):
            self._current.setdefault(line.name, []).append(line)

    def record(self, picture: Picture, loaded: Loaded | None, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        """Record the results of one picture, whose outputs are in place; returns them.

        Raises:
            LrpError: the manifest could not be written.
        """
        if any(isinstance(outcome, Skipped) for outcome in outcomes):
            return outcomes
        name = picture.stem.as_posix()
        settings = loaded.settings if loaded else self._provenance.digest(picture.targets)
        first = outcomes[0]
        if isinstance(first, Failure) and self._resume.has_failed_so(name, settings, first.reason):
            return outcomes
        common = {
            "name": name,
            "source": None if picture.data is not None else os.path.abspath(picture.path),  # noqa: PTH100
            "settings": settings,
            "input": {"sha256": loaded.sha256, "bytes": loaded.bytes} if loaded else None,
            "mapping": loaded.mapping.to_json() if loaded else None,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            **self._provenance.values,
        }
        entries = [
            _entry(outcome) | {"part": part, "parts": len(outcomes)} | common
            for part, outcome in enumerate(outcomes, start=1)
        ]
        otherwise = self._provenance.digest_drawn_otherwise(picture.targets)
        for entry in entries:
            if entry["status"] == "done":
                entry["files"] = self._still_valid(Line.model_validate(entry), otherwise) | entry["files"]
        self._manifest.append(entries)
        self._remove_superseded([Line.model_validate(entry) for entry in entries])
        return outcomes

    def _still_valid(self, new: Line, otherwise: str) -> dict[str, Any]:
        """Return the outputs of kinds that the new line has none of, where they show the same relevance.

        Of what was drawn ``otherwise``, by the digest of its settings, that is the relevance itself.
        """
        for old in self._current.get(new.name, []):
            is_same = old.status == "done" and old.key == new.key and old.settings in {new.settings, otherwise}
            is_made_alike = all((old.model_extra or {}).get(name) == self._provenance.values[name] for name in MAKERS)
            if is_same and is_made_alike and old.input is not None and old.input == new.input:
                return {
                    kind: file.model_dump()
                    for kind, file in old.files.items()
                    if (kind == "npy" or old.settings == new.settings)
                    and kind not in new.files
                    and is_intact(file.inside(self._directory), file.bytes, file.sha256)
                }
        return {}

    def _remove_superseded(self, new: Sequence[Line]) -> None:
        """Remove outputs of what the new lines leave nothing of, if they are still what was written then."""
        old = self._current.pop(new[0].name, [])
        kept = {file.path for line in new for file in line.files.values()}
        gone = [line for line in old if any(supersedes(later, line) for later in new)]
        kept |= {file.path for line in old if line not in gone for file in line.files.values()}
        for file in (file for line in gone for file in line.files.values()):
            path = file.inside(self._directory)
            # Only what this picture's outputs are called: a manifest may lie.
            is_ours = path is not None and file.path.startswith(f"{new[0].name}.")
            if path is not None and is_ours and file.path not in kept and is_intact(path, file.bytes, file.sha256):
                with contextlib.suppress(OSError):
                    path.unlink()


def _entry(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Failure):
        return {"status": "failed", "image": str(outcome.image), "reason": outcome.reason}
    if isinstance(outcome, Record):
        files = {kind: file.to_json() for kind, file in outcome.files.items()}
        return {"status": "done", **outcome.to_json(), "reason": None, "files": files, "seconds": outcome.seconds}
    raise TypeError(f"{outcome} is recorded already")
