"""Quantizes one network after training: rounded weights and ranges, ready for evaluate and export.

python -m ghn_jax.quantize --workdir=zoo:digits-bits --arch=net.json --method=pd_quant --bits=w4a4 --out=DIR
python -m ghn_jax.quantize --workdir=RUN --model=nets:net --params=FILE --method=mse --bits=w2a4 --out=DIR

The network's parameters are predicted by the run's hypernetwork, or read from --params. The first --images
training images of the run are the calibration images. --bits are those of all layers but the first and the
last, which have --edge_bits.

--method: minmax and mse round weights to the nearest level, over ranges of all values or with the least L2.4
error. pd_quant learns the rounding, block by block; --noprediction, --nocorrection and --nodrop leave out a
part of it; a run of it that was stopped goes on in DIR. docs/post-training.md says what they do.
"""

import dataclasses

from absl import flags

from ghn_jax.base import bounds, cli, outputs
from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.base.start import start
from ghn_jax.hypernet.predict import check_network
from ghn_jax.models.loading import load_model
from ghn_jax.models.model import Model
from ghn_jax.models.tracing import trace
from ghn_jax.networks.files import load_networks
from ghn_jax.quant.policy import Policy, parse_bits
from ghn_jax.runs.hypernetwork import Hypernetwork
from ghn_jax.runs.metrics import Progress
from ghn_jax.runs.model_parameters import read_params
from ghn_jax.runs.run import load_run
from ghn_jax.tuning import quantize
from ghn_jax.tuning.reconstruction import Options

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory, or zoo:NAME.')
_ARCH = flags.DEFINE_string('arch', None, 'Architecture file: JSON of one network.')
_MODEL = flags.DEFINE_string('model', None, 'Model of your own, in place of --arch: package.module:function.')
_PARAMS = flags.DEFINE_string(
    'params', None, 'Safetensors file of its parameters, in place of predicted ones.'
)
_METHOD = flags.DEFINE_string('method', 'pd_quant', f'One of {", ".join(quantize.METHODS)}.')
_BITS = flags.DEFINE_string('bits', 'w4a4', 'Bits of weights and activations.')
_EDGES = flags.DEFINE_string('edge_bits', 'w8a8', 'Bits of the first and the last layer.')
_OUT = flags.DEFINE_string('out', None, 'Directory of the quantized network.')
_IMAGES = bounds.define_integer('images', 1024, 'Calibration images, the first training images.')
_ITERATIONS = bounds.define_integer(
    'iterations', 1000, 'Steps for each block, of pd_quant; published: 20,000.'
)
_PREDICTION = flags.DEFINE_bool('prediction', True, 'The prediction difference is in the loss.')
_CORRECTION = flags.DEFINE_bool('correction', True, 'The float inputs of blocks are corrected.')
_DROP = flags.DEFINE_bool('drop', True, 'Activations are rounded with a chance of one half while learning.')
_SEED = bounds.define_integer('seed', 0, 'Of the order of images, and of chances.')
_OUTPUTS = outputs.define_flags()


def main() -> None:
    """Run the command."""
    workdir = cli.check_workdir(_WORKDIR.value, must_exist=True)
    policy, options, written = _policy(), _options(), _OUTPUTS()
    if not _OUT.value:
        raise FieldError('out', ' is missing: give a directory for the quantized network')
    out = cli.check_folder(_OUT.value, 'out')
    if bool(_ARCH.value) == bool(_MODEL.value):
        given = 'are both given' if _ARCH.value else 'are missing'
        raise UserError(f'--arch and --model {given}: give one of them')
    if _METHOD.value not in quantize.METHODS:
        raise UserError(f'--method={_METHOD.value}: choose from {", ".join(quantize.METHODS)}')
    start()
    hypernetwork = Hypernetwork(load_run(workdir))
    model, source = _model(hypernetwork)
    params = read_params(model, _PARAMS.value) if _PARAMS.value else hypernetwork.predict(model, policy)
    data = hypernetwork.load_data()
    if _IMAGES.value > len(data.train.labels):
        raise FieldError(
            'images',
            f'={_IMAGES.value}: {data.name} has {len(data.train.labels)} training images: give fewer',
        )
    network = quantize.Network.of(model, params, data.normalized('train', _IMAGES.value))
    test = data.normalized('test'), data.test.labels
    parts = quantize.count_parts(network, _METHOD.value, options)
    with Progress(parts, desc=_METHOD.value, unit='part') as progress:
        result = quantize.quantize_into(
            out, network, policy, _METHOD.value, options, source, test, progress.update
        )
    written.write(result | {'command': cli.command_line('quantize')}, table=quantize.in_words)


def _policy() -> Policy:
    edges = parse_bits(_EDGES.value)
    return dataclasses.replace(parse_bits(_BITS.value), edges=(edges.weight_bits, edges.activation_bits))


def _options() -> Options:
    return Options(
        iterations=_ITERATIONS.value,
        correction_steps=min(Options.correction_steps, _ITERATIONS.value),
        prediction=_PREDICTION.value,
        correction=_CORRECTION.value,
        drop=_DROP.value,
        seed=_SEED.value,
    )


def _model(hypernetwork: Hypernetwork) -> tuple[Model, dict[str, str]]:
    """Return the model, and how it is made."""
    size = hypernetwork.config.image_size
    if _MODEL.value:
        return load_model(_MODEL.value, (1, size, size, 3)), {'model': _MODEL.value}
    specs = load_networks(_ARCH.value or '')
    if len(specs) != 1:
        raise UserError(f'--arch={_ARCH.value} holds {len(specs)} networks: give a file of one')
    check_network(specs[0], hypernetwork.run.ghn, size)
    return trace(specs[0], (1, size, size, 3)), {'arch': specs[0].to_json()}


if __name__ == '__main__':
    cli.run(main)
