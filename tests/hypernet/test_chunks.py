import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.hypernet.chunks import map_chunks

P, ROWS = 12, 4
DOUBLE, SQUARE = lambda p, x: x[0] @ p * x[1][:, None], lambda p, x: (x[0] @ p) ** 2
RANGES = [((0, 3), (4, 9)), ((0, 4), (4, 12)), ((0, 0), (0, 1)), ((0, 7), (8, 8)), ((0, 0), (0, 0))]


@pytest.fixture(scope='module')
def inputs():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        params = jnp.asarray(rng.normal(size=(3, 5))), jnp.asarray(rng.normal(size=(3, 5)))
        return params, (jnp.asarray(rng.normal(size=(P, 3))), jnp.arange(P)), rng.normal(size=(P, 5))


def in_chunks(params, xs, ranges):
    return map_chunks((DOUBLE, SQUARE), params, xs, ranges, ROWS)


def in_one_go(params, xs, ranges):
    """The obvious version: every function on every row, then a choice."""
    row, out = jnp.arange(P)[:, None], 0
    for f, p, (first, end) in zip((DOUBLE, SQUARE), params, ranges):
        out = out + jnp.where((row >= first) & (row < end), f(p, xs), 0)
    return out


@pytest.fixture(scope='module')
def both():
    def value_and_gradient(f):
        def weighted(params, floats, counts, ranges, weight):
            return jnp.sum(weight * f(params, (floats, counts), ranges)), f(params, (floats, counts), ranges)

        return jax.jit(jax.value_and_grad(weighted, (0, 1), has_aux=True))

    return value_and_gradient(in_chunks), value_and_gradient(in_one_go)


@pytest.mark.parametrize('ranges', RANGES)
def test_chunks_equal_the_functions_applied_in_one_go_with_all_gradients(inputs, both, ranges):
    params, (floats, counts), weight = inputs
    with jax.enable_x64(True):
        ours, oracle = (f(params, floats, counts, ranges, weight) for f in both)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), ours, oracle)


def test_other_ranges_compile_nothing(inputs, both, count_compiles):
    params, (floats, counts), weight = inputs
    with jax.enable_x64(True):
        both[0](params, floats, counts, RANGES[0], weight)
        with count_compiles() as compiles:
            for ranges in RANGES:
                both[0](params, floats, counts, ranges, weight)
    assert compiles.n == 0


def test_rows_that_are_no_whole_chunks_are_refused():
    with pytest.raises(ValueError, match='10 rows are not whole chunks of 4'):
        map_chunks((lambda p, x: x,), (0.0,), jnp.zeros((10, 2)), ((0, 1),), 4)
