"""A frozen network judges each image by itself, and any process with JAX runs its file."""

import importlib.util
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import linen as nn

import ghn_jax
import ghn_jax.export.export
from ghn_jax.cnn.reference import apply_reference
from ghn_jax.export import freeze, to_stablehlo
from ghn_jax.export.export import ExportSpec, check_output, check_spec
from ghn_jax.models.tracing import trace
from tests.cnn.networks import random_parameters, small_network
from tests.small_run import command, is_one_error_line, write_run


class Net(nn.Module):
    """What users write, as small as can be: a batch norm, a stride, channels by themselves, a pool."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        norm = lambda: nn.BatchNorm(use_running_average=not train)
        x = nn.relu6(norm()(nn.Conv(8, (3, 3), (2, 2))(x)))
        x = nn.hard_swish(norm()(nn.Conv(8, (3, 3), feature_group_count=8, use_bias=False)(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(x.mean((1, 2)))


def images(n: int = 12, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, size, size, 3)).astype(np.float32)


def of(model: ghn_jax.Model, params, bits: str = 'float'):
    """A model's function of images, rounded to bits."""
    quantizer = None if bits == 'float' else model.quantizer(ghn_jax.parse_bits(bits))
    return lambda x: model.apply(params, x, quantizer)


def drawn(model: ghn_jax.Model):
    """Parameters that keep activations near 1, without compiling what the model starts with."""
    r = np.random.default_rng(0)
    draw = lambda a: r.normal(size=a.shape) / np.sqrt(np.prod(a.shape[:-1]))
    return jax.tree.map(lambda a: draw(a).astype(a.dtype), model.params)


@pytest.fixture(scope='module')
def net():
    model = trace(Net(), (1, 16, 16, 3))
    return model, drawn(model)


@pytest.fixture(scope='module')
def rounded(net):
    """W4/A4, frozen."""
    return freeze(of(*net, 'w4a4'), images())


def test_frozen_on_some_images_a_network_computes_on_these_what_it_did_and_on_any_of_them_the_same(
    net, rounded
):
    function, frozen, x = jax.jit(of(*net, 'w4a4')), rounded, images()
    expected = np.asarray(function(x))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(frozen.apply(x), expected, atol=1e-5 * scale)
    np.testing.assert_allclose(frozen.apply(x[3:5]), expected[3:5], atol=1e-5 * scale)
    assert np.abs(function(x[3:5]) - expected[3:5]).max() > 0.01 * scale  # whose statistics are the batch's


def test_parameters_statistics_and_ranges_are_constants(rounded):
    assert all(not isinstance(step.out_shape[0], int) for step in rounded.program.steps)
    assert {'reduce_min', 'rsqrt', 'custom_vjp_call'}.isdisjoint(s.primitive for s in rounded.program.steps)


LOAD = """
import sys, jax, numpy as np
images, *files = sys.argv[1:]
for file in files:
    exported = jax.export.deserialize(bytearray(open(file, 'rb').read()))
    assert exported.platforms == ('cpu', 'cuda', 'tpu'), exported.platforms
    for n in (1, 5):
        np.save(f'{file}.{n}.npy', exported.call(np.load(images)[:n]))
assert 'ghn_jax' not in sys.modules
"""


def test_the_file_runs_in_a_process_of_its_own_on_any_number_of_images(net, rounded, tmp_path):
    pytest.importorskip('flatbuffers')
    x, networks = images(), {'float': freeze(of(*net), images()), 'w4a4': rounded}
    np.save(tmp_path / 'x.npy', x)
    for name, frozen in networks.items():
        (tmp_path / name).write_bytes(to_stablehlo(frozen))
    arguments = [tmp_path / name for name in ('x.npy', *networks)]
    subprocess.run([sys.executable, '-c', LOAD, *arguments], check=True, timeout=300)
    for name, frozen in networks.items():
        for n in (1, 5):
            np.testing.assert_allclose(np.load(tmp_path / f'{name}.{n}.npy'), frozen.apply(x)[:n], atol=1e-5)


def test_a_network_of_deepnets_is_frozen_the_same_way():
    spec = small_network([('sep_conv_3x3', 0), ('max_pool_3x3', 1)], n_cells=1, name='small')
    params, x = random_parameters(spec, 0), images(4)
    model = trace(spec, (1, 16, 16, 3))
    expected = jax.jit(lambda x: apply_reference(spec, params, x))(x)
    found = freeze(of(model, params), x).apply(x)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_a_cut_is_read_on_the_grid_of_the_whole_for_any_number_of_images():
    """Where that number is a symbol, JAX has another operation for cuts with a step."""
    apply = lambda p, x: (x @ p['a'] + (x[:, 1:, 1:][:, ::2, ::2] @ p['b']).sum((1, 2), keepdims=True)).mean(
        (1, 2)
    )
    params = {name: jax.ShapeDtypeStruct((3, 4), np.float32) for name in 'ab'}
    model = trace(apply, (1, 8, 8, 3), params=params)
    (batch,) = jax.export.symbolic_shape('batch')
    readers = [
        [
            site.reader
            for site in model.traced((n, 8, 8, 3), jax.numpy.dtype('float32')).recorder.sites.values()
        ]
        for n in (5, batch)
    ]
    assert readers[0] == readers[1] == ['a', 'a']


def test_a_model_of_one_number_of_images_only_gets_one_line():
    for fixed, said in (
        (lambda x: x.mean((1, 2)) if x.shape[0] > 4 else x, 'cannot be run on images of any number: .*batch'),
        (lambda x: x.reshape(4, -1), r'returns .* for images \(batch, 16, 16, 3\): expected logits'),
    ):
        with pytest.raises(ghn_jax.UserError, match=said) as caught:
            freeze(fixed, images(4))
        assert '\n' not in str(caught.value)


MODULE = """
from flax import linen as nn

def net():
    return nn.Sequential([nn.Conv(16, (3, 3)), nn.relu, lambda x: x.mean((1, 2)), nn.Dense(10)])
"""


@pytest.mark.slow
def test_the_command_writes_a_model_and_an_architecture(tmp_path, monkeypatch):
    pytest.importorskip('flatbuffers')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'nets_to_export', raising=False)
    (tmp_path / 'nets_to_export.py').write_text(MODULE)
    workdir, arch = write_run(tmp_path / 'run'), tmp_path / 'net.json'
    hypernetwork = ghn_jax.load(workdir)
    ghn_jax.save_networks(arch, [hypernetwork.space.sample('test', 0, 0)])
    out, x = tmp_path / 'net.stablehlo', hypernetwork.load_data().normalized('test', 5)
    for network in (f'--arch={arch}', '--model=nets_to_export:net'):
        how = f'--workdir={workdir}', network, '--bits=w4a8', f'--out={out}'
        code, said, error = command('ghn_jax.export', *how)
        assert code == 0 and 'images [N, 8, 8, 3] to logits [N, 10]' in said, error
        assert np.isfinite(jax.export.deserialize(bytearray(out.read_bytes())).call(x)).all()
    ghn_jax.save_networks(arch, [hypernetwork.space.sample('test', 0, i) for i in range(2)])
    how = f'--workdir={workdir}', f'--arch={arch}', f'--out={out}'
    assert is_one_error_line(command('ghn_jax.export', *how), 'holds 2 networks: give a file of one')


@pytest.mark.parametrize('format, package', [('stablehlo', 'flatbuffers'), ('onnx', 'onnx')])
def test_what_is_not_installed_is_named(tmp_path, monkeypatch, format, package):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(
        ghn_jax.UserError, match=f'needs {package}, which is not installed: pip install .ghn-jax'
    ):
        check_spec(ExportSpec(format=format))


def test_the_name_of_a_file_says_its_format(tmp_path):
    for name in ('stablehlo', 'onnx'):
        path = tmp_path / f'net.{name}'
        assert check_output(path) == check_output(path, name) == (path, name)


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--arch=a.json'], ['--out is missing: give a file, such as net.stablehlo or net.onnx']),
        (['--arch=a', '--out={folder}/a.bin'], ['a.bin', 'ends in .stablehlo, .onnx']),
        (['--arch=a', '--format=stablehlo', '--out={folder}/a.onnx'], ['a.onnx', 'ends in .stablehlo']),
        (['--quantized=q', '--compare=9', '--out={folder}/a.stablehlo'], ['--compare=9', 'not run']),
        (['--out={folder}/a.stablehlo'], ['--arch and --model are missing']),
        (['--arch=a', '--model=b', '--out={folder}/a.stablehlo'], ['--arch and --model are both given']),
        (['--arch=a', '--compare=9', '--out={folder}/a.stablehlo'], ['--compare=9', 'not run']),
        (['--arch=a', '--range_rule=mse', '--out={folder}/a.stablehlo'], ['=mse', 'bits such as']),
        (['--arch=a', '--granularity=channel', '--out={folder}/a.stablehlo'], ['=channel', 'bits such as']),
        (['--arch=a', '--calibration_images=1', '--out={folder}/a.stablehlo'], ['calibration_images']),
    ],
)  # fmt: skip
def test_flags_that_do_not_go_together_get_one_line(tmp_path, monkeypatch, flags, words):
    monkeypatch.setattr(ghn_jax.export.export, 'check_stablehlo', lambda: None)
    flags = [flag.format(folder=tmp_path) for flag in flags]
    assert is_one_error_line(command('ghn_jax.export', f'--workdir={tmp_path}', *flags), *words)
