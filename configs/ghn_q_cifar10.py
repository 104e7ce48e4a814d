"""GHN-Q on CIFAR-10: trained in float; its networks are quantized only when they are tested.

    python -m ghn_jax.train --config=configs/ghn_q_cifar10.py --workdir=runs/ghn_q
    python -m ghn_jax.evaluate --workdir=runs/ghn_q --bits=w32a32,w8a8,w4a8,w4a4,w2a2

The comparison for `ghn_qat_cifar10`: the same networks, images and steps.
Result: none yet.
"""

from ghn_jax import config


def get_config():
    c = config.default()
    c.quant.mode = 'float'
    return c
