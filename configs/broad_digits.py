"""Many kinds of small networks on handwritten digits, for models of one's own: for a core in some hours.

    python -m ghn_jax.train --config=configs/broad_digits.py --workdir=runs/broad

The quickstart's networks are of one width, one size of kernel and six operations, all with norms, and what
learns on them knows little else. These have all operations of the space, 2 to 8 cells of up to 4 states, 16
or 32 channels that double at reductions or do not, and some no norms; two of five are plain, as people write
them: chains of one operation, residual or not. It is told the bits of every network,
which are drawn from float to two bits. The optimizer's settings are those of `zoo:digits-bits`.
"""

from ghn_jax import config


def get_config():
    c = config.default()
    c.dataset = 'digits'
    c.image_size = 16

    c.space.cells = (2, 8)
    c.space.channels = (16, 32)
    c.space.fc_dims = (64,)
    c.space.max_params = 500_000
    c.space.plain_share = 0.4
    c.space.flat_head_share = 0.0  # images are smaller than 32 pixels

    c.ghn.bits = True
    c.quant.mode = 'qat'
    c.quant.draw = ('float', 'w8a8', 'w4a4', 'w2a2')
    c.quant.edge_bits = 'w8a8'
    c.quant.weight_range = c.quant.activation_range = 'sigma'

    c.train.steps = 16_000
    c.train.meta_batch = 4
    c.train.batch_size = 32
    c.train.optimizer = 'muon'
    c.train.learning_rate = 3e-3
    c.train.weight_decay = 0.1
    c.train.schedule = 'cosine'
    c.train.warmup_steps = 200
    c.train.network_clip_norm = 2.0
    c.train.loss_power = 0.5
    c.train.augment = False  # as in the quickstart

    c.log_every_steps = 20
    c.save_every_steps = 250
    c.eval.every_steps = 0
    c.eval.bits = ('w8a8', 'w4a4', 'w2a2')
    c.eval.num_images = 300
    c.devices.per_process = 1
    return c
