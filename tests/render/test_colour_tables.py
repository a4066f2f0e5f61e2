"""Colour tables: zero is neutral, warm is positive, and the two sides mirror each other."""

import subprocess
import sys

import numpy as np
import pytest

from lrp_cli.errors import UsageError
from lrp_cli.render import HEATMAP_COLOURS, OVERLAY_COLOURS, colormap_names
from lrp_cli.render.colours import STEPS, colour_table

OWN = [HEATMAP_COLOURS, OVERLAY_COLOURS]


@pytest.mark.parametrize("name", OWN)
def test_own_tables_are_neutral_in_the_middle_and_mirror_images(name):
    table = colour_table(name).astype(int)
    assert table.shape == (2 * STEPS + 1, 3)
    assert len(set(table[STEPS])) == 1
    np.testing.assert_array_equal(table[::-1, ::-1], table)
    assert (table[STEPS + 1 :, 0] > table[STEPS + 1 :, 2]).all(), "positive is warm"


def test_the_heatmap_is_white_at_zero_and_darkens_without_a_turn():
    luminance = colour_table(HEATMAP_COLOURS)[STEPS:] @ np.array([0.299, 0.587, 0.114])
    assert luminance[0] == 255
    assert (np.diff(luminance) <= 0).all()


def test_every_name_in_the_list_has_a_table():
    matplotlib = pytest.importorskip(
        "matplotlib", minversion="3.10", reason="berlin, managua and vanimo came with 3.10"
    )
    for name in colormap_names():
        assert colour_table(name).shape == (2 * STEPS + 1, 3)
        if name not in OWN:
            expected = matplotlib.colormaps[name]([0.0, 0.5, 1.0], bytes=True)[:, :3].astype(int)
            np.testing.assert_allclose(colour_table(name)[[0, STEPS, -1]].astype(int), expected, atol=3)


def test_a_reversed_map_is_reversed():
    np.testing.assert_allclose(colour_table("bwr_r").astype(int), colour_table("bwr")[::-1].astype(int), atol=1)


@pytest.mark.parametrize(
    ("name", "hint"), [("seizmic", "'seismic'"), ("rdbu_r", "'RdBu_r'"), ("fire-ise", "'fire-ice'"), ("", "red-blue, ")]
)
def test_an_unknown_name_is_refused_with_near_ones(name, hint):
    with pytest.raises(UsageError, match="no diverging colour map") as caught:
        colour_table(name)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_map_that_does_not_diverge_is_refused():
    with pytest.raises(UsageError, match="'viridis'"):
        colour_table("viridis")


def test_cached_tables_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        colour_table("bwr")[0] = 0


def test_heatmap_and_overlay_need_neither_matplotlib_nor_torch():
    code = (
        "import sys, numpy as np; from PIL import Image; from lrp_cli.render import heatmap, overlay;"
        "overlay(heatmap(np.ones((3, 4, 4))), np.ones((4, 4)));"
        "print([name for name in ('matplotlib', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
