"""StableHLO: a frozen network as JAX serialises it, for CPUs, GPUs and TPUs."""

import importlib.util

from ghn_jax.base.errors import UserError
from ghn_jax.export.freezing import Frozen

PLATFORMS = ('cpu', 'cuda', 'tpu')


def check_stablehlo() -> None:
    """Raise UserError where flatbuffers, which JAX serialises programs with, is not installed."""
    if importlib.util.find_spec('flatbuffers') is None:
        raise UserError(
            'StableHLO needs flatbuffers, which is not installed: pip install "ghn-jax[stablehlo]"'
        )


def to_stablehlo(frozen: Frozen) -> bytes:
    """Serialise a frozen network, its constants inside, for any number of images.

    Any process with JAX runs it, without this package:

        exported = jax.export.deserialize(bytearray(open('net.stablehlo', 'rb').read()))
        logits = exported.call(images)

    `exported.mlir_module()` is the StableHLO. JAX promises to read such a file for six months at least, see
    `jax.export`.

    Returns:
      The contents of the file.

    Raises:
      UserError: as `check_stablehlo`.
    """
    check_stablehlo()
    return bytes(frozen.exported(*PLATFORMS).serialize())
