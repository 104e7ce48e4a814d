"""GHN-3 on CIFAR-10, in float: a graph transformer in place of GHN-2's graph network (arXiv 2303.04143).

    python -m ghn_jax.train --config=configs/ghn3_cifar10.py --workdir=runs/ghn3

The tiny model, GHN-3-T, and the settings that its authors give for CIFAR-10, where the paper has no number.
Larger ones: --config.ghn.hid=128 --config.ghn.layers=5 --config.ghn.heads=16 (S); the executor runs tiles of
64 channels, as here, whatever the width. Their penalty is of all predicted tensors, here of convolutions and
linear weights; their mixed precision is left out. The published space: --config.space.name=deepnets1m.
Result: none yet.
"""

from ghn_jax import config


def get_config():
    c = config.default()
    c.ghn.hypernet = 'graphormer'
    c.ghn.hid = 64
    c.ghn.layers = 3
    c.ghn.heads = 8

    c.train.optimizer = 'adamw'
    c.train.learning_rate = 4e-4
    c.train.weight_decay = 1e-2
    c.train.schedule = 'cosine'
    c.train.warmup_steps = 5 * 703  # 5 epochs
    c.train.weight_penalty = 3e-5
    return c
