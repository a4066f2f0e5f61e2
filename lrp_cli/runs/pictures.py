"""A picture of a run. Imports no torch: pictures are found before it is loaded."""

from dataclasses import dataclass
from pathlib import Path, PurePath


@dataclass(frozen=True)
class Picture:
    """A picture to explain.

    Attributes:
        path: where it is; or what to call it, where ``data`` holds it.
        stem: what its outputs' names begin with, relative to the output directory.
        targets: what to explain of it, as text; empty for what the run explains.
        data: the contents of its file, where it has none.
    """

    path: Path
    stem: PurePath
    targets: tuple[str, ...] = ()
    data: bytes | None = None
