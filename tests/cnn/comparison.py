"""The executor and the reference side by side: one network, one policy, results in one form."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ghn_jax.cnn import executor
from ghn_jax.cnn.instructions import Kind
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.reference import apply_reference
from ghn_jax.cnn.tables import ACCUMULATE, OP, PARTS, SEEN, RunnableNetwork
from ghn_jax.cnn.weight_quantization import quantize_weights, quantize_weights_backward
from ghn_jax.networks.spec import IMAGE_SIZE, NetworkSpec
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.scheme import QAT, Scheme
from tests import quick_compiler
from tests.cnn.networks import random_images, random_parameters

QUICK = quick_compiler.OPTIONS
FLOAT = Policy()
Branch = tuple[tuple[int, int], tuple[int, int], Kind]  # source class, destination class, op


class Inputs(NamedTuple):
    params: dict[str, np.ndarray]
    images: np.ndarray
    labels: np.ndarray


class Result(NamedTuple):
    loss: np.ndarray
    logits: np.ndarray
    gradients: dict[str, np.ndarray]


def make_inputs(spec: NetworkSpec, seed: int, *, size: int, batch: int, dtype: str = 'float64') -> Inputs:
    """Weights, images and labels; flattened heads get a first layer that fits images of this size."""
    params = random_parameters(spec, seed, dtype)
    if not spec.glob_avg:  # [out, (channel, row, column)] for images of IMAGE_SIZE
        factor = (IMAGE_SIZE // size) ** 2
        params['classifier.0.weight'] = np.ascontiguousarray(params['classifier.0.weight'][:, ::factor])
    labels = np.random.default_rng(seed).integers(0, spec.num_classes, batch)
    return Inputs(params, random_images(batch, seed, size=size, dtype=dtype), labels)


class Executor:
    """A program compiled once, at the first call; its buffers keep what the last network left there.

    scheme, dropout: as for `executor.loss_and_gradients`. dtype: of the tapes. flat_dtype: of the weights, if
    another. text: the compiled program.
    """

    def __init__(
        self, program: Program, *, batch: int, dtype: Any = 'float64', scheme: Scheme = QAT,
        dropout: float = 0.0, flat_dtype: Any = None, options: dict[str, Any] = QUICK,
    ):  # fmt: skip
        @functools.partial(jax.jit, donate_argnums=(5, 6))
        def run(flat, tables, bits, images, labels, workspace, quantized, key):
            grid = None
            if scheme.mode != 'float':
                quantized, grid = quantize_weights(
                    flat, tables, bits.weights, quantized, scheme=scheme, key=key
                )
            loss, logits, g, workspace = executor.loss_and_gradients(
                program, RunnableNetwork(flat if grid is None else quantized, tables, bits), images, labels,
                workspace, scheme=scheme, key=key, dropout=dropout,
            )  # fmt: skip
            if grid is not None:
                g = quantize_weights_backward(flat, tables, bits.weights, g, grid, scheme=scheme, key=key)
            return loss, logits, workspace._replace(weights=g), quantized

        self.program, self.dtype = program, flat_dtype or dtype
        self.compile = lambda args: run.lower(*args).compile(options)
        self.compiled = None
        workspace = executor.make_tapes(program, batch, dtype)
        self.buffers = workspace, jnp.zeros_like(workspace.weights)

    @property
    def text(self) -> str:
        return self.compiled.as_text()

    def fill(self, value: float) -> None:
        """Every element of every buffer becomes `value`."""
        self.buffers = jax.tree.map(lambda x: jnp.full_like(x, value), self.buffers)

    def __call__(self, spec: NetworkSpec, inputs: Inputs, policy: Policy = FLOAT, seed: int = 0) -> Result:
        layout = self.program.layout(spec)
        flat = self.program.pack(layout, inputs.params, self.dtype)
        bits = self.program.bits(layout, policy)
        args = flat, layout.tables, bits, inputs.images, inputs.labels, *self.buffers, jax.random.key(seed)
        args = jax.tree.map(jnp.asarray, args)
        if self.compiled is None:
            self.compiled = self.compile(args)
        loss, logits, *self.buffers = self.compiled(*args)
        shapes = {name: w.shape for name, w in inputs.params.items()}
        gradients = self.program.unpack(layout, np.asarray(self.buffers[0].weights), shapes)
        return Result(np.asarray(loss), np.asarray(logits), gradients)


def reference(spec: NetworkSpec, inputs: Inputs, policy: Policy = FLOAT, **options) -> Result:
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
    """Relative errors (norms) of the loss, the logits and every gradient.

    A gradient that cancels to less than a millionth of the largest one is measured by that millionth.
    """
    floor = 1e-6 * max(float(np.linalg.norm(g)) for g in expected.gradients.values())
    out = {f: relative_error(getattr(result, f), getattr(expected, f)) for f in ('loss', 'logits')}
    assert result.gradients.keys() == expected.gradients.keys()
    return out | {k: relative_error(g, expected.gradients[k], floor) for k, g in result.gradients.items()}


def assert_close(result: Result, expected: Result, tolerance: float, what: object = '') -> None:
    """All of `errors` are below the tolerance (not-a-number is not)."""
    off = {name: e for name, e in errors(result, expected).items() if not e < tolerance}
    assert not off, f'{what}: {len(off)} differ, such as {dict(list(off.items())[:5])}'


def assert_identical(a: Any, b: Any) -> None:
    """Two results, or trees of arrays, bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


# ---- compiled text


def tape_copies(text: str, shapes: set[tuple[int, ...]]) -> list[str]:
    """Lines of a compiled program that copy an array of one of the shapes."""
    copies = (
        (line, re.search(r' = \(?\w+\[([\d,]+)\].* copy(-start)?\(', line)) for line in text.splitlines()
    )
    return [
        line.strip() for line, match in copies if match and tuple(map(int, match[1].split(','))) in shapes
    ]


def assert_no_tape_copies(executor: Executor, batch: int) -> None:
    """The compiled program copies none of its tapes."""
    shapes = {(slots, batch, h, h, c) for (h, c), slots in executor.program.slots.items()}
    assert all(f'[{",".join(map(str, shape))}]' in executor.text for shape in shapes)
    assert tape_copies(executor.text, shapes) == []


# ---- which branches a network uses


def branches(program: Program) -> set[Branch]:
    """All branches of a program."""
    return {(s.src, s.dst, op) for s in program.segments for op in s.ops}


def used_branches(program: Program, spec: NetworkSpec) -> set[Branch]:
    """Those that the rows of a network's table take."""
    tables = program.layout(spec).tables
    used = set()
    for k, segment in enumerate(program.segments):
        rows = tables.rows[tables.bounds[k] : tables.bounds[k + 1]]
        used |= {(segment.src, segment.dst, segment.ops[i]) for i in rows[:, OP]}
    return used


def traits(program: Program, spec: NetworkSpec) -> set:
    """What of a program, of the flags of its table and of the fields of networks a network uses.

    Its branches; whether their results are added to what is there, forward and backward, and how many values
    they are quantized with; its stem, head, widening and concatenations.
    """
    tables, used = program.layout(spec).tables, used_branches(program, spec)
    for k, segment in enumerate(program.segments):
        for row in tables.rows[tables.bounds[k] : tables.bounds[k + 1]]:
            op = segment.ops[row[OP]]
            used |= {('adds', op, row[ACCUMULATE]), ('seen', op, row[SEEN]), ('parts', op, row[PARTS])}
    cells = spec.genotype
    return used | {
        ('head', *program.heads[tables.head.variant]),
        ('layers', spec.glob_avg, spec.fc_layers),
        ('hidden', spec.fc_dim if spec.fc_layers == 2 else None),
        ('stem', spec.stem_type, spec.stem_pool, spec.ks),
        ('norm', spec.norm),
        ('widening', spec.C_mult),
        ('deep', spec.n_cells > 20),
        ('concat', len(cells.normal_concat)),
        ('concat', len(cells.reduce_concat)),
        *(('op', op) for op in cells.ops),
    }


def cover(candidates: Iterable[NetworkSpec], traits: Callable[[NetworkSpec], set]) -> list[NetworkSpec]:
    """Greedily, networks that together have every trait that any of the candidates has; few cells in all."""
    left = [(traits(spec), spec) for spec in candidates]
    chosen, done = [], set()
    gain = lambda pair: len(pair[0] - done) / (4 + pair[1].n_cells)
    while True:
        found, spec = max(left, key=gain)
        if found <= done:
            return chosen
        chosen.append(dataclasses.replace(spec, name=f'{spec.name or "covering"} ({len(chosen)})'))
        done |= found
