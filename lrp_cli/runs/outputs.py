"""What is written for a picture and a target."""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from lrp_cli import render
from lrp_cli.images.mapping import Mapping
from lrp_cli.runs.whole import shaded, shaded_heatmap, spread


@dataclass(frozen=True)
class Explained:
    """What there is to draw.

    Attributes:
        view: the picture as the network saw it.
        relevance: float32, shape (3, H, W), in the coordinates of the model's input.
        label, score, probability: the class explained.
        model, config: what explained it.
        mapping: where the picture lies in the input.
        original: gives the whole picture, upright, where the renderings are to show it; else None.
    """

    view: Image.Image
    relevance: npt.NDArray[np.float32]
    label: str
    score: float
    probability: float
    model: str
    config: str
    mapping: Mapping
    original: Callable[[], Image.Image] | None = None


def draw(explained: Explained, kinds: Iterable[str]) -> dict[str, bytes]:
    """Return the contents of the outputs, kind -> what its file is to hold.

    Raises:
        EngineError: a value of the relevance is NaN or infinite.
        ImageError: the whole picture could not be read again.
    """
    pictures = _Pictures(explained)
    return {kind: pictures.encode(kind) for kind in kinds}


class _Pictures:
    """The renderings of one relevance, on the model's view or on the whole picture."""

    def __init__(self, explained: Explained) -> None:
        self._explained = explained
        self._view, self._relevance = explained.view, explained.relevance
        self._is_whole = explained.original is not None
        self._laid_out = not self._is_whole

    def encode(self, kind: str) -> bytes:
        if kind == "npy":
            buffer = io.BytesIO()
            np.save(buffer, self._explained.relevance, allow_pickle=False)
            return buffer.getvalue()
        self._lay_out()
        return render.encode_png(self._render(kind))

    def _lay_out(self) -> None:
        if self._laid_out or self._explained.original is None:
            return
        view, mapping, whole = spread(self._explained.original(), self._explained.mapping, self._relevance)
        self._view, self._relevance = shaded(view, mapping), whole
        self._laid_out = True

    def _render(self, kind: str) -> Image.Image:
        explained = self._explained
        if kind == "heatmap":
            return shaded_heatmap(self._relevance) if self._is_whole else render.heatmap(self._relevance)
        relevance = np.nan_to_num(self._relevance) if self._is_whole else self._relevance
        if kind == "overlay":
            return render.overlay(self._view, relevance)
        return render.panel(
            self._view,
            relevance,
            label=explained.label,
            score=explained.score,
            probability=explained.probability,
            model=explained.model,
            config=explained.config,
            in_colour=shaded_heatmap(self._relevance) if self._is_whole else None,
        )
