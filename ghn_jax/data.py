"""Prepares a data set where TFDS looks for it, without TensorFlow.

python -m ghn_jax.data --prepare=cifar10 [--archive=cifar-10-binary.tar.gz] [--data_dir=DIR]

CIFAR-10's official binary archive is downloaded, unless --archive says where it is. Training and evaluation
then read what is written; of another folder than TFDS's own they are told with --config.data_dir=DIR.
"""

from absl import flags

from ghn_jax.base import cli, paths
from ghn_jax.base.errors import UserError
from ghn_jax.datasets import cifar10

_PREPARE = flags.DEFINE_enum('prepare', None, ['cifar10'], 'Prepare this data set.')
_ARCHIVE = flags.DEFINE_string(
    'archive', None, f'Official archive, where it is here already; else it is downloaded from {cifar10.URL}.'
)
_DATA_DIR = flags.DEFINE_string('data_dir', None, "Write to this directory. Default: TFDS's own place.")


def main() -> None:
    """Run the command."""
    if _PREPARE.value is None:
        raise UserError('--prepare is missing: say what, as in --prepare=cifar10')
    cifar10.prepare(data_dir=paths.tfds_folder(_DATA_DIR.value), archive=_ARCHIVE.value)


if __name__ == '__main__':
    cli.run(main)
