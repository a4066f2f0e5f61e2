import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from lrp_cli.errors import UsageError
from lrp_cli.images import Preprocessing

SAMPLES = Path(__file__).resolve().parents[2] / "sample_images"

WEIGHTS = [
    models.ResNet50_Weights.IMAGENET1K_V1,
    models.ResNet50_Weights.IMAGENET1K_V2,
    models.EfficientNet_B0_Weights.IMAGENET1K_V1,  # bicubic
    models.EfficientNet_B2_Weights.IMAGENET1K_V1,  # crop as large as the resized picture
    models.EfficientNet_V2_L_Weights.IMAGENET1K_V1,  # mean 0.5
    models.Inception_V3_Weights.IMAGENET1K_V1,
    models.Swin_V2_T_Weights.IMAGENET1K_V1,
    models.ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1,  # 518 px
]


@pytest.fixture(scope="module")
def cat() -> Image.Image:
    with Image.open(SAMPLES / "cat.jpg") as image:
        return image.convert("RGB")


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("size", [None, (100, 333)], ids=["photograph", "small and tall"])
def test_equals_torchvisions_preset(cat: Image.Image, weights: Any, size: tuple[int, int] | None) -> None:
    image = cat if size is None else cat.resize(size)
    ours = Preprocessing.from_transforms(weights.transforms())
    view = ours.view(image)
    assert torch.equal(ours.tensor(view), weights.transforms()(image))
    assert ours.input_size == (view.height, view.width) == tuple(ours.tensor(view).shape[1:])


@pytest.mark.parametrize(
    "interpolation", ["nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"]
)
@pytest.mark.parametrize("size", [(61, 44), (44, 61), (9, 8), (300, 7), (40, 40)])
@pytest.mark.parametrize(("resize", "crop"), [(40, 33), (40, 40), (33, 40), (33, 45), ((31, 52), (30, 53)), (None, 12)])
def test_equals_torchvision_at_any_size(
    cat: Image.Image, size: tuple[int, int], resize: Any, crop: Any, interpolation: str
) -> None:
    image = cat.resize(size)
    theirs: Any = image
    if resize is not None:
        theirs = F.resize(image, resize, InterpolationMode(interpolation))
    theirs = F.center_crop(theirs, crop)
    ours = Preprocessing(resize, crop, interpolation=interpolation)
    assert ours.view(image).tobytes() == theirs.tobytes()
    normalised = F.normalize(F.to_tensor(theirs), ours.mean, ours.std)
    assert torch.equal(ours.tensor(ours.view(image)), normalised)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA"])
def test_other_modes_become_rgb(cat: Image.Image, mode: str) -> None:
    weights = models.ResNet18_Weights.IMAGENET1K_V1
    image = cat.convert(mode)
    ours = Preprocessing.from_transforms(weights.transforms())
    assert ours.view(image).mode == "RGB"
    assert torch.equal(ours.tensor(ours.view(image)), weights.transforms()(image.convert("RGB")))


def test_every_preset_of_torchvision_can_be_taken_over() -> None:
    for name in models.list_models(module=models):
        for weights in models.get_model_weights(name):
            preset = weights.transforms()
            ours = Preprocessing.from_transforms(preset)
            assert [ours.resize] == preset.resize_size
            assert ours.interpolation == preset.interpolation.value


def test_bounds_are_what_black_and_white_become() -> None:
    ours = Preprocessing(None, None)
    low, high = ours.bounds
    for value, bound in ((0, low), (255, high)):
        tensor = ours.tensor(Image.new("RGB", (1, 1), (value,) * 3))
        np.testing.assert_allclose(tensor.flatten().numpy(), bound, rtol=1e-6)
    assert low == pytest.approx((-2.1179, -2.0357, -1.8044), abs=1e-4)


def test_without_resize_and_crop_the_picture_stays_as_it_is(cat: Image.Image) -> None:
    ours = Preprocessing(None, None, mean=(0, 0, 0), std=(1, 1, 1))
    assert ours.input_size is None
    tensor = ours.tensor(ours.view(cat))
    assert tensor.dtype == torch.float32
    assert np.array_equal((tensor * 255).round().byte().permute(1, 2, 0).numpy(), np.asarray(cat))


def test_height_comes_before_width(cat: Image.Image) -> None:
    assert Preprocessing((40, 60), None).view(cat).size == (60, 40)
    assert Preprocessing((40, 60), None).input_size == (40, 60)
    assert Preprocessing(100, (40, 60)).view(cat).size == (60, 40)
    assert Preprocessing(100, (40, 60)).input_size == (40, 60)
    assert Preprocessing(100, None).input_size is None
    assert Preprocessing((40, 60), 30).input_size == (30, 30)
    assert Preprocessing(100, 100).input_size == (100, 100)


def test_crop_beyond_the_picture_pads_with_black() -> None:
    view = np.asarray(Preprocessing(None, 4).view(Image.new("RGB", (2, 2), "white")))
    assert view.sum() == 4 * 3 * 255
    assert (view[1:3, 1:3] == 255).all()


def test_override_changes_only_what_it_names() -> None:
    before = Preprocessing(256, 224)
    after = before.override({"resize": None, "mean": [0.5, 0.5, 0.5], "crop": [32, 48], "interpolation": "lanczos"})
    assert after == Preprocessing(None, (32, 48), mean=(0.5, 0.5, 0.5), interpolation="lanczos")
    assert before == Preprocessing(256, 224)
    assert before.override({}) == before


def test_records_survive_json() -> None:
    ours = Preprocessing((256, 128), 96, interpolation="bicubic")
    record = json.loads(json.dumps(ours.to_json()))
    assert record["resize"] == [256, 128]
    assert Preprocessing(**record) == ours


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"resize": 0}, "resize must be a number of pixels"),
        ({"resize": "big"}, "resize must be a number of pixels"),
        ({"resize": True}, "resize must be a number of pixels"),
        ({"crop": (1, 2, 3)}, "crop must be a number of pixels"),
        ({"crop": ()}, "crop must be a number of pixels"),
        ({"mean": (0.5, 0.5)}, "mean must be three numbers"),
        ({"mean": 0.5}, "mean must be three numbers"),
        ({"std": (1, 1, float("nan"))}, "std must be three numbers"),
        ({"std": (1, 0, 1)}, "std must be above 0"),
        ({"interpolation": "bicubik"}, "did you mean 'bicubic'"),
        ({"means": (0, 0, 0)}, "did you mean 'mean'"),
    ],
)
def test_nonsense_is_refused_in_one_line(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        Preprocessing(256, 224).override(changes)
    assert "\n" not in str(caught.value)
