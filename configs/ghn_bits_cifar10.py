"""One GHN for every bit-width on CIFAR-10: it is told the bits of each tensor and predicts weights for them.

    python -m ghn_jax.train --config=configs/ghn_bits_cifar10.py --workdir=runs/bits
    python -m ghn_jax.evaluate --workdir=runs/bits --bits=w32a32,w8a8,w4a8,w4a4,w2a2 --policy=policy.json

Half of the networks run at one width of weights and one of activations, half at widths drawn for each layer.
From a float run: --config.init_from=runs/ghn2. The same training without being told: --config.ghn.bits=False.
Result: none yet.
"""

from ghn_jax import config


def get_config():
    c = config.default()
    c.ghn.bits = True
    c.quant.mode = 'qat'
    widths = (2, 3, 4, 6, 8, 32)
    c.quant.draw = tuple(f'w{w}a{a}' for w in widths for a in widths)
    c.quant.draw_per = 'either'
    # At 2 bits these decide; at 4 and more they cost nothing (docs/results.md).
    c.quant.weight_range = c.quant.activation_range = 'sigma'
    c.eval.bits = ('w8a8', 'w4a4', 'w2a2')
    return c
