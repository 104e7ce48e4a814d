"""What the refinements add to the gradient, against autodiff of the formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ghn_jax import config
from ghn_jax.assembly.network_batch import prepare
from ghn_jax.cnn import executor
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.reference import apply_reference
from ghn_jax.cnn.weight_quantization import add_norm_gradient
from ghn_jax.hypernet.ghn import GHN, GHNConfig, init_params, predict_parameters
from ghn_jax.networks.graph import build_graph
from ghn_jax.quant import Policy
from ghn_jax.quant.policy import parse_bits, quantizable
from ghn_jax.quant.scheme import QAT
from ghn_jax.training.refinements import AS_PUBLISHED, Refinements, distilled, refinements_of, targets
from ghn_jax.training.step import _share_of_mean, meta_gradients
from tests.cnn.comparison import QUICK
from tests.cnn.networks import random_parameters, small_network
from tests.training.test_step import SPECS, data, double, float64_workspace, gradient_errors, in_float64

BITS = parse_bits('w8a8')
NETWORK = small_network([('sep_conv_3x3', 0), ('conv_1x1', 1)], C=16, fc_layers=2, fc_dim=24)


def weights_of(tensors):
    """The convolutions and linear weights among a network's tensors."""
    return {name: tensors[name] for name in quantizable((name, w.shape) for name, w in tensors.items())}


def test_the_penalty_is_of_the_norms_of_all_weights_and_of_no_norm_or_bias():
    program = build_program([NETWORK], image_size=8, max_params=1e6)
    layout, tensors = program.layout(NETWORK), random_parameters(NETWORK, 0)
    flat = jnp.asarray(program.pack(layout, tensors))
    count = len(program.bits(layout, Policy()).weights)
    g = np.random.default_rng(0).normal(size=flat.shape).astype(np.float32)
    found = jax.jit(add_norm_gradient, static_argnums=2)(flat, layout.tables, count, jnp.asarray(g), 0.25) - g
    expected = {
        name: 0.25 * w / np.linalg.norm(w) if name in weights_of(tensors) else np.zeros_like(w)
        for name, w in tensors.items()
    }
    np.testing.assert_allclose(found, program.pack(layout, expected), atol=1e-6)
    assert len(weights_of(tensors)) >= 6


def test_smoothed_labels_are_spread_over_all_classes():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, 10)), jnp.float32)
    labels = jnp.arange(6)
    log_p = jax.nn.log_softmax(logits)
    of_label = -log_p[jnp.arange(6), labels].mean()
    for smoothing in (0.0, 0.1, 1.0):
        expected = (1 - smoothing) * of_label - smoothing * log_p.mean()
        found = executor._cross_entropy(logits, targets(labels, 10, smoothing), None)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_distilled_label_is_in_part_what_the_teacher_says():
    rng = np.random.default_rng(0)
    teacher = jnp.asarray(rng.normal(size=(6, 10)), jnp.float32)
    labels = jnp.arange(6)
    p = np.exp(teacher) / np.exp(teacher).sum(1, keepdims=True)
    for given in (labels, jax.nn.one_hot(labels, 10)):
        for share in (0.0, 0.25, 1.0):
            expected = (1 - share) * np.eye(10)[:6] + share * p
            np.testing.assert_allclose(distilled(given, teacher, share), expected, atol=1e-6)
    assert not jax.grad(lambda t: distilled(labels, t, 0.5)[0, 0])(teacher).any()


def test_a_gradient_is_divided_by_the_loss_before_it_is_clipped():
    gradient = {'a': jnp.full((4,), 3.0)}, jnp.ones((2, 2))  # norms 6 and 2
    for loss, power, clip in ((4.0, 1.0, 0.0), (4.0, 0.5, 0.0), (4.0, 0.5, 1.5), (0.25, 1.0, 100.0)):
        refinements = Refinements(loss_power=power, network_clip_norm=clip)
        (by_params, by_x), finite = _share_of_mean(gradient, jnp.float32(loss), 2, refinements, None)
        scale = loss**-power
        scale *= min(1, clip / (6 * scale)) if clip else 1
        np.testing.assert_allclose(by_params['a'], 3 * scale / 2, rtol=1e-2)
        np.testing.assert_allclose(by_x, scale / 2, rtol=1e-2)
        assert finite


def test_a_config_says_all_of_the_refinements_and_by_default_none_of_it():
    assert refinements_of(config.RunConfig()) == AS_PUBLISHED == Refinements()
    c = config.replace(config.RunConfig(), 'train.ema', 0.5)
    assert refinements_of(config.replace(c, 'train.label_smoothing', 0.1)) == Refinements(
        ema=0.5, label_smoothing=0.1
    )


@pytest.mark.slow
def test_the_gradient_is_that_of_the_smoothed_distilled_and_penalised_loss_of_each_network_clipped():
    specs, ghn = [SPECS[0], SPECS[2]], GHN(GHNConfig(hid=8))
    program = build_program(specs, image_size=8, max_params=1e6)
    params = init_params(ghn.config, jax.random.key(0))
    with jax.enable_x64(True):
        images, labels = data()
        smooth = optax.smooth_labels(jax.nn.one_hot(labels, 10, dtype=jnp.float64), 0.1)

        def loss(params, spec):
            tensors = predict_parameters(ghn, params, build_graph(spec))
            logits = apply_reference(spec, tensors, images, policy=BITS, scheme=QAT)
            teacher = apply_reference(spec, jax.lax.stop_gradient(tensors), images, policy=Policy())
            goals = 0.7 * smooth + 0.3 * jax.nn.softmax(jax.lax.stop_gradient(teacher))
            norms = sum(jnp.linalg.norm(w.ravel()) for w in weights_of(tensors).values())
            return jnp.mean(optax.softmax_cross_entropy(logits, goals)) + 0.01 * norms

        each = [
            jax.jit(jax.grad(functools.partial(loss, spec=spec)), compiler_options=QUICK)(double(params))
            for spec in specs
        ]
        norms = [float(optax.tree.norm(g['decoder'])) for g in each]
        clip = float(np.mean(norms))  # one is clipped, one is not
        expected = jax.tree.map(lambda *g: sum(x * min(1, clip / n) for x, n in zip(g, norms)) / 2, *each)
        refinements = Refinements(
            label_smoothing=0.1, distillation=0.3, network_clip_norm=clip, weight_penalty=0.01
        )
        run = functools.partial(
            meta_gradients, program, ghn, scheme=QAT, dropout=0.0, refinements=refinements
        )
        networks, _ = prepare(program, specs, (BITS, BITS), max_nodes=96)
        gradients, _, _ = jax.jit(run, compiler_options=QUICK)(
            double(params), in_float64(program, networks, specs), images, labels,
            workspace=float64_workspace(program), key=jax.random.key(0),
        )  # fmt: skip
    assert min(norms) < clip < max(norms)
    off = {name: e for name, e in gradient_errors(gradients, expected).items() if not e < 1e-9}
    assert not off
