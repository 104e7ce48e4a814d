"""Batches of one image: where BatchNorm has one value a channel it is said, and training is refused."""

import dataclasses

import numpy as np
import pytest

from ghn_jax.assembly import single_value_norms
from ghn_jax.base.errors import UserError
from ghn_jax.evaluation import score as scoring
from ghn_jax.evaluation.selection import ImageBatches, Selection
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spaces import make_space
from ghn_jax.runs.task import make_ghn, make_space_of
from tests.hypernet.helpers import small_spec
from tests.small_run import command, is_one_error_line, small_config


def make_spec(**changes):
    """Images of 8 pixels are halved by the stem, if that does, and by two reductions."""
    spec = small_spec('conv_1x1', 'conv_1x1', C=16, fc_dim=16)
    return dataclasses.replace(
        spec, **{'n_cells': 3, 'stem_type': 1, 'stem_pool': False, 'norm': 'bnorm'} | changes
    )


@pytest.mark.parametrize(
    ('changes', 'size', 'expected'),
    [
        ({}, 8, True),
        ({'stem_type': 0, 'stem_pool': True}, 8, True),
        ({'stem_type': 0}, 8, False),
        ({'n_cells': 2}, 8, False),
        ({'norm': None}, 8, False),
        ({}, 16, False),
        ({}, 32, False),
    ],
)
def test_feature_maps_of_one_pixel_are_found(changes, size, expected):
    spec = make_spec(**changes)
    assert single_value_norms.has_single_value_norm(spec, size) == expected
    assert (single_value_norms.warning([spec], size, 1) is not None) == expected
    assert single_value_norms.warning([spec], size, 2) is None


def test_scoring_says_in_one_line_and_once_how_many_networks_they_are(monkeypatch, capsys):
    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    monkeypatch.setattr(scoring, 'spread_images', stop)
    scoring._warn_once.cache_clear()
    specs = [make_spec(name='a'), make_spec(name='b', n_cells=2), make_spec(name='c', stem_type=0)]
    selection = Selection(tuple(map(build_graph, specs)), ())
    ghn = make_ghn(small_config())
    for batch_size in (1, 1, 2):
        images = ImageBatches(
            np.zeros((2, batch_size, 8, 8, 3)), np.zeros((2, batch_size)), np.zeros(3), np.ones(3)
        )
        with pytest.raises(Stopped):
            scoring.score_in_full(ghn, None, selection, images, [])
    assert capsys.readouterr().err == (
        'batch_size=1 and image_size=8: in 1 of the 3 networks a BatchNorm has one value a channel, and '
        'gives the same for all images: take a larger batch_size\n'
    )


def test_training_is_refused_where_the_space_has_such_networks(tmp_path):
    flags = '--config=configs/test.py', f'--workdir={tmp_path}/run', '--config.train.batch_size=1'
    assert is_one_error_line(
        command('ghn_jax.train', *flags), '--config.train.batch_size=1', 'image_size=8', 'one value'
    )
    assert not (tmp_path / 'run').exists()
    config = small_config()
    for changes in (
        {'batch_size': 2},
        {'batch_size': 1, 'cells': (2, 2)},
        {'batch_size': 1, 'image_size': 16},
    ):
        config.train.batch_size = changes['batch_size']
        config.space.cells = changes.get('cells', (3, 3))
        config.image_size = changes.get('image_size', 8)
        single_value_norms.check_batch_norm(config, make_space_of(config))
    config.train.small_images_steps = 1  # of images of 8 pixels
    with pytest.raises(UserError, match='=1 with image_size=16 and train.small_images_steps: Batch'):
        single_value_norms.check_batch_norm(config, make_space_of(config))


def test_images_larger_than_the_smallest_leave_more_than_a_pixel():
    for name in ('convnets250k', 'deepnets1m'):
        space = make_space(name, channels=(16,))
        for split in ('test', 'deep'):
            for index in range(5):
                assert not single_value_norms.has_single_value_norm(space.sample(split, 0, index), 32)
