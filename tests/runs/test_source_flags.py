"""Images without a run: a network whose parameters are given needs no hypernetwork."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.datasets.load import load
from ghn_jax.models.tracing import trace
from ghn_jax.quant.scheme import QAT
from ghn_jax.runs import hypernetwork
from ghn_jax.runs.hypernetwork import Hypernetwork
from ghn_jax.runs.model_parameters import write_params
from ghn_jax.runs.run import run_of_images
from ghn_jax.runs.source_flags import Source
from ghn_jax.runs.task import load_data
from tests.commands import COMMANDS, flags_of
from tests.small_run import command, is_one_error_line, write_run
from tests.tuning.nets import net, net_of_four_classes

SHAPE = (1, 8, 8, 3)
SPLITS, PARTS = ('train', 'val', 'test'), ('images', 'labels')


@pytest.fixture
def file(tmp_path):
    """Digits of four classes as a file of one's own."""
    data, contents = load('digits', image_size=8), {}
    for split in ('train', 'test'):
        images, labels = getattr(data, split)
        contents |= {f'{split}_images': images[labels < 4], f'{split}_labels': labels[labels < 4]}
    np.savez(tmp_path / 'own.npz', **contents)
    return tmp_path / 'own.npz'


def test_what_stands_for_a_run_has_the_images_and_default_grids_and_predicts_nothing(file):
    run = run_of_images(str(file), data_dir=None, image_size=8)
    found, data = Hypernetwork(run), load(str(file), image_size=8)
    np.testing.assert_array_equal(found.load_data().test.images, data.test.images)
    assert found.scheme == QAT and found.config.space.num_classes == 4
    with pytest.raises(UserError, match='there is no hypernetwork, but images alone'):
        found.predict(trace(net_of_four_classes(), SHAPE))
    moved = run_of_images('elsewhere/own.npz', data_dir=str(file.parent), image_size=8)
    np.testing.assert_array_equal(Hypernetwork(moved).load_data().train.images, data.train.images)


@pytest.mark.parametrize('size', [8, 20, 28, 1024])
def test_images_have_any_size_that_a_model_takes(file, size):
    config = run_of_images(str(file), data_dir=None, image_size=size).config
    assert config.image_size == size
    for small_or_large in (7, 1025):
        with pytest.raises(UserError, match=f'image_size={small_or_large}'):
            dataclasses.replace(config, image_size=small_or_large)
    if size == 28:
        assert load_data(config).test.images.shape[1:] == (28, 28, 3)


def test_every_command_that_reads_the_images_of_a_run_takes_the_folder_that_they_are_in():
    reading = {'evaluate', 'report', 'finetune', 'squeeze', 'quantize', 'export', 'replay', 'benchmark'}
    taking = {name for name in COMMANDS if {'workdir', 'data_dir'} <= flags_of(name).keys()}
    assert taking == {f'ghn_jax.{name}' for name in reading}


def test_a_folder_of_images_that_lie_in_none_is_refused():
    made = Source(dataset='digits', workdir=None, image_size=8, data_dir=None)
    run = dataclasses.replace(made, dataset=None, workdir=pathlib.Path('zoo:digits-bits'))
    for source in (made, run):
        with pytest.raises(UserError, match='^data_dir=x: digits lies in no folder: leave it out$'):
            dataclasses.replace(source, data_dir='x').load()
        with pytest.raises(UserError, match='^data_dir=x: digits lies in no folder: leave it out$'):
            hypernetwork.load('zoo:digits-bits', data_dir='x')
        assert source.load().config.dataset == 'digits'


def test_the_images_of_a_run_are_found_where_they_were_moved_to(tmp_path):
    """Also with parameters of one's own, and from Python; a training says where they are by its config."""
    data, before, now = (
        load('digits', image_size=8),
        tmp_path / 'before.d/own.npz',
        tmp_path / 'now.d/own.npz',
    )
    now.parent.mkdir()
    splits = {f'{split}_{what}': getattr(getattr(data, split), what) for split in SPLITS for what in PARTS}
    np.savez(now, **splits)
    run = write_run(tmp_path / 'run', dataset=str(before))
    model = trace(net(), SHAPE)
    write_params(tmp_path / 'net.safetensors', model, model.initial_params(0), {})
    flags = (
        f'--workdir={run}', '--model=tests.tuning.nets:net', f'--params={tmp_path / "net.safetensors"}',
        '--method=minmax', '--images=64', f'--out={tmp_path / "q"}',
    )  # fmt: skip
    assert is_one_error_line(
        command('ghn_jax.quantize', *flags), f'--dataset={before} cannot be read', 'data_dir'
    )
    code, _, err = command('ghn_jax.quantize', *flags, f'--data_dir={now.parent}')
    assert code == 0, err
    found = hypernetwork.load(run, data_dir=str(now.parent)).load_data()
    np.testing.assert_array_equal(found.train.images, data.train.images)


def test_a_network_is_scored_and_quantized_on_images_of_ones_own(file, tmp_path):
    """What quantize says of its network is what evaluate finds, and export writes it."""
    model = trace(net_of_four_classes(), SHAPE)
    write_params(tmp_path / 'net.safetensors', model, model.initial_params(0), {})
    images = f'--dataset={file}', '--image_size=8'
    net = '--model=tests.tuning.nets:net_of_four_classes', f'--params={tmp_path / "net.safetensors"}'

    def called(name, *flags):
        code, out, err = command(f'ghn_jax.{name}', *images, *flags)
        assert code == 0, err
        return out

    def row(*flags):
        out = called('evaluate', *flags, '--batch_size=26', f'--json={tmp_path / "e.json"}')
        (found,) = json.loads((tmp_path / 'e.json').read_text())['rows']
        return out, found

    out, given = row(*net, '--bits=float')
    assert 'images of own.npz' in out and 'none are predicted' in out
    _, initial = row(net[0], '--initial', '--bits=float')
    assert initial['top1_mean'] == given['top1_mean']

    flags = '--method=minmax', '--bits=w4a4', '--images=64', f'--out={tmp_path / "q"}'
    called('quantize', *net, *flags, f'--json={tmp_path / "q.json"}')
    told = json.loads((tmp_path / 'q.json').read_text())
    _, found = row(f'--quantized={tmp_path / "q"}')
    count = len(load(str(file), image_size=8).test.labels)
    assert count % 26 == 0, count  # all are in whole batches
    assert found['bits'] == 'w4a4 edges=w8a8' and found['top1_mean'] == pytest.approx(told['top1'])
    called('export', f'--quantized={tmp_path / "q"}', f'--out={tmp_path / "net.stablehlo"}')
    assert (tmp_path / 'net.stablehlo').stat().st_size
