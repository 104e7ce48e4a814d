"""GHN-3's layers against its paper's equations: in numpy, and in PyTorch where it is installed."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from ghn_jax.base.errors import UserError
from ghn_jax.hypernet.decoder import predict_tensors
from ghn_jax.hypernet.ghn import GHN, GHNConfig, init_params
from ghn_jax.hypernet.graphormer import graphormer
from ghn_jax.hypernet.published import published_state
from ghn_jax.hypernet.tiles import decoder_table, kind_of, tile_parameters
from tests.cnn.comparison import QUICK
from tests.hypernet.helpers import (
    SMALL,
    batch,
    random_distance,
    random_params,
    relative,
    small_graphs,
    to_float64,
)

pytestmark = pytest.mark.usefixtures('quick_reference')

D, H, L = 8, 2, 2
SIZES, N = (9, 6, 1), 11
CONFIG = dataclasses.replace(SMALL, hypernet='graphormer', layers=L, heads=H)
EVEN = dataclasses.replace(CONFIG, max_shape=(8, 8, 16, 16))  # a window without a middle, as for ImageNet


@pytest.fixture(scope='module')
def distance():
    """Of three graphs [B, N, N]; node 0 reaches every other, as the input does."""
    rng = np.random.default_rng(0)
    padded = np.zeros((len(SIZES), N, N), np.uint8)
    for b, n in enumerate(SIZES):
        found = random_distance(rng, n, 0.4)
        found[0, 1:][found[0, 1:] == 0] = 4
        padded[b, :n, :n] = found
    padded[0, 0, 8] = 50  # the longest there is
    return padded


@pytest.fixture(scope='module')
def params():
    with jax.enable_x64(True):
        return to_float64(random_params(CONFIG)['gnn'])


@pytest.fixture(scope='module')
def x():
    return np.random.default_rng(1).normal(size=(len(SIZES), N, D))


@pytest.fixture(scope='module')
def run():
    """States, and the gradients of sum(weight * states) for params and x."""

    def weighted(params, x, distance, weight):
        states = graphormer(params, x, distance, jnp.array(SIZES))
        return jnp.sum(weight * states), states

    return jax.jit(jax.value_and_grad(weighted, (0, 1), has_aux=True), compiler_options=QUICK)


def real(states):
    return [np.asarray(states[b, :n]) for b, n in enumerate(SIZES)]


def layer_norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p['scale'] + p['bias']


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def plain(params, x, distance):
    """One graph without padding, node by node and head by head: [n, D] -> [n, D]."""
    n = len(x)
    x = np.stack(
        [
            x[v]
            + params['in_degree'][sum(distance[:, v] == 1)]
            + params['out_degree'][sum(distance[v] == 1)]
            + params['input_distance'][distance[0, v]]
            for v in range(n)
        ]
    )
    bias, E = np.zeros((n, n, H)), params['length']
    for u in range(n):
        for v in range(n):
            both = np.concatenate([E[2 + distance[u, v]], E[2 + distance[v, u]]])
            hidden = np.maximum(both @ params['bias']['kernel_0'] + params['bias']['bias_0'], 0)
            bias[u, v] = hidden @ params['bias']['kernel_1'] + params['bias']['bias_1']
    for i in range(L):
        p = jax.tree.map(lambda leaf, i=i: leaf[i], params['layers'])
        q, k, v = np.split(layer_norm(p['norm_0'], x) @ p['qkv_kernel'], 3, axis=1)
        attended = np.zeros_like(x)
        for h in range(H):
            part = slice(h * D // H, (h + 1) * D // H)
            for u in range(n):
                weights = softmax(k[:, part] @ q[u, part] / (D / H) ** 0.5 + bias[u, :, h])
                attended[u, part] = weights @ v[:, part]
        x = x + attended @ p['out_kernel'] + p['out_bias']
        hidden = layer_norm(p['norm_1'], x) @ p['kernel_0'] + p['bias_0']
        x = x + (hidden * (1 + erf(hidden / 2**0.5)) / 2) @ p['kernel_1'] + p['bias_1']
    return x


def test_states_are_those_of_the_equations(run, params, x, distance):
    with jax.enable_x64(True):
        (_, states), _ = run(params, x, distance, np.ones_like(x))
    plainly = jax.tree.map(np.asarray, params)
    for b, ours in enumerate(real(states)):
        n = SIZES[b]
        oracle = plain(plainly, x[b, :n], distance[b, :n, :n].astype(int))
        np.testing.assert_allclose(ours, oracle, rtol=1e-9, atol=1e-11)


def test_gradients_are_the_slopes_of_the_equations(run, params, x, distance):
    rng = np.random.default_rng(2)
    weight = rng.normal(size=x.shape)
    for b, n in enumerate(SIZES):
        weight[b, n:] = 0
    plainly = jax.tree.map(np.asarray, params)
    step = jax.tree.map(lambda p: rng.normal(size=p.shape), (plainly, x))

    def value(t):
        p, features = jax.tree.map(lambda a, s: a + t * s, (plainly, x), step)
        states = (plain(p, features[b, :n], distance[b, :n, :n].astype(int)) for b, n in enumerate(SIZES))
        return sum(float(np.sum(weight[b, : SIZES[b]] * s)) for b, s in enumerate(states))

    with jax.enable_x64(True):
        _, gradient = run(params, x, distance, weight)
    ours = sum(jax.tree.leaves(jax.tree.map(lambda g, s: float(np.sum(np.asarray(g) * s)), gradient, step)))
    assert abs((value(1e-6) - value(-1e-6)) / 2e-6 / ours - 1) < 1e-6


def test_padding_and_the_other_graphs_change_nothing(run, params, x, distance):
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        (_, before), _ = run(params, x, distance, np.ones_like(x))
        other = x.copy()
        for b, n in enumerate(SIZES):
            other[b, n:] = 100 * rng.normal(size=(N - n, D))
        other[1] = rng.normal(size=(N, D))
        (_, after), _ = run(params, other, distance, np.ones_like(x))
    for b in (0, 2):
        np.testing.assert_array_equal(real(before)[b], real(after)[b])
    assert not np.allclose(real(before)[1], real(after)[1])


def test_parameters_begin_as_published():
    params = init_params(GHNConfig(hid=32, hypernet='graphormer', max_shape=(8, 8, 5, 5)), jax.random.key(0))
    gnn, conv = params['gnn'], params['decoder']['conv']
    for table, width in ((gnn['length'], 32), (gnn['in_degree'], 32), (params['embedding']['channel'], 8)):
        np.testing.assert_allclose(float(table.std()), width**-0.5, rtol=0.05)
    layers = gnn['layers']
    assert layers['qkv_kernel'].shape == (3, 32, 96) and layers['kernel_1'].shape == (3, 128, 32)
    for leaf, fan_in, share in (
        (layers['qkv_kernel'], 32, 1), (layers['bias_0'], 32, 1), (layers['kernel_1'], 128, 1),
        (conv['hidden_kernel'], 128, 1), (conv['out_kernel'], 256, 0.2), (conv['class_kernel'], 8, 0.2),
        (params['decoder']['norm']['kernel_1'], 64, 0.2),
    ):  # fmt: skip
        assert 0.9 * share < float(abs(leaf).max()) * fan_in**0.5 <= share
    assert not conv['out_bias'].any() and not conv['class_bias'].any()


def test_the_extra_large_one_has_the_published_number_of_parameters():
    shape = {'max_shape': (384, 384, 16, 16), 'num_classes': 1000}
    config = GHNConfig(hypernet='graphormer', hid=384, layers=24, heads=16, **shape)
    shapes = jax.eval_shape(partial(init_params, config), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 654_365_184


@pytest.mark.parametrize(
    ('fields', 'message'),
    [({'heads': 5}, 'heads=5: expected a divisor of hid=8'),
     ({'layers': 0}, 'layers=0: expected an integer from 1 to'),
     ({'heads': True}, 'heads=True'), ({'layers': 10**9}, 'parameters, more than')],
)  # fmt: skip
def test_impossible_sizes_are_one_clear_error(fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **fields)


def test_a_layer_of_pytorch_gives_the_same_states_and_gradients(params, x, distance, run):
    torch = pytest.importorskip('torch', reason='torch is not installed')
    whole = random_params(CONFIG) | {'gnn': params}
    state = {
        name: torch.tensor(np.asarray(value), dtype=torch.float64, requires_grad=True)
        for name, value in published_state(CONFIG, whole).items()
    }
    functional = torch.nn.functional
    weight = np.random.default_rng(4).normal(size=x.shape)
    loss, all_states, features = 0, [], []
    for b, n in enumerate(SIZES):
        d = torch.tensor(distance[b, :n, :n].astype(int))
        features.append(torch.tensor(x[b, :n], requires_grad=True))
        h = features[-1] + state['centrality_embed_in.weight'][(d == 1).sum(0)]
        h = h + state['centrality_embed_out.weight'][(d == 1).sum(1)]
        h = h + state['input_dist_embed.weight'][d[0]]
        pairs = state['gnn.0.attn.edge_embed.embed.weight'][torch.stack([d, d.T], -1) + 2].flatten(2)
        linear = lambda v, name: functional.linear(v, state[f'{name}.weight'], state.get(f'{name}.bias'))
        bias = linear(torch.relu(linear(pairs, 'gnn.0.attn.proj_e.0')), 'gnn.0.attn.proj_e.2')
        for i in range(L):
            norm = lambda v, name, i=i: functional.layer_norm(
                v, (D,), state[f'gnn.{i}.{name}.weight'], state[f'gnn.{i}.{name}.bias']
            )
            qkv = linear(norm(h, 'ln1'), f'gnn.{i}.attn.to_qkv').view(n, 3, H, D // H)
            q, k, v = qkv.permute(1, 2, 0, 3)
            attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.permute(2, 0, 1))
            h = h + linear(attended.transpose(0, 1).reshape(n, D), f'gnn.{i}.attn.to_out.0')
            hidden = functional.gelu(linear(norm(h, 'ln2'), f'gnn.{i}.ff.net.0'))
            h = h + linear(hidden, f'gnn.{i}.ff.net.3')
        all_states.append(h.detach().numpy())
        loss = loss + (h * torch.tensor(weight[b, :n])).sum()
        weight[b, n:] = 0
    loss.backward()
    with jax.enable_x64(True):
        (value, states), (g_params, g_x) = run(params, x, distance, weight)
        theirs = published_state(CONFIG, whole | {'gnn': g_params})
    assert abs(float(value) / loss.item() - 1) < 1e-10
    for ours, oracle in zip(real(states), all_states, strict=True):
        np.testing.assert_allclose(ours, oracle, rtol=1e-9, atol=1e-11)
    for ours, oracle in zip(real(g_x), features, strict=True):
        np.testing.assert_allclose(ours, oracle.grad.numpy(), rtol=1e-8, atol=1e-10)
    layers = [name for name in theirs if name.startswith(('gnn.', 'centrality', 'input_dist'))]
    assert len(layers) == 4 + 4 + 11 * L
    for name in layers:
        assert relative(theirs[name], state[name].grad.numpy()) < 1e-8 or 'proj_e.2.bias' in name, name


def test_node_0_is_the_input_of_every_network():
    """From which the distances are counted."""
    for graph in small_graphs():
        assert graph.nodes[0].primitive == 'input'


def test_without_virtual_edges_what_is_no_neighbour_is_as_if_there_were_no_path():
    graph = small_graphs()[2]
    near = dataclasses.replace(graph, distance=np.where(graph.distance == 1, 1, 0).astype(np.uint8))
    for ve in (True, False):
        ghn = GHN(dataclasses.replace(CONFIG, ve=ve))
        embed = jax.jit(
            lambda p, b, ghn=ghn: ghn.apply({'params': p}, b, method='embed'), compiler_options=QUICK
        )
        rows = embed(random_params(ghn.config), batch([graph, near], 80))
        assert np.allclose(rows[0], rows[1], atol=1e-6) != ve


def decoded(state, x, p, kind):
    """One tensor from its embedding, from the published names; kernels are cut out of the window's middle."""
    mlp = lambda x, name: linear(np.maximum(linear(x, f'{name}.0'), 0), f'{name}.2')
    linear = lambda x, name: x @ state[f'{name}.weight'].T + state[f'{name}.bias']
    if len(p.shape) == 1:
        w = mlp(x, 'decoder_1d.fc').reshape(2, -1)[p.row]
        w = linear(np.maximum(w, 0), 'bias_class.1') if kind == 'class' else w
        w = w[np.arange(p.shape[0]) % len(w)]
        return np.tanh(0.2 * w) if p.row else 2 / (1 + np.exp(-w / 2))
    (C, _, S, _), (height, width) = EVEN.max_shape, (*p.shape, 1, 1)[2:4]
    t = np.maximum(linear(x, 'decoder.fc.0'), 0).reshape(-1, S, S).transpose(1, 2, 0)
    top, left = S // 2 - height // 2, S // 2 - width // 2
    w = mlp(t[top : top + height, left : left + width], 'decoder.conv').reshape(height, width, C, C)
    if kind == 'class':
        w = linear(np.maximum(w, 0).swapaxes(2, 3), 'decoder.class_layer_predictor.1').swapaxes(2, 3)
    out, inputs = (np.arange(n) % m for n, m in zip(p.shape, w.shape[2:]))
    w = w[:, :, out[:, None], inputs].transpose(2, 3, 0, 1).reshape(p.shape)
    no_relu = len(p.shape) == 4 and (p.shape[1] == 1 or height < width)
    return w if kind == 'pos_enc' else w * np.sqrt((1 if no_relu else 2) / w[0].size)


def test_weights_are_those_of_the_published_decoder():
    ghn, params = GHN(EVEN), random_params(EVEN)
    state = {name: value.astype(np.float64) for name, value in published_state(EVEN, params).items()}
    for graph in small_graphs():
        n = len(graph.nodes)
        x = np.random.default_rng(5).normal(size=(80, CONFIG.hid)).astype(np.float32)
        table, items = decoder_table(graph, max_dense=320, max_depth=192, max_shape=EVEN.max_shape)
        tiles = jax.jit(partial(ghn.apply, method='decode'), compiler_options=QUICK)(
            {'params': params}, x, table
        )
        fast = tile_parameters(tiles, items, graph)
        slow = fast
        if graph.spec.name == 'bnfree':
            slow = predict_tensors(params['decoder'], x[:n], graph, centred=True)
        for p in graph.parameters:
            expected = decoded(state, x[p.node].astype(np.float64), p, kind_of(p, graph))
            for ours in (fast, slow):
                np.testing.assert_allclose(ours[p.name], expected, rtol=1e-4, atol=1e-5, err_msg=p.name)
