"""Relevance to [-1, 1]: exact at zero, symmetric, and deaf to the unit and to single outliers."""

import numpy as np
import pytest

from lrp_cli.errors import EngineError, LrpError, UsageError
from lrp_cli.render import normalise, pixel_relevance, relevance_limit
from lrp_cli.render.scaling import smooth


@pytest.fixture
def relevance() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 40, 30)).astype(np.float32)


def test_pixels_are_the_sum_of_the_channels(relevance):
    expected = [[sum(float(channel) for channel in relevance[:, y, x]) for x in range(30)] for y in range(40)]
    np.testing.assert_allclose(pixel_relevance(relevance), expected, rtol=1e-12)


def test_a_map_without_channels_keeps_its_values(relevance):
    np.testing.assert_array_equal(pixel_relevance(relevance[0]), relevance[0])


@pytest.mark.parametrize("shape", [(4,), (1, 3, 4, 4), (3, 0, 4), ()])
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(UsageError, match="is no picture"):
        pixel_relevance(np.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("error")
def test_values_that_are_not_finite_are_refused_and_counted(relevance, bad):
    relevance[0, 3, 4], relevance[1, 3, 4] = bad, -bad
    with pytest.raises(EngineError, match=r"^2 of 3600 relevance values are not finite"):
        normalise(relevance)


def test_normalised_relevance_is_relevance_divided_by_its_percentile_and_clipped(relevance):
    pixels = relevance.astype(np.float64).sum(axis=0)
    limit = np.sort(np.abs(pixels), axis=None)[int(0.9 * (pixels.size - 1))]
    np.testing.assert_allclose(normalise(relevance, 90), np.maximum(-1, np.minimum(1, pixels / limit)), rtol=1e-12)
    assert relevance_limit(relevance, 90) == pytest.approx(limit)
    assert relevance_limit(relevance, 100) == pytest.approx(np.abs(pixels).max())


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 30), (61, 83), (224, 224)])
@pytest.mark.parametrize("percentile", [1e-3, 25, 50, 90, 99.5, 99.9, 100])
@pytest.mark.parametrize("digits", [0, 1, 20], ids=["many ties", "some ties", "no ties"])
def test_the_limit_is_the_percentile_that_numpy_finds(shape, percentile, digits):
    pixels = (10 + np.random.default_rng(2).standard_cauchy(shape)).round(digits)
    expected = np.percentile(np.abs(pixels), percentile, method="lower") or np.abs(pixels).max()
    assert relevance_limit(pixels, percentile) == expected


def test_zero_stays_zero_and_signs_stay(relevance):
    relevance[:, ::2] = 0
    level = normalise(relevance)
    assert (level[::2] == 0).all()
    np.testing.assert_array_equal(np.sign(level), np.sign(pixel_relevance(relevance)))
    np.testing.assert_array_equal(normalise(-relevance), -level)


def test_mostly_positive_relevance_is_not_centred():
    level = normalise(np.array([[1.0, 2.0], [3.0, 4.0]]), 100)
    np.testing.assert_array_equal(level, [[0.25, 0.5], [0.75, 1.0]])


def test_all_zero_relevance_stays_all_zero():
    assert not normalise(np.zeros((3, 5, 5), np.float32)).any()
    assert relevance_limit(np.zeros((5, 5))) == 0


def test_nearly_all_zero_relevance_still_shows():
    relevance = np.zeros((100, 100))
    relevance[3, 4] = -2.0
    assert normalise(relevance)[3, 4] == -1


@pytest.mark.parametrize("shape", [(8, 8), (32, 32), (224, 224)])
def test_one_outlier_changes_nothing_for_the_others(shape):
    relevance = np.random.default_rng(1).normal(size=shape)
    before = np.abs(normalise(relevance))
    relevance[2, 2] = 1e6
    after = np.abs(normalise(relevance))
    assert after[2, 2] == 1
    others = np.arange(after.size) != 2 * shape[1] + 2
    assert np.median(after.ravel()[others]) > 0.5 * np.median(before.ravel()[others])


@pytest.mark.parametrize("factor", [2.0**-90, 1e-30, 1000, 1e30])
def test_the_unit_does_not_matter(relevance, factor):
    scaled = (relevance * np.float32(factor)).astype(np.float32)
    np.testing.assert_allclose(normalise(scaled), normalise(relevance), atol=1e-5)


def test_a_given_scale_replaces_the_percentile():
    np.testing.assert_array_equal(normalise(np.array([[1.0, -8.0]]), scale=4.0), [[0.25, -1.0]])


@pytest.mark.parametrize("options", [{"percentile": 0}, {"percentile": 101}, {"percentile": np.nan}, {"scale": 0}])
@pytest.mark.parametrize("more", [{}, {"scale": -1.0}, {"scale": np.inf}, {"scale": np.nan}])
def test_bad_limits_are_refused_in_one_line(options, more):
    with pytest.raises(UsageError) as caught:
        normalise(np.ones((2, 2)), **(options | more))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sigma", [0.3, 1.3, 3.4, 7.9])  # of 3, 9, 23 and 49 weights, numpy being quick with 11
def test_smoothing_is_the_normalised_gaussian_of_the_neighbours(sigma):
    values = np.random.default_rng(2).normal(size=(9, 7))
    reach = int(np.ceil(3 * sigma))
    expected = np.zeros_like(values)
    for (y, x), _ in np.ndenumerate(values):
        weights = {
            (v, u): np.exp(-((v - y) ** 2 + (u - x) ** 2) / (2 * sigma**2))
            for v in range(9)
            for u in range(7)
            if abs(v - y) <= reach and abs(u - x) <= reach
        }
        expected[y, x] = sum(w * values[at] for at, w in weights.items()) / sum(weights.values())
    np.testing.assert_allclose(smooth(values, sigma), expected, rtol=1e-10)


@pytest.mark.parametrize("sigma", [0.0, 0.2, 1.5, 6.0, 9.0, 25.0, 200.0])
def test_smoothing_is_odd_keeps_constants_and_the_shape(sigma):
    values = np.random.default_rng(3).normal(size=(61, 40))
    smoothed = smooth(values, sigma)
    np.testing.assert_array_equal(smooth(-values, sigma), -smoothed)
    np.testing.assert_allclose(smooth(np.full((61, 40), 0.7), sigma), 0.7, rtol=1e-6)
    assert smoothed.shape == values.shape
    assert smoothed.std() <= values.std()


def test_wide_smoothing_on_the_coarse_grid_is_near_the_exact_one(monkeypatch):
    values = smooth(np.random.default_rng(4).normal(size=(120, 150)), 3.0)
    coarse = smooth(values, 9.0)
    monkeypatch.setattr("lrp_cli.render.scaling.int", lambda _: 1, raising=False)
    exact = smooth(values, 9.0)
    assert np.abs(coarse - exact).max() < 0.05 * np.abs(exact).max()
    assert np.abs(coarse - exact).max() > 0  # the two are indeed two


@pytest.mark.parametrize("sigma", [-1.0, np.nan, np.inf])
def test_bad_smoothing_is_refused(sigma):
    with pytest.raises(LrpError, match="smoothing"):
        smooth(np.ones((3, 3)), sigma)
