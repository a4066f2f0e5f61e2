"""Where a pixel of the model's input lies in the picture, and back.

Coordinates are continuous: the upper left corner of a picture is (0, 0), and the pixel in column i and row j has its
centre at (i + 0.5, j + 0.5).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image


@dataclass(frozen=True)
class Mapping:
    """How the upright picture was laid onto the model's input: ``input = scale * original + offset``, in x and y.

    Attributes:
        original: (width, height) of the upright picture in pixels.
        input: (width, height) of the model's input in pixels.
        scale: input pixels for each pixel of the picture, in x and y.
        offset: where the upper left corner of the picture lies in the input, in input pixels; negative where cropped.
        orientation: EXIF orientation (1 to 8) that the stored picture had before it was turned upright.
    """

    original: tuple[int, int]
    input: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]
    orientation: int = 1

    def to_input(self, x: float, y: float) -> tuple[float, float]:
        """Map a point of the upright picture to the model's input, where it may lie outside."""
        return x * self.scale[0] + self.offset[0], y * self.scale[1] + self.offset[1]

    def to_original(self, x: float, y: float) -> tuple[float, float]:
        """Map a point of the model's input to the upright picture, where it may lie outside."""
        return (x - self.offset[0]) / self.scale[0], (y - self.offset[1]) / self.scale[1]

    def to_stored(self, x: float, y: float) -> tuple[float, float]:
        """Map a point of the upright picture to the picture as the file stores it (EXIF 2.3, tag 0x0112)."""
        width, height = self.original
        right, below = width - x, height - y
        return {
            1: (x, y),
            2: (right, y),
            3: (right, below),
            4: (x, below),
            5: (y, x),
            6: (y, right),
            7: (below, right),
            8: (below, x),
        }[self.orientation]

    def explained_box(self) -> tuple[float, float, float, float]:
        """Return the part of the upright picture that the model saw: left, top, right, bottom."""
        left, top = self.to_original(0, 0)
        right, bottom = self.to_original(*self.input)
        width, height = self.original
        return max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))

    def resized(self, size: tuple[int, int]) -> "Mapping":
        """Return the mapping for the same picture at another ``size`` (width, height)."""
        x, y = (old / new for old, new in zip(self.original, size, strict=True))
        return Mapping(size, self.input, (self.scale[0] * x, self.scale[1] * y), self.offset, self.orientation)

    def to_json(self) -> dict[str, Any]:
        """Return the mapping as plain JSON values; ``Mapping.from_json`` reads them."""
        return {
            "original": list(self.original),
            "input": list(self.input),
            "scale": list(self.scale),
            "offset": list(self.offset),
            "orientation": self.orientation,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Mapping":
        """Return the mapping that :meth:`to_json` wrote."""
        width, height = values["original"]
        return cls(
            (width, height),
            (values["input"][0], values["input"][1]),
            (values["scale"][0], values["scale"][1]),
            (values["offset"][0], values["offset"][1]),
            values["orientation"],
        )


def onto_original(relevance: npt.NDArray[Any], mapping: Mapping) -> npt.NDArray[np.float32]:
    """Lay relevance, (H, W) in input coordinates, onto the whole picture: (height, width), NaN where not explained.

    Values are interpolated for looking at, not redistributed: their sum is not the score's.
    """
    width, height = mapping.original
    left, top, right, bottom = mapping.explained_box()
    columns = _inside(left, right, width)
    rows = _inside(top, bottom, height)
    whole = np.full((height, width), np.nan, dtype=np.float32)
    size = (columns.stop - columns.start, rows.stop - rows.start)
    if min(size) > 0:
        box = (*mapping.to_input(columns.start, rows.start), *mapping.to_input(columns.stop, rows.stop))
        limits = (*mapping.input, *mapping.input)
        inside = tuple(min(max(edge, 0.0), float(limit)) for edge, limit in zip(box, limits, strict=True))
        if inside[2] > inside[0] and inside[3] > inside[1]:
            # What is resized is one channel of floats: Pillow's mode F.
            values = Image.fromarray(np.ascontiguousarray(relevance, dtype=np.float32))
            resized = values.resize(size, Image.Resampling.BILINEAR, box=(inside[0], inside[1], inside[2], inside[3]))
            whole[rows, columns] = np.asarray(resized)
    return whole


def _inside(start: float, stop: float, length: int) -> slice:
    """Return the pixels whose centres lie between ``start`` and ``stop``."""
    first = min(max(int(np.ceil(start - 0.5)), 0), length)
    return slice(first, min(max(int(np.ceil(stop - 0.5)), first), length))
