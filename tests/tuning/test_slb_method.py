"""Networks whose weights are searched: one program for all bits, resume, and what is kept in the end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.models.tracing import trace
from ghn_jax.quant.grid import make_grid, quantize
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.scheme import QAT
from ghn_jax.runs.calibrated_file import load
from ghn_jax.tuning import loop
from ghn_jax.tuning.finetune import FinetuneSpec
from ghn_jax.tuning.images import TuningImages
from ghn_jax.tuning.initialization import RANDOM, random_params
from ghn_jax.tuning.method import Setup
from ghn_jax.tuning.records import TrainingRecord
from ghn_jax.tuning.slb import SearchSpec, hard_weights, values_of
from ghn_jax.tuning.slb_method import Slb, searched_names
from ghn_jax.tuning.straight_through import StraightThrough
from ghn_jax.tuning.training import TrainingSpec
from tests.tuning.killed import Killed, dying_progress
from tests.tuning.nets import Net, small_data, traced

DATA = small_data()
IMAGES = TuningImages.of(DATA, batch_size=20, num_images=0, calibration_batches=2)
MODEL = traced()
PARAMS = random_params(MODEL, RANDOM['he'], 0)
POLICIES = {'w1a8': Policy(1, 8, edges=(8, 8)), 'w2a4': Policy(2, 4, edges=(8, 8))}
NAME = 'Conv_1.kernel'  # neither the first nor the last layer
TRAINING = TrainingSpec(epochs=4, batch_size=20, learning_rate=0.02, ema=0.5)
SPEC = SearchSpec(start=0.25, end=0.75, rate=0.3)

pytestmark = pytest.mark.usefixtures('quick_reference')


SETUP = Setup(
    model=MODEL, images=IMAGES, training=TRAINING, scheme=QAT, statistics='batch',
    source={'model': 'tests.tuning.nets:net'},
)  # fmt: skip


@pytest.fixture(scope='module')
def searches(quick_reference):
    return {search.bits: search for search in Slb.of_each(SETUP, POLICIES, SPEC)}


def trained(method, steps: int):
    state = method.begin(PARAMS, 3)
    for step in range(steps):
        order = method.trainer.order(3, step // method.trainer.steps_per_epoch)
        state = method.trainer.step(state, order, IMAGES.train)
    return state


@pytest.fixture(scope='module')
def states(searches):
    """After 3 of 4 passes, when weights have just become hard, and after all."""
    return {bits: (trained(search, 6), trained(search, 8)) for bits, search in searches.items()}


def test_weights_of_few_bits_are_searched_and_those_of_first_and_last_layers_are_rounded(searches, states):
    for bits, search in searches.items():
        assert search.names == (NAME,)
        before, after = states[bits]
        rounded = search.rounded(after)
        assert set(rounded.weights) == {'Conv_0.kernel', NAME, 'Dense_0.kernel'}
        values = values_of(rounded.grids[NAME], int(bits[1]), 4)
        expected = hard_weights(after.params.logits[NAME], values, 2 ** int(bits[1]))
        np.testing.assert_array_equal(rounded.weights[NAME], expected)
        assert rounded.params['Conv_1']['kernel'].shape == PARAMS['Conv_1']['kernel'].shape
        # Once weights are hard, logits rest and all else is still trained.
        np.testing.assert_array_equal(before.params.logits[NAME], after.params.logits[NAME])
        assert np.any(before.params.params['Dense_0']['kernel'] != after.params.params['Dense_0']['kernel'])
        begun = search.begin(PARAMS, 3).params.logits[NAME]
        assert np.any(begun != after.params.logits[NAME])


def test_soft_and_hard_weights_score_alike_once_they_are_hard(searches, states):
    for bits, search in searches.items():
        scores = search.score(states[bits][1])
        assert scores['soft'][bits] == scores['batch'][bits]
        assert set(scores['batch']) == {'w32a32', bits}


def test_one_program_serves_all_bits(searches, states, count_compiles):
    """Of each function, by either method; the first bits have compiled it."""
    plain = StraightThrough.of_each(SETUP, POLICIES)
    trained(plain[0], 1)
    plain[0].score(plain[0].begin(PARAMS, 0))
    fresh = {bits: search.begin(PARAMS, 4) for bits, search in searches.items()}
    begun = plain[1].begin(PARAMS, 4)
    order = plain[1].trainer.order(4, 0)
    with count_compiles() as counted:
        for bits, search in searches.items():
            search.trainer.step(fresh[bits], order, IMAGES.train)
        plain[1].score(plain[1].trainer.step(begun, order, IMAGES.train))
    assert counted.n == 0


def test_a_search_that_is_killed_and_taken_up_ends_in_the_same_bits(searches, states, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, 'SAVE_SECONDS', -1.0)
    search = searches['w2a4']

    def fit(updates: int):
        return loop.fit(
            search.trainer, IMAGES.train, search.begin(PARAMS, 3), TrainingRecord(tmp_path, 'search', {}),
            marks=(1, 4), score=search.score, progress=dying_progress(updates),
        )  # fmt: skip

    with pytest.raises(Killed):
        fit(3)  # within the passes in which the temperature rises
    state, history = fit(100)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(states['w2a4'][1]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert list(history['scores']) == ['1', '4']


@pytest.mark.parametrize('bits', POLICIES)
def test_what_is_kept_is_the_network_on_its_levels_with_statistics_of_these(searches, states, tmp_path, bits):
    search, state = searches[bits], states[bits][1]
    search.keep(tmp_path / 'kept', state, {'bits': bits})
    network = load(tmp_path / 'kept')
    calibrated, x = network.calibrated, IMAGES.calibration[0]
    for layer, w in calibrated.weights.items():
        lo, hi = calibrated.weight_ranges[layer]
        grid = make_grid(*(e.reshape(-1, *[1] * (w.ndim - 1)) for e in (lo, hi)), network.policy.widths(
            layer, edge=layer != NAME)[0], jnp.float32)  # fmt: skip
        np.testing.assert_array_equal(
            quantize(jnp.asarray(w), grid, 1 if bits == 'w1a8' and layer == NAME else 8), w
        )
    assert len(np.unique(np.abs(calibrated.weights[NAME][0]))) <= 2 ** int(bits[1])
    # Folded or not, it is one network: here both take the statistics of the same images.
    hard = search.rounded(state).params
    both = jnp.concatenate(IMAGES.calibration)
    np.testing.assert_allclose(
        jax.jit(lambda c, x: c.apply(x))(calibrated, x), jax.jit(MODEL.apply)(hard, both)[: len(x)], atol=1e-3
    )


def test_bits_that_are_too_many_get_one_line():
    with pytest.raises(UserError, match='^bits=w8a8: slb searches weights of at most 4 bits'):
        searched_names(Policy(8, 8), MODEL)
    assert searched_names(Policy(4, 8), trace(Net(), (1, 8, 8, 3))) == (
        'Conv_0.kernel',
        NAME,
        'Dense_0.kernel',
    )
    with pytest.raises(UserError, match='^bits=w4a4 Conv_1.kernel=w8a8 edges=w8a8: slb searches'):
        searched_names(Policy(4, 4, layers=((NAME, 8, 8),), edges=(8, 8)), MODEL)
    with pytest.raises(UserError, match='^batch_norm=fixed: slb estimates statistics'):
        FinetuneSpec(policies=(Policy(2, 4),), training=TRAINING, search=SPEC, batch_norm='fixed')
