"""The configuration: one definition of every key, frozen inside, with the field's name in every error."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from ghn_jax import config, config_file
from ghn_jax.assembly.mesh import make_mesh
from ghn_jax.base.errors import FieldError, UserError, prefixed
from ghn_jax.networks.spaces import make_space
from ghn_jax.quant import Scheme
from ghn_jax.runs.checkpoint import Checkpoints
from ghn_jax.runs.run import read_meta
from ghn_jax.runs.task import make_ghn, make_space_of
from ghn_jax.training.train import train
from tests.small_run import ROOT, command, is_one_error_line, small_config

# As a checkpoint of the first version with dataclasses' predecessors has it: the text that was written then.
OLD = (
    '{"data_dir": "", "dataset": "digits", "devices": {"cpu": 1, "images": 1, "per_process": 1}, '
    '"eval": {"bits": [], "every_steps": 0, "num_images": 300, "num_networks": 10}, '
    '"ghn": {"bits": false, "decoder": "conv", "hid": 32, "hypernet": "gatedgnn", "layernorm": true, '
    '"ve": true, "weight_norm": true}, "image_size": 16, "init_from": "", "keep_checkpoints": 3, '
    '"keep_every_steps": 0, "log_every_steps": 20, "max_not_finite": 0.5, "program": {"max_nodes": 160}, '
    '"quant": {"activation_clip": 1.0, "activation_range": "minmax", "activation_sigmas": 0.0, '
    '"bits": "w4a4", "draw": [], "draw_per": "network", "edge_bits": "", "granularity": "tensor", '
    '"mode": "qat", "percentile": 99.9, "schedule": [[350, "float"]], "symmetric": false, '
    '"weight_range": "minmax", "weight_sigmas": 0.0}, "save_every_steps": 100, "save_in_background": true, '
    '"seed": 0, "space": {"C_mults": [1], "cells": [3, 5], "channels": [16], "fc_dims": [64], '
    '"flat_head_share": 0.0, "ks": [3], "max_params": 10000000, "max_steps": 2, "name": "convnets250k", '
    '"norms": ["bnorm"], "ops": ["none", "max_pool_3x3", "skip_connect", "sep_conv_3x3"]}, '
    '"train": {"augment": false, "batch_size": 64, "clip_norm": 5.0, "dtype": "float32", '
    '"learning_rate": 0.003, "meta_batch": 4, "schedule": "cosine", "steps": 700, "warmup_steps": 30, '
    '"weight_decay": 1e-05}}'
)


def assert_within(part, whole):
    assert all(
        whole[key] == value if not isinstance(value, dict) else assert_within(value, whole[key]) is None
        for key, value in part.items()
    )


def leaves(values, prefix=''):
    for key, value in values.items():
        yield from leaves(value, f'{prefix}{key}.') if isinstance(value, dict) else [(prefix + key, value)]


LEAVES = dict(leaves(dataclasses.asdict(config.RunConfig())))


def test_the_json_of_an_earlier_version_is_read_and_written_again_as_it_was():
    read = config.from_json(OLD)
    assert_within(json.loads(OLD), json.loads(config.to_json(read)))  # which has the newer keys, too
    assert (read.space.channels, read.quant.schedule) == ((16,), ((350, 'float'),))
    assert read.train.learning_rate == 0.003 and read.program.max_nodes == 160


def test_a_checkpoint_of_an_earlier_version_has_its_config(shared):
    workdir = shared / 'zoo' / 'digits_bits'
    meta = Checkpoints(workdir).restore_meta()
    read, ghn, step = read_meta(meta, workdir)
    theirs = json.loads(meta['config'])
    assert (read.seed, read.ghn.bits, ghn.bits, step) == (theirs['seed'], True, True, read.train.steps)
    written = json.loads(config.to_json(read))
    assert_within({key: theirs[key] for key in theirs if key != 'quant'}, written)


def other_value(key):
    """A value that the key may have and does not have by default."""
    section, _, name = key.rpartition('.')
    owner = getattr(config.RunConfig(), section) if section else config.RunConfig()
    field = next(field for field in dataclasses.fields(owner) if field.name == name)
    match field.default:
        case bool():
            return not field.default
        case int() | float():
            least, most = field.metadata['least'], field.metadata['most']
            return type(field.default)(most if field.default != most and name != 'hid' else least)
        case tuple():
            return (2, 3) if field.metadata.get('kind') is int else ('a', 'b')
    choices = field.metadata.get(
        'choices', {'hypernet': ('mlp',), 'decoder': ('conv',)}.get(name, ('other',))
    )
    return choices[-1]


@pytest.mark.parametrize('key', LEAVES)
def test_a_key_that_a_config_file_changes_is_changed_in_what_it_is_frozen_to(key):
    c, value = config.default(), other_value(key)
    c.update_from_flattened_dict({key: value})
    assert dict(leaves(dataclasses.asdict(config.freeze(c)))) == LEAVES | {key: value}
    assert value != LEAVES[key] or key == 'ghn.decoder'  # of which there is one
    assert config.replace(config.RunConfig(), key, value) == config.freeze(c)


@pytest.mark.parametrize('file', sorted((ROOT / 'configs').glob('*.py')), ids=lambda file: file.stem)
def test_a_config_that_comes_with_the_package_makes_its_hypernetwork(file):
    c = config.freeze(config_file.load(file))
    ghn = make_ghn(c).config
    if file.stem == 'ghn3_cifar10':  # as its authors train it
        assert (ghn.hypernet, ghn.hid, ghn.layers, ghn.heads) == ('graphormer', 64, 3, 8)
        t = c.train
        assert (t.optimizer, t.learning_rate, t.weight_decay, t.schedule) == ('adamw', 4e-4, 1e-2, 'cosine')
        assert (t.meta_batch, t.batch_size, t.warmup_steps, t.steps) == (8, 64, 5 * 703, 300 * 703)
        assert t.weight_penalty == 3e-5


def test_a_config_is_frozen_hashable_and_equal_to_one_with_the_same_values():
    one, other = config.freeze(small_config()), config.freeze(small_config())
    assert one == other and hash(one) == hash(other) and config.freeze(one) is one
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.train.steps = 3
    assert config.replace(one, 'train.steps', 3).train.steps == 3 != one.train.steps


def test_lists_become_tuples_and_integers_the_floats_that_were_declared():
    assert config.SpaceConfig(cells=[2, 3], ops=['conv_1x1']).ops == ('conv_1x1',)
    rate = config.TrainConfig(learning_rate=1).learning_rate
    assert type(rate) is float and rate == 1
    assert config.QuantConfig(schedule=[[3, 'float']]).schedule == ((3, 'float'),)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: config.TrainConfig(batch_size=-3), 'batch_size=-3: expected an integer from 1 to 65,536'),
        (lambda: config.TrainConfig(steps=1.5), 'steps=1.5: expected an integer from'),
        (lambda: config.TrainConfig(augment=1), 'augment=1: expected a value of type bool'),
        (lambda: config.EvalConfig(num_images=True), 'num_images=True: expected an integer from'),
        (lambda: config.SpaceConfig(cells=(3,)), 'cells=(3,): expected (fewest, most)'),
        (lambda: config.SpaceConfig(channels=('a',)), "channels=('a',): expected a tuple of int"),
        (lambda: config.HypernetworkConfig(hid=30), 'hid=30: expected a multiple of 4'),
        (lambda: config.HypernetworkConfig(decoder='mlp'), "decoder='mlp': expected one of conv"),
        (lambda: config.QuantConfig(mode='int'), "mode='int': expected one of float, qat, noise"),
        (lambda: config.QuantConfig(draw_per='image'), "draw_per='image': expected one of"),
        (lambda: config.RunConfig(image_size=20), 'image_size=20: expected a multiple of 8'),
        (lambda: config.RunConfig(train=3), 'train=3: expected a value of type TrainConfig'),
        (lambda: config.RunConfig(init_from='s3://b'), 'init_from=s3://b: addresses'),
        (lambda: Scheme(activation_range='mse'), 'activation_range=mse: one batch does not tell'),
        (lambda: Scheme(activation_clip=0.0), 'activation_clip=0.0: expected a number from 0.01 to 1'),
        (
            lambda: Scheme(weight_sigmas=1e-50),
            'weight_sigmas=1e-50: expected 0, for the best, or a number from',
        ),
        (lambda: make_space('convnets250k', cells=(6, 4)), 'cells=(6, 4): expected'),
        (lambda: make_space('resnets'), "name='resnets' is unknown"),
    ],
)
def test_an_object_made_in_python_complains_in_the_words_of_its_own_field(make, message):
    with pytest.raises(FieldError) as error:
        make()
    assert str(error.value).startswith(message) and message.startswith(error.value.field)


@pytest.mark.parametrize(
    ('changes', 'key'),
    [
        ({'train.batch_size': -3}, 'train.batch_size'),
        ({'quant.activation_range': 'mse'}, 'quant.activation_range'),
        ({'quant.bits': 'w0a4'}, 'quant.bits'),  # from here on judged where they are used
        ({'quant.schedule': ((5, 'float'), (5, 'w8a8'))}, 'quant.schedule'),
        ({'space.name': 'resnets'}, 'space.name'),
        ({'space.ops': ('conv_9x9',)}, 'space.ops'),
        ({'space.channels': (24,)}, 'space.channels'),
        ({'space.flat_head_share': 0.5}, 'image_size'),
        ({'devices.per_process': 999}, 'devices.per_process'),
        ({'ghn.hid': 30}, 'ghn.hid'),
    ],
)
def test_an_error_names_the_key_in_python_and_the_flag_on_the_command_line(changes, key, tmp_path):
    c = small_config()
    c.update_from_flattened_dict(changes)
    with pytest.raises(FieldError) as error:
        train(c, tmp_path / 'run')
    assert error.value.field == key and str(error.value).startswith(key)
    overrides = [f'--config.{k}={v}' for k, v in changes.items()]
    flags = f'--config={ROOT}/configs/test.py', *overrides, f'--workdir={tmp_path}/run'
    code, out, err = command('ghn_jax.train', *flags)
    assert is_one_error_line((code, out, err)) and err.startswith(f'error: --config.{key}')
    assert not (tmp_path / 'run').exists()


def test_what_a_frozen_config_describes_is_made_of_it():
    c = config.freeze(small_config())
    assert make_space_of(c).ops == c.space.ops and make_ghn(c).config.num_classes == 10
    other = config.replace(c, 'space.num_classes', 7)
    assert make_ghn(other).config.num_classes == 7 == make_space_of(other).sample('train', 0, 0).num_classes
    assert make_mesh(c) is None


def test_keys_that_are_missing_or_unknown_are_named():
    c = config.default().unlock()
    c.train.stepz = 3
    with pytest.raises(FieldError, match='^train.stepz is no key'):
        config.freeze(c)
    c = config.default().unlock()
    c.ghn = ConfigDict()
    with pytest.raises(FieldError, match='^ghn.hid is missing'):
        config.freeze(c)
    with pytest.raises(FieldError, match='^ghn=3: expected a section'):
        config.replace(config.RunConfig(), 'ghn', 3)
    for key in ('train.stepz', 'stepz', 'seed.x.y', ''):
        with pytest.raises(FieldError, match='is no key'):
            config.replace(config.RunConfig(), key, 3)


def test_a_door_puts_its_own_name_for_the_field_and_leaves_other_errors_alone():
    with pytest.raises(FieldError, match=r'^--a\.b=3: no$') as error, prefixed('--'), prefixed('a.'):
        raise FieldError('b', '=3: no')
    assert error.value.field == '--a.b'
    with pytest.raises(UserError, match='^b: no$'), prefixed('--'):
        raise UserError('b: no')
    with pytest.raises(FieldError, match='^b=3: no$'), prefixed('--', {'a'}):
        raise FieldError('b', '=3: no')
    assert config.KEYS == LEAVES.keys()


def test_a_config_dict_goes_no_further_than_the_doors():
    doors = {'config.py', 'config_file.py', 'training/train.py', 'studies/study.py', 'studies/study_runs.py'}
    package = ROOT / 'ghn_jax'
    users = {str(f.relative_to(package)) for f in package.rglob('*.py') if 'ConfigDict' in f.read_text()}
    assert users <= doors
