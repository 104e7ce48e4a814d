"""Constants by their value, with where it is from: other tests may compute with them, not judge them."""

import numpy as np
from scipy import optimize, special

from ghn_jax.cnn.deploy import calibration
from ghn_jax.cnn.deploy.observer import BINS
from ghn_jax.quant import ranges, weight_grids


def test_the_best_ranges_of_a_normal_distribution():
    # J. Max, Quantizing for minimum distortion, 1960, table II: the step at two levels is 1.5958. The others
    # have 0 among their levels, as his have not: they are found again in test_fake_quant.
    assert ranges.TWO_SIDED == (1.596, 1.575, 2.105, 2.540, 2.925, 3.280, 3.610, 3.925)
    assert ranges.ONE_SIDED == (1.225, 1.950, 2.475, 2.900, 3.270, 3.605, 3.920, 4.215)
    np.testing.assert_allclose(ranges.TWO_SIDED[0], 2 * np.sqrt(2 / np.pi), atol=1e-3)
    # {0, c} on one side: c is the mean of what is beyond c / 2, pdf(c / 2) / (1 - cdf(c / 2)).
    beyond = lambda c: np.exp(-(c**2) / 8) / np.sqrt(2 * np.pi) / special.ndtr(-c / 2) - c
    np.testing.assert_allclose(ranges.ONE_SIDED[0], optimize.brentq(beyond, 0.5, 3), atol=2e-3)
    assert ranges.LEAN == 511 / 512


def test_weights():
    assert weight_grids.TERNARY_CUT == 0.7  # arXiv 1605.04711, eq. 6: "0.7 E|W|"
    assert (weight_grids.PERCENTILE_STEPS, weight_grids.MSE_STEPS, weight_grids.MSE_LEAST) == (256, 16, 3)


def test_calibration():
    assert calibration.MOMENTUM == 0.9
    assert calibration.PERCENTILE == 99.9
    assert BINS == 1024
    lo, hi = ranges_by('moving_average', lo=[[-1.0], [-3.0]], hi=[[2.0], [4.0]])
    np.testing.assert_allclose((lo, hi), [[-1.2], [2.2]], rtol=1e-6)  # 0.9 of the first, 0.1 of the second
    np.testing.assert_allclose(calibration._CLIPS, 1 - 0.025 * np.arange(39), rtol=1e-12)


def ranges_by(rule, *, lo=((0.0,),), hi=((0.0,),), histogram=None, bounds=None, bits=8):
    histogram = np.zeros((1, 1, BINS)) if histogram is None else histogram
    none = np.zeros((len(lo), 1))
    seen = calibration.Activations(np.array(lo), np.array(hi), none, none, none, histogram)
    bounds = np.zeros((1, 2)) if bounds is None else bounds
    return calibration.activation_ranges(rule, seen, np.array([bits]), bounds)


def test_a_percentile_leaves_out_one_in_a_thousand_on_one_side_or_half_of_it_on_each():
    """Of 100 000 values, evenly in the bins but for 60 in either of the outermost."""
    counts = np.full(BINS, (100_000 - 120) / (BINS - 2))
    counts[[0, -1]] = 60.0  # more than 50, less than 100
    for bounds, expected in (
        ((-1.0, 1.0), (-1.0, 1.0)),
        ((0.0, 1.0), (0.0, 1 - 1 / BINS)),
        ((-1.0, 0.0), (-1 + 1 / BINS, 0.0)),
    ):
        lo, hi = ranges_by('percentile', histogram=counts[None, None], bounds=np.array([bounds]))
        np.testing.assert_allclose((lo[0], hi[0]), expected, rtol=1e-6, err_msg=str(bounds))


def test_the_clip_with_the_least_error_mirrors_too():
    counts = np.zeros(BINS)
    counts[:512] = 1000  # in the nearer half, but for one far away
    counts[-1] = 1
    bounds = np.array([[0.0, 1.0]])
    lo, hi = ranges_by('mse', histogram=counts[None, None], bounds=bounds, bits=4)
    assert lo == 0 and 0.45 < hi[0] < 0.6
    below, above = ranges_by('mse', histogram=counts[None, None, ::-1], bounds=-bounds[:, ::-1], bits=4)
    assert above == 0 and below == -hi
