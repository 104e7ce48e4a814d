"""Compiles the programs of a config ahead of time, for devices that are here or not, and reads the result.

python -m ghn_jax.compile --config=quickstart --target=h100
python -m ghn_jax.compile --config=ghn_qat_cifar10 --target=tpu-v5e --widths=32 --json=FILE
python -m ghn_jax.compile --config=quickstart --target=cpu --out=DIR

The programs are the training step for each family of networks, and what predicts and scores the networks of
validations (--splits=val) and evaluations (any other split; --num_networks, --num_images, --batch_size and
--seed as `evaluate` will be given them, and --bn, --ranges and --sqnr where it measures). Nothing runs,
and no data are read. Compilers for TPUs and GPUs come with the extras aot-tpu and aot-gpu.

With --out, compiled programs are written. `train` and `evaluate` load them with --executables=DIR, on devices
of the kind that the target names, with the same versions of JAX and of this package: what fits in a line says
why where they do not, and the program is compiled anew.
"""

from absl import flags

from ghn_jax import config_file
from ghn_jax.aot import report, targets
from ghn_jax.aot.compiling import compile_programs
from ghn_jax.base import bounds, cli, environment, outputs
from ghn_jax.base.errors import UserError
from ghn_jax.base.fields import define_field_flags, flag_values
from ghn_jax.base.start import divide_cpu
from ghn_jax.evaluation.evaluation_flags import define_protocol_flags, parse_splits
from ghn_jax.evaluation.evaluation_spec import EvaluationSpec
from ghn_jax.networks.spaces import SPLITS

_CONFIG = config_file.define_config()
_TARGET = flags.DEFINE_string('target', None, f'Device to compile for, one of {", ".join(targets.NAMES)}.')
_OUT = flags.DEFINE_string(
    'out', None, 'Write the compiled programs to this folder, for --executables of the other commands.'
)
_SPLITS = flags.DEFINE_list(
    'splits', ['train', 'val', 'test'],
    f'Compile the programs of: train, the training step; val, validation; and the evaluation of any of '
    f'{", ".join(SPLITS)}.',
)  # fmt: skip
_WIDTHS = flags.DEFINE_list(
    'widths', [], 'Compile only programs of these numbers of channels, as in 32,48. Empty: all.'
)
_EVALUATION = define_field_flags(
    EvaluationSpec,
    num_networks='How many networks of each split are evaluated. 0: all.',
    num_images='How many test images an evaluation has. 0: all.',
    batch_size='Images of a batch in an evaluation.',
    seed='Seed that the networks of the splits are drawn by.',
)
_PROTOCOL = define_protocol_flags(sqnr=False)
_OUTPUTS = outputs.define_flags()


def main() -> None:
    """Run the command."""
    config = config_file.read_config(_CONFIG)
    if not _TARGET.value:
        raise UserError(f'--target is missing: choose from {", ".join(targets.NAMES)}')
    target = targets.load(_TARGET.value)
    written, out = _OUTPUTS(), cli.check_folder(_OUT.value, 'out') if _OUT.value else None
    protocol, calibration_batches = _PROTOCOL()
    spec = EvaluationSpec(
        splits=parse_splits(_SPLITS.value), protocol=protocol, calibration_batches=calibration_batches,
        **flag_values(_EVALUATION),
    )  # fmt: skip
    widths = bounds.integers('widths', _WIDTHS.value, 'width') if _WIDTHS.value else ()
    targets.prepare_process()
    divide_cpu(config.devices.cpu)
    environment.start_devices()
    with config_file.named_by_flags():
        result = compile_programs(config, target, spec, widths=widths, out=out)
    written.write(result, table=report.text)


if __name__ == '__main__':
    cli.run(main)
