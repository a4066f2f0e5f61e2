"""Heatmap and overlay: what a colour says is what the relevance says."""

import io
from pathlib import Path

import numpy as np
import pytest
from imagecodecs import PngError
from PIL import Image

from lrp_cli.errors import EngineError, LrpError, UsageError
from lrp_cli.render import encode_png, heatmap, overlay, pictures, relevance_limit, save_png
from lrp_cli.render.pictures import LONGEST

SHAPES = [(3, 224, 224), (3, 32, 32), (50, 80), (3, 1, 1), (3, 7, 300)]


def some_relevance(shape=(3, 64, 48), seed=0):
    return (np.random.default_rng(seed).normal(size=shape) ** 3).astype(np.float32)


def some_view(width=48, height=64, mode="RGB"):
    pixels = np.random.default_rng(9).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def array(image):
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_are_rgb_of_the_size_of_the_relevance(shape):
    relevance, size = some_relevance(shape), (shape[-1], shape[-2])
    for image in (heatmap(relevance), overlay(some_view(), relevance)):
        assert (image.mode, image.size) == ("RGB", size)


def test_heatmap_of_nothing_is_white():
    assert (array(heatmap(np.zeros((3, 9, 9), np.float32))) == 255).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_overlay_of_nothing_is_the_grey_photograph(mode):
    view = some_view(mode=mode)
    expected = np.asarray(view.convert("L"))[..., None].repeat(3, axis=2)
    np.testing.assert_array_equal(array(overlay(view, np.zeros((3, 64, 48), np.float32))), expected)


def test_overlay_far_from_the_relevance_is_the_grey_photograph():
    relevance = np.zeros((224, 224))
    relevance[:40, :40] = 1
    view = some_view(224, 224)
    np.testing.assert_array_equal(array(overlay(view, relevance))[60:, 60:, 0], np.asarray(view.convert("L"))[60:, 60:])


@pytest.mark.parametrize("smoothing", [3, 8, 40])
def test_a_wide_blur_on_the_overlay(smoothing):
    relevance, view = np.zeros((224, 224)), Image.new("L", (224, 224), 128)
    relevance[100:120, 100:120] = 1
    coloured = (array(overlay(view, relevance, smoothing=smoothing)) != 128).any(axis=2)
    assert coloured[105:115, 105:115].all()
    assert coloured.sum() > (20 + smoothing) ** 2


def test_opposite_relevance_exchanges_red_and_blue():
    relevance, view = some_relevance((3, 224, 224)), some_view(224, 224)
    np.testing.assert_array_equal(array(heatmap(-relevance)), array(heatmap(relevance))[..., ::-1])
    np.testing.assert_array_equal(array(overlay(view, -relevance)), array(overlay(view, relevance))[..., ::-1])


def test_positive_is_warm_and_negative_is_cold():
    relevance, view = some_relevance(), some_view()
    pixels = relevance.sum(axis=0)
    for image in (heatmap(relevance), overlay(view, relevance, smoothing=0)):
        warmth = array(image)[..., 0] - array(image)[..., 2]
        assert (warmth[pixels > 0] >= 0).all()
        assert (warmth[pixels < 0] <= 0).all()
        assert (warmth[pixels > relevance_limit(pixels, 99.9) / 4] > 60).all()


@pytest.mark.parametrize("grey", [0, 90, 200, 255])
def test_overlay_leaves_the_photograph_step_by_step(grey):
    relevance = np.linspace(0, 1, 200)[None].repeat(3, axis=0)
    pixels = array(overlay(Image.new("L", (200, 3), grey), relevance, smoothing=0, percentile=100))[0]
    assert (pixels[0] == grey).all()
    warmth = pixels[:, 0] - pixels[:, 2]
    assert (np.diff(warmth[pixels[:, 1] < 25]) >= 0).all()
    # Up to m = 1/2 the colour is (255, 0..20, 0), so that blue is what the photograph has left: 1 - opacity.
    blue = pixels[:100, 2]
    assert (np.diff(blue) <= 0).all()
    m = relevance[0, :100]
    np.testing.assert_allclose(blue, grey * (1 - 1.1 * m**2 / (m**2 + 0.1)), atol=1)


@pytest.mark.parametrize("exponent", [-60, 10, 60])
def test_a_power_of_two_changes_no_pixel(exponent):
    relevance, view = some_relevance(), some_view()
    scaled = relevance * np.float32(2.0**exponent)
    assert heatmap(scaled).tobytes() == heatmap(relevance).tobytes()
    assert overlay(view, scaled).tobytes() == overlay(view, relevance).tobytes()


def test_a_thousandfold_relevance_gives_the_same_picture():
    relevance, view = some_relevance(), some_view()
    np.testing.assert_allclose(array(heatmap(1000 * relevance)), array(heatmap(relevance)), atol=2)
    np.testing.assert_allclose(array(overlay(view, 1000 * relevance)), array(overlay(view, relevance)), atol=2)


@pytest.mark.parametrize("side", [32, 224])
def test_one_outlier_takes_no_colour_from_the_rest(side):
    relevance, view = some_relevance((side, side)), some_view(side, side)
    wild = relevance.copy()
    wild[side // 2, side // 2] = 1e6
    far = np.hypot(*(np.indices((side, side)) - side // 2)) > 8
    for draw in (heatmap, lambda values: overlay(view, values)):
        change = np.abs(array(draw(wild)) - array(draw(relevance)))[far]
        assert change.mean() < 4


def test_the_heatmap_is_raw():
    relevance = np.zeros((64, 64))
    relevance[20, 30] = 1
    assert (array(heatmap(relevance)) != 255).any(axis=2).sum() == 1
    assert (array(overlay(Image.new("L", (64, 64), 128), relevance, smoothing=6)) != 128).any(axis=2).sum() > 1


def test_a_shared_scale_makes_heatmaps_comparable():
    weak, strong = np.full((2, 2), 1.0), np.full((2, 2), 4.0)
    assert heatmap(weak).tobytes() == heatmap(strong).tobytes()
    assert array(heatmap(weak, scale=4.0)).sum() > array(heatmap(strong, scale=4.0)).sum()


def test_a_view_of_another_size_is_resized_to_the_relevance():
    view = Image.new("RGB", (400, 300), "black")
    view.paste("white", (200, 0, 400, 300))
    pixels = array(overlay(view, np.zeros((3, 30, 40))))
    assert pixels.shape == (30, 40, 3)
    assert (pixels[:, :18] <= 5).all()
    assert (pixels[:, 22:] >= 250).all()


def test_the_arguments_stay_as_they_were():
    relevance, view = some_relevance(), some_view()
    before = relevance.copy(), view.tobytes()
    overlay(view, relevance)
    heatmap(relevance)
    np.testing.assert_array_equal(relevance, before[0])
    assert view.tobytes() == before[1]


def test_the_same_relevance_gives_the_same_bytes():
    assert overlay(some_view(), some_relevance()).tobytes() == overlay(some_view(), some_relevance()).tobytes()


def test_matplotlib_colours_can_be_chosen_for_both():
    relevance = np.array([[-1.0, 1.0]])
    assert array(heatmap(relevance, colormap="bwr")).tolist() == [[[0, 0, 255], [255, 0, 0]]]
    pixels = array(overlay(Image.new("L", (2, 1), 100), relevance, colormap="bwr", percentile=100))
    assert pixels.tolist() == [[[0, 0, 255], [255, 0, 0]]]


@pytest.mark.parametrize("draw", [heatmap, lambda relevance, **more: overlay(some_view(), relevance, **more)])
def test_bad_input_is_refused(draw):
    with pytest.raises(EngineError, match="not finite"):
        draw(np.array([[0.0, np.nan]]))
    with pytest.raises(UsageError, match="colour map"):
        draw(np.ones((2, 2)), colormap="reds-and-blues")
    with pytest.raises(UsageError, match="no picture"):
        draw(np.ones(4))


def test_png_keeps_every_pixel(tmp_path: Path):
    image = heatmap(some_relevance())
    save_png(image, tmp_path / "a heatmap.without-suffix")
    with Image.open(tmp_path / "a heatmap.without-suffix") as read:
        assert read.format == "PNG"
        assert read.tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_png_of_every_kind_of_picture(mode: str):
    image = heatmap(some_relevance()).convert(mode)
    with Image.open(io.BytesIO(encode_png(image))) as read:
        assert read.convert("RGB").tobytes() == image.convert("RGB").tobytes()
        assert read.mode == (mode if mode in {"L", "RGBA"} else "RGB")


def test_png_that_would_be_too_long_is_one_line():
    with pytest.raises(LrpError, match="too long for a PNG"):
        encode_png(Image.new("L", (LONGEST + 1, 1)))
    assert encode_png(Image.new("L", (LONGEST, 1))).startswith(b"\x89PNG")


def test_png_without_memory(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise PngError("png_encode", "insufficient memory")

    monkeypatch.setattr(pictures, "png_encode", fail)
    with pytest.raises(MemoryError):
        encode_png(Image.new("RGB", (2, 2)))


def test_png_that_cannot_be_written_is_one_line(tmp_path: Path):
    with pytest.raises(LrpError, match=r"cannot write .*missing") as caught:
        save_png(heatmap(np.ones((2, 2))), tmp_path / "missing" / "a.png")
    assert "\n" not in str(caught.value)
