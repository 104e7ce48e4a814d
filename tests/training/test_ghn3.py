"""GHN-3 where a GHN-2 is used: trained by the same step, told the bits, predicting and scored."""

import jax
import numpy as np
import pytest

import ghn_jax
from ghn_jax.base.jsonlines import read_jsonl
from ghn_jax.hypernet.ghn import init_params
from ghn_jax.runs import task
from ghn_jax.training.train import train
from tests.small_run import small_config


@pytest.mark.slow
def test_a_ghn3_trains_through_quantization_predicts_and_is_scored(tmp_path):
    c = small_config(draw=('w2a2', 'w4a4'), draw_per='layer')
    c.ghn.update({'hypernet': 'graphormer', 'layers': 2, 'heads': 2, 'bits': True})
    c.train.update({'steps': 3, 'optimizer': 'adamw', 'learning_rate': 1e-2, 'schedule': 'constant'})
    c.log_every_steps, c.eval.every_steps = 1, 0
    state = train(c, tmp_path)
    assert all(np.isfinite(row['train/loss']) for row in read_jsonl(tmp_path / 'metrics.jsonl'))
    start = init_params(task.make_ghn(ghn_jax.config.freeze(c)).config, jax.random.key(0))
    for part in ('layers', 'bias'):
        for before, after in zip(*(jax.tree.leaves(p['gnn'][part]) for p in (start, state.params))):
            assert not np.array_equal(before, after)
    hypernetwork = ghn_jax.load(tmp_path)
    network = hypernetwork.space.sample('test', seed=0, index=0)
    weights = [hypernetwork.predict(network, ghn_jax.parse_bits(bits)) for bits in ('w2a2', 'w8a8')]
    assert all(np.isfinite(w).all() for w in weights[0].values())
    first = next(iter(weights[0]))  # of the stem
    assert not np.array_equal(weights[0][first], weights[1][first])
    result = ghn_jax.evaluate(hypernetwork, bits=('w4a4',), num_networks=2, num_images=16, batch_size=8)
    assert result['rows'][0]['n'] == 2
