"""Training through rounding with fixed statistics: where it begins."""

import jax
import numpy as np
import pytest

from ghn_jax.models.folding import Calibrated
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.scheme import Scheme
from ghn_jax.tuning.images import TuningImages
from ghn_jax.tuning.initialization import RANDOM, random_params
from ghn_jax.tuning.method import Setup
from ghn_jax.tuning.straight_through import StraightThrough
from ghn_jax.tuning.training import TrainingSpec
from tests.tuning.nets import small_data, traced


@pytest.mark.parametrize('granularity', ['tensor', 'channel'])
def test_with_fixed_statistics_it_begins_as_the_network_with_those_of_the_calibration_batch(
    granularity,
):
    """At 2 bits statistics of the network in float are others, and so are the grids of folded weights."""
    model, policy, scheme = traced(), Policy(2, 2), Scheme('qat', granularity=granularity)
    images = TuningImages.of(small_data(), batch_size=32, num_images=32, calibration_batches=1)
    setup = Setup(
        model=model,
        images=images,
        training=TrainingSpec(epochs=1, batch_size=32),
        scheme=scheme,
        statistics='fixed',
        source=None,
    )
    (method,) = StraightThrough.of_each(setup, {'w2a2': policy})
    params, quantizer = random_params(model, RANDOM['he'], 0), model.quantizer(policy, scheme)
    begun = method.begin(params, 0).params
    assert isinstance(begun, Calibrated)
    (x,) = images.calibration
    fixed = jax.jit(Calibrated.apply)(begun, x, quantizer)
    by_batch = jax.jit(model.apply)(params, x, quantizer)
    off = np.abs(fixed - by_batch)  # but for numbers that lie halfway between two levels
    assert off.mean() < 0.02 * np.abs(by_batch).mean()
