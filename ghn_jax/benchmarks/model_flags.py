"""Flags of `models`: which models of your own are traced, predicted, trained and compared, and how."""

from collections.abc import Callable
from typing import Any

from absl import flags

from ghn_jax.base import bounds
from ghn_jax.models.folding import BATCH_NORMS
from ghn_jax.runs import scheme_flags, source_flags

flags.disclaim_key_flags()  # --help shows them as the flags of the command that defines them


def define_flags() -> Callable[[], dict[str, Any]]:
    """Define the flags; what is returned reads them, once parsed, as fields of `BenchmarkOptions`."""
    models = flags.DEFINE_list(
        'models', [], 'Your own models, for `models`: a list of PACKAGE.MODULE:FUNCTION.'
    )
    workdir = flags.DEFINE_string(
        'workdir',
        'zoo:digits-bits',
        'Run whose hypernetwork predicts the parameters of --models: a directory, or zoo:NAME.',
    )
    data_dir = source_flags.define_data_dir()
    agreement = flags.DEFINE_list(
        'agreement',
        [],
        'Also run the ONNX files of --models in onnxruntime, at these bits, as in float,w8a8.',
    )
    epochs = bounds.define_integer(
        'epochs',
        None,
        'Before --agreement, train each model in float for so many passes over the training images.',
    )
    batch_norm = flags.DEFINE_enum(
        'bn',
        BATCH_NORMS[0],
        BATCH_NORMS,
        'Statistics of batch norms in the files of --agreement, as in ghn_jax.export.',
    )
    scheme = scheme_flags.define_scheme_flags()
    return lambda: {
        'models': tuple(models.value),
        'workdir': workdir.value,
        'data_dir': data_dir.value,
        'agreement': tuple(agreement.value),
        'epochs': epochs.value,
        'batch_norm': batch_norm.value,
        'scheme': scheme(),
    }
