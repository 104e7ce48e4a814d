"""Seconds, on synthetic images: the whole of a run for the tests, and for trying a change.

python -m ghn_jax.train --config=configs/test.py --workdir=runs/test
"""

from ghn_jax import config


def get_config():
    c = config.default()
    c.dataset = 'synthetic'
    c.image_size = 8

    c.space.cells = (2, 3)
    c.space.max_steps = 1
    c.space.ops = ('skip_connect', 'max_pool_3x3', 'conv_1x1', 'sep_conv_3x3')
    c.space.channels = (16,)
    c.space.fc_dims = (64,)
    c.space.ks = (3,)
    c.space.C_mults = (1,)
    c.space.flat_head_share = 0.0

    c.ghn.hid = 8

    c.quant.mode = 'qat'
    c.quant.bits = 'w4a4'

    c.train.steps = 6
    c.train.meta_batch = 2
    c.train.batch_size = 4
    c.train.schedule = 'constant'

    c.log_every_steps = 1
    c.save_every_steps = 3
    c.eval.every_steps = 3
    c.eval.num_networks = 2
    c.eval.num_images = 16
    c.devices.per_process = 1
    c.program.max_nodes = 96
    return c
