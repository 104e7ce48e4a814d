"""The weights in a file are those the hypernetwork predicts, in the layout and at the bits asked for."""

import dataclasses
import json
import math
import pathlib
import re

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax import lax
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ghn_jax.base.errors import UserError
from ghn_jax.hypernet.ghn import GHN, init_params, predict_parameters
from ghn_jax.hypernet.predict import predict_weights
from ghn_jax.networks.files import save_networks
from ghn_jax.networks.graph import build_graph
from ghn_jax.quant import load_policy, parse_bits
from ghn_jax.quant.policy import quantizable
from ghn_jax.quant.rounding import round_weights
from ghn_jax.runs.prediction import output_files, predict, to_jax_layout
from ghn_jax.runs.run import load_run
from ghn_jax.runs.weight_files import METADATA, read_safetensors, unpack, write_weights
from tests.hypernet.helpers import SMALL, relative, small_spec
from tests.small_run import ROOT, command, is_one_error_line, write_run
from tests.streams import without_reader

CONV = small_spec('sep_conv_3x3', 'conv_1x1', C=16, name='conv')
VIT = small_spec('msa', 'cse', C=16, name='vit')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> pathlib.Path:
    return write_run(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='module')
def ghn():
    return GHN(SMALL), init_params(SMALL, jax.random.key(0))


def test_weights_are_those_of_the_slow_prediction(ghn):
    model, params = ghn
    for spec in (CONV, VIT):
        graph = build_graph(dataclasses.replace(spec, n_cells=1))
        slow = jax.jit(lambda p, graph=graph: predict_parameters(model, p, graph))(params)
        fast = predict_weights(model, params, graph.spec)
        assert fast.keys() == slow.keys()
        for name in slow:
            assert relative(fast[name], slow[name]) < 1e-5, name


def test_networks_of_a_bucket_share_a_program(ghn, count_compiles):
    predict_weights(*ghn, CONV)
    with count_compiles() as compiles:
        predict_weights(*ghn, small_spec('dil_conv_5x5', 'skip_connect', n_cells=4, name='other'))
    assert compiles.n == 0


def test_a_flattened_head_is_for_images_of_one_size(workdir):
    """Its first linear weight has an input for every pixel of the last features."""
    flat = dataclasses.replace(CONV, glob_avg=False)
    run = load_run(workdir)
    with pytest.raises(
        UserError, match='flattened head, defined for 32 pixels, and the run is on images of 8'
    ):
        predict(run, flat)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, image_size=32))
    assert predict(run, flat)[0]['classifier.0.weight'].shape == (12, 4 * CONV.C * 8 * 8)


def test_another_number_of_classes_is_refused(ghn):
    with pytest.raises(UserError, match='has 7 classes, the hypernetwork predicts 10'):
        predict_weights(*ghn, small_spec('conv_1x1', 'conv_1x1', num_classes=7))


def test_the_jax_layout_is_what_jax_computes_with():
    rng = np.random.default_rng(0)
    weights = {
        'dense': rng.normal(size=(6, 4, 3, 3)),
        'depth': rng.normal(size=(4, 1, 3, 3)),
        'linear': rng.normal(size=(5, 4)),
    }
    turned = to_jax_layout(weights)
    x = rng.normal(size=(2, 4, 9, 9))

    def torch(name, groups):
        return lax.conv_general_dilated(x, weights[name], (1, 1), 'SAME', feature_group_count=groups)

    def ours(name, groups):
        y = x.transpose(0, 2, 3, 1)
        return lax.conv_general_dilated(
            y,
            turned[name],
            (1, 1),
            'SAME',
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            feature_group_count=groups,
        ).transpose(0, 3, 1, 2)

    for name, groups in (('dense', 1), ('depth', 4)):
        np.testing.assert_allclose(ours(name, groups), torch(name, groups), atol=1e-5)
    np.testing.assert_array_equal(turned['linear'], weights['linear'].T)


def test_the_command_writes_what_is_predicted(workdir, tmp_path):
    save_networks(tmp_path / 'nets.json', [CONV, VIT])
    (tmp_path / 'out').mkdir()
    flags = f'--workdir={workdir}', f'--arch={tmp_path / "nets.json"}', f'--out={tmp_path / "out"}'
    with without_reader() as stdout:  # which ends nothing
        code, _, err = command('ghn_jax.predict', *flags, '--layout=jax', '--bits=w4a4', stdout=stdout)
    assert (code, err) == (0, '')
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['conv.safetensors', 'vit.safetensors']
    run = load_run(workdir)
    for spec in (CONV, VIT):
        file = tmp_path / 'out' / f'{spec.name}.safetensors'
        written = load_file(file)
        weights, metadata = predict(run, spec)
        assert (metadata['layout'], metadata['bits'], 'quantization' in metadata) == (
            'pytorch',
            'w32a32',
            False,
        )
        shapes = {p.name: p.shape for p in build_graph(spec).parameters}
        assert {name: w.shape for name, w in weights.items()} == shapes
        rounded, how = round_weights(weights, parse_bits('w4a4'))
        expected = to_jax_layout(rounded)
        assert written.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(written[name], expected[name], rtol=1e-5, atol=1e-6)
        with safe_open(file, 'np') as f:
            metadata = f.metadata()
        assert json.loads(metadata['quantization']) == how
        assert json.loads(metadata['network']) == spec.to_dict()
        assert (metadata['layout'], metadata['bits'], metadata['step']) == ('jax', 'w4a4', '3')


@pytest.mark.parametrize('layout', ['pytorch', 'jax'])
def test_every_format_holds_the_weights_of_the_others(workdir, tmp_path, layout):
    save_networks(tmp_path / 'net.json', [CONV])
    flags = f'--workdir={workdir}', f'--arch={tmp_path / "net.json"}', f'--layout={layout}', '--bits=w3a8'
    for file, *more in (
        ('plain.safetensors',),
        ('packed.safetensors', '--packed'),
        ('net.npz',),  # the name says the format
        ('net.orbax',),
    ):
        code, out, err = command('ghn_jax.predict', *flags, f'--out={tmp_path / file}', *more)
        assert code == 0 and f'{len(shapes_of(CONV))} tensors' in out, err
    plain = load_file(tmp_path / 'plain.safetensors')
    npz = np.load(tmp_path / 'net.npz')
    assert json.loads(npz[METADATA].item())['layout'] == layout
    tree = ocp.PyTreeCheckpointer().restore(tmp_path / 'net.orbax')
    flat = {'.'.join(key.key for key in path): w for path, w in jax.tree_util.tree_leaves_with_path(tree)}
    for other in (unpack(tmp_path / 'packed.safetensors'), {k: npz[k] for k in npz if k != METADATA}, flat):
        assert other.keys() == plain.keys()
        for name, w in plain.items():
            np.testing.assert_array_equal(other[name], w)


def test_what_is_written_again_is_the_same_file_byte_for_byte(tmp_path):
    """A training knows the file that it began with by its bytes."""
    path, weights = (
        tmp_path / 'a.safetensors',
        {'b': np.arange(6.0).reshape(2, 3).T, 'a': np.ones(3, np.int8)},
    )
    metadata = {name: 2 * name for name in 'hgfedcba'} | {'ü': '{"ß": "\\n"}'}
    written = set()
    for _ in range(4):  # by chance one in 9! orders
        write_weights(path, weights, metadata, 'safetensors')
        written.add(path.read_bytes())
    assert len(written) == 1
    arrays, said = read_safetensors(path, '')
    assert said == metadata and arrays.keys() == weights.keys()
    assert all(
        np.array_equal(arrays[name], w) and arrays[name].dtype == w.dtype for name, w in weights.items()
    )


def test_packed_files_are_as_small_as_their_bits(workdir, tmp_path):
    large = dataclasses.replace(CONV, C=64, n_cells=6)
    save_networks(tmp_path / 'net.json', [large])
    flags = f'--workdir={workdir}', f'--arch={tmp_path / "net.json"}'
    sizes = {}
    for bits in (32, 8, 4, 2, 1):
        file, more = tmp_path / f'w{bits}.st', ('--packed',) * (bits < 32)
        assert command('ghn_jax.predict', *flags, f'--out={file}', f'--bits=w{bits}a8', *more)[0] == 0
        sizes[bits] = file.stat().st_size
    shapes = dict(shapes_of(large))
    rounded = sum(math.prod(shapes[name]) for name in quantizable(shapes.items()))
    floats = sum(map(math.prod, shapes.values())) - rounded  # norms and biases
    for bits, size in sizes.items():
        rest = size - rounded * bits / 8 - 4 * floats  # names, shapes, grids
        assert 0 < rest < 4000 + 250 * len(shapes)


def test_the_page_about_packed_files_reads_one_without_the_package(workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_networks('net.json', [CONV])
    flags = f'--workdir={workdir}', '--arch=net.json', '--bits=w4a8', '--packed'
    assert command('ghn_jax.predict', *flags, '--out=net.safetensors')[0] == 0
    code = re.findall(
        r'^```python\n(.*?)^```', (ROOT / 'docs/packed.md').read_text(), re.DOTALL | re.MULTILINE
    )
    found: dict = {}
    exec(code[-1], found)
    monkeypatch.setenv('HOME', str(tmp_path))
    expected = unpack('~/net.safetensors')[found['name']]
    np.testing.assert_array_equal(found['weight'].reshape(expected.shape), expected)


def test_a_format_that_cannot_be_is_one_line_and_leaves_no_file(workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_networks('net.json', [CONV])
    (tmp_path / 'there').mkdir()
    (tmp_path / 'there/conv.orbax').mkdir()
    flags = f'--workdir={workdir}', '--arch=net.json'
    for more, words in (
        (['--out=x.st', '--packed'], ['--packed and bits=w32a32', 'no weight is rounded']),
        (['--out=x.st', '--packed', '--bits=w32a4'], ['--packed and bits=w32a4']),
        (['--out=x.npz', '--packed', '--bits=w4a4'], ['--packed and format=npz']),
        (['--out=x.npz', '--format=safetensors'], ['--out=x.npz ends in .npz', 'format=npz']),
        (['--out=x.safetensors', '--format=npz'], ['format=safetensors']),
        (['--out=net.json/x', '--format=orbax'], ['lies under the file']),
        (['--out=there', '--format=orbax'], ['--out=there/conv.orbax exists']),
        (['--out=x.st', '--format=gguf'], ['gguf', 'safetensors']),
    ):
        assert is_one_error_line(command('ghn_jax.predict', *flags, *more), *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['net.json', 'there']


def test_what_is_no_packed_file_is_one_line(workdir, tmp_path):
    with pytest.raises(UserError, match='absent.st does not exist'):
        unpack(tmp_path / 'absent.st')
    (tmp_path / 'text.st').write_text('weights')
    with pytest.raises(UserError, match='text.st is no safetensors file'):
        unpack(tmp_path / 'text.st')
    save_file({'a': np.zeros(2)}, tmp_path / 'plain.st')
    with pytest.raises(UserError, match='plain.st is not packed'):
        unpack(tmp_path / 'plain.st')
    save_file({'a': np.zeros(2)}, tmp_path / 'table.st', {'packed': '['})
    with pytest.raises(UserError, match='damaged table'):
        unpack(tmp_path / 'table.st')


POLICY = {'weight_bits': 4, 'activation_bits': 8, 'rules': [['stem.*', 32, 2]], 'network': 'conv'}


def test_a_policy_file_decides_for_what_weights_are_predicted_and_how_they_are_rounded(workdir, tmp_path):
    told = write_run(tmp_path / 'told', bits=True)
    (tmp_path / 'mine.json').write_text(json.dumps(POLICY))
    save_networks(tmp_path / 'net.json', [CONV])
    policy = load_policy(tmp_path / 'mine.json')
    plain_float = predict_weights(*ghn_of(workdir), CONV)
    for run, expected in ((workdir, plain_float), (told, predict_weights(*ghn_of(told), CONV, policy))):
        flags = f'--workdir={run}', f'--arch={tmp_path / "net.json"}', f'--out={tmp_path / "net.st"}'
        code, out, err = command('ghn_jax.predict', *flags, f'--policy={tmp_path / "mine.json"}')
        assert code == 0 and 'mine, predicted in' in out, err
        rounded, how = round_weights(expected, policy)
        written = load_file(tmp_path / 'net.st')
        for name in rounded:
            np.testing.assert_allclose(written[name], rounded[name], rtol=1e-5, atol=1e-6)
        assert 'stem.0.weight' not in how and len(how) == len(quantizable(shapes_of(CONV))) - 1
        with safe_open(tmp_path / 'net.st', 'np') as f:
            metadata = f.metadata()
        assert json.loads(metadata['policy']) == POLICY
        assert metadata['predicted_for'] == ('any' if run == workdir else 'mine')
    as_float = predict_weights(*ghn_of(told), CONV)
    assert all(not np.allclose(as_float[name], expected[name]) for name in how)


def ghn_of(workdir):
    run = load_run(workdir)
    return run.ghn, run.params


def shapes_of(spec):
    return [(p.name, p.shape) for p in build_graph(spec).parameters]


def test_a_policy_that_does_not_fit_is_one_line_and_leaves_no_file(workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_networks(tmp_path / 'nets.json', [CONV, dataclasses.replace(CONV, name='second')])
    (tmp_path / 'mine.json').write_text(json.dumps(POLICY))
    (tmp_path / 'rule.json').write_text(
        json.dumps(POLICY | {'rules': [['stem9.*', 4, 4]], 'network': 'conv'})
    )
    (tmp_path / 'out').mkdir()
    flags = f'--workdir={workdir}', '--arch=nets.json', '--out=out'
    for more, words in (
        (['--policy=mine.json'], ["policy 'mine'", "network 'second'", "for network 'conv'"]),
        (['--policy=rule.json'], ["rule 'stem9.*' matches none", "'stem.0.weight'"]),
        (['--policy=nets.json'], ["policy 'nets.json'", 'expected an object']),
        (['--policy='], ['cannot be read']),
        (['--policy=mine.json', '--bits=w4a4'], ["--policy='mine.json'", "bits='w4a4'", 'both given']),
        (['--bits='], ["bits ''"]),
    ):
        assert is_one_error_line(command('ghn_jax.predict', *flags, *more), *words)
    assert not list((tmp_path / 'out').iterdir())


def test_files_of_several_networks_need_names(tmp_path):
    specs = [CONV, VIT]
    assert output_files(str(tmp_path), specs) == [tmp_path / 'conv.safetensors', tmp_path / 'vit.safetensors']
    assert output_files(f'{tmp_path}/w-{{name}}.st', specs) == [tmp_path / 'w-conv.st', tmp_path / 'w-vit.st']
    assert output_files(f'{tmp_path}/one', [CONV]) == [tmp_path / 'one']
    with pytest.raises(UserError, match='is one file for 2 networks'):
        output_files(f'{tmp_path}/one', specs)
    with pytest.raises(UserError, match="two networks are called 'conv'"):
        output_files(str(tmp_path), [CONV, CONV])
    for name in ('../x', '.x', 'a/b'):
        with pytest.raises(UserError, match='has no name for a file'):
            output_files(str(tmp_path), [small_spec('conv_1x1', 'conv_1x1', name=name), VIT])


def edited(**changes) -> str:
    fields = CONV.to_dict() | changes
    return json.dumps({k: v for k, v in fields.items() if v is not ...})


NONE = {
    'normal': [['none', 0], ['none', 1]],
    'normal_concat': [2],
    'reduce': [['none', 0], ['none', 1]],
    'reduce_concat': [2],
}


@pytest.mark.parametrize(
    ('arch', 'args', 'words'),
    [
        (edited(), ['--bits=w0a4'], ['w0a4']),
        (edited(), ['--out=absent/x.st'], ['--out=absent/x.st', 'does not exist']),
        (edited(), ['--out='], ['--out is missing']),
        (edited(), ['--layout=caffe'], ['caffe', 'pytorch']),
        (
            edited(genotype=CONV.genotype.to_dict() | {'normal': [['conv_9x9', 0], ['conv_1x1', 1]]}),
            [],
            ['conv_9x9'],
        ),
        (edited(genotype=NONE), [], ['disconnected']),
        (edited(C=...), [], ["lacks the field 'C'"]),
        (edited(colour=1), [], ["unknown field 'colour'"]),
        ('{', [], ['no JSON']),
        (edited(num_classes=7), [], ['7 classes']),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(workdir, tmp_path, monkeypatch, arch, args, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'net.json').write_text(arch)
    result = command('ghn_jax.predict', f'--workdir={workdir}', '--arch=net.json', '--out=net.st', *args)
    assert is_one_error_line(result, *words)
    assert [p.name for p in tmp_path.iterdir()] == ['net.json']


def test_missing_flags_are_one_line(workdir, tmp_path):
    assert is_one_error_line(command('ghn_jax.predict'), '--workdir is missing')
    assert is_one_error_line(command('ghn_jax.predict', f'--workdir={workdir}'), '--arch is missing')
    assert is_one_error_line(
        command('ghn_jax.predict', f'--workdir={tmp_path}', '--arch=absent.json'), 'absent.json'
    )
