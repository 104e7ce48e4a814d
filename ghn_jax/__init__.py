"""Graph hypernetworks in JAX, trained through quantization: weights for unseen CNNs in one forward pass.

    import ghn_jax

    hypernetwork = ghn_jax.load('runs/quickstart/qat')
    network = hypernetwork.space.sample('test', seed=0, index=0)  # a NetworkSpec
    weights = hypernetwork.predict(network)  # {name: float32 array}, in PyTorch's layouts
    images = hypernetwork.load_data().normalized('test')  # float32 [N, H, H, 3]
    logits = ghn_jax.run(network, weights, images)  # float32 [N, classes]

`docs/api.md` describes every name. Nothing is imported, and JAX is not started, before a name is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghn_jax.base.errors import UserError as UserError
    from ghn_jax.cnn.run import run as run
    from ghn_jax.datasets.load import Dataset as Dataset
    from ghn_jax.datasets.load import load as load_dataset
    from ghn_jax.evaluation.public import evaluate as evaluate
    from ghn_jax.models.folding import Calibrated as Calibrated
    from ghn_jax.models.folding import calibrate as calibrate
    from ghn_jax.models.model import Model as Model
    from ghn_jax.models.tracing import trace as trace
    from ghn_jax.networks.deepnets import load_deepnets as load_deepnets
    from ghn_jax.networks.files import load_networks as load_networks
    from ghn_jax.networks.files import save_networks as save_networks
    from ghn_jax.networks.graph import build_graph as build_graph
    from ghn_jax.networks.spaces import SPLITS as SPLITS
    from ghn_jax.networks.spaces import Space as Space
    from ghn_jax.networks.spaces import make_space as make_space
    from ghn_jax.networks.spec import NetworkSpec as NetworkSpec
    from ghn_jax.quant.policy import Policy as Policy
    from ghn_jax.quant.policy import load_policy as load_policy
    from ghn_jax.quant.policy import parse_bits as parse_bits
    from ghn_jax.quant.rounding import round_weights as quantize
    from ghn_jax.quant.scheme import Scheme as Scheme
    from ghn_jax.runs.hypernetwork import Hypernetwork as Hypernetwork
    from ghn_jax.runs.hypernetwork import load as load
    from ghn_jax.runs.weight_files import unpack as unpack

__version__ = '0.1.0'

# Where each name is defined, and what it is called there: the same as above, for when the program runs.
_NAMES = {
    'Calibrated': ('ghn_jax.models.folding', 'Calibrated'),
    'Dataset': ('ghn_jax.datasets.load', 'Dataset'),
    'Hypernetwork': ('ghn_jax.runs.hypernetwork', 'Hypernetwork'),
    'Model': ('ghn_jax.models.model', 'Model'),
    'NetworkSpec': ('ghn_jax.networks.spec', 'NetworkSpec'),
    'Policy': ('ghn_jax.quant.policy', 'Policy'),
    'SPLITS': ('ghn_jax.networks.spaces', 'SPLITS'),
    'Scheme': ('ghn_jax.quant.scheme', 'Scheme'),
    'Space': ('ghn_jax.networks.spaces', 'Space'),
    'UserError': ('ghn_jax.base.errors', 'UserError'),
    'build_graph': ('ghn_jax.networks.graph', 'build_graph'),
    'calibrate': ('ghn_jax.models.folding', 'calibrate'),
    'evaluate': ('ghn_jax.evaluation.public', 'evaluate'),
    'load': ('ghn_jax.runs.hypernetwork', 'load'),
    'load_dataset': ('ghn_jax.datasets.load', 'load'),
    'load_deepnets': ('ghn_jax.networks.deepnets', 'load_deepnets'),
    'load_networks': ('ghn_jax.networks.files', 'load_networks'),
    'load_policy': ('ghn_jax.quant.policy', 'load_policy'),
    'make_space': ('ghn_jax.networks.spaces', 'make_space'),
    'parse_bits': ('ghn_jax.quant.policy', 'parse_bits'),
    'quantize': ('ghn_jax.quant.rounding', 'round_weights'),
    'run': ('ghn_jax.cnn.run', 'run'),
    'save_networks': ('ghn_jax.networks.files', 'save_networks'),
    'trace': ('ghn_jax.models.tracing', 'trace'),
    'unpack': ('ghn_jax.runs.weight_files', 'unpack'),
}
__all__ = [
    '__version__', 'Calibrated', 'Dataset', 'Hypernetwork', 'Model', 'NetworkSpec', 'Policy', 'SPLITS',
    'Scheme', 'Space', 'UserError', 'build_graph', 'calibrate', 'evaluate', 'load', 'load_dataset',
    'load_deepnets', 'load_networks', 'load_policy', 'make_space', 'parse_bits', 'quantize', 'run',
    'save_networks', 'trace', 'unpack',
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module, attribute = _NAMES[name]
    value = globals()[name] = getattr(importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
