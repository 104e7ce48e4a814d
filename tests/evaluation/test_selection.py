"""Which networks and images are scored, and which networks share a program."""

import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.evaluation.selection import image_batches, select_given, select_split
from ghn_jax.networks.spaces import make_space
from ghn_jax.runs.task import load_data
from tests.hypernet.helpers import small_spec
from tests.small_run import small_config

SIZE = 8


def test_networks_with_attention_have_a_program_of_their_own():
    space = make_space('deepnets1m', cells=(2, 2), max_steps=1, channels=(16,), ks=(3,), C_mults=(1,))
    selection = select_split(space, 'test', seed=0, count=12, image_size=32)
    assert [spec.name for spec in selection.specs] == [space.sample('test', 0, i).name for i in range(12)]
    conv, vit = (members for _, members in selection.groups)
    assert sorted(conv + vit) == list(range(12))
    assert all(selection.specs[i].is_vit for i in vit) and not any(selection.specs[i].is_vit for i in conv)


def test_given_networks_share_a_program_by_width():
    specs = [
        small_spec('conv_1x1', 'max_pool_3x3', C=C, fc_dim=16, name=str(i))
        for i, C in enumerate((32, 16, 32))
    ]
    selection = select_given(specs, image_size=SIZE)
    assert [members for _, members in selection.groups] == [(1,), (0, 2)]
    with pytest.raises(UserError, match="'vit' uses msa, whose positional encodings are for images of 32"):
        select_given([*specs, small_spec('msa', 'cse', C=16, name='vit')], image_size=SIZE)
    with pytest.raises(
        UserError, match='flattened head, defined for 32 pixels, and the run is on images of 8'
    ):
        select_given([small_spec('conv_1x1', 'conv_1x1', C=16, fc_dim=16, glob_avg=False)], image_size=SIZE)
    with pytest.raises(UserError, match='C=24'):
        select_given([small_spec('conv_1x1', 'conv_1x1', C=24)], image_size=SIZE)


def test_partial_batches_are_dropped():
    dataset = load_data(small_config())
    batches = image_batches(dataset, dataset.test, batch_size=100)
    assert batches.images.shape == (2, 100, SIZE, SIZE, 3) and batches.count == 200
    np.testing.assert_array_equal(batches.labels.ravel(), dataset.test.labels[:200])


@pytest.mark.parametrize('size, shape', [(100, (3, 100)), (256, (1, 256)), (1000, (1, 256))])
def test_a_batch_may_be_filled_up_with_images_that_are_not_counted(size, shape):
    dataset = load_data(small_config())
    batches = image_batches(dataset, dataset.test, batch_size=size, filled=True)
    assert batches.labels.shape == shape and batches.count == len(dataset.test.labels) == 256
    np.testing.assert_array_equal(batches.labels.ravel()[:256], dataset.test.labels)
    assert np.all(batches.labels.ravel()[256:] == -1)
