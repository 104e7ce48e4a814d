"""Models of the user's own: seconds to trace them and to predict their parameters, bytes of their files."""

import pathlib
import sys
import tempfile
import time

from ghn_jax.base import counters
from ghn_jax.base.errors import FieldError
from ghn_jax.benchmarks import timing
from ghn_jax.benchmarks.options import Options, Row
from ghn_jax.models.loading import load_model
from ghn_jax.models.model import Model
from ghn_jax.models.sources import count_parameters
from ghn_jax.quant.policy import parse_bits
from ghn_jax.runs.hypernetwork import Hypernetwork, load
from ghn_jax.runs.model_prediction import write_model

PACKED = ('w8a8', 'w4a4', 'w2a2')


def measure(options: Options) -> list[Row]:
    """Trace each of `options.models` and predict its parameters, with the hypernetwork of `options.workdir`.

    trace_s: median seconds from calling the user's function to the graph, over `options.repeats`.
    first_predict_s, mean_s, median_s: of the first prediction, and of those after it.   nodes: of the graph.
    float_kb, w8a8_kb, ...: size of the file of its parameters, in 1,000 bytes, packed where they are rounded.

    Raises:
      UserError: no models, one that cannot be imported or traced or predicted for, no such hypernetwork.
    """
    if not options.models:
        raise FieldError('models', ' is empty: give functions that return one, as in nets:net,nets:other')
    hypernetwork = load(options.workdir)
    return [_measure(hypernetwork, name, options.repeats) for name in options.models]


def _measure(hypernetwork: Hypernetwork, name: str, repeats: int) -> Row:
    print(f'models, {name} ...', file=sys.stderr, flush=True)
    size = hypernetwork.config.image_size
    model = load_model(name, (1, size, size, 3))
    trace_s = timing.median(lambda: load_model(name, (1, size, size, 3)), repeats)
    seconds, compiled = [], 0
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        hypernetwork.predict(model)
        seconds.append(time.perf_counter() - start)
        if repeat == 0:
            compiled = counters.compilations()
    row = timing.row(seconds[1:], counters.compilations() - compiled)
    return {
        'what': 'models', 'mode': 'float', 'model': name.partition(':')[2],
        'parameters': count_parameters(model.params), 'nodes': len(model.graph.nodes),
        'layers': len(model.layers), 'trace_s': trace_s, 'first_predict_s': seconds[0], **row,
        **_file_sizes(hypernetwork, model), 'networks': 1,
    }  # fmt: skip


def _file_sizes(hypernetwork: Hypernetwork, model: Model) -> dict[str, float]:
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for bits in ('float', *PACKED):
            file = pathlib.Path(folder, f'{bits}.safetensors')
            write_model(hypernetwork.run, model, file, policy=parse_bits(bits), packed=bits != 'float')
            sizes[f'{bits}_kb'] = file.stat().st_size / 1000
    return sizes
