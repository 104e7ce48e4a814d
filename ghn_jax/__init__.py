"""Graph hypernetworks in JAX, trained through quantization: weights for unseen CNNs in one forward pass.

from ghn_jax import load_networks, load_run, predict_weights
run = load_run('runs/quickstart/qat')
weights = predict_weights(run.ghn, run.params, load_networks('net.json')[0])   # name -> array
"""

import importlib
from typing import Any

__version__ = '0.1.0'

# Found when asked for, so that `import ghn_jax` (and every `--help`) does not wait for JAX.
_NAMES = {
    'NetworkSpec': 'ghn_jax.networks.spec',
    'load_networks': 'ghn_jax.networks.files',
    'make_space': 'ghn_jax.networks.spaces',
    'build_graph': 'ghn_jax.networks.graph',
    'parse_bits': 'ghn_jax.quant.policy',
    'load_run': 'ghn_jax.runs.run',
    'predict_weights': 'ghn_jax.predict',
}
__all__ = ['__version__', *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
