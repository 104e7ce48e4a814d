"""What `import ghn_jax` offers: found when asked for, typed, and true to what the commands do."""

import ast
import doctest
import importlib
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ghn_jax
from ghn_jax.base import paths
from ghn_jax.base.errors import UserError
from ghn_jax.runs import prediction
from tests.cnn.networks import (
    one_sided_policy,
    quantized_names,
    random_images,
    random_parameters,
    small_network,
)
from tests.small_run import ROOT, write_run

NETWORK = small_network([('conv_3x3', 0), ('skip_connect', 1)], C=16, n_cells=1, name='net')
FLOAT, W4A4 = ghn_jax.parse_bits('float'), ghn_jax.parse_bits('w4a4')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> pathlib.Path:
    return write_run(tmp_path_factory.mktemp('run'), edge_bits='w8a8')


@pytest.fixture(scope='module')
def hypernetwork(workdir):
    return ghn_jax.load(workdir)


def test_importing_the_package_imports_neither_jax_nor_numpy_and_every_name_is_found():
    code = """if True:
        import sys, ghn_jax
        assert not {'jax', 'numpy', 'flax'} & set(sys.modules)
        assert set(ghn_jax.__all__) <= set(dir(ghn_jax))
        assert 'jax' not in sys.modules
        for name in ghn_jax.__all__:
            assert getattr(ghn_jax, name) is not None
        assert callable(ghn_jax.evaluate) and callable(ghn_jax.run)
        from ghn_jax import *
        print(NetworkSpec.__name__, load.__module__)
    """
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == 'NetworkSpec ghn_jax.runs.hypernetwork\n', done.stderr


def test_a_type_checker_sees_the_names_that_a_program_gets():
    tree = ast.parse((ROOT / 'ghn_jax/__init__.py').read_text())
    for_checkers = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: (node.module, alias.name)
        for node in for_checkers.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == ghn_jax._NAMES
    assert sorted(ghn_jax.__all__) == sorted([*seen, '__version__'])
    assert (ROOT / 'ghn_jax/py.typed').is_file()  # says so to checkers; hatchling ships the whole folder


def test_every_public_function_says_what_it_does_and_returns():
    for name in ghn_jax.__all__:
        value = getattr(ghn_jax, name)
        if callable(value) and not isinstance(value, type):
            assert value.__doc__ and {'return'} <= set(value.__annotations__), name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'ghn_jax' has no attribute 'nothing'"):
        _ = ghn_jax.nothing


@pytest.mark.parametrize('bits', ['float', 'w4'])
def test_a_network_gives_the_same_logits_by_the_reference_and_by_the_executor(bits, quick_reference):
    weights, images = random_parameters(NETWORK, 0), random_images(4, 0, size=16)
    policy = None if bits == 'float' else one_sided_policy(quantized_names(NETWORK))
    plain, fast = (
        ghn_jax.run(NETWORK, weights, images, policy, applier=a) for a in ('reference', 'executor')
    )
    assert plain.shape == (4, 10) and plain.dtype == np.float32
    assert np.abs(plain - fast).max() < 1e-4 * np.abs(plain).max()


def test_weights_may_be_arrays_of_jax_and_have_gradients_by_the_reference(quick_reference):
    weights, images = random_parameters(NETWORK, 0), random_images(4, 0, size=16)
    first, others = 'stem.0.weight', {name: jnp.asarray(array) for name, array in weights.items()}

    def logits(scale, applier='reference'):
        return ghn_jax.run(NETWORK, others | {first: scale * others[first]}, images, W4A4, applier=applier)

    np.testing.assert_array_equal(logits(1.0), ghn_jax.run(NETWORK, weights, images, W4A4))
    slope = jax.jit(jax.grad(lambda scale: jnp.sum(logits(scale) ** 2)))(1.0)
    assert np.isfinite(slope) and slope


def test_within_a_function_that_jax_traces_predictions_and_images_are_constants(
    hypernetwork, quick_reference
):
    network = hypernetwork.space.sample('test', 0, 0)

    def logits(scale):
        weights = hypernetwork.predict(network, W4A4)
        rounded, _ = ghn_jax.quantize(weights, W4A4, hypernetwork.scheme)
        images = hypernetwork.load_data().normalized('test', 4)
        return scale * ghn_jax.run(network, rounded, images)

    np.testing.assert_allclose(jax.jit(logits)(1.0), logits(1.0), rtol=1e-5, atol=1e-5)


def test_within_a_function_that_jax_traces_a_model_is_calibrated():
    model, images = trace_linear(), random_images(2, 0, size=16)
    params = model.initial_params()

    def logits(scale):
        calibrated = ghn_jax.calibrate(model, params, [images], W4A4)
        return scale * calibrated.apply(images, calibrated.quantizer(W4A4))

    np.testing.assert_allclose(jax.jit(logits)(1.0), logits(1.0), rtol=1e-5, atol=1e-5)


def test_weights_rounded_before_run_as_those_rounded_on_the_way(quick_reference):
    weights, images = random_parameters(NETWORK, 1), random_images(4, 1, size=16)
    rounded, grids = ghn_jax.quantize(weights, W4A4)
    assert set(grids) == set(quantized_names(NETWORK))
    assert max(len(np.unique(rounded[name])) for name in grids) <= 16
    on_the_way = ghn_jax.run(NETWORK, weights, images, ghn_jax.Policy(weight_bits=4), applier='executor')
    before = ghn_jax.run(NETWORK, rounded, images, applier='executor')
    assert np.abs(on_the_way - before).max() < 1e-4 * np.abs(before).max()


def test_a_prediction_is_what_the_command_writes_before_and_after_rounding(hypernetwork):
    network = hypernetwork.space.sample('test', 0, 0)
    weights = hypernetwork.predict(network)
    written, _ = prediction.predict(hypernetwork.run, network, policy=W4A4)
    rounded, grids = ghn_jax.quantize(weights, hypernetwork.used(W4A4), hypernetwork.scheme)
    assert all(np.array_equal(rounded[name], written[name]) for name in written)
    assert {grid['bits'] for grid in grids.values()} == {4, 8}  # first and last layer as the run has them
    assert all(w.dtype == np.float32 and isinstance(w, np.ndarray) for w in weights.values())


def test_in_the_64_bit_mode_of_jax_a_prediction_and_its_scores_are_the_same(tmp_path):
    hypernetwork = ghn_jax.load(write_run(tmp_path / 'run', bits=True))
    network = hypernetwork.space.sample('test', 0, 0)
    scores = lambda: ghn_jax.evaluate(hypernetwork, [network], bits=['w4a4'], num_images=64)['rows']
    weights, rows = hypernetwork.predict(network, W4A4), scores()
    with jax.enable_x64(True):
        again = hypernetwork.predict(network, W4A4)
        assert scores() == rows
    assert all(again[name].dtype == w.dtype and np.array_equal(again[name], w) for name, w in weights.items())


def test_the_data_are_normalised_as_training_does(hypernetwork):
    data = hypernetwork.load_data()
    images = data.normalized('train')
    assert images.shape == (1024, 8, 8, 3) and images.dtype == np.float32
    np.testing.assert_allclose(images.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(images.std((0, 1, 2)), 1, atol=1e-4)
    assert np.array_equal(data.normalized('test', 3), data.normalized('test')[:3])


@pytest.fixture
def run_example(workdir, tmp_path, monkeypatch, quick_reference):
    """Runs the example of a page where the run it loads lies; what is returned are its variables."""

    def run(page: str) -> dict:
        (example,) = re.findall(r'^```python\n(.*?)^```', (ROOT / page).read_text(), re.S | re.M)
        (folder,) = re.findall(r"load\('(.*?)'", example)
        if paths.zoo_name(folder) is None:
            (tmp_path / folder).parent.mkdir(parents=True)
            (tmp_path / folder).symlink_to(workdir)
        monkeypatch.chdir(tmp_path)
        names: dict = {}
        exec(example, names)
        return names

    return run


def test_the_readmes_example_predicts_a_network_that_works_at_four_bits(run_example):
    names = run_example('README.md')
    assert names['hypernetwork'].run.params and names['w4a4'].weight_bits == 4
    assert names['logits'].shape == (len(names['labels']), 10)
    assert names['top1'] > 90
    assert names['network'] == names['hypernetwork'].space.sample('test', 0, 0)
    (example,) = re.findall(r'^```python\n(.*?)^```', (ROOT / 'README.md').read_text(), re.S | re.M)
    assert (ROOT / 'launch/first.py').read_text().endswith(f'"""\n\n{example}')  # what the quickstart runs


def test_a_score_is_that_of_the_logits(hypernetwork, quick_reference):
    network, data = hypernetwork.space.sample('test', 0, 0), hypernetwork.load_data()
    images, labels = data.normalized('test', 60), data.test.labels[:60]
    count = np.int64(60)  # as an array has them
    result = ghn_jax.evaluate(hypernetwork, [network], bits=['float'], num_images=count, batch_size=count)
    assert json.loads(json.dumps(result))['rows'] == result['rows']
    (scored,) = result['networks']
    assert result['protocol']['batch_size'] == result['protocol']['images'] == len(images)
    logits = ghn_jax.run(network, hypernetwork.predict(network), images)
    top1 = 100 * (np.asarray(logits).argmax(-1) == labels).mean()
    assert scored['scores']['w32a32']['top1'] == pytest.approx(top1)


def test_the_example_of_the_api_runs_and_its_integers_are_some(run_example):
    names = run_example('docs/api.md')
    integers, grid, name = names['integers'], names['grid'], names['name']
    assert integers.min() >= 0 and integers.max() < 2 ** grid['bits'] and len(np.unique(integers)) > 2
    exactly = (integers - grid['zero_point']).astype(np.float32) * np.float32(grid['scale'])
    assert np.array_equal(exactly, names['rounded'][name])
    assert names['coarse'].shape == (8, 10) and np.abs(names['exact'] - names['coarse']).max() > 0


def trace_linear():
    apply, params = lambda params, x: x.mean((1, 2)) @ params, np.ones((3, 10), np.float32)
    return ghn_jax.trace(apply, (1, 16, 16, 3), params=params)


def calibrate_linear(images, batches=None, **how):
    model = trace_linear()
    return ghn_jax.calibrate(model, model.initial_params(), batches or [images], **how)


def run_halving(images, applier='reference'):
    network = small_network([('skip_connect', 0), ('skip_connect', 1)], C=16, n_cells=2)
    return ghn_jax.run(network, random_parameters(network, 0), images, applier=applier)


@pytest.mark.parametrize(
    'call, words',
    [
        (lambda h, w, x: ghn_jax.load('/nowhere'), 'no checkpoint'),
        (lambda h, w, x: ghn_jax.load(h, 'first'), 'expected latest, best or a number'),
        (lambda h, w, x: ghn_jax.run(NETWORK, w, x, applier='jax'), 'expected one of reference, executor'),
        (lambda h, w, x: ghn_jax.run(NETWORK, w, x[0]), 'expected [N, H, H, 3]'),
        (lambda h, w, x: ghn_jax.run(NETWORK, w, x.astype(np.uint8)), 'expected normalised floats'),
        (lambda h, w, x: ghn_jax.run(NETWORK, w, x.tolist()), 'images are of type list: expected normalised'),
        (lambda h, w, x: run_halving(x[:, :9, :9]), "9x9 maps enter 'cells.1._ops.0', which halves them"),
        (
            lambda h, w, x: run_halving(x[:, :9, :9], 'executor'),
            '9 pixels are no multiple of 2: take images',
        ),
        (lambda h, w, x: ghn_jax.run(NETWORK, None, x), 'weights are None: expected arrays by name'),
        (
            lambda h, w, x: ghn_jax.run(NETWORK, w | {'stem.0.weight': 'w'}, x),
            "weights have 'stem.0.weight'='w': expected an array of floats, (48, 3, 3, 3)",
        ),
        (
            lambda h, w, x: ghn_jax.run(NETWORK, w | {'stem.0.weight': np.zeros((48, 3, 3, 3), int)}, x),
            "weights have 'stem.0.weight'=array(",
        ),
        (
            lambda h, w, x: ghn_jax.run(NETWORK, w | {'stem.0.weight': [[0.5], [0.5, 0.5]]}, x),
            "weights have 'stem.0.weight'=[[0.5], [0.5, 0.5]]: expected an array of floats",
        ),
        (lambda h, w, x: ghn_jax.load(None), 'workdir=None: expected a path'),
        (lambda h, w, x: ghn_jax.save_networks('x.json', NETWORK), 'no list of networks'),
        (lambda h, w, x: ghn_jax.save_networks('x.json', [{}]), 'a network is {}: expected a NetworkSpec'),
        (lambda h, w, x: ghn_jax.quantize([w], ghn_jax.Policy(4)), 'weights are [{'),
        (lambda h, w, x: ghn_jax.build_graph('net'), "the network is 'net': expected a NetworkSpec"),
        (lambda h, w, x: ghn_jax.NetworkSpec.from_json(None), 'the text is None: expected what to_json'),
        (lambda h, w, x: trace_linear().initial_params(-1), 'seed=-1: expected an integer from 0'),
        (lambda h, w, x: trace_linear().initial_params(1.5), 'seed=1.5: expected an integer from 0'),
        (
            lambda h, w, x: trace_linear().apply(trace_linear().initial_params(), x, W4A4),
            'quantizer is Policy(weight_bits=4, ',
        ),
        (lambda h, w, x: ghn_jax.unpack(3), 'file=3: expected a path'),
        (lambda h, w, x: ghn_jax.run(NETWORK, {}, x), "weights lack 'stem.0.weight'"),
        (
            lambda h, w, x: ghn_jax.run(NETWORK, w | {'stem.0.weight': w['stem.0.weight'].T}, x),
            "'stem.0.weight' of shape (3, 3, 3, 48): expected (48, 3, 3, 3)",
        ),
        (
            lambda h, w, x: ghn_jax.run(NETWORK, w, x, ghn_jax.Policy(rules=(('stern.*', 4, 4),))),
            "rule 'stern.*' matches none",
        ),
        (lambda h, w, x: ghn_jax.run(trace_linear(), w, x), 'expected a NetworkSpec'),
        (lambda h, w, x: ghn_jax.run(NETWORK, w, x, 'w4a4'), "policy is 'w4a4'"),
        (lambda h, w, x: ghn_jax.run(NETWORK, w, x, scheme=None), 'scheme is None'),
        (lambda h, w, x: ghn_jax.quantize(w, 'w4a4'), "policy is 'w4a4'"),
        (lambda h, w, x: ghn_jax.quantize(w, ghn_jax.Policy(4), 'qat'), "scheme is 'qat'"),
        (lambda h, w, x: ghn_jax.quantize({'a': w}, ghn_jax.Policy(4)), "weight 'a' is {"),
        (lambda h, w, x: trace_linear().quantizer(ghn_jax.Policy(4), None), 'scheme is None'),
        (
            lambda h, w, x: trace_linear().apply(trace_linear().initial_params(), x, capture=[]),
            'capture is []: expected a dict',
        ),
        (
            lambda h, w, x: trace_linear().apply(trace_linear().initial_params(), None),
            'images are None: expected an array',
        ),
        (
            lambda h, w, x: trace_linear().apply(trace_linear().initial_params(), [[1.0], [1.0, 2.0]]),
            'images are [[1.0], [1.0, 2.0]]: expected an array',
        ),
        (lambda h, w, x: calibrate_linear(x).apply(x, capture=()), 'capture is (): expected a dict'),
        (lambda h, w, x: calibrate_linear(x).program(16), 'shape is 16: expected the number of images'),
        (lambda h, w, x: calibrate_linear(x).program('ab'), "shape is 'ab': expected the number of images"),
        (lambda h, w, x: calibrate_linear(x).program((0, 16, 16, 3)), 'shape is (0, 16, 16, 3): expected'),
        (lambda h, w, x: calibrate_linear(x).program((1, 16, 16, 3), 'abc'), "dtype is 'abc'"),
        (lambda h, w, x: calibrate_linear(x).quantizer(W4A4, 'qat'), "scheme is 'qat'"),
        (lambda h, w, x: calibrate_linear(3, batches=3), 'images are 3: expected a list of batches'),
        (lambda h, w, x: calibrate_linear('abc'), "images are ['abc']: expected a list of batches"),
        (lambda h, w, x: calibrate_linear(x, scheme='qat'), "scheme is 'qat'"),
        (lambda h, w, x: calibrate_linear(x, rule='mean'), "range rule 'mean': expected one of min_max"),
        (
            lambda h, w, x: jax.jit(lambda x: calibrate_linear(x).biases)(x),
            'params and images are traced by JAX (jit, grad, vmap)',
        ),
        (
            lambda h, w, x: jax.jit(lambda w: ghn_jax.quantize(w, ghn_jax.Policy(4))[0])(w),
            'weights are traced by JAX (jit, grad, vmap)',
        ),
        (
            lambda h, w, x: jax.jit(lambda w: ghn_jax.run(NETWORK, w, x, applier='executor'))(w),
            'weights are traced by JAX (jit, grad, vmap)',
        ),
        (lambda h, w, x: ghn_jax.parse_bits('w4'), 'expected float, or w<bits>a<bits>'),
        (lambda h, w, x: ghn_jax.make_space('deepnets'), 'choose one of deepnets1m, convnets250k'),
    ],
)
def test_bad_input_is_an_error_of_one_line(call, words, workdir):
    weights, images = random_parameters(NETWORK, 0), random_images(2, 0, size=16)
    with pytest.raises(UserError) as error:
        call(workdir, weights, images)
    assert words in str(error.value) and '\n' not in str(error.value)


def test_the_examples_in_docstrings_are_true():
    with_examples = [path for path in (ROOT / 'ghn_jax').rglob('*.py') if '>>>' in path.read_text()]
    assert with_examples
    for path in with_examples:
        name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
        assert doctest.testmod(importlib.import_module(name)).failed == 0, name


def test_what_evaluate_refuses(hypernetwork):
    for arguments, words in (
        ({'splits': ['tests']}, 'tests'),
        ({'bits': ['w4']}, "bits 'w4'"),
        ({'batch_size': 0}, 'batch_size'),
        ({'bits': 'w4a4'}, "bits is 'w4a4': expected a list"),
        ({'bits': [4]}, 'policy is 4: expected one such as parse_bits'),
        (
            {'bits': [ghn_jax.Policy(4, 4, name='mine'), ghn_jax.Policy(8, 8, name='mine')]},
            "bits: two policies are called 'mine': give one another name",
        ),
        ({'networks': []}, r'networks is \[\]: expected a list'),
        ({'networks': NETWORK}, 'networks is .*: expected a list'),
        ({'networks': [trace_linear()]}, 'a network is .*: expected a NetworkSpec'),
    ):
        with pytest.raises(UserError, match=words):
            ghn_jax.evaluate(hypernetwork, **arguments)
    with pytest.raises(UserError, match="the hypernetwork is 'zoo:digits-bits': expected what"):
        ghn_jax.evaluate('zoo:digits-bits')


def test_a_hypernetwork_predicts_for_its_number_of_classes(hypernetwork):
    other = small_network([('conv_1x1', 0), ('conv_1x1', 1)], C=16, num_classes=7)
    with pytest.raises(UserError, match='has 7 classes, the hypernetwork predicts 10'):
        hypernetwork.predict(other)
