"""From a picture to what a network takes in: resize, centre crop, scale to 0..1, normalise."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, Self

from PIL import Image

from lrp_cli.errors import UsageError, closest

if TYPE_CHECKING:
    from torch import Tensor

INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

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

    Raises:
        UsageError: a value makes no sense.
    """

    resize: Size | None
    crop: Size | None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        # Lists, as JSON and the command line give them, are taken for tuples.
        for name, parse in (("resize", _size), ("crop", _size), ("mean", _channels), ("std", _channels)):
            object.__setattr__(self, name, parse(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise UsageError(f"std must be above 0 in every channel, not {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            near = closest(str(self.interpolation), INTERPOLATIONS)
            raise UsageError(f"unknown interpolation {self.interpolation!r} (one of {', '.join(INTERPOLATIONS)}){near}")

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
        """Return what the network sees: ``image`` as 8-bit RGB, resized and cropped, not yet normalised."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        # Any: torchvision's functions take pictures as well as tensors, but are annotated for tensors only.
        view: Any = image if image.mode == "RGB" else image.convert("RGB")
        if self.resize is not None:
            view = F.resize(view, _as_list(self.resize), interpolation=InterpolationMode(self.interpolation))
        if self.crop is not None:
            view = F.center_crop(view, _as_list(self.crop))
        result: Image.Image = view
        return result

    def tensor(self, view: Image.Image) -> "Tensor":
        """Return ``view``, an RGB picture of H x W pixels, as normalised model input: float32 of shape (3, H, W)."""
        import torch
        from torchvision.transforms import functional as F

        pixels = F.convert_image_dtype(F.pil_to_tensor(view), torch.float32)
        normalised: Tensor = F.normalize(pixels, mean=list(self.mean), std=list(self.std))
        return normalised

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


def _as_list(size: Size) -> list[int]:
    return [size] if isinstance(size, int) else list(size)
