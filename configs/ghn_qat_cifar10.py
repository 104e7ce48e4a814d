"""GHN-QAT on CIFAR-10: every predicted network runs with quantized weights and activations in training, too.

    python -m ghn_jax.train --config=configs/ghn_qat_cifar10.py --workdir=runs/qat_w4a4
    python -m ghn_jax.evaluate --workdir=runs/qat_w4a4 --bits=w32a32,w8a8,w4a8,w4a4,w2a2

Other bits: --config.quant.bits=w2a2. Noise in place of rounding: --config.quant.mode=noise.
Result: none at full size yet; a small run is in docs/results.md.
"""

from ghn_jax import config


def get_config():
    c = config.default()
    c.quant.mode = 'qat'
    c.quant.bits = 'w4a4'
    return c
