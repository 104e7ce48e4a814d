"""Many kinds of small networks on CIFAR-10, for models of one's own: for a core in some hours.

    python -m ghn_jax.train --config=configs/broad_cifar10.py --workdir=runs/broad

The networks and the recipe of `configs/broad_digits.py`. Images are of 16 pixels until the last 2,000 steps.
"""

import pathlib

from ghn_jax import config_file


def get_config():
    c = config_file.load(pathlib.Path(__file__).with_name('broad_digits.py'))
    c.dataset = 'cifar10'
    c.image_size = 32
    c.train.steps = 24_000
    c.train.small_images_steps = 22_000
    c.train.augment = True
    c.eval.num_images = 5_000
    return c
