"""The study of initialisation: kinds are what their names say, statistics are right, what is done is kept."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.models.tracing import trace
from ghn_jax.reporting.docs_tables import markdown
from ghn_jax.studies import initialization
from ghn_jax.studies.block_kinds import KINDS, ROLES, BlockNet, role_of
from ghn_jax.studies.initialization import InitializationSpec, study
from ghn_jax.studies.initialization_picture import picture
from ghn_jax.studies.initialization_tables import make_tables
from ghn_jax.studies.layer_statistics import describe, observe, summarized
from ghn_jax.tuning.training import TrainingSpec
from tests.tuning.models import Plain, calibrated
from tests.tuning.nets import small_data

# ---- kinds of blocks


@pytest.mark.parametrize('name', KINDS)
def test_a_kind_has_the_operations_that_its_name_says(name):
    convolution, norm, block = name.split('-')
    model = trace(BlockNet(KINDS[name], channels=(4,), expansion=3), (1, 8, 8, 3))
    layers = {role_of(layer.name): layer for layer in model.layers}
    assert set(layers) <= set(ROLES) and {'stem', 'linear'} < set(layers)
    assert ('depthwise' in layers) == (convolution == 'separable') != ('regular' in layers)
    for role, layer in layers.items():
        assert layer.groups == (layer.shape[0] if role == 'depthwise' else 1)
        assert layer.shape[2:] == {'stem': (3, 3), 'regular': (3, 3), 'depthwise': (3, 3), 'linear': ()}.get(
            role, (1, 1)
        )
    found = [node.primitive for node in model.graph.nodes]
    convolutions = len(model.layers) - 1
    assert found.count('bn') == (convolutions if norm == 'bn' else 0)
    assert found.count('bias') == 1 and len(model.zeros) == (0 if norm == 'bn' else convolutions)
    assert found.count('sum') == (0 if block == 'plain' else 1)
    assert ('project' in layers) == (block == 'inverted')
    if block == 'inverted':
        wide, narrow = layers['project'].shape[1::-1]
        assert (wide, narrow) == (12, 4)
        assert layers['expand' if convolution == 'separable' else 'regular'].shape[:2] == (wide, narrow)


def test_there_are_all_twelve_kinds():
    assert len(KINDS) == 12 and all(kind.name == name for name, kind in KINDS.items())


# ---- statistics


def rounded(x: np.ndarray, bits: int) -> np.ndarray:
    lo, hi = min(0, x.min()), max(0, x.max())
    step = (hi - lo) / (2**bits - 1)
    zero = np.round(-lo / step)
    return (np.clip(np.round(x / step) + zero, 0, 2**bits - 1) - zero) * step


def test_statistics_are_those_of_numpy():
    x = np.random.default_rng(0).normal(0.3, [[0.1], [1], [3]], (3, 50))
    (found,) = summarized({'a': describe(jnp.float32(x))}).values()
    assert found['range'] == pytest.approx(x.max() - x.min(), rel=1e-3)
    own = [max(0, row.max()) - min(0, row.min()) for row in x]
    assert found['channel_range'] == pytest.approx(np.mean(own), rel=1e-3)
    assert found['ratio'] == pytest.approx((x.max() - x.min()) / np.mean(own), rel=1e-3)
    for bits in (8, 4):
        noise = np.mean((x - rounded(x, bits)) ** 2) / np.mean(x**2)
        assert found[f'sqnr{bits}'] == pytest.approx(-10 * math.log10(noise), rel=1e-3)


def test_the_error_of_a_tensor_whose_levels_are_known():
    x = jnp.float32([[0, 255, 0.25, 3]])  # a step of 1 at 8 bits, of 17 at 4
    noise = np.array([0.25**2, 0.25**2 + 3**2]) / (255**2 + 0.25**2 + 3**2)
    np.testing.assert_allclose(describe(x).noise, noise, rtol=1e-4)


@pytest.mark.parametrize('scale', [1e-30, 1e30])
def test_statistics_of_a_tensor_do_not_depend_on_its_unit(scale):
    x = jnp.float32(np.random.default_rng(1).normal(size=(4, 20)))
    np.testing.assert_allclose(describe(x * scale).noise, describe(x).noise, rtol=1e-3)


def test_what_is_no_number_is_none():
    zero, infinite = (summarized({'a': describe(jnp.full((2, 3), v))})['a'] for v in (0.0, np.inf))
    assert zero == {'range': 0, 'channel_range': 0, 'ratio': None, 'sqnr8': None, 'sqnr4': None}
    assert set(infinite.values()) == {None}


def test_weights_are_measured_folded_and_ranges_are_of_what_enters_a_layer():
    network, x = calibrated(Plain())
    found = jax.jit(observe)(network, x)
    name = 'Conv_0.kernel'
    rows = jnp.asarray(network.weights[name]).reshape(8, -1)
    np.testing.assert_allclose(found.weights[name].noise, describe(rows).noise, rtol=1e-4)
    np.testing.assert_allclose(found.ranges[name], (x.min(), x.max()))
    of_channels = describe(jnp.moveaxis(x, -1, 0).reshape(3, -1))
    np.testing.assert_allclose(found.activations[name].channel_range, of_channels.channel_range, rtol=1e-6)
    assert found.ranges['Dense_0.kernel'][0] == 0, 'a mean after a relu'


# ---- the study

SPEC = InitializationSpec(
    kinds=('regular-none-plain',), starts=('he', 'uniform_0.5'), channels=(4,), batch_size=20,
    calibration_images=20, training=TrainingSpec(epochs=1, batch_size=20, ema=0.0),
)  # fmt: skip


def test_what_is_done_is_read_and_what_is_not_is_done_again_to_the_bit(tmp_path):
    (first,) = study(small_data(), SPEC, tmp_path)
    records = {run['init']: tmp_path / 'runs' / f'{run["kind"]}.{run["init"]}.seed0.json' for run in first}
    kept, lost = records['he'], records['uniform_0.5']
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {'loss': [123.0]}))
    lost.unlink()
    (again,) = study(small_data(), SPEC, tmp_path)
    assert again == [first[0] | {'loss': [123.0]}, first[1]]
    of = first[1]['scores']['1']
    assert set(first[1]['scores']) == {'0', '1'} and set(of['top1']) == {'w32a32', 'w8a8', 'w4a4'}
    layers = ['stem', 'stage0_block0_first_regular', 'stage0_block0_second_regular', 'linear']
    assert [*of['weights']] == [*of['activations']] == [f'{layer}.kernel' for layer in layers]
    other = dataclasses.replace(SPEC, training=dataclasses.replace(SPEC.training, learning_rate=1e-3))
    with pytest.raises(UserError, match='a training with other settings'):
        list(study(small_data(), other, tmp_path))


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['digit'], "'digit' is not one of cifar10"),
        (['digits', '--epochs=0'], 'epochs=0: expected an integer from 1'),
        (['digits', '--kinds=plain'], "kinds has 'plain': expected of regular-bn-plain"),
        (['digits', '--seeds=x'], "seeds='x': expected integers"),
        (['digits', '--blocks=0'], 'blocks=0: expected an integer from 1'),
        (['digits', '--more'], 'unrecognized arguments: --more'),
    ],
)
def test_bad_input_gets_one_line(tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as left:
        initialization.main([arguments[0], str(tmp_path / 'out'), *arguments[1:]])
    said = capsys.readouterr().err
    assert left.value.code == 2 and words in said and said.count('\n') == 1


def test_a_table_says_which_hypernetwork_has_predicted():
    said = initialization.about(small_data(), InitializationSpec(), 'command', 'zoo:digits-bits')
    assert said['hypernetwork'] == 'zoo:digits-bits'
    assert 'hypernetwork' not in initialization.about(small_data(), InitializationSpec(), 'command', None)


# ---- tables and the picture


def record(kind: str, init: str, top1: tuple[float, float, float], ratio: float = 2.0, seed: int = 0) -> dict:
    layer = {'range': 1.0, 'channel_range': 1 / ratio, 'ratio': ratio, 'sqnr8': 40.0, 'sqnr4': None}
    scores = {'top1': dict(zip(('w32a32', 'w8a8', 'w4a4'), top1, strict=True))}
    scores |= {
        tensor: {'stem.kernel': layer, 'a_depthwise.kernel': layer} for tensor in ('weights', 'activations')
    }
    return {'kind': kind, 'init': init, 'seed': seed, 'loss': [1.0], 'scores': {'0': scores, '5': scores}}


RUNS = [
    record('separable-bn-plain', 'he', (90, 88, 50)),
    record('regular-bn-plain', 'he', (80, 80, 60), ratio=4),
    record('separable-none-plain', 'he', (10, 10, 10), ratio=100),
]


def test_what_did_not_learn_counts_in_accuracy_and_not_in_what_is_lost():
    tables = make_tables(RUNS, {'date': 'today'})
    rows = {(row[0], row[1]): row[2:] for row in tables['initialization']['rows']}
    bn, none = rows['bn', 'he'], rows['none', 'he']
    assert bn[:3] == [2, 2, {'mean': 85, 'sem': 5}] and bn[5:7] == [
        {'mean': 1, 'sem': 1},
        {'mean': 30, 'sem': 10},
    ]
    assert bn[-2:] == [3, 3] and none == [1, 0, *[{'mean': 10}] * 3, *[None] * 6]
    assert [row[0] for row in tables['initialization_blocks']['rows']] == [run['kind'] for run in RUNS]
    layers = tables['initialization_layers']['rows']
    assert layers == [[role, 'bn', 3, 40, None, 3, 40, None] for role in ('stem', 'depthwise')]
    for table in tables.values():
        assert markdown(table)


def test_the_picture_is_a_small_png():
    drawn = picture([*RUNS, record('separable-bn-residual', 'predicted', (90, 88, 50))])
    assert drawn.startswith(b'\x89PNG') and len(drawn) < 200_000
