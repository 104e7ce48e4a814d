"""The gated graph network of GHN-2, with all nodes of one level of the graph updated at once.

One round: a sweep over the nodes in topological order, then one in reverse (arXiv 2110.13100, eq. 3 and 4).
Node v receives m_v = sum over its 1-hop senders u of MLP(h_u) + sum over all senders u of MLP_ve(h_u) /
distance(u, v) and becomes GRU(m_v, h_v). It reads only nodes that were updated before it, so the nodes of a
level, the waves of the batch, update together, and every MLP(h_u) is computed once, when u is updated.

Axes: B graphs | N nodes, padded | V nodes of a wave, padded with N | K kinds of messages | D hidden.
"""

from functools import partial

import jax
import jax.numpy as jnp

from ghn_jax.base.backends import kernels_are_launches
from ghn_jax.hypernet.layers import Params, gru, init_gru, init_mlp, mlp

WAVES_A_TURN = 4  # on a GPU
GnnParams = dict[str, Params]  # 'mlp', 'gru' and, with virtual edges, 'mlp_ve'


def init_gnn(key: jax.Array, hid: int, virtual_edges: bool, dtype: jnp.dtype = jnp.float32) -> GnnParams:
    """Draw the parameters of one gated graph network; without virtual edges there is no 'mlp_ve'."""
    k_mlp, k_ve, k_gru = jax.random.split(key, 3)
    params = {'mlp': init_mlp(k_mlp, (hid, hid // 2, hid), dtype), 'gru': init_gru(k_gru, hid, dtype)}
    if virtual_edges:
        params['mlp_ve'] = init_mlp(k_ve, (hid, hid // 2, hid), dtype)
    return params


def gated_gnn(
    params: GnnParams, h: jax.Array, distance: jax.Array, waves: jax.Array, n_waves: jax.Array
) -> jax.Array:
    """Sweep forward, then backward: node states [B, N, D] to node states [B, N, D].

    distance: uint8 [B, N, N], path length from the first node to the second, 0 = no path; waves: int32 [W, B,
    V], of which the first n_waves are walked; nodes in no wave keep their state. Differentiable in params and
    h.
    """
    senders = distance.transpose(0, 2, 1)  # a node's incoming distances side by side, as a wave reads them
    h = sweep(params, h, senders, distance, waves, n_waves, False)
    return sweep(params, h, distance, senders, waves, n_waves, True)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def sweep(
    params: GnnParams,
    h: jax.Array,
    incoming: jax.Array,
    outgoing: jax.Array,
    waves: jax.Array,
    n_waves: jax.Array,
    reverse: bool,
) -> jax.Array:
    """Update the nodes wave by wave, in reverse order if asked to.

    incoming[b, v, u]: distance from sender u to receiver v; outgoing[b, u, v] is the same number, laid out by
    sender. The loop's length is data, so autodiff cannot reverse it: the gradient is written out in
    `_sweep_bwd`.
    """
    return _walk(params, h, incoming, waves, n_waves, reverse)[0]


def _walk(params, h, incoming, waves, n_waves, reverse):
    """The updated states and every node's message, both [B, N, D]."""
    B, N, D = h.shape
    b = jnp.arange(B)[:, None]
    K = _num_kinds(params)

    def wave(k, carry):
        h, sent, received = carry
        v = _nodes_of(waves, n_waves, k, N, backward=reverse)
        weights = _edge_weights(incoming.at[b, v].get(mode='clip'), K, h.dtype, axis=-1)  # [B, V, N, K]
        # (node, kind) as one axis: over two axes XLA:CPU would transpose the whole of `sent` in every wave.
        m = jnp.einsum('bvi,bid->bvd', weights.reshape(B, -1, N * K), sent.reshape(B, N * K, D))
        h_new = gru(params['gru'], m, h.at[b, v].get(mode='clip'))
        h = h.at[b, v].set(h_new, mode='drop')  # padding of a wave points past the last node: dropped
        sent = sent.at[b, v].set(_messages(params, h_new), mode='drop')
        return h, sent, received.at[b, v].set(m, mode='drop')

    carry = h, jnp.zeros((B, N, K, D), h.dtype), jnp.zeros_like(h)
    h, _, received = _each_wave(n_waves, wave, carry)
    return h, received


def _each_wave(n_waves, wave, carry):
    """Walk the waves: wave(k, carry), which does nothing from n_waves on. On a GPU, where the host waits for
    every turn of a loop, some waves to a turn.
    """
    size = WAVES_A_TURN if kernels_are_launches() else 1

    def turn(t, carry):
        for k in range(size):
            carry = wave(size * t + k, carry)
        return carry

    with jax.named_scope('waves'):
        return jax.lax.fori_loop(0, (n_waves + size - 1) // size, turn, carry)


def _nodes_of(waves, n_waves, k, N, *, backward):
    """The nodes [B, V] of the wave that is walked after k others; none, which is N, from n_waves on."""
    v = waves[n_waves - 1 - k if backward else k]
    return jnp.where(k < n_waves, v, N) if kernels_are_launches() else v


def _sweep_fwd(params, h, incoming, outgoing, waves, n_waves, reverse):
    h_new, received = _walk(params, h, incoming, waves, n_waves, reverse)
    return h_new, (params, h, h_new, received, outgoing, waves, n_waves)


def _sweep_bwd(reverse, residuals, g):
    """Walk the waves from the last to the first.

    When a node's turn comes, all its receivers are done: it pulls the gradient of its messages from theirs,
    which completes the gradient of its new state. Only the gradient of m_v has to be passed on inside the
    loop; those of the parameters and of the old states follow for all nodes at once after it.
    """
    params, h, h_new, received, outgoing, waves, n_waves = residuals
    B, N, D = h.shape
    b = jnp.arange(B)[:, None]
    K = _num_kinds(params)

    def wave(k, carry):
        g_sent, g_new, g_received, g_untouched = carry
        v = _nodes_of(waves, n_waves, k, N, backward=not reverse)
        weights = _edge_weights(outgoing.at[b, v].get(mode='clip'), K, h.dtype, axis=-2)  # [B, V, K, N]
        g_s = jnp.einsum('bin,bnd->bid', weights.reshape(B, -1, N), g_received).reshape(B, -1, K, D)
        _, to_state = jax.vjp(partial(_messages, params), h_new.at[b, v].get(mode='clip'))
        g_n = g.at[b, v].get(mode='clip') + to_state(g_s)[0]
        h_v = h.at[b, v].get(mode='clip')
        _, to_received = jax.vjp(lambda m: gru(params['gru'], m, h_v), received.at[b, v].get(mode='clip'))
        g_sent = g_sent.at[b, v].set(g_s, mode='drop')
        g_new = g_new.at[b, v].set(g_n, mode='drop')
        g_received = g_received.at[b, v].set(to_received(g_n)[0], mode='drop')
        return g_sent, g_new, g_received, g_untouched.at[b, v].set(0, mode='drop')

    zeros = jnp.zeros_like(h)
    carry = jnp.zeros((B, N, K, D), h.dtype), zeros, zeros, g
    g_sent, g_new, _, g_untouched = _each_wave(n_waves, wave, carry)
    _, message_vjp = jax.vjp(lambda p: _messages(p, h_new), params)
    _, gru_vjp = jax.vjp(lambda p, h: gru(p['gru'], received, h), params, h)
    (g_params,), (g_gru, g_h) = message_vjp(g_sent), gru_vjp(g_new)
    return jax.tree.map(jnp.add, g_params, g_gru), g_h + g_untouched, None, None, None, None


sweep.defvjp(_sweep_fwd, _sweep_bwd)


def sweep_node_by_node(params: GnnParams, h: jax.Array, incoming: jax.Array, reverse: bool) -> jax.Array:
    """Sweep one graph the slow, obvious way, straight from the equation; the tests' oracle.

    h: [N, D]; incoming: concrete [N, N], incoming[v, u] = distance from sender u to receiver v; nodes in
    topological order. Plain autodiff.
    """
    N = h.shape[0]
    states = list(h)
    for v in reversed(range(N)) if reverse else range(N):
        m = jnp.zeros_like(states[v])
        for u in range(N):
            if incoming[v, u] == 1:
                m = m + jax.nn.relu(mlp(params['mlp'], states[u]))
            if incoming[v, u] > 0 and 'mlp_ve' in params:
                m = m + jax.nn.relu(mlp(params['mlp_ve'], states[u])) / int(incoming[v, u])
        states[v] = gru(params['gru'], m, states[v])
    return jnp.stack(states)


def _num_kinds(params: GnnParams) -> int:
    return 1 + ('mlp_ve' in params)


def _messages(params: GnnParams, h: jax.Array) -> jax.Array:
    """Compute what a node sends, one message of each kind: [..., D] -> [..., K, D].

    A relu follows the last layer as well.
    """
    kinds = [mlp(params[name], h) for name in ('mlp', 'mlp_ve') if name in params]
    return jax.nn.relu(jnp.stack(kinds, axis=-2))


def _edge_weights(distance: jax.Array, K: int, dtype: jnp.dtype, axis: int) -> jax.Array:
    """Return the weight of each kind of message over a distance, kinds on `axis`: real edges 1, virtual ones
    1/distance.
    """
    distance = distance.astype(dtype)
    real = (distance == 1).astype(dtype)
    virtual = jnp.where(distance > 0, 1 / jnp.maximum(distance, 1), 0)
    return jnp.stack([real, virtual][:K], axis=axis)
