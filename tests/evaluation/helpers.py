"""How much is evaluated, as fields of `EvaluationSpec`."""

from ghn_jax.evaluation.protocol import Protocol

# Few shapes, so few compilations: every test scores networks of one program on 2 batches of 16 images.
FLAGS = {'num_networks': 3, 'num_images': 40, 'batch_size': 16}
INTEGER = {
    'protocol': Protocol(batch_norm='corrected', ranges='calibrated', integer=16),
    'calibration_batches': 4,
}
