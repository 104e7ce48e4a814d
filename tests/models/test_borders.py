"""Why a traced network and the executor differ where they round: values on the border of two levels.

Both run one network, calibrated with the same folded weights and ranges, or by those of each batch. All that
is left to differ is how sums are added up: by 1e-7 in float32, which a border between two levels turns into a
whole level, and by 1e-16 in float64, where no value lies so near to a border.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ghn_jax
from ghn_jax.cnn import executor
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.deploy import observer
from ghn_jax.cnn.instructions import Norm
from ghn_jax.cnn.program import Layout
from ghn_jax.cnn.reference import apply_reference
from ghn_jax.cnn.tables import RunnableNetwork
from ghn_jax.cnn.weight_quantization import quantize_weights
from ghn_jax.models.folding import Calibrated, calibrate
from ghn_jax.networks.counts import count_parameters

BATCH, IMAGES = 60, 180


def folded_parameters(layout: Layout, params: Mapping[str, Any], of: Calibrated) -> dict[str, np.ndarray]:
    """The parameters of a network whose norms only add the biases of a calibrated model."""
    out = {name: np.asarray(value) for name, value in (dict(params) | dict(of.weights)).items()}
    for norm in (i for i in layout.instructions if i.op == Norm()):
        scale, shift = (piece.name for piece in norm.pieces)
        before = (i for i in layout.instructions if i.dst == norm.src)
        layers = dict.fromkeys(piece.name for i in before for piece in i.pieces[i.op.normed])
        assert scale is not None and shift is not None
        out[scale] = np.ones_like(out[scale])
        out[shift] = np.concatenate([of.biases[layer] for layer in layers])  # type: ignore[index]
    return out


class Both:
    """A network of the digits by both, calibrated once or by the statistics of each batch."""

    def __init__(self, bits: str, how: str):
        hypernetwork = ghn_jax.load('zoo:digits-bits')
        self.scheme, self.policy = hypernetwork.scheme, hypernetwork.used(ghn_jax.parse_bits(bits))
        self.spec = hypernetwork.space.sample('test', seed=0, index=0)
        self.model, data = ghn_jax.trace(self.spec, (1, 16, 16, 3)), hypernetwork.load_data()
        self.params = hypernetwork.predict(self.model, self.policy)
        batches = list(map(jnp.asarray, np.split(data.normalized('train', 4 * BATCH), 4)))
        self.calibrated = None
        if how == 'calibrated':
            self.calibrated = calibrate(
                self.model, self.params, batches, self.policy, scheme=self.scheme, batch_norm=how
            )
        self.images = np.split(data.normalized('test', IMAGES), IMAGES // BATCH)

    def of_model(self, dtype: Any) -> np.ndarray:
        shapes = {name: jax.ShapeDtypeStruct(a.shape, dtype) for name, a in self.model.params.items()}
        plain = lambda params, x: apply_reference(self.spec, params, x)
        model = ghn_jax.trace(plain, (1, 16, 16, 3), params=shapes, dtype=dtype)
        cast = lambda tree: jax.tree.map(lambda a: np.asarray(a, dtype), tree)
        if self.calibrated is not None:
            arrays = dataclasses.replace(cast(self.calibrated), model=model)
            compute = lambda of, x: of.apply(x, of.quantizer(self.policy, self.scheme))
        else:
            arrays, quantizer = cast(self.params), model.quantizer(self.policy, self.scheme)
            compute = lambda params, x: model.apply(params, x, quantizer)
        compute = jax.jit(compute)
        return np.concatenate([compute(arrays, x.astype(dtype)) for x in self.images])

    def of_executor(self, dtype: Any) -> np.ndarray:
        program = build_program([self.spec], image_size=16, max_params=count_parameters(self.spec))
        layout = program.layout(self.spec)
        params, tables, ranges = self.params, layout.tables, None
        if self.calibrated is not None:
            tables = tables._replace(has_norm=np.float32(0))
            params = folded_parameters(layout, params, self.calibrated)
            lo, hi = np.zeros((2, program.capacity.tensors), dtype)
            for name, pair in self.calibrated.ranges.items():
                lo[layout.tensors[name]], hi[layout.tensors[name]] = pair
            ranges = observer.make_ranges(observer.make_index(program, layout), lo, hi)
        named = {name: np.asarray(value) for name, value in params.items()}
        weights, bits = program.pack(layout, named, dtype), program.bits(layout, self.policy)
        tapes = executor.make_tapes(program, BATCH, dtype, train=False)

        @jax.jit
        def forward(weights, tables, bits, x, tapes, ranges):
            rounded, _ = quantize_weights(
                weights, tables, bits.weights, jnp.zeros_like(weights), scheme=self.scheme
            )
            network = RunnableNetwork(rounded, tables, bits, ranges)
            return executor.forward(program, network, x, tapes, scheme=self.scheme)[0]

        of = lambda x: forward(weights, tables, bits, x.astype(dtype), tapes, ranges)
        return np.concatenate([of(x) for x in self.images])


@pytest.mark.slow
@pytest.mark.parametrize('bits, how', [('w8a8', 'calibrated'), ('w8a8', 'batch'), ('w4a4', 'calibrated')])
def test_in_float64_rounded_logits_are_the_executors(bits, how, quick_reference):
    """And in float32 most are, where both are calibrated alike; a batch that has one other value has others
    of all of its images."""
    both, off = Both(bits, how), {}
    for dtype in (np.float64, np.float32):
        with jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext():
            found, expected = both.of_model(dtype), both.of_executor(dtype)
        assert found.dtype == expected.dtype == dtype
        off[dtype] = np.abs(found - expected).max(1) / np.abs(expected).max()
        print(bits, how, dtype.__name__, off[dtype].max(), np.mean(off[dtype] > 1e-5))
    assert off[np.float64].max() < 1e-9
    assert how == 'batch' or np.mean(off[np.float32] > 1e-5) < 0.05
