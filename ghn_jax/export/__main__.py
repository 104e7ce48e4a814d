"""Writes a network with predicted or given parameters as one file that another runtime executes.

python -m ghn_jax.export --workdir=runs/quickstart/qat --arch=net.json --bits=w8a8 --out=net.stablehlo
python -m ghn_jax.export --workdir=zoo:digits-broad --model=nets:net --bits=w4a8 --out=net.onnx
python -m ghn_jax.export --workdir=DIR --arch=net.json --params=net.safetensors --out=net.stablehlo
python -m ghn_jax.export --workdir=DIR --quantized=DIR --out=net.onnx
python -m ghn_jax.export --dataset=flowers.npz --model=nets:net --params=FILE --bits=w8a8 --out=net.onnx

The statistics of batch norms, and the ranges of activations where --bits rounds them, are those of the first
--calibration_images training images of the run, or of --dataset where there is none. Statistics are those of
the rounded network; with --bn=calibrated, of the network in float, and norms are folded before weights are
rounded. The file takes any number of images, normalised as the run's (`Dataset.normalized`), and judges each
by itself.

The format is what the name of the file ends in. A .stablehlo file is for CPUs, GPUs and TPUs, read by
`jax.export.deserialize`; weights and activations are rounded in it, and held as float. An .onnx file is for
onnxruntime and others; weights, activations and biases are integers (QuantizeLinear, DequantizeLinear), and
without --bits all is float. Batch norms are folded. --compare=N runs an ONNX file in onnxruntime on N test
images, beside the evaluation here.

--quantized=DIR is a network of `ghn_jax.quantize`: its bits, statistics and ranges are its own.
"""

from absl import flags

from ghn_jax.base import bounds, cli
from ghn_jax.base.errors import UserError
from ghn_jax.cnn.deploy import calibration
from ghn_jax.export.export import (
    CALIBRATION_IMAGES,
    FORMATS,
    ExportSpec,
    check_output,
    check_spec,
    write_export,
)
from ghn_jax.models.folding import BATCH_NORMS
from ghn_jax.quant.policy import read_policy
from ghn_jax.runs import scheme_flags, source_flags
from ghn_jax.runs.calibrated_file import load
from ghn_jax.runs.model_flags import make_model, read_network
from ghn_jax.runs.model_parameters import read_params

_SOURCE = source_flags.define_flags()
_ARCH = flags.DEFINE_string('arch', None, 'Architecture file: JSON of one network.')
_MODEL = flags.DEFINE_string('model', None, 'Model of your own, in place of --arch: package.module:function.')
_PARAMS = flags.DEFINE_string(
    'params', None, 'Safetensors file of its parameters, of ghn_jax.finetune, in place of predicted ones.'
)
_QUANTIZED = flags.DEFINE_string('quantized', None, 'Directory of ghn_jax.quantize, in place of --arch.')
_OUT = flags.DEFINE_string('out', None, 'File to write, called .stablehlo or .onnx.')
_FORMAT = flags.DEFINE_enum('format', None, FORMATS, 'Of the file. Default: what its name ends in.')
_BITS = flags.DEFINE_string('bits', None, 'Bits of weights and activations, as in w4a8. Default: float.')
_POLICY = flags.DEFINE_string('policy', None, 'Policy file, in place of --bits: JSON, bits by tensor.')
_IMAGES = bounds.define_integer(
    'calibration_images', CALIBRATION_IMAGES, 'Training images that statistics and ranges are taken from.'
)
_BN = flags.DEFINE_enum(
    'bn', BATCH_NORMS[0], BATCH_NORMS, 'Statistics of batch norms: of the rounded network, or in float.'
)
_RANGE_RULE = flags.DEFINE_enum(
    'range_rule', calibration.RANGE_RULE, calibration.RANGE_RULES, 'Of ranges, where activations are rounded.'
)
_SCHEME = scheme_flags.define_scheme_flags()
_COMPARE = bounds.define_integer(
    'compare', None, 'Test images that onnxruntime runs the file on, beside the evaluation here.'
)


def main() -> None:
    """Run the command."""
    source = _SOURCE()
    if _QUANTIZED.value:
        return _export_quantized(_QUANTIZED.value, source)
    policy = read_policy(_BITS.value, _POLICY.value)
    out, format = check_output(_OUT.value or '', _FORMAT.value)
    spec = ExportSpec(policy, format, _IMAGES.value, _RANGE_RULE.value, _BN.value, _SCHEME())
    check_spec(spec, _COMPARE.value)
    specs = read_network(_ARCH.value, _MODEL.value)
    hypernetwork = source.load_hypernetwork(predicts=not _PARAMS.value)
    model, _ = make_model(specs, _MODEL.value, hypernetwork)
    params = read_params(model, _PARAMS.value, [policy]) if _PARAMS.value else None
    print(write_export(hypernetwork, model, out, spec, _COMPARE.value, params=params))


def _export_quantized(folder: str, source: source_flags.Source) -> None:
    others = ('arch', 'model', 'params', 'bits', 'policy', 'calibration_images', 'range_rule', 'bn')
    for flag in (*others, *scheme_flags.FIELDS):
        if flags.FLAGS[flag].present:
            raise UserError(f'--quantized and --{flag} are both given: give one of them')
    out, format = check_output(_OUT.value or '', _FORMAT.value)
    check_spec(ExportSpec(format=format), _COMPARE.value)
    hypernetwork = source.load_hypernetwork(predicts=False)
    network = load(folder)
    spec = ExportSpec(network.policy, format)
    model = network.calibrated.model
    print(write_export(hypernetwork, model, out, spec, _COMPARE.value, quantized=network))


if __name__ == '__main__':
    cli.run(main)
