"""An output directory, read back into Python."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lrp_cli.errors import LrpError, UsageError
from lrp_cli.images.mapping import Mapping as Placement
from lrp_cli.runs.manifest import MANIFEST, Line, current_lines, read_lines


class RunRecord(Mapping[str, Any]):
    """One picture and target: a mapping of what the manifest says, ``record["score"]``; arrays are read when asked for.

    Attributes:
        line: the fields that every record has.
    """

    def __init__(self, directory: Path, line: Line) -> None:
        self.line = line
        self._directory = directory
        self._values = line.model_dump(mode="json")

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={self.get(name)!r}" for name in ("image", "target", "label", "score"))
        return f"RunRecord({values})"

    def path(self, kind: str) -> Path:
        """Return where the output of this kind ("npy", "overlay", ...) lies now.

        Raises:
            UsageError: it was not written.
            LrpError: the manifest names a place outside the directory.
        """
        file = self.line.files.get(kind)
        if file is None:
            raise UsageError(
                f"no {kind} was written for {self.line.image}, only {', '.join(self.line.files) or 'none'}"
            )
        path = file.inside(self._directory)
        if path is None:
            raise LrpError(f"the manifest names {file.path}, which is outside {self._directory}")
        return path

    @property
    def relevance(self) -> npt.NDArray[np.float32]:
        """The relevance, float32 of shape (3, H, W), in the coordinates of the model's input; read anew each time.

        Raises:
            LrpError: it was not written, or cannot be read.
        """
        path = self.path("npy")
        try:
            array: npt.NDArray[np.float32] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise LrpError(f"cannot read {path}: {error}") from error
        return array

    def picture(self, kind: str = "overlay") -> Image.Image:
        """Return a rendering.

        Raises:
            LrpError: it was not written, or cannot be read.
        """
        path = self.path(kind)
        try:
            with Image.open(path, formats=["PNG"]) as image:
                image.load()
                return image
        except (OSError, ValueError, SyntaxError) as error:
            raise LrpError(f"cannot read {path}: {error}") from error

    @property
    def mapping(self) -> Placement:
        """Where the picture lies in the model's input."""
        return Placement.from_json(self._values["mapping"])


class Run:
    """What a directory holds: iterate over it for the :class:`RunRecord` of each picture and target.

    Attributes:
        directory: where it is.
        records: pictures and targets that were explained.
        failures: picture's path -> why it was not, as long as it was not explained later.
    """

    def __init__(self, directory: Path, lines: list[Line]) -> None:
        self.directory = directory
        self.records = [RunRecord(directory, line) for line in lines if line.status == "done"]
        self.failures = {line.image: line.reason or "" for line in lines if line.status == "failed"}

    def __iter__(self) -> Iterator[RunRecord]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r}: {len(self.records)} records, {len(self.failures)} failures)"

    def to_dataframe(self) -> Any:
        """Return the records as a pandas DataFrame, a row each; nested values stay dictionaries.

        Raises:
            ImportError: pandas is not installed.
        """
        return import_module("pandas").DataFrame([dict(record) for record in self.records])


def load_run(directory: str | Path) -> Run:
    """Read the manifest of an output directory; arrays and pictures are read only when asked for.

    Lines that say nothing (torn by a crash) are passed over; ``lrp verify`` names them.

    Example:
        >>> run = load_run("lrp-out")
        >>> run.to_dataframe().groupby("label").score.mean()
        >>> run.records[0].relevance.sum()

    Raises:
        UsageError: there is no manifest.
        LrpError: it cannot be read.
    """
    directory = Path(directory)
    if not (directory / MANIFEST).is_file():
        raise UsageError(f"{directory} holds no {MANIFEST}; give the output directory of a run")
    lines = [line for line, _ in read_lines(directory) if line is not None]
    return Run(directory, current_lines(lines))
