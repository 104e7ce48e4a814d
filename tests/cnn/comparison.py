"""The executor and the reference side by side: one network, one policy, both results in the same form."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ghn_jax.cnn import executor
from ghn_jax.cnn.lowering import lower
from ghn_jax.cnn.program import OP, Program
from ghn_jax.cnn.reference import apply_reference
from ghn_jax.cnn.weights import quantize_weights, quantize_weights_backward
from ghn_jax.networks.spec import IMAGE_SIZE, NetworkSpec
from ghn_jax.quant.policy import Policy
from tests.cnn.networks import random_images, random_parameters

# Less optimised machine code for the same operations: compiles in a third of the time.
QUICK = {'xla_backend_optimization_level': 0, 'xla_cpu_use_fusion_emitters': False}
Branch = tuple[tuple[int, int], tuple[int, int], tuple]


class Result(NamedTuple):
    loss: np.ndarray
    logits: np.ndarray
    gradients: dict[str, np.ndarray]


class Inputs(NamedTuple):
    params: dict[str, np.ndarray]
    images: np.ndarray
    labels: np.ndarray


def make_inputs(spec: NetworkSpec, seed: int, *, size: int, batch: int, dtype: str = 'float64') -> Inputs:
    """Weights, images and labels; flattened heads get a first layer that fits images of this size."""
    params = random_parameters(spec, seed, dtype)
    if not spec.glob_avg:  # [out, (channel, row, column)] for 32x32 images
        w = params['classifier.0.weight']
        params['classifier.0.weight'] = np.ascontiguousarray(w[:, :: (IMAGE_SIZE // size) ** 2])
    labels = np.random.default_rng(seed).integers(0, spec.num_classes, batch)
    return Inputs(params, random_images(batch, seed, size=size, dtype=dtype), labels)


class Executor:
    """A program compiled once for batches of one size, with the workspace of its last network kept."""

    def __init__(self, program: Program, *, batch: int, dtype: Any, mode: str = 'qat', options=QUICK, **fixed):
        self.program, self.batch, self.dtype = program, batch, dtype

        @functools.partial(jax.jit, donate_argnums=5, compiler_options=options)
        def run(flat, tables, bits, images, labels, workspace, quantized, key):
            w = flat
            if mode != 'float':
                w = quantize_weights(flat, tables, bits.weights, quantized, mode=mode, key=key)
            loss, logits, g, workspace = executor.loss_and_gradients(
                program, w, tables, bits, images, labels, workspace, mode=mode, key=key, **fixed
            )
            if mode != 'float':
                g = quantize_weights_backward(flat, tables, bits.weights, g, mode=mode, key=key)
            return loss, logits, g, workspace._replace(weights=jnp.zeros_like(g))

        self._run = run
        self.workspace = executor.make_workspace(program, batch, dtype)

    def fill(self, value: float) -> None:
        """Every buffer becomes `value`."""
        self.workspace = jax.tree.map(lambda x: jnp.full_like(x, value), self.workspace)

    def __call__(self, spec: NetworkSpec, inputs: Inputs, policy: Policy = Policy(), seed: int = 0) -> Result:
        layout = self.program.layout(spec)
        flat = self.program.pack(layout, inputs.params, self.dtype)
        loss, logits, g, self.workspace = self._run(
            flat, layout.tables, self.program.bits(layout, policy), inputs.images, inputs.labels, self.workspace,
            np.zeros_like(flat), jax.random.key(seed),
        )  # fmt: skip
        shapes = {name: w.shape for name, w in inputs.params.items()}
        return Result(np.asarray(loss), np.asarray(logits), self.program.unpack(layout, np.asarray(g), shapes))


def reference(spec: NetworkSpec, inputs: Inputs, policy: Policy = Policy(), **options) -> Result:
    """The same from the reference and autodiff, layer by layer."""

    def loss(params):
        logits = apply_reference(spec, params, inputs.images, policy=policy, **options)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, inputs.labels)), logits

    (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(inputs.params)
    return Result(np.asarray(value), np.asarray(logits), {k: np.asarray(g) for k, g in gradients.items()})


def relative_error(x: np.ndarray, y: np.ndarray, floor: float = 0.0) -> float:
    """||x - y|| / max(||y||, floor)."""
    difference = float(np.linalg.norm(np.subtract(x, y)))
    return difference / max(float(np.linalg.norm(y)), floor) if difference else 0.0


def errors(result: Result, expected: Result) -> dict[str, float]:
    """Relative errors of loss, logits and every gradient.

    A gradient that cancels to less than a millionth of the largest one is measured by that millionth.
    """
    floor = 1e-6 * max(float(np.linalg.norm(g)) for g in expected.gradients.values())
    out = {f: relative_error(getattr(result, f), getattr(expected, f)) for f in ('loss', 'logits')}
    assert result.gradients.keys() == expected.gradients.keys()
    return out | {k: relative_error(g, expected.gradients[k], floor) for k, g in result.gradients.items()}


# ---- which branches a network uses


def branches(program: Program) -> set[Branch]:
    """All (source class, destination class, op) of a program."""
    return {(s.src, s.dst, op) for s in program.segments for op in s.ops}


def used_branches(program: Program, spec: NetworkSpec) -> set[Branch]:
    """Those that a network's table names."""
    tables = program.layout(spec).tables
    used = set()
    for k, segment in enumerate(program.segments):
        rows = tables.rows[tables.bounds[k] : tables.bounds[k + 1]]
        used |= {(segment.src, segment.dst, segment.ops[i]) for i in rows[:, OP]}
    return used


def lowered_branches(spec: NetworkSpec, size: int) -> set[Branch]:
    """The same without a program."""
    net = lower(spec, size)
    return {(net.classes[i.src], net.classes[i.dst], i.op) for i in net.instructions}


def cover(sample: Sequence[NetworkSpec], pool: Iterable[NetworkSpec], size: int) -> list[NetworkSpec]:
    """The sample, and of the pool, greedily, what covers all branches that the pool has and the sample lacks."""
    chosen = list(sample)
    done = set().union(*(lowered_branches(spec, size) for spec in sample)) if sample else set()
    left = [(lowered_branches(spec, size), spec) for spec in pool]
    while True:
        # Of equals the smallest: small networks are quick.
        gain, spec = max(left, key=lambda pair: (len(pair[0] - done), -pair[1].n_cells, -len(pair[0])))
        if not gain - done:
            return chosen
        chosen.append(dataclasses.replace(spec, name=f'covering-{len(chosen)}'))
        done |= gain
