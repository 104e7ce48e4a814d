"""For the tests of reports: an evaluation of random scores, with names that must not harm a page."""

import dataclasses
import math

import numpy as np

from ghn_jax.evaluation import results
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spaces import make_space
from ghn_jax.quant.policy import parse_bits
from ghn_jax.reporting import closeup

HOSTILE = '<script>alert("a")</script>\'&amp; $x$'
BITS = ('w32a32', 'w8a8', 'w4a4')
METRICS = [{'step': s, 'train/loss': 2.0 / s, 'train/accuracy': 0.1, 'val/top1_w4a4': 0.2} for s in (1, 2, 3)]


def make_networks(seed: int = 0):
    """(specs, networks of a result): random scores of small networks, in two splits."""
    space, rng = make_space('convnets250k', cells=(2, 3), channels=(16,)), np.random.default_rng(seed)
    specs = [
        dataclasses.replace(space.sample(s, 0, i), name=f'{s}-{i}') for s in ('test', 'val') for i in range(3)
    ]
    specs[1] = dataclasses.replace(specs[1], name=HOSTILE)
    networks = []
    for spec in specs:
        layers = [p.name for p in build_graph(spec).parameters if len(p.shape) > 1]
        scores = {}
        for bits in BITS:
            top1 = float(rng.uniform(10, 90))
            scores[bits] = {'top1': top1, 'top5': top1 + 5.0}
            if bits != BITS[0]:
                decibels = rng.uniform(5, 50, len(layers)).tolist()
                scores[bits] |= {
                    'sqnr_weights': 20.0, 'sqnr_weights_by_layer': decibels,
                    'sqnr_activations': 20.0, 'sqnr_activations_by_layer': [None, *decibels[1:]],
                }  # fmt: skip
        about = {'C': spec.C, 'n_cells': spec.n_cells, 'parameters': 1234, 'depth': 9, 'digest': spec.digest}
        split = 'test' if len(networks) < 3 else 'val'
        networks.append({'split': split, 'name': spec.name, 'layers': layers, 'scores': scores, **about})
    return specs, networks


def make_result(seed: int = 0):
    _, networks = make_networks(seed)
    protocol = {
        'workdir': HOSTILE, 'training': 'qat w4a4', 'step': 9, 'dataset': 'synthetic', 'note': HOSTILE,
        'image_split': 'test', 'images': 64, 'image_size': 8, 'num_classes': 10, 'batch_size': 16,
        'batch_norm': 'batch', 'ranges': 'batch', 'range_rule': None, 'calibration_images': None,
        'sqnr_images': 32, 'bits': list(BITS), 'policies': {b: parse_bits(b).to_dict() for b in BITS},
        'predicted_for': 'any', 'seed': 0,
    }  # fmt: skip
    return {'rows': results.make_rows(networks, BITS), 'networks': networks, 'protocol': protocol}


def make_layers() -> list[closeup.RoundedLayer]:
    """A layer rounded to 4 bits, and the same in float whose activations are all zero."""
    rng = np.random.default_rng(0)
    layer = closeup.RoundedLayer(
        name='stem.0.weight', bits=(4, 4), weights=rng.normal(size=90), rounded=rng.integers(-8, 8, 90) / 4,
        counts=np.ones(closeup.BINS), edges=np.linspace(0, 1, closeup.BINS + 1), decibels=(20.0, math.nan),
    )  # fmt: skip
    return [layer, dataclasses.replace(layer, bits=(32, 32), counts=np.zeros(closeup.BINS))]
