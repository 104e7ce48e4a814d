"""Opening a run: the checkpoint that is asked for, also while training replaces it."""

import dataclasses
import json

import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.datasets.load import load
from ghn_jax.hypernet.ghn import GHNConfig
from ghn_jax.runs.checkpoint import Checkpoints, Vanished
from ghn_jax.runs.run import load_run, run_meta, validation_metric
from tests.small_run import small_config, write_run


def save(workdir, step: int, top1: float) -> None:
    """A checkpoint of no real parameters, and the validation of its step."""
    meta = run_meta(small_config(), GHNConfig(), step, kind='train')
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(step, {'params': {'w': np.full(3, step)}}, meta)
    row = {'step': step, validation_metric(small_config()): top1}
    with open(workdir / 'metrics.jsonl', 'a') as file:
        file.write(json.dumps(row) + '\n')


def test_images_that_are_not_those_of_the_training_are_taken_and_a_line_says_so(tmp_path, capsys):
    splits = {name: getattr(load('digits', image_size=8), name) for name in ('train', 'val', 'test')}
    arrays = {f'{split}_{what}': getattr(of, what) for split, of in splits.items() for what in of._fields}
    np.savez(tmp_path / 'own.npz', **arrays)
    run = load_run(write_run(tmp_path / 'run', dataset=str(tmp_path / 'own.npz')))
    images = run.load_images()
    run = dataclasses.replace(run, meta=run.meta | {'dataset': {'digest': images.digest}})
    run.load_images()
    assert not capsys.readouterr().err
    np.savez(tmp_path / 'own.npz', **arrays | {'test_labels': 9 - arrays['test_labels']})
    np.testing.assert_array_equal(run.load_images().test.labels, 9 - images.test.labels)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'warning: {tmp_path / "own.npz"} has other images or labels than the run')


def test_a_best_checkpoint_that_a_better_one_replaces_while_it_is_read_gives_the_better_one(
    tmp_path, monkeypatch
):
    save(tmp_path, 3, 0.1)
    restore_params, asked = Checkpoints.restore_params, []

    def replaced(checkpoints, *keys, **options):
        asked.append(options['step'])
        if len(asked) == 1:
            save(tmp_path, 5, 0.2)
            raise Vanished('step 3 was deleted')
        return restore_params(checkpoints, *keys, **options)

    monkeypatch.setattr(Checkpoints, 'restore_params', replaced)
    run = load_run(tmp_path, 'best')
    assert (asked, run.step, list(run.params['w'])) == ([3, 5], 5, [5, 5, 5])


def test_a_run_whose_best_checkpoint_always_vanishes_is_one_line(tmp_path, monkeypatch):
    save(tmp_path, 3, 0.1)

    def vanish(*_, **__):
        raise Vanished('step 3 was deleted')

    monkeypatch.setattr(Checkpoints, 'restore_params', vanish)
    with pytest.raises(UserError, match='^step=best: .* at each attempt to read it: try again$'):
        load_run(tmp_path, 'best')
    with pytest.raises(Vanished):
        load_run(tmp_path, '3')


def test_a_run_is_used_with_the_average_of_its_parameters_where_it_has_one(tmp_path):
    meta = run_meta(small_config(), GHNConfig(), 3, kind='train')
    state = {'params': {'w': np.zeros(2)}, 'ema': {'w': np.ones(2)}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, meta, wait=True)
        assert list(checkpoints.restore_params()[0]['w']) == [0, 0]
    assert list(load_run(tmp_path).params['w']) == [1, 1] == list(load_run(tmp_path, '3').params['w'])
