"""A mesh of devices gives what one device gives, and talks once a step. The runs: `device_checks`."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from ghn_jax import config as configs
from ghn_jax.assembly.mesh import about_exchanges, mesh_of, of_each_process
from ghn_jax.runs.config_changes import FREE_KEYS, differing_keys
from tests import quick_compiler
from tests.device_checks import DEVICES, FEW, NETWORKS, REST
from tests.small_run import ROOT

FLAGS = f'{quick_compiler.FLAGS} --xla_force_host_platform_device_count={DEVICES}'


def run_checks(folder, *args):
    done = subprocess.run(
        [sys.executable, '-m', 'tests.device_checks', str(folder), *args],
        env=os.environ | {'XLA_FLAGS': FLAGS, 'JAX_PLATFORMS': 'cpu'},
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((folder / 'results.json').read_text())
    assert results['devices'] == DEVICES
    return results


@pytest.fixture(scope='module')
def checks(tmp_path_factory):
    return run_checks(tmp_path_factory.mktemp('devices'))


def assert_is_of_one_device(row):
    assert row['error'] < 1e-9
    for name, (found, expected) in row['metrics'].items():
        assert found == pytest.approx(expected, rel=1e-9), name


@pytest.mark.parametrize('case, mesh', FEW, ids=str)
def test_gradients_on_a_mesh_are_one_devices_on_the_same_batch(checks, case, mesh):
    assert_is_of_one_device(checks['gradients'][f'{case} {mesh}'])


@pytest.fixture(scope='module')
def more_checks(tmp_path_factory):
    return run_checks(tmp_path_factory.mktemp('devices'), 'all')


@pytest.mark.slow
def test_so_they_are_in_all_other_cases(more_checks):
    rows = more_checks['gradients']
    assert rows.keys() == {f'{case} {mesh}' for case, mesh in REST}
    for row in rows.values():
        assert_is_of_one_device(row)


def test_devices_with_networks_of_their_own_talk_once_a_step(checks):
    row = checks['gradients']['weights (8, 1)']
    ((op, size, _, groups, place),) = row['collectives']
    assert op == 'all-reduce' and groups == DEVICES and place == [0, 0]
    metrics = 2 + NETWORKS  # sums of loss and accuracy; what of each network is not finite
    assert size == 8 * (row['parameters'] + metrics)  # float64 here


def test_training_on_four_devices_has_the_losses_of_one(checks):
    one, found = checks['training']['one'], checks['training']['four']
    np.testing.assert_allclose(found['losses'], one['losses'], rtol=1e-3)
    np.testing.assert_allclose(found['norms'][0], one['norms'][0], rtol=1e-2)  # before steps differ
    assert found['compiled'] == 1  # a resume included
    assert checks['training']['finished step'] == 3


def test_batches_scored_side_by_side_have_the_scores_of_one_device(checks):
    one, three, compiled = checks['scores']  # three devices for five batches
    assert one == three and 0 < np.mean(one) < 1
    assert compiled == 1


@pytest.mark.slow
def test_networks_calibrated_for_several_devices_are_those_of_one(more_checks):
    for one, three in zip(*more_checks['calibrated'], strict=True):
        assert three[0] == pytest.approx(one[0], abs=1 / 40)  # sums in another order, then rounded
        assert three[1].keys() == one[1].keys() and len(one[1]) > 3
        for name, pair in one[1].items():
            assert three[1][name] == pytest.approx(pair, abs=0.05), name


@pytest.mark.parametrize('parts, flags, count', [
    (3, '', 3), (1, '', 1), (1, '--xla_force_host_platform_device_count=5', 5),
])  # fmt: skip
def test_a_cpu_can_be_divided(parts, flags, count):
    code = (
        f'from ghn_jax.base.start import divide_cpu as d; d({parts}); import jax; print(jax.device_count())'
    )
    env = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags}
    assert subprocess.check_output([sys.executable, '-c', code], env=env, cwd=ROOT, text=True) == f'{count}\n'


def test_devices_that_do_not_divide_the_work_are_refused_in_one_line(checks):
    for key, message in checks['refusals']:
        assert message.startswith(f'{key}=') and '\n' not in message, (key, message)


@dataclasses.dataclass(frozen=True)
class Device:
    platform: str
    process_index: int
    id: int


def devices(platform, processes=1, of_each=4):
    return [Device(platform, p, 10 * i + p) for i in range(of_each) for p in range(processes)]


def test_devices_of_an_accelerator_that_share_a_network_are_told_to_be_untried():
    on = lambda platform, images: mesh_of(devices(platform), images)
    assert about_exchanges(None) == about_exchanges(on('cpu', 2)) == about_exchanges(on('tpu', 1)) == ''
    assert about_exchanges(on('tpu', 2)).startswith('devices.images=2: the 2 devices of a network exchange')


def test_each_process_gives_its_first_devices_one_process_after_the_other():
    of = lambda count: [d.id for d in of_each_process(devices('tpu', 2, 3), count)]
    assert of(2) == [0, 10, 1, 11] and of(0) == [0, 10, 20, 1, 11, 21]


def test_a_run_may_go_on_with_other_devices():
    one, other = configs.default(), configs.default()
    other.devices.images, other.devices.per_process = 2, 4
    assert differing_keys(one, other, ()) == ['devices.images', 'devices.per_process']
    assert differing_keys(one, other, FREE_KEYS) == []
