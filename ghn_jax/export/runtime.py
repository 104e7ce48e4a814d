"""onnxruntime: the options that a file needs there, and what it computes from a file."""

import importlib.util
import json

import numpy as np

from ghn_jax.base.errors import UserError
from ghn_jax.export.integers import Integers

OPTIONS = 'onnxruntime_session_options'
"""The key of a file's metadata that holds the options, a JSON object."""

_NO_FUSION = {'session.disable_quant_qdq': '1'}  # of nodes on levels into others
_FLOAT_SUMS = {'session.qdq_matmulnbits_accuracy_level': '1'}  # of products with float activations
_BATCH = 64


def options_for(integers: Integers, *, pools: bool) -> dict[str, str]:
    """Return the session options without which onnxruntime (1.32) fails at a file, or is less exact.

    - 2-bit integers: it fuses them into nodes that it has no code for, or that compute something else.
    - 4-bit activations and max pools: it rounds before the pool, and has no pool for such integers.
    - Weights of 8 bits or less, with activations that are float or of more bits: it rounds these to 8 bits.

    pools: whether there are max pools.
    """
    grids = integers.activations.values()
    if any(part.width == 2 for part in (*integers.weights.values(), *grids)):
        return _NO_FUSION
    if pools and any(grid.width == 4 for grid in grids):
        return _NO_FUSION
    narrow = any(weight.width <= 8 for weight in integers.weights.values())
    wide = integers.float_activations or any(grid.width == 16 for grid in grids)
    return _FLOAT_SUMS if narrow and wide else {}


def session_options(file: bytes) -> dict[str, str]:
    """Return the session options that the metadata of a file ask for."""
    import onnx  # pyright: ignore[reportMissingImports]

    metadata = {p.key: p.value for p in onnx.load_from_string(file).metadata_props}
    return json.loads(metadata.get(OPTIONS, '{}'))


def check_onnxruntime() -> None:
    """Raise UserError where onnxruntime is not installed."""
    if importlib.util.find_spec('onnxruntime') is None:
        raise UserError('running ONNX needs onnxruntime, which is not installed: pip install onnxruntime')


def run_onnx(file: bytes, images: np.ndarray) -> np.ndarray:
    """Compute the logits [N, classes] of images [N, ...] by onnxruntime, with the options of the file.

    Raises:
      UserError: onnxruntime is not installed.
    """
    check_onnxruntime()
    import onnxruntime  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    for name, value in session_options(file).items():
        options.add_session_config_entry(name, value)
    session = onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
    parts = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
    return np.concatenate([np.asarray(session.run(['logits'], {'images': part})[0]) for part in parts])
