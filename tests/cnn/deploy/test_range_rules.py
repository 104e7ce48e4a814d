"""The rules by which ranges of activations are found from what batches showed. In float64, on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.cnn.deploy import calibration, observer
from ghn_jax.cnn.deploy.observer import BINS, Activations
from ghn_jax.quant import Scheme
from ghn_jax.quant.grid import fake_quantize
from ghn_jax.quant.scheme import QAT


@pytest.fixture(scope='module', autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def seen(values):
    """What K batches [K, n] of one tensor show, and the bounds of their histograms."""
    bounds = np.array([[min(0, values.min()), max(0, values.max())]])
    describe = jax.vmap(lambda x: observer.describe(x[:, None], x[:, None], jnp.asarray(bounds[0])))
    return Activations(*(np.asarray(f)[:, None] for f in describe(jnp.asarray(values)))), bounds


def ranges_of(rule, values, bits=4, scheme=QAT):
    shown, bounds = seen(values)
    lo, hi = calibration.activation_ranges(rule, shown, np.array([bits]), bounds, scheme)
    return float(lo[0]), float(hi[0])


def test_histograms_count_the_values_that_are_not_0():
    values = np.array([[0.0, 0.0, 1.0, -1.0, 0.5, 2.999, 3.0, 3.0]])
    shown, _ = seen(values)
    assert shown.histogram.sum() == 6 and shown.histogram[0, 0, 0] == 1 and shown.histogram[0, 0, -1] == 3


def test_rules_of_ranges():
    r = np.random.default_rng(0)
    values = r.normal(size=(4, 20_000)) * np.array([1, 2, 1, 1])[:, None]
    assert ranges_of('min_max', values) == pytest.approx((values.min(), values.max()))
    ema = values.max(1)[0]
    for top in values.max(1)[1:]:
        ema = calibration.MOMENTUM * ema + (1 - calibration.MOMENTUM) * top
    assert ranges_of('moving_average', values)[1] == pytest.approx(ema)
    tail = (100 - calibration.PERCENTILE) / 2
    expected = np.percentile(values, (tail, 100 - tail))
    assert ranges_of('percentile', values) == pytest.approx(expected, abs=2 * np.ptp(values) / BINS)
    positive = np.maximum(values, 0)
    expected = np.percentile(positive[positive > 0], calibration.PERCENTILE)
    assert ranges_of('percentile', positive) == pytest.approx((0, expected), abs=2 * np.ptp(values) / BINS)


def test_a_moving_average_is_of_ranges_as_the_scheme_has_them_in_training():
    """Networks trained on ranges that are cut lose half of their accuracy on ranges of all values."""
    r = np.random.default_rng(0)
    values = np.maximum(r.normal(size=(2, 20_000)) * np.array([[1], [2]]), 0)
    cut = Scheme('qat', activation_range='sigma', activation_sigmas=1.5)
    expected = 1.5 * (calibration.MOMENTUM * 1 + (1 - calibration.MOMENTUM) * 2)
    assert ranges_of('moving_average', values, scheme=cut) == pytest.approx((0, expected), rel=0.02)
    assert ranges_of('min_max', values, scheme=cut)[1] == pytest.approx(values.max())
    best = Scheme('qat', activation_range='sigma')
    narrow, wide = (ranges_of('moving_average', values, bits, best)[1] for bits in (2, 4))
    assert narrow == pytest.approx(1.95 * expected / 1.5, rel=0.02) and wide > 1.3 * narrow


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_mse_ranges_have_the_least_error_of_all_narrower_ones(bits):
    values = np.random.default_rng(0).standard_t(3, size=(1, 20_000))  # a few values far out

    def error(lo, hi):
        return float(jnp.mean((fake_quantize(jnp.asarray(values), lo, hi, bits) - values) ** 2))

    lo, hi = ranges_of('mse', values, bits)
    assert 0 > lo >= values.min() - 1e-4 and 0 < hi <= values.max() + 1e-4
    assert bits == 8 or hi < 0.8 * values.max()  # 256 levels reach far
    others = [error(c * values.min(), c * values.max()) for c in np.linspace(0.05, 1, 39)]
    assert error(lo, hi) <= 1.05 * min(others)


def test_all_rules_serve_tensors_of_nothing():
    for rule in calibration.RANGE_RULES:
        assert ranges_of(rule, np.zeros((2, 10))) == (0, 0)
        assert ranges_of(rule, np.ones((2, 10)), bits=32) == (0, pytest.approx(1, abs=1 / BINS))
