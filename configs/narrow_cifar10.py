"""Networks of 16 channels on CIFAR-10, 4 to 8 cells, at most 300,000 parameters: for a core in half a day.

    python -m ghn_jax.train --config=configs/narrow_cifar10.py --workdir=runs/narrow_bits
    python -m ghn_jax.train --config=configs/narrow_cifar10.py --workdir=runs/narrow_float \
        --config.quant.mode=float --config.ghn.bits=False \
        --config.quant.weight_range=minmax --config.quant.activation_range=minmax
    python -m ghn_jax.train --config=configs/narrow_cifar10.py --workdir=runs/narrow_bits_32 \
        --config.init_from=runs/narrow_bits --config.seed=1 --config.train.steps=6000 \
        --config.train.small_images_steps=0 --config.train.learning_rate=2e-3

The first is told the bits of every network, which are drawn from float to two bits; the second is trained in
float and scored on the papers' grids, to compare with. Images are of 16 pixels until the last 1,500 steps.
The third goes on from the first with images of 32 pixels alone and a schedule of its own; a fourth does so
from the second. The optimizer's settings are those of `zoo:digits-bits`.
Result, of the last two: `zoo:cifar10-narrow-bits` and `zoo:cifar10-narrow-float`, with their scores in the
README and the claims of GHN-QAT in docs/results.md.
"""

from ghn_jax import config


def get_config():
    c = config.default()
    c.space.cells = (4, 8)
    c.space.channels = (16,)
    c.space.max_params = 300_000
    c.space.C_mults = (1,)
    c.space.flat_head_share = 0.0  # their weights depend on the size of images, which grows

    c.ghn.bits = True
    c.quant.mode = 'qat'
    c.quant.draw = ('float', 'w8a8', 'w4a4', 'w2a2')
    c.quant.edge_bits = 'w8a8'
    c.quant.weight_range = c.quant.activation_range = 'sigma'

    c.train.steps = 20_000
    c.train.small_images_steps = 18_500
    c.train.meta_batch = 4
    c.train.optimizer = 'muon'
    c.train.learning_rate = 3e-3
    c.train.weight_decay = 0.1
    c.train.schedule = 'cosine'
    c.train.warmup_steps = 200
    c.train.network_clip_norm = 2.0
    c.train.loss_power = 0.5

    c.log_every_steps = 20
    c.save_every_steps = 250
    c.eval.every_steps = 0
    c.eval.bits = ('w8a8', 'w4a4', 'w2a2')
    c.devices.per_process = 1
    return c
