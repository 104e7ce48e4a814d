"""Quantizes one network after training: rounded weights and ranges, ready for evaluate and export.

python -m ghn_jax.quantize --workdir=zoo:digits-bits --arch=net.json --method=pd_quant --bits=w4a4 --out=DIR
python -m ghn_jax.quantize --workdir=RUN --model=nets:net --params=FILE --method=mse --bits=w2a4 --out=DIR
python -m ghn_jax.quantize --workdir=RUN --arch=net.json --method=fixed_point --budget=1.0 --out=DIR
python -m ghn_jax.quantize --dataset=flowers.npz --model=nets:net --params=FILE --bits=w4a4 --out=DIR

The network's parameters are predicted by the run's hypernetwork, or read from --params; --dataset gives
images where there is no run. The first --images training images are the calibration images. --bits are those
of all layers but the first and the last, which have --edge_bits.

--method: minmax and mse round weights to the nearest level, over ranges of all values or with the least L2.4
error. pd_quant learns the rounding, block by block; --noprediction, --nocorrection and --nodrop leave out a
part of it; a run of it that was stopped goes on in DIR. docs/post-training.md says what they do.
"""

import dataclasses

from absl import flags

from ghn_jax.base import bounds, cli, outputs
from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.base.fields import define_field_flags, flag_values
from ghn_jax.evaluation.model_evaluation import check_data
from ghn_jax.quant.policy import Policy, parse_bits
from ghn_jax.runs import source_flags
from ghn_jax.runs.model_flags import make_model, read_network
from ghn_jax.runs.model_parameters import read_params
from ghn_jax.runs.progress import Progress
from ghn_jax.tuning import fixed_point_budget, quantize
from ghn_jax.tuning import fixed_point_network as fixed_point
from ghn_jax.tuning.fixed_point import MOST_BITS
from ghn_jax.tuning.fixed_point_search import BUDGET
from ghn_jax.tuning.reconstruction import PUBLISHED, ReconstructionOptions

_SOURCE = source_flags.define_flags()
_ARCH = flags.DEFINE_string('arch', None, 'Architecture file: JSON of one network.')
_MODEL = flags.DEFINE_string('model', None, 'Model of your own, in place of --arch: package.module:function.')
_PARAMS = flags.DEFINE_string('params', None, 'Safetensors file of its parameters; none: they are predicted.')
_METHODS = (*quantize.METHODS, fixed_point.NAME)
_METHOD = flags.DEFINE_string('method', 'pd_quant', f'One of {", ".join(_METHODS)}.')
_BITS = flags.DEFINE_string('bits', 'w4a4', 'Bits of weights and activations.')
_EDGES = flags.DEFINE_string('edge_bits', 'w8a8', 'Bits of the first and the last layer.')
_OUT = flags.DEFINE_string('out', None, 'Directory of the quantized network.')
_IMAGES = bounds.define_integer(
    'images', 1024, 'Calibration images: the first for training; of fixed_point, for validation.'
)
_LEARNING = define_field_flags(
    ReconstructionOptions(iterations=1000),
    iterations=f'Steps of pd_quant for a block; published: {PUBLISHED:,}.',
    prediction='The prediction difference is in the loss.',
    correction='The float inputs of blocks are corrected.',
    drop='Activations are rounded with a chance of one half while learning.',
    seed='Of the order of images, and of chances.',
)
_BUDGET = bounds.define_number('budget', BUDGET, 'Points of accuracy that fixed_point may lose.', 0, 100)
_NOT_OF = {fixed_point.NAME: ('bits', 'edge_bits', *_LEARNING), 'pd_quant': ('budget',)}
_OUTPUTS = outputs.define_flags()


def main() -> None:
    """Run the command."""
    source = _SOURCE()
    _check_method()
    policy, options, written = _policy(), _options(), _OUTPUTS()
    if not _OUT.value:
        raise FieldError('out', ' is missing: give a directory for the quantized network')
    out = cli.check_folder(_OUT.value, 'out')
    specs = read_network(_ARCH.value, _MODEL.value)
    hypernetwork = source.load_hypernetwork(predicts=not _PARAMS.value)
    model, made = make_model(specs, _MODEL.value, hypernetwork)
    data, file = hypernetwork.load_data(), _PARAMS.value
    check_data(model, data)
    params = read_params(model, file, [policy]) if file else hypernetwork.predict(model, policy)
    network = quantize.Network.of(model, params, quantize.calibration_images(data, _IMAGES.value))
    test, command = (data.normalized('test'), data.test.labels), {'command': cli.command_line('quantize')}
    if _METHOD.value == fixed_point.NAME:
        scored = fixed_point_budget.labelled(data, _IMAGES.value)
        parts = fixed_point_budget.count_parts(len(model.layers))
        with Progress(parts, desc=fixed_point.NAME, unit='layer') as progress:
            result = fixed_point.fixed_point_into(
                out, network.calibrated, scored, test, made, _BUDGET.value, progress.update
            )
        return written.write(result | command, table=fixed_point.in_words)
    parts = quantize.count_parts(network, _METHOD.value, options)
    with Progress(parts, desc=_METHOD.value, unit='part') as progress:
        result = quantize.quantize_into(
            out, network, policy, _METHOD.value, options, made, test, progress.update
        )
    written.write(result | command, table=quantize.in_words)


def _check_method() -> None:
    if _METHOD.value not in _METHODS:
        raise UserError(f'--method={_METHOD.value}: choose from {", ".join(_METHODS)}')
    for name in _NOT_OF.get(_METHOD.value, ('budget', *_LEARNING)):
        if flags.FLAGS[name].present:
            raise UserError(f'--{name} is not for --method={_METHOD.value}: leave it out')


def _policy() -> Policy:
    if _METHOD.value == fixed_point.NAME:
        return Policy(MOST_BITS, MOST_BITS)  # that weights are predicted for
    edges = parse_bits(_EDGES.value)
    return dataclasses.replace(parse_bits(_BITS.value), edges=(edges.weight_bits, edges.activation_bits))


def _options() -> ReconstructionOptions:
    options = ReconstructionOptions(**flag_values(_LEARNING))
    steps = min(options.correction_steps, -(-options.iterations // 10))
    return dataclasses.replace(options, correction_steps=steps)


if __name__ == '__main__':
    cli.run(main)
