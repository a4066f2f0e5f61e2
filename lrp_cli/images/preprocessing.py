"""From a picture to what a network takes in: resize, centre crop, scale to 0..1, normalise."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

from lrp_cli.errors import ImageError, UsageError, closest
from lrp_cli.images.mapping import Mapping as Placement

if TYPE_CHECKING:
    from torch import Tensor

INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")
FITS = ("crop", "squash", "pad")
_RESAMPLING = {name: Image.Resampling[name.removesuffix("-exact").upper()] for name in INTERPOLATIONS}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

LARGEST_VIEW = 2**26
"""In pixels: no picture is resized to more than that. What is cut away of a very long one is not even made."""

Size = int | tuple[int, int]


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes model input; the same steps as torchvision's image classification presets.

    Attributes:
        resize: the length of the shorter side, or (height, width), in pixels; None leaves the picture's size.
        crop: the side of the square, or (height, width), in pixels, cut from the middle; None keeps all. A picture
            smaller than that gets a black border.
        mean: subtracted from each channel (red, green, blue) of the values scaled to 0..1.
        std: each channel is divided by it after that.
        interpolation: how to resize, one of :data:`INTERPOLATIONS`. Pillow always smooths when it makes a picture
            smaller with any but the first two.
        fit: "crop" resizes and crops as said; "squash" resizes the whole picture to the size of the model's input,
            whatever its proportions; "pad" keeps its proportions and fills the rest with the mean colour.

    Raises:
        UsageError: a value makes no sense.
    """

    resize: Size | None
    crop: Size | None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    fit: str = "crop"

    def __post_init__(self) -> None:
        # Lists, as JSON and the command line give them, are taken for tuples.
        for name, parse in (("resize", _size), ("crop", _size), ("mean", _channels), ("std", _channels)):
            object.__setattr__(self, name, parse(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise UsageError(f"std must be above 0 in every channel, not {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            near = closest(str(self.interpolation), INTERPOLATIONS)
            raise UsageError(f"unknown interpolation {self.interpolation!r} (one of {', '.join(INTERPOLATIONS)}){near}")
        if self.fit not in FITS:
            raise UsageError(f"unknown fit {self.fit!r} (one of {', '.join(FITS)}){closest(str(self.fit), FITS)}")
        if self.fit != "crop" and self.input_size is None:
            raise UsageError(f"to {self.fit} pictures, the size of the model's input must be known: give a crop")

    @classmethod
    def from_transforms(cls, transforms: Any) -> Self:
        """Take over a torchvision preset, as ``weights.transforms()`` of a classification model returns it."""
        return cls(
            resize=_square_or_pair(transforms.resize_size),
            crop=_square_or_pair(transforms.crop_size),
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            interpolation=transforms.interpolation.value,
        )

    def override(self, changes: Mapping[str, Any]) -> Self:
        """Return a copy with some fields changed; ``{"resize": None}`` turns the resizing off.

        Raises:
            UsageError: there is no such field, or its value makes no sense.
        """
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise UsageError(f"preprocessing has no {name!r} (only {', '.join(known)}){closest(name, known)}")
        return replace(self, **changes)

    def view(self, image: Image.Image) -> Image.Image:
        """Return what the network sees: ``image`` as 8-bit RGB, resized and cropped, not yet normalised.

        Raises:
            ImageError: a picture this long would become too large.
        """
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        placement = self.placement(rgb.size)
        if _area(placement.input) > LARGEST_VIEW:
            width, height = placement.input
            raise ImageError(f"would be enlarged to {width} x {height} pixels, which is too large")
        if self.fit == "crop" and _area(self._resized(rgb.size)) <= LARGEST_VIEW:
            return self._as_torchvision(rgb, placement)
        return _placed(rgb, placement, self.interpolation, self._margin())

    def placement(self, size: tuple[int, int], orientation: int = 1) -> Placement:
        """Return where an upright picture of ``size`` (width, height) lies in the model's input."""
        width, height = size
        if self.fit == "crop":
            resized = self._resized(size)
            crop = self.crop if self.crop is not None else (resized[1], resized[0])
            window = (crop, crop) if isinstance(crop, int) else (crop[1], crop[0])
            offset = tuple(_centred(inner, outer) for inner, outer in zip(resized, window, strict=True))
        else:
            assert self.input_size is not None  # noqa: S101 (checked on construction)
            window = (self.input_size[1], self.input_size[0])
            resized, offset = window, (0, 0)
            if self.fit == "pad":
                scale = min(window[0] / width, window[1] / height)
                resized = max(1, round(width * scale)), max(1, round(height * scale))
                offset = tuple((outer - inner) // 2 for inner, outer in zip(resized, window, strict=True))
        scales = (resized[0] / width, resized[1] / height)
        return Placement(size, window, scales, (float(offset[0]), float(offset[1])), orientation)

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the width and height before the crop; an int is the shorter side, as in torchvision."""
        if self.resize is None:
            return size
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        width, height = size
        longer = int(self.resize * max(size) / min(size))
        return (self.resize, longer) if width <= height else (longer, self.resize)

    def _as_torchvision(self, image: Image.Image, placement: Placement) -> Image.Image:
        """Resize all of the picture, then crop, pixel for pixel as torchvision does.

        Without it, for importing torchvision takes as long as importing torch.
        """
        size = self._resized(image.size)
        if size != image.size:
            image = image.resize(size, _RESAMPLING[self.interpolation])
        left, top = (-int(offset) for offset in placement.offset)
        window = (left, top, left + placement.input[0], top + placement.input[1])
        return image if window == (0, 0, *image.size) else image.crop(window)  # black outside the picture

    def _margin(self) -> tuple[int, int, int]:
        if self.fit == "crop":
            return (0, 0, 0)
        red, green, blue = (round(255 * min(max(mean, 0.0), 1.0)) for mean in self.mean)
        return red, green, blue

    def tensor(self, view: Image.Image) -> "Tensor":
        """Return ``view``, an RGB picture of H x W pixels, as normalised model input: float32 of shape (3, H, W)."""
        import torch

        # With numpy: in several threads at once, torch would start as many threads again for each.
        values = np.array(np.asarray(view).transpose(2, 0, 1), dtype=np.float32, order="C")
        mean, std = (np.array(channels, dtype=np.float32).reshape(3, 1, 1) for channels in (self.mean, self.std))
        values /= 255
        values -= mean
        values /= std
        return torch.from_numpy(values)

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The lowest and the highest model input of each channel: black and white, normalised."""
        low = tuple((0.0 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))
        high = tuple((1.0 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))
        return low, high

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(height, width) of the model input in pixels, or None where it depends on the picture."""
        if isinstance(self.crop, int):
            return self.crop, self.crop
        return self.crop or (self.resize if isinstance(self.resize, tuple) else None)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values, for records; ``Preprocessing(**record)`` is equal to this one."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def _size(name: str, value: Any) -> Size | None:
    if value is None:
        return None
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not all(type(number) is int and number > 0 for number in numbers) or len(numbers) not in (1, 2):
        raise UsageError(f"{name} must be a number of pixels or a height and a width, not {value!r}")
    return _square_or_pair(numbers) if isinstance(value, Sequence) else numbers[0]


def _channels(name: str, value: Any) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in value)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3 or not all(isfinite(number) for number in numbers):
        raise UsageError(f"{name} must be three numbers, for red, green and blue, not {value!r}")
    return numbers


def _square_or_pair(size: Sequence[int]) -> Size:
    return size[0] if len(size) == 1 else (size[0], size[1])


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _centred(inner: int, outer: int) -> int:
    """Return where a side of ``inner`` pixels begins in a centre crop of ``outer`` pixels, as torchvision rounds it."""
    return (outer - inner) // 2 if outer > inner else -round((inner - outer) / 2)


def _placed(image: Image.Image, placement: Placement, interpolation: str, margin: tuple[int, int, int]) -> Image.Image:
    """Return the model's view, made only of the part of the picture that lies in it."""
    left, top, right, bottom = placement.explained_box()
    start, stop = placement.to_input(left, top), placement.to_input(right, bottom)
    corner = (round(start[0]), round(start[1]))
    size = (max(1, round(stop[0]) - corner[0]), max(1, round(stop[1]) - corner[1]))
    part = image.resize(size, _RESAMPLING[interpolation], box=(left, top, right, bottom))
    if size == placement.input:
        return part
    view = Image.new("RGB", placement.input, margin)
    view.paste(part, corner)
    return view
