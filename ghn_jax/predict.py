"""Predicts the weights of networks and writes them as safetensors.

python -m ghn_jax.predict --workdir=runs/quickstart/qat --arch=net.json --out=net.safetensors --bits=w4a4
python -m ghn_jax.predict --workdir=runs/quickstart/qat --arch=nets.json --out='weights/{name}.safetensors'
python -m ghn_jax.predict --workdir=runs/bits --arch=net.json --out=net.safetensors --policy=policy.json
python -m ghn_jax.predict --workdir=runs/bits --arch=net.json --out=net.safetensors --bits=w4a4 --packed
python -m ghn_jax.predict --workdir=runs/bits --model=nets:resnet --out=net.safetensors --bits=w4a4

The weights are rounded to --bits, or as the policy file says (its format: `quant/policy.py`). A hypernetwork
that takes the bits as an input (config.ghn.bits) predicts them for that policy; for any other they change the
rounding only. --packed writes integers of just their bits, which `ghn_jax.unpack` reads: docs/packed.md.

Tensors have DeepNets-1M's names. Layouts: 'pytorch' is OIHW for convolutions (depthwise: I is 1), (out, in)
for linear weights. 'jax' is HWIO for convolutions, as `lax.conv_general_dilated` and flax want (depthwise:
(H, W, 1, C), with feature_group_count=C), (in, out) for linear weights, (1, H, W, C) for position encodings.

--model=package.module:function is a model of your own in place of --arch: the function, without arguments,
returns a Flax module (or a pair: a function of parameters and images, and its parameters; or what
`ghn_jax.trace` returns). Its tensors have the names and layouts of the model's own parameters.
"""

from absl import flags

from ghn_jax.base import cli
from ghn_jax.base.errors import UserError
from ghn_jax.base.paths import Place
from ghn_jax.base.start import start
from ghn_jax.models.loading import load_model
from ghn_jax.networks.files import load_networks
from ghn_jax.quant.policy import Policy, read_policy
from ghn_jax.runs.model_prediction import write_model
from ghn_jax.runs.prediction import LAYOUTS, output_files, with_names, write_predictions
from ghn_jax.runs.run import load_run
from ghn_jax.runs.weight_files import FORMATS, check_place, format_of

_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Run whose hypernetwork predicts: a directory of ghn_jax.train or ghn_jax.convert, or zoo:NAME.',
)
_ARCH = flags.DEFINE_string(
    'arch', None, 'Architecture file of what to predict: JSON of one network, or of a list.'
)
_MODEL = flags.DEFINE_string(
    'model',
    None,
    'Your own model, in place of --arch: the function that makes it, as PACKAGE.MODULE:FUNCTION.',
)
_OUT = flags.DEFINE_string(
    'out', None, 'Write to this file; for several networks, a directory or a file name with {name} in it.'
)
_LAYOUT = flags.DEFINE_enum(
    'layout', 'pytorch', LAYOUTS, 'Order of axes: pytorch has OIHW and (out, in), jax has HWIO and (in, out).'
)
_FORMAT = flags.DEFINE_enum(
    'format',
    None,
    FORMATS,
    'Format of the file. orbax makes a directory with a pytree, names cut at their dots. By default it is '
    'what the name of the file ends in, else safetensors.',
)
_PACKED = flags.DEFINE_boolean(
    'packed', False, 'Write rounded weights as integers of just their bits, in safetensors.'
)
_BITS = flags.DEFINE_string(
    'bits',
    None,
    'Round the weights to these bits, as in w4a4; the file has no activations. Default: float.',
)
_POLICY = flags.DEFINE_string(
    'policy', None, 'Policy file in place of --bits: JSON with the bits of each tensor.'
)


def main() -> None:
    """Run the command."""
    workdir = cli.check_workdir(_WORKDIR.value, must_exist=True)
    policy = read_policy(_BITS.value, _POLICY.value)
    format = _FORMAT.value or format_of(_OUT.value or '')
    if _MODEL.value:
        return _predict_model(_MODEL.value, workdir, policy, format)
    if not _ARCH.value:
        raise UserError('--arch is missing: give an architecture file, as in --arch=net.json, or --model')
    specs = with_names(load_networks(_ARCH.value))
    outputs = output_files(_OUT.value or '', specs, format)
    start()
    lines = write_predictions(
        load_run(workdir),
        specs,
        outputs,
        layout=_LAYOUT.value,
        policy=policy,
        format=format,
        packed=_PACKED.value,
    )
    for line in lines:
        print(line)


def _predict_model(name: str, workdir: Place, policy: Policy, format: str) -> None:
    for flag in ('arch', 'layout'):
        if flags.FLAGS[flag].present:
            raise UserError(f'--model and --{flag} are both given: give one of them')
    out = check_place(_OUT.value or '', format)
    start()
    run = load_run(workdir)
    size = run.config.image_size
    model = load_model(name, (1, size, size, 3))
    print(write_model(run, model, out, policy=policy, format=format, packed=_PACKED.value))


if __name__ == '__main__':
    cli.run(main)
