"""Functions on ranges of rows of padded arrays, the ranges being data: loops over chunks, and their gradient.

Axes: P rows, padded | R rows of a chunk.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Ranges = Sequence[tuple[jax.Array, jax.Array]]


def map_chunks(
    functions: Sequence[Callable[[Any, Any], jax.Array]],
    params: Sequence[Any],
    xs: Any,
    ranges: Ranges,
    rows: int,
) -> jax.Array:
    """Map rows, chunk by chunk, so that work grows with the ranges and not with P.

    Differentiable in params and in the floating-point leaves of xs; the backward pass computes the functions
    again, chunk by chunk.

    Args:
        functions: each maps rows one by one, [R, ...] to [R, ...], all to the same shape; they close over no
            differentiated value.
        params: of each function.
        xs: a pytree with P leading rows, P a multiple of rows.
        ranges: (first, end) of each function, first a multiple of rows; no two share a chunk.
        rows: how many rows a function sees at a time.

    Returns:
        [P, ...]: rows [first, end) are functions[i](params[i], xs) with (first, end) = ranges[i]; the rest
        is zero.
    """
    P = jax.tree.leaves(xs)[0].shape[0]
    if P % rows:
        raise ValueError(f'{P} rows are not whole chunks of {rows}')
    return _map(tuple(functions), rows, tuple(params), xs, tuple(ranges))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _map(functions, rows, params, xs, ranges):
    row = jax.eval_shape(functions[0], params[0], jax.tree.map(lambda x: x[:rows], xs))
    out = jnp.zeros((jax.tree.leaves(xs)[0].shape[0], *row.shape[1:]), row.dtype)
    for i, (f, p, (first, end)) in enumerate(zip(functions, params, ranges, strict=True)):

        def chunk(k, out, f=f, p=p, end=end):
            y = _only(f(p, _cut(xs, k, rows)), k, rows, end)
            return jax.lax.dynamic_update_slice_in_dim(out, y, k * rows, axis=0)

        with jax.named_scope(f'chunks_of_{rows}_{i}'):
            out = jax.lax.fori_loop(first // rows, -(-end // rows), chunk, out)
    return out


def _map_fwd(functions, rows, params, xs, ranges):
    return _map(functions, rows, params, xs, ranges), (params, xs, ranges)


def _map_bwd(functions, rows, residuals, g):
    params, xs, ranges = residuals
    leaves, tree = jax.tree.flatten(xs)
    floats = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating)]
    g_params, g_floats = [], [jnp.zeros_like(leaves[i]) for i in floats]
    for i, (f, p, (first, end)) in enumerate(zip(functions, params, ranges, strict=True)):

        def chunk(k, carry, f=f, p=p, end=end):
            g_p, g_floats = carry
            cut = _cut(leaves, k, rows)

            def of_floats(p, values):
                now = dict(zip(floats, values, strict=True))
                return f(p, tree.unflatten([now.get(i, x) for i, x in enumerate(cut)]))

            _, vjp = jax.vjp(of_floats, p, [cut[i] for i in floats])
            d_p, d_floats = vjp(_only(_cut(g, k, rows), k, rows, end))
            g_floats = [
                jax.lax.dynamic_update_slice_in_dim(a, d, k * rows, axis=0)
                for a, d in zip(g_floats, d_floats, strict=True)
            ]
            return jax.tree.map(jnp.add, g_p, d_p), g_floats

        start = jax.tree.map(jnp.zeros_like, p), g_floats
        with jax.named_scope(f'chunks_of_{rows}_{i}'):
            g_p, g_floats = jax.lax.fori_loop(first // rows, -(-end // rows), chunk, start)
        g_params.append(g_p)
    g_leaves: list[Any] = [None] * len(leaves)
    for i, value in zip(floats, g_floats, strict=True):
        g_leaves[i] = value
    return tuple(g_params), tree.unflatten(g_leaves), None


_map.defvjp(_map_fwd, _map_bwd)


def _cut(xs: Any, k: jax.Array, rows: int) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, k * rows, rows, axis=0), xs)


def _only(y: jax.Array, k: jax.Array, rows: int, end: jax.Array) -> jax.Array:
    """Set the rows of chunk k from `end` on to zero."""
    counts = k * rows + jnp.arange(rows) < end
    return jnp.where(counts.reshape(-1, *[1] * (y.ndim - 1)), y, 0)
