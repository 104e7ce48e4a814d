"""Models of the user's own: seconds to trace them and to predict their parameters, bytes of their files."""

import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ghn_jax.base import counters
from ghn_jax.base.errors import FieldError
from ghn_jax.benchmarks import timing
from ghn_jax.benchmarks.options import BenchmarkOptions, Row
from ghn_jax.export.export import ExportSpec, check_spec, compare_export
from ghn_jax.export.runtime_comparison import count_images
from ghn_jax.models.loading import load_model
from ghn_jax.models.model import Model
from ghn_jax.models.sources import count_parameters
from ghn_jax.quant.policy import parse_bits
from ghn_jax.runs.hypernetwork import Hypernetwork, load
from ghn_jax.runs.model_prediction import write_model
from ghn_jax.tuning.training import TrainingImages, TrainingSpec, make_trainer

PACKED = ('w8a8', 'w4a4', 'w2a2')
COMPARED = ('float', 'w8a8', 'w4a8', 'w4a4', 'w2a2')


def check(options: BenchmarkOptions) -> None:
    """Raise UserError where there are no models, bits that are none, or no onnxruntime where it is needed."""
    if not options.models:
        raise FieldError('models', ' is empty: give functions that return one, as in nets:net,nets:other')
    for bits in options.agreement:
        check_spec(_spec(bits, options), options.num_images)


def measure(options: BenchmarkOptions) -> list[Row]:
    """Trace each of `options.models` and predict its parameters, with the hypernetwork of `options.workdir`.

    trace_s: median seconds from calling the user's function to the graph, over `options.repeats`.
    first_predict_s, mean_s, median_s: of the first prediction, and of those after it. *_cpu_s: of all cores
    together, which other processes do not change.   nodes: of the graph.
    float_kb, w8a8_kb, ...: size of the file of its parameters, in 1,000 bytes, packed where they are rounded.
    images, epochs: that are compared; passes that the model was trained for before.
    w8a8_agreement, ...: of `options.agreement`, percent of images that onnxruntime puts into the same class;
    w8a8_agreement_with_biases, ...: where the biases here are rounded as in the file.
    w8a8_top1, w8a8_top1_onnxruntime, ...: percent of images that the evaluation here, and onnxruntime, puts
    into the right one.

    Raises:
      UserError: a model that cannot be imported or traced or predicted for, no such hypernetwork.
    """
    hypernetwork = load(options.workdir, data_dir=options.data_dir)
    if options.agreement:  # before models are traced and trained
        try:
            count_images(hypernetwork.load_data(), options.num_images)
        except FieldError as e:
            raise FieldError('num_images', e.problem) from None
    return [_measure(hypernetwork, name, options) for name in options.models]


def _measure(hypernetwork: Hypernetwork, name: str, options: BenchmarkOptions) -> Row:
    print(f'models, {name} ...', file=sys.stderr, flush=True)
    size, repeats = hypernetwork.config.image_size, options.repeats
    model = load_model(name, (1, size, size, 3))
    traced = [_seconds(lambda: load_model(name, (1, size, size, 3))) for _ in range(repeats)]
    predict = lambda: hypernetwork.predict(model)
    first, compiled = _seconds(predict), counters.compilations()
    predicted = [_seconds(predict) for _ in range(repeats)]
    row = timing.row([seconds for seconds, _ in predicted], counters.compilations() - compiled)
    (trace_s, trace_cpu_s), (_, predict_cpu_s) = np.median(traced, 0), np.median(predicted, 0)
    return {
        'what': 'models', 'mode': 'float', 'model': name.partition(':')[2],
        'parameters': count_parameters(model.params), 'nodes': len(model.graph.nodes),
        'layers': len(model.layers), 'trace_s': trace_s, 'trace_cpu_s': trace_cpu_s,
        'first_predict_s': first[0], 'predict_cpu_s': predict_cpu_s, **row,
        **_file_sizes(hypernetwork, model), **_agreement(hypernetwork, model, options), 'networks': 1,
    }  # fmt: skip


def _seconds(run: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds that a function takes by the clock, and those of all cores."""
    start, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - cpu


def _agreement(hypernetwork: Hypernetwork, model: Model, options: BenchmarkOptions) -> dict[str, Any]:
    if not options.agreement:
        return {}
    found: dict[str, Any] = {'images': options.num_images}
    params = None
    if options.epochs:
        print(f'models, {model.name}, training ...', file=sys.stderr, flush=True)
        params, found['epochs'] = _trained(hypernetwork, model, options.epochs), options.epochs
    for bits in options.agreement:
        print(f'models, {model.name}, {bits} ...', file=sys.stderr, flush=True)
        spec = _spec(bits, options)
        compared = compare_export(hypernetwork, model, spec, options.num_images, params=params)
        found[f'{bits}_agreement'] = 100 * compared.agreement
        found[f'{bits}_top1'] = 100 * compared.top1[1]
        found[f'{bits}_top1_onnxruntime'] = 100 * compared.top1[0]
        if compared.with_biases is not None:
            found[f'{bits}_agreement_with_biases'] = 100 * compared.with_biases
    return found


def _spec(bits: str, options: BenchmarkOptions) -> ExportSpec:
    policy = parse_bits(bits)
    if policy.is_float:
        return ExportSpec(policy, 'onnx')
    return ExportSpec(policy, 'onnx', batch_norm=options.batch_norm, scheme=options.scheme)


def _trained(hypernetwork: Hypernetwork, model: Model, epochs: int) -> Any:
    """Train a model in float from its predicted parameters, on the training images of the run."""
    data = hypernetwork.load_data()
    images = TrainingImages.of(data)
    in_float = model.quantizer(parse_bits('float'))  # with which small convolutions are faster
    spec = TrainingSpec(epochs=epochs, ema=0)
    trainer = make_trainer(model.apply, in_float, spec, data)
    state = trainer.begin(hypernetwork.predict(model), seed=0)
    for epoch in range(epochs):
        order = trainer.order(state.seed, epoch)
        for _ in range(trainer.steps_per_epoch):
            state = trainer.step(state, order, images)
    return jax.device_get(state.params)


def _file_sizes(hypernetwork: Hypernetwork, model: Model) -> dict[str, float]:
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for bits in ('float', *PACKED):
            file = pathlib.Path(folder, f'{bits}.safetensors')
            write_model(hypernetwork.run, model, file, policy=parse_bits(bits), packed=bits != 'float')
            sizes[f'{bits}_kb'] = file.stat().st_size / 1000
    return sizes
