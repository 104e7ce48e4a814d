"""Shows a network of `bad_networks.jsonl` again: the step it failed in, and where it stops being finite.

python -m ghn_jax.replay --workdir=runs/a [--line=3] [--exact]

The step is done again with the networks, images and keys it had, and the parameters of the checkpoint nearest
before it; --exact trains from there up to it first. Then the network runs by itself, layer by layer, with the
plain reference: without dropout, and in mode noise without noise. On one device.
"""

from absl import flags

from ghn_jax.base import bounds, cli, screen
from ghn_jax.base.start import start
from ghn_jax.runs import source_flags
from ghn_jax.training.replay import replay
from ghn_jax.training.run_logger import BAD_NETWORKS

_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Run directory, of ghn_jax.train, that the network failed in.'
)
_LINE = bounds.define_integer('line', 1, f'Line of {BAD_NETWORKS} that the network is in, counted from 1.')
_EXACT = flags.DEFINE_bool(
    'exact',
    False,
    'First train from the checkpoint before the step up to it, so that all numbers are those of the run.',
)
_DATA_DIR = source_flags.define_data_dir()


def main() -> None:
    """Run the command."""
    workdir = cli.check_workdir(_WORKDIR.value, must_exist=True)
    start()
    for text in replay(workdir, _LINE.value, exact=_EXACT.value, data_dir=_DATA_DIR.value):
        screen.show(text, kept=False)


if __name__ == '__main__':
    cli.run(main)
