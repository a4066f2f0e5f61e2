"""The panel survives any label, leaves nothing behind, and shows the very pictures it is made of."""

import gc
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from lrp_cli.errors import EngineError, UsageError
from lrp_cli.render import heatmap, overlay, panel, relevance_limit

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure
from matplotlib.text import Text

NASTY = [
    "price: $5 and $x^2",
    "$\\frac{$",
    "snake_case_name^with_carets",
    "two\nlines\tand\r\ntabs",
    "猫, кошка, γάτα, قط, 🐈",
    "",
    "   ",
    "a" * 5000,
    "W" * 200,
    "\x00\x07\ud800\u202e",
    "100% {braces} \\backslash ~#&",
]


def relevance_of(side=224, seed=0):
    return (np.random.default_rng(seed).normal(size=(3, side, side)) ** 3).astype(np.float32)


def view_of(side=224):
    return Image.fromarray(np.random.default_rng(9).integers(0, 256, (side, side, 3), dtype=np.uint8))


def draw(relevance=None, view=None, **options):
    options = {"label": "tabby", "score": 12.3, "probability": 0.9, "model": "net", "config": "epsilon"} | options
    return panel(view or view_of(), relevance_of() if relevance is None else relevance, **options)


@pytest.fixture
def texts(monkeypatch):
    """Collect the texts that are put on figures, with their options."""
    found = []
    write = Figure.text
    monkeypatch.setattr(Figure, "text", lambda self, x, y, s, **more: found.append(s) or write(self, x, y, s, **more))
    return found


def test_the_three_pictures_stand_side_by_side_unchanged():
    relevance, view = relevance_of(), view_of()
    sheet = np.asarray(draw(relevance, view)).astype(int)
    for column, picture in enumerate([view, heatmap(relevance), overlay(view, relevance)]):
        left = 20 + column * 468
        enlarged = np.asarray(picture).repeat(2, axis=0).repeat(2, axis=1)
        np.testing.assert_array_equal(sheet[126 : 126 + 448, left : left + 448], enlarged)


def test_pixels_of_a_tiny_picture_stay_squares():
    relevance = relevance_of(32)
    sheet = np.asarray(draw(relevance, view_of(32)))
    np.testing.assert_array_equal(sheet[126:574, 488:936][7::14, 7::14], np.asarray(heatmap(relevance)))
    np.testing.assert_array_equal(sheet[126:574, 488:936][::14, ::14], np.asarray(heatmap(relevance)))


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 299, 299), (1, 1), (40, 400), (400, 40), (2, 3000)])
def test_any_shape_makes_a_panel(shape):
    image = draw(np.random.default_rng(0).normal(size=shape))
    assert image.mode == "RGB"
    assert image.width == 1424
    assert 200 < image.height < 1200


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", NASTY)
def test_nasty_texts_draw_without_a_warning(label):
    image = draw(label=label, model=label, config=label)
    assert image.size == draw().size


@pytest.mark.parametrize("label", ["W" * 200, "i" * 250, "a " * 2000])
def test_long_names_end_in_an_ellipsis_within_their_room(label, texts):
    image = np.asarray(draw(label=label, model=label))
    assert all(text.endswith("…") for text in texts if text.startswith(label[:3]))
    header = (image[:60] < 128).all(axis=2).any(axis=0)
    assert not header[:18].any()
    assert not header[-18:].any()
    assert not header[906:918].any(), "label and model do not touch"


def test_short_names_are_written_in_full(texts):
    draw(label="Egyptian cat", score=-3.14159, probability=0.12345, model="resnet_50", config="a\nb")
    assert {"Egyptian cat", "score −3.142 · probability 12.3%", "resnet_50", "a b"} <= set(texts)


def test_what_no_font_has_is_marked_and_what_cannot_be_seen_is_dropped(texts):
    draw(label="a\x00\u202e\ud800b", model="c\U0010fffdd", config="e\U00013000f")
    assert {"ab", "cd", "e\N{REPLACEMENT CHARACTER}f"} <= set(texts)


def test_without_a_probability_none_is_shown(texts):
    draw(probability=None, score=1234567.0)
    assert "score 1.235e+06" in texts


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_the_bar_is_symmetric_and_in_units_of_the_score(unit, monkeypatch):
    from matplotlib.colorbar import Colorbar

    seen = {}
    set_ticks = Colorbar.set_ticks

    def spy(self, ticks, *, labels, **more):
        seen.update(limits=(self.vmin, self.vmax), ticks=ticks, labels=labels)
        set_ticks(self, ticks, labels=labels, **more)

    monkeypatch.setattr(Colorbar, "set_ticks", spy)
    relevance = relevance_of() * np.float32(unit)
    draw(relevance)
    limit = relevance_limit(relevance)
    assert seen["limits"] == pytest.approx((-limit, limit))
    assert seen["ticks"] == pytest.approx([-limit, -limit / 2, 0, limit / 2, limit])
    read = [float(label.replace("−", "-")) for label in seen["labels"]]
    assert read == pytest.approx(seen["ticks"], rel=0.01)
    assert all(len(label) <= 9 for label in seen["labels"])


@pytest.mark.filterwarnings("error")
def test_no_relevance_at_all_makes_a_panel():
    sheet = np.asarray(draw(np.zeros((3, 224, 224), np.float32)))
    assert (sheet[140:560, 500:920] == 255).all()


def test_threads_draw_what_one_thread_draws():
    jobs = [{"relevance": relevance_of(32, seed), "label": f"class {seed}"} for seed in range(8)]
    alone = [draw(**job).tobytes() for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: draw(**job).tobytes(), jobs))
    assert together == alone


def test_nothing_is_left_behind():
    draw()
    gc.collect()
    before = sum(isinstance(thing, Figure | Text) for thing in gc.get_objects())
    for _ in range(3):
        draw()
    gc.collect()
    assert sum(isinstance(thing, Figure | Text) for thing in gc.get_objects()) == before


def test_pyplot_is_not_touched():
    code = (
        "import sys, numpy as np; from PIL import Image; import lrp_cli.render as render;"
        "assert 'matplotlib' not in sys.modules;"
        "render.panel(Image.new('RGB', (8, 8)), np.ones((8, 8)), label='x', score=1.0);"
        "render.panel(Image.new('RGB', (8, 8)), np.ones((8, 8)), label='x', score=1.0);"
        "print([name for name in ('matplotlib.pyplot', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_matplotlibrc_with_tex_and_dark_paper_changes_nothing():
    import matplotlib

    expected = draw(label="a_b $c$").tobytes()
    style = {
        "text.usetex": True,
        "text.color": "green",
        "font.family": "serif",
        "figure.facecolor": "black",
        "figure.autolayout": True,
        "image.interpolation": "bicubic",
        "image.origin": "lower",
        "axes.grid": True,
        "xtick.direction": "in",
    }
    with matplotlib.rc_context(style):
        assert draw(label="a_b $c$").tobytes() == expected


def test_bad_input_is_refused():
    with pytest.raises(EngineError, match="not finite"):
        draw(np.full((4, 4), np.nan))
    with pytest.raises(UsageError, match="colour map"):
        draw(heatmap_colormap="nope")
    with pytest.raises(UsageError, match="colour map"):
        draw(overlay_colormap="nope")


def test_an_unknown_name_of_the_room_is_an_attribute_error():
    import lrp_cli.render

    with pytest.raises(AttributeError, match="no attribute 'painting'"):
        _ = lrp_cli.render.painting  # type: ignore[attr-defined]


def test_it_draws_quietly(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(label="猫")
    assert capfd.readouterr() == ("", "")
