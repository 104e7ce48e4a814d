"""Widening and squeezing: the cost comes down to what it may be, and stopping changes nothing."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.hypernet.ghn import GHN, GHNConfig
from ghn_jax.models.model import Model
from ghn_jax.models.tracing import trace
from ghn_jax.networks.files import load_networks
from ghn_jax.networks.spaces import make_space
from ghn_jax.quant.policy import parse_bits
from ghn_jax.tuning import loop
from ghn_jax.tuning.initialization import parse_starts
from ghn_jax.tuning.removal import Removal
from ghn_jax.tuning.squeeze_training import KINDS, SqueezeSpec
from ghn_jax.tuning.squeezing import squeeze
from ghn_jax.tuning.training import TrainingSpec
from ghn_jax.tuning.widening import Pair, beyond_training, check_predicted, pairs_of_model, widen
from tests.small_run import command, is_one_error_line, write_run
from tests.tuning.killed import Killed, dying_progress
from tests.tuning.nets import small_data, wider

DATA = small_data()
SPEC = SqueezeSpec(
    policies=(parse_bits('w2a8'),), training=TrainingSpec(epochs=5, batch_size=16), kinds=KINDS,
    eval_batch_size=20, penalty=0.01,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures('quick_reference')


def traced(factor: float) -> Model:
    return trace(wider(factor), (1, 8, 8, 3))


NARROW = make_space('convnets250k', channels=(16,)).sample('test', 0, 0)
PAIR = Pair('net', traced(1), traced(2), widen(NARROW, 2))
(HE,) = parse_starts(['he'], [PAIR.original, PAIR.wide], None)


@pytest.fixture(scope='module')
def squeezed(tmp_path_factory, quick_reference):
    out = tmp_path_factory.mktemp('squeezed')
    return out, squeeze([PAIR], HE, SPEC, out, dataset=DATA)


def test_the_cost_comes_down_to_that_of_the_original_pass_by_pass(squeezed):
    _, result = squeezed
    original, widened, narrowed = result['runs']
    assert [run['kind'] for run in result['runs']] == list(KINDS)
    assert original['cost'] == 1 and original['left'] == original['channels']
    wide = widened['cost']
    assert wide == 2 and widened['schedule'] == pytest.approx([wide] * 5)
    costs = narrowed['schedule']
    assert costs[0] == pytest.approx(wide) and costs[2:] == [costs[2]] * 3
    for i, cost in enumerate(costs[1:3], 1):
        assert cost <= wide ** (1 - i / 2) + 1e-4, 'along a geometric schedule'
    assert 0.7 < narrowed['cost'] <= 1 and costs[-1] == pytest.approx(narrowed['cost'], abs=1e-4)
    assert narrowed['left'] < narrowed['channels'] == widened['channels']
    # The scales of 12 channels, each near 1, times the penalty, are in the loss of the first pass.
    assert narrowed['loss'][0] - widened['loss'][0] == pytest.approx(0.01 * 12, rel=0.2)


def test_removed_channels_are_0_in_the_file_and_the_others_are_not(squeezed):
    out, result = squeezed
    weights = load_file(out / result['runs'][2]['file'])
    rows = np.any(weights['Conv_0.kernel'], axis=(0, 1, 2))
    assert 0 < rows.sum() < 12
    for name, axes in (('BatchNorm_0.scale', ()), ('Conv_1.kernel', (0, 1, 2)), ('Dense_0.kernel', 1)):
        np.testing.assert_array_equal(np.any(weights[name], axis=axes), rows, err_msg=name)
    full = load_file(out / result['runs'][1]['file'])
    assert np.all(np.any(full['Conv_0.kernel'], axis=(0, 1, 2)))


def test_the_table_has_a_row_for_each_kind_and_what_is_done_is_not_done_again(squeezed, count_compiles):
    out, result = squeezed
    assert [row[:4] for row in result['rows']] == [['net', 'w2a8', kind, 1] for kind in KINDS]
    assert result['about']['test images'] == '40 in batches of 20' and result['about']['cost'] == 1
    assert result['columns'][-1] == 'top-1, 5' and result['rows'][0][6] == '1.00'
    assert all(len(row) == len(result['columns']) for row in result['rows'])
    assert load_networks(out / 'net.widened.json') == [PAIR.spec]
    again = squeeze([PAIR], HE, SPEC, out, dataset=DATA)
    assert again['runs'] == result['runs'] and not list((out / 'runs').glob('*.npz'))
    other = dataclasses.replace(SPEC, penalty=0.02)
    with pytest.raises(UserError, match='other settings .squeezing differ'):
        squeeze([PAIR], HE, other, out, dataset=DATA)


@pytest.mark.parametrize(
    'updates',
    [pytest.param(3, marks=pytest.mark.slow), 4],  # within a pass; between two, before channels go
)
def test_a_squeezing_that_is_killed_and_taken_up_ends_in_the_same_bits(
    squeezed, tmp_path, monkeypatch, updates
):
    out, result = squeezed
    monkeypatch.setattr(loop, 'SAVE_SECONDS', -1.0)
    monkeypatch.setattr(loop, '_SYNC', 1)
    whole = loop.fit
    dying = lambda *args, progress, **of: whole(*args, progress=dying_progress(updates), **of)
    spec = dataclasses.replace(SPEC, kinds=('squeezed',))
    with monkeypatch.context() as patched:
        patched.setattr('ghn_jax.tuning.squeeze_training.fit', dying)
        with pytest.raises(Killed):
            squeeze([PAIR], HE, spec, tmp_path, dataset=DATA)
    assert list((tmp_path / 'runs').glob('*.npz'))
    again = squeeze([PAIR], HE, spec, tmp_path, dataset=DATA)
    assert again['runs'] == result['runs'][2:]
    name = again['runs'][0]['file']
    found, expected = load_file(tmp_path / name), load_file(out / name)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_a_cost_may_be_beyond_what_an_int32_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(Removal, 'cost', lambda removal, alive: 5_000_000_000)
    training = TrainingSpec(epochs=2, batch_size=16)
    spec = dataclasses.replace(SPEC, kinds=('original',), training=training)
    (run,) = squeeze([PAIR], HE, spec, tmp_path, dataset=DATA)['runs']
    assert run['bops'] == 5_000_000_000 and run['schedule'] == [1.0, 1.0]


@pytest.mark.parametrize('cost', [0.001, 9.0])
def test_a_cost_that_nothing_meets_gets_one_line(tmp_path, cost):
    spec = dataclasses.replace(SPEC, cost=cost)
    with pytest.raises(FieldError, match=f"cost={cost:g}: 'net' costs .* give a number between"):
        squeeze([PAIR], HE, spec, tmp_path / 'out', dataset=DATA)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'field, value', [('cost', 0), ('penalty', -1), ('kinds', ('narrowed',)), ('kinds', ())]
)
def test_a_spec_out_of_bounds_gets_one_line(field, value):
    with pytest.raises(FieldError, match=f'^{field}='):
        dataclasses.replace(SPEC, **{field: value})


def test_one_pass_is_too_few():
    with pytest.raises(FieldError, match='^epochs=1: channels go between passes'):
        dataclasses.replace(SPEC, training=TrainingSpec(epochs=1))


def test_a_network_is_widened_by_its_channels_and_its_hidden_layer():
    space = make_space('convnets250k', fc_layers=(2,), fc_dims=(64,), channels=(16,))
    spec = space.sample('test', 0, 0)
    wide = widen(spec, 1.5)
    assert (wide.C, wide.fc_dim, spec.C, spec.fc_dim) == (24, 96, 16, 64)
    assert dataclasses.replace(wide, C=16, fc_dim=64) == spec == widen(spec, 1)
    for factor in (0.5, 17, True, float('nan')):
        with pytest.raises(FieldError, match='^width=.*expected a factor from 1 to 16'):
            widen(spec, factor)


def test_more_channels_than_a_hypernetwork_predicts_get_one_line():
    ghn = GHN(GHNConfig(max_shape=(16, 16, 11, 11)))
    check_predicted(PAIR.wide, ghn, 2)
    with pytest.raises(UserError, match="width=4: 'Conv_0.kernel' has 24 channels then, .* predicts 16"):
        check_predicted(traced(4), ghn, 4)


def test_networks_wider_than_those_of_the_training_get_a_note():
    (note,) = beyond_training([PAIR], (8, 16))
    assert 'networks of up to 16 channels (C), these have up to 32' in note
    assert not beyond_training([PAIR], (16, 32)) and not beyond_training([PAIR], None)
    assert not beyond_training([PAIR._replace(spec=None)], (2,))


def test_a_function_that_does_not_widen_gets_one_line():
    (pair,) = pairs_of_model('tests.tuning.nets:wider', 2, 8)
    assert [m.layers[0].shape[0] for m in (pair.original, pair.wide)] == [6, 12]
    with pytest.raises(UserError, match='give a function that multiplies its channels by its argument'):
        pairs_of_model('tests.tuning.nets:never_wider', 2, 8)
    with pytest.raises(UserError, match='has to take the factor of its width'):
        pairs_of_model('tests.tuning.nets:net', 2, 8)


HOW = (
    'ghn_jax.squeeze', '--dataset=synthetic', '--image_size=8', '--model=tests.tuning.nets:wider',
    '--init=he', '--bits=w2a8', '--epochs=2', '--batch_size=256',
)  # fmt: skip


@pytest.mark.slow
def test_the_command_leaves_parameters_that_evaluate_scores_alike(tmp_path):
    workdir, out = write_run(tmp_path / 'run'), tmp_path / 'out'
    how = '--model=tests.tuning.nets:wider', '--init=he', '--bits=w1a8', '--epochs=2', '--batch_size=256'
    code, said, error = command(
        'ghn_jax.squeeze', f'--workdir={workdir}', *how, f'--out={out}', f'--json={tmp_path}/a.json'
    )
    assert code == 0, error
    assert 'MBOPs' in said
    (run,) = json.loads((tmp_path / 'a.json').read_text())['runs']
    how = f'--params={out / run["file"]}', '--bits=w1a8', f'--json={tmp_path}/b.json'
    code, said, error = command(
        'ghn_jax.evaluate', f'--workdir={workdir}', '--model=tests.tuning.nets:twice_as_wide', *how
    )
    assert code == 0, error
    result = json.loads((tmp_path / 'b.json').read_text())
    found = {bits: score['top1'] for bits, score in result['networks'][0]['scores'].items()}
    assert found == {'w1a8': pytest.approx(run['scores']['2'])}


@pytest.mark.parametrize(
    'changes, words',
    [
        (['--width=0.5'], '--width=0.5'),
        (['--cost=0'], '--cost=0'),
        (['--cost=0.001'], "--cost=0.001: 'Net' costs"),
        (['--epochs=1'], '--epochs=1: channels go between passes'),
        (['--kinds=narrow'], '--kinds=narrow: expected of original, widened, squeezed'),
        (['--init=net.safetensors'], '--init=net.safetensors: expected predicted or one of he'),
        (['--init=predicted'], '--init=predicted: there is no hypernetwork'),
        (['--bits=w2'], "'w2'"),
        (['--workdir=zoo:digits-bits'], '--workdir and --dataset are both given'),
        (['--arch=net.json'], '--arch and --model are both given'),
        (['--model=tests.tuning.nets:net'], 'has to take the factor of its width'),
        (['--out='], '--out is missing'),
    ],
)
def test_bad_input_gets_one_line(tmp_path, changes, words):
    assert is_one_error_line(command(*HOW, f'--out={tmp_path}/out', *changes), words)
    assert not (tmp_path / 'out').exists()
