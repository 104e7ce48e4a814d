"""A first GHN in minutes on two CPU cores: small networks, 16-pixel handwritten digits, W4/A4 training.

    bash launch/quickstart.sh
    python -m ghn_jax.train --config=configs/quickstart.py --workdir=runs/digits

The script trains for 250 steps instead of 700, with a larger rate and a shorter warm-up, in W4/A4 and in
float beside it, both with ranges of standard deviations, and scores both: some five minutes on two cores,
installation included. Results of both lengths are in docs/results.md.
"""

from ghn_jax import config


def get_config():
    c = config.default()
    c.dataset = 'digits'
    c.image_size = 16

    # Small networks of few kinds: a network takes milliseconds, their program less than a minute to compile.
    c.space.cells = (3, 5)
    c.space.max_steps = 2
    c.space.ops = ('none', 'max_pool_3x3', 'skip_connect', 'sep_conv_3x3', 'conv_1x1', 'conv_3x3')
    c.space.channels = (16,)
    c.space.fc_dims = (64,)
    c.space.ks = (3,)
    c.space.C_mults = (1,)
    c.space.norms = ('bnorm',)  # half of networks this small would have none, and take longer to learn
    c.space.flat_head_share = 0.0  # images are smaller than 32 pixels

    c.ghn.hid = 32

    c.quant.mode = 'qat'
    c.quant.bits = 'w4a4'  # from the first step on: float first was worse, see docs/results.md

    c.train.steps = 700  # 37 epochs of 1,197 images
    c.train.meta_batch = 4
    c.train.optimizer = 'muon'  # from here on the recipe of docs/results.md, `winners` of recipe.json
    c.train.learning_rate = 5e-3
    c.train.schedule = 'cosine'
    c.train.warmup_steps = 50
    c.train.network_clip_norm = 2.0
    c.train.augment = False  # shifts by 4 of 16 pixels would need a longer training

    c.log_every_steps = 20
    c.save_every_steps = 100
    c.eval.every_steps = 0
    c.eval.num_networks = 10
    c.eval.num_images = 300
    c.devices.per_process = 1  # these networks are too small to share out
    c.program.max_nodes = 160
    return c
