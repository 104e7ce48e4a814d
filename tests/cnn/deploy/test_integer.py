"""Integer arithmetic is the fake-quantized network up to its documented roundings."""

import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.deploy import calibration, integer, observer
from ghn_jax.cnn.deploy.int32_arithmetic import FixedReal
from ghn_jax.cnn.deploy.observer import RowMoments
from ghn_jax.cnn.instructions import Norm
from ghn_jax.cnn.reference import apply_reference, observe_reference
from ghn_jax.cnn.tables import RunnableNetwork
from ghn_jax.quant import Policy, Scheme
from ghn_jax.quant.scheme import QAT
from tests.cnn.networks import random_images, random_parameters, small_network

SIZE, IMAGES = 8, 24
SPECS = [
    small_network(
        [('sep_conv_3x3', 0), ('conv_7x1_1x7', 1), ('none', 0), ('avg_pool_3x3', 1)],
        [('skip_connect', 0), ('conv_7x1_1x7', 1), ('dil_conv_3x3', 2), ('max_pool_3x3', 1)],
        normal_concat=(2, 3), reduce_concat=(2, 3), C=16, fc_layers=2, fc_dim=24, stem_type=1,
        name='a',
    ),
    small_network([('conv_3x3', 0), ('skip_connect', 1)], C=16, norm=None, stem_pool=True, name='b'),
    small_network([('skip_connect', 0), ('max_pool_3x3', 1)], C=16, stem_type=1, preproc=False, name='c'),
    small_network([('mbconv_3x3', 0), ('none', 1)], C=16, name='d'),
]  # fmt: skip
MEAN, STD = np.float32([0.4, 0.5, 0.6]), np.float32([0.2, 0.25, 0.3])


pytestmark = pytest.mark.usefixtures('quick_reference')


@pytest.fixture(scope='module')
def program():
    return build_program(SPECS, image_size=SIZE, max_params=1e6)


def pixels(seed):
    return np.clip(random_images(IMAGES, seed, size=SIZE) * 60 + 128, 0, 255).astype('uint8')


def both(program, spec, policy, factor=1, scheme=QAT):
    """Logits of the calibrated network in integer arithmetic and of the reference, and the interpreter."""
    layout, params = program.layout(spec), random_parameters(spec, 0)
    if factor != 1:
        params = {k: (w * factor if w.ndim > 1 else w * 0) for k, w in params.items()}
    x = (pixels(1) / np.float32(255) - MEAN) / STD
    statistics, ranges = observe_reference(spec, params, x, scheme=scheme)
    rows, tensors = program.capacity.rows, program.capacity.tensors
    moments, lo, hi = RowMoments(*np.zeros((2, rows, 64))), np.zeros(tensors), np.zeros(tensors)
    for r, instruction in enumerate(layout.instructions):
        if instruction.op == Norm() and spec.norm:
            scale = instruction.pieces[0]
            for field, values in zip(moments, statistics[scale.name[: -len('.weight')]]):
                field[r, : scale.cols] = values[scale.col :][: scale.cols]
    for name, pair in ranges.items():
        lo[layout.tensors[name]], hi[layout.tensors[name]] = pair
    flat, _ = calibration.fold(layout, program.pack(layout, params), moments)
    fixed = observer.make_ranges(
        observer.make_index(program, layout), lo.astype('float32'), hi.astype('float32')
    )
    network = RunnableNetwork(flat, layout.tables, program.bits(layout, policy), fixed)
    runner = integer._Interpreter(program, spec, layout, network, scheme)
    images = pixels(2)
    logits = runner.run(images, MEAN, STD)
    x = (images / np.float32(255) - MEAN) / STD
    statistics = statistics if spec.norm else None
    expected = apply_reference(
        spec, params, x, policy=policy, scheme=scheme, statistics=statistics, ranges=ranges
    )
    return logits, np.asarray(expected), runner


def relative_errors(logits, expected) -> list[float]:
    """Of each image."""
    return (np.linalg.norm(logits.real - expected, axis=1) / np.linalg.norm(expected, axis=1)).tolist()


def check_errors(errors):
    """All but one are those of 30 bits of fixed point and of float32; that one is what a level makes."""
    *others, largest = sorted(errors)
    assert others[-1] < 1e-5 and largest < 0.3


POLICIES = [Policy(8, 8), Policy(4, 4), Policy(2, 2), Policy(8, 4, (('stem.*', 3, 8),))]


@pytest.mark.parametrize('policy', POLICIES, ids=str)
def test_integer_arithmetic_is_the_fake_quantized_network_up_to_the_rounding_of_fixed_point(program, policy):
    """All that is prepared for it, folded weights and ranges, is the reference's own on the other side. In an
    image in a hundred an activation lies on the border of two levels and falls on the other side of it, which
    moves the logits by a level of one activation; all the others are as in float.
    """
    same, errors, classes = [], [], set()
    for spec in SPECS:
        logits, expected, runner = both(program, spec, policy)
        assert all(v.x.dtype == np.int32 for v in (logits, *runner.values.values()))
        assert all(np.abs(v.real).max() <= v.bound for v in runner.values.values())
        assert all(w.q.dtype == np.uint8 for w in runner.weights.values())
        same.append(logits.x.argmax(1) == expected.argmax(1))
        errors += relative_errors(logits, expected)
        classes |= set(expected.argmax(1).tolist())
    check_errors(errors)
    assert np.mean(same) > 0.97 and len(classes) > 4


@pytest.mark.parametrize(
    'options',
    [{'symmetric': True}, {'granularity': 'channel', 'weight_range': 'percentile'}],
    ids=lambda options: '-'.join(options),
)
def test_weights_lie_on_the_grids_of_the_scheme(program, options):
    spec, scheme = SPECS[0], Scheme('qat', **options)
    logits, expected, runner = both(program, spec, Policy(4, 8), scheme=scheme)
    check_errors(relative_errors(logits, expected))
    scales = runner.weights['classifier.0.weight'].scale
    assert (np.ptp(scales) > 0) == (scheme.granularity == 'channel')


def test_small_values_are_as_exact_as_large_ones(program):
    """Networks without normalisation may have activations of any size."""
    spec = SPECS[1]
    runs = [both(program, spec, Policy(8, 8), factor)[:2] for factor in (1, 1e-3)]
    (a, expected), (b, tiny) = runs
    assert np.abs(tiny).max() < 1e-6 * np.abs(expected).max()
    assert np.mean(b.x.argmax(1) == tiny.argmax(1)) > 0.95
    assert np.median(np.linalg.norm(b.real - tiny, axis=1) / np.linalg.norm(tiny, axis=1)) < 1e-3


def test_sums_that_may_leave_int32_are_refused():
    x = integer.Levels(np.zeros((1, 4), np.uint8), 0, 1.0)
    with pytest.raises(UserError, match='more than int32 holds'):
        integer._multiplied(x, np.full((1 << 16, 1), 200), np.ones(1), lambda a, b: a, (0,))


@pytest.mark.parametrize('zero', [0, 255])
def test_the_bound_on_the_sums_of_a_layer_is_reached(zero):
    w = np.array([[200, -3], [255, -7], [1, 0]])
    x = integer.Levels(np.full((1, 3), 255 - zero, np.uint8), zero, 0.5)
    sums = integer._multiplied(x, w, np.array([2.0, 4.0]), np.matmul, (0,))
    np.testing.assert_array_equal(np.abs(sums.x), [sums.bound])
    np.testing.assert_array_equal(sums.bound, [255 * 456, 255 * 10])
    np.testing.assert_array_equal(sums.scale, [1.0, 2.0])


@pytest.mark.parametrize('sign', [1, -1])
def test_sums_of_a_concatenation_may_reach_the_largest_int32_and_no_more(sign):
    def sums(x):
        return integer.Sums(np.array([[sign * x, 0]], np.int32), np.ones(2), np.array([x, 0.0]))

    total = integer.accumulated(sums(2**30), sums(2**30 - 1))
    np.testing.assert_array_equal(total.x, [[sign * (2**31 - 1), 0]])
    np.testing.assert_array_equal(total.bound, [2**31 - 1, 0])
    with pytest.raises(UserError, match='a layer may sum up to 2147483648, more than int32 holds'):
        integer.accumulated(sums(2**30), sums(2**30))


def test_values_beyond_a_range_however_small_take_its_last_levels():
    for hi in (1.0, 1e-3, 1e-12, 1e-30):
        x = FixedReal(np.array([0, 1, 2**30, -1, -(2**30)], np.int32), 0, 2.0**30)
        levels = integer.to_levels(x, np.array([0, hi], 'float32'), 8)
        np.testing.assert_array_equal(levels.q, [0, 255, 255, 0, 0])


def test_what_integer_arithmetic_does_not_cover_is_refused():
    integer.check(SPECS, [Policy(), Policy(8, 2)])
    with pytest.raises(UserError, match='policy w4a16 has tensors of 16 bits'):
        integer.check(SPECS, [Policy(4, 16)])
    with pytest.raises(UserError, match='w8a8 stem.*=w32a8 has tensors of 32 bits'):
        integer.check(SPECS, [Policy(8, 8, (('stem.*', 32, 8),))])
    with pytest.raises(UserError, match='wta8 has ternary weights'):
        integer.check(SPECS, [Policy(0, 8)])
    with pytest.raises(UserError, match='edges=w1a8 has tensors of 1 bits'):
        integer.check(SPECS, [Policy(8, 8, edges=(1, 8))])
    with pytest.raises(UserError, match="'e' has cse, which integer arithmetic does not cover"):
        integer.check([small_network([('cse', 0), ('conv_1x1', 1)], C=16, name='e')], [Policy(8, 8)])
