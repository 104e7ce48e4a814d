"""GHN-2 on CIFAR-10, in float: the published settings on the convolutional space, full size.

    python -m ghn_jax.train --config=configs/ghn2_cifar10.py --workdir=runs/ghn2

For the published space with attention and squeeze-and-excitation: --config.space.name=deepnets1m.
Result: none yet.
"""

from ghn_jax import config


def get_config():
    return config.default()  # which is this run, key by key
