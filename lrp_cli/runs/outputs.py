"""What is written for a picture and a target."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from lrp_cli import render
from lrp_cli.errors import LrpError

KINDS = ("overlay", "heatmap", "panel", "npy")
DEFAULT_KINDS = ("overlay", "npy")


@dataclass(frozen=True)
class Explained:
    """What there is to write.

    Attributes:
        view: the picture as the network saw it.
        relevance: float32, shape (3, H, W), in the coordinates of the model's input.
        label, score, probability: the class explained.
        model, config: what explained it.
    """

    view: Image.Image
    relevance: npt.NDArray[np.float32]
    label: str
    score: float
    probability: float
    model: str
    config: str


def write(explained: Explained, kind: str, path: Path) -> None:
    """Write one output; no half-written file ever has its final name.

    Raises:
        LrpError: the file could not be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, lambda temporary: _write(explained, kind, temporary))
    except OSError as error:
        raise LrpError(f"cannot write {path}: {error.strerror or error}") from error


def _write(explained: Explained, kind: str, path: Path) -> None:
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, explained.relevance, allow_pickle=False)
        return
    render.save_png(_picture(explained, kind), path)


def _picture(explained: Explained, kind: str) -> Image.Image:
    if kind == "overlay":
        return render.overlay(explained.view, explained.relevance)
    if kind == "heatmap":
        return render.heatmap(explained.relevance)
    return render.panel(
        explained.view,
        explained.relevance,
        label=explained.label,
        score=explained.score,
        probability=explained.probability,
        model=explained.model,
        config=explained.config,
    )


def _replace(path: Path, write_to: Callable[[Path], None]) -> None:
    """Write to a temporary file in the same directory, then rename it."""
    handle, name = tempfile.mkstemp(prefix=".lrp-", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write_to(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
