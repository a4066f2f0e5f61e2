"""Where a point of the picture lies in the model's input, and back."""

import json

import numpy as np
import pytest
from PIL import Image

from lrp_cli.errors import ImageError, UsageError
from lrp_cli.images import Preprocessing
from lrp_cli.images.decoding import read_picture
from lrp_cli.images.mapping import Mapping, onto_original

SIZES = [(300, 200), (200, 300), (256, 256), (97, 1013), (1013, 97), (64, 64), (30, 30)]
SETTINGS = [
    {"resize": 256, "crop": 224},
    {"resize": 100, "crop": 224},
    {"resize": 233, "crop": 224},
    {"resize": (120, 180), "crop": (100, 50)},
    {"resize": None, "crop": 64},
    {"resize": 50, "crop": None},
    {"resize": 256, "crop": 224, "fit": "squash"},
    {"resize": 256, "crop": 224, "fit": "pad"},
    {"resize": 256, "crop": (64, 100), "fit": "pad"},
]


def with_spot(size: tuple[int, int], x: int, y: int, radius: int) -> Image.Image:
    """A black picture with a white square around (x, y)."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[max(0, y - radius) : y + radius, max(0, x - radius) : x + radius] = 255
    return Image.fromarray(pixels)


def centre(image: Image.Image) -> tuple[float, float]:
    weight = np.asarray(image.convert("L"), dtype=float)
    rows, columns = np.indices(weight.shape) + 0.5
    return (columns * weight).sum() / weight.sum(), (rows * weight).sum() / weight.sum()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_known_point_is_found_there_and_back(size: tuple[int, int], settings: dict) -> None:
    preprocessing = Preprocessing(**settings, mean=(0, 0, 0), std=(1, 1, 1))
    mapping = preprocessing.placement(size)
    left, top, right, bottom = mapping.explained_box()
    radius = max(1, int(min(right - left, bottom - top) / 10))
    x, y = round(left + (right - left) * 0.45), round(top + (bottom - top) * 0.55)
    view = preprocessing.view(with_spot(size, x, y, radius))
    assert view.size == mapping.input
    seen = centre(view)
    expected = mapping.to_input(x, y)
    assert seen == pytest.approx(expected, abs=1)
    back = mapping.to_original(*seen)
    one_pixel = [max(1, 1 / scale) for scale in mapping.scale]
    assert abs(back[0] - x) <= one_pixel[0]
    assert abs(back[1] - y) <= one_pixel[1]
    assert mapping.to_original(*mapping.to_input(3.25, -7.5)) == pytest.approx((3.25, -7.5))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_point_is_found_in_the_stored_picture(tmp_path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = with_spot((60, 40), 12, 30, 3)
    stored.save(tmp_path / "x.png", exif=exif)
    decoded = read_picture(tmp_path / "x.png")
    assert decoded.orientation == orientation
    mapping = Preprocessing(None, None).placement(decoded.image.size, decoded.orientation)
    assert mapping.to_stored(*centre(decoded.image)) == pytest.approx((12, 30), abs=0.01)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (40, 400), (33, 33)], ids=str)
def test_relevance_lies_on_the_whole_picture_where_its_cause_is(size: tuple[int, int], fit: str) -> None:
    mapping = Preprocessing(256, 224, fit=fit).placement(size)
    relevance = np.zeros((224, 224), dtype=np.float32)
    relevance[90:110, 106:116] = 1
    whole = onto_original(relevance, mapping)
    assert whole.shape == (size[1], size[0])
    rows, columns = np.indices(whole.shape) + 0.5
    weight = np.nan_to_num(whole)
    found = (columns * weight).sum() / weight.sum(), (rows * weight).sum() / weight.sum()
    expected = mapping.to_original(111, 100)
    assert abs(found[0] - expected[0]) <= 1
    assert abs(found[1] - expected[1]) <= 1


def test_what_the_model_did_not_see_is_not_explained() -> None:
    mapping = Preprocessing(100, 100).placement((300, 100))
    whole = onto_original(np.ones((100, 100)), mapping)
    assert np.isnan(whole[:, :100]).all()
    assert (whole[:, 100:200] == 1).all()
    assert np.isnan(whole[:, 200:]).all()
    squashed = onto_original(np.ones((100, 100)), Preprocessing(100, 100, fit="squash").placement((300, 100)))
    assert (squashed == 1).all()


def test_padding_is_the_mean_colour_and_the_whole_picture_is_seen() -> None:
    preprocessing = Preprocessing(100, 100, mean=(0.2, 0.4, 0.6), std=(1, 1, 1), fit="pad")
    view = np.asarray(preprocessing.view(Image.new("RGB", (200, 100), "white")))
    assert (view[:25] == [51, 102, 153]).all()
    assert (view[25:75] == 255).all()
    assert (view[75:] == [51, 102, 153]).all()
    assert abs(preprocessing.tensor(Image.fromarray(view))[:, :25]).max() < 1e-6


def test_the_mapping_survives_json() -> None:
    mapping = Preprocessing(256, 224).placement((300, 201), 6)
    assert Mapping.from_json(json.loads(json.dumps(mapping.to_json()))) == mapping


def test_to_squash_or_pad_needs_a_size() -> None:
    with pytest.raises(UsageError, match="give a crop"):
        Preprocessing(256, None, fit="pad")
    with pytest.raises(UsageError, match="did you mean 'squash'"):
        Preprocessing(256, 224, fit="sqash")


@pytest.mark.parametrize("size", [(20000, 20), (20, 20000), (1, 1), (5_000_000, 1)], ids=str)
@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_extreme_proportions_are_quick_and_small(size: tuple[int, int], fit: str) -> None:
    preprocessing = Preprocessing(256, 224, fit=fit)
    assert preprocessing.view(Image.new("RGB", size, "white")).size == (224, 224)


def test_what_would_be_too_large_is_refused() -> None:
    with pytest.raises(ImageError, match="too large"):
        Preprocessing(256, None).view(Image.new("RGB", (100_000, 2)))
    for crop in (10_000, 20_000):
        with pytest.raises(ImageError, match="too large"):
            Preprocessing(256, crop).view(Image.new("RGB", (300, 200)))


def test_the_long_way_and_the_short_way_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    from lrp_cli.images import preprocessing as module

    pixels = np.random.default_rng(0).integers(0, 256, (60, 900, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    preprocessing = Preprocessing(256, 224, interpolation="bicubic")
    long_way = np.asarray(preprocessing.view(picture)).astype(int)
    monkeypatch.setattr(module, "LARGEST_VIEW", 224 * 224)
    short_way = np.asarray(preprocessing.view(picture)).astype(int)
    assert np.abs(long_way - short_way).max() <= 2
