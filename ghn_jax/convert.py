"""Makes a run directory from a published PyTorch GHN-2, for `ghn_jax.evaluate` and `ghn_jax.predict`.

python -m ghn_jax.convert --state=ghn2_cifar10.npz --config=ghn_config.json --workdir=runs/published
"""

from absl import flags, logging

from ghn_jax.base import cli, environment
from ghn_jax.base.errors import UserError
from ghn_jax.runs.conversion import convert

_STATE = flags.DEFINE_string(
    'state', None, 'State dict of the published GHN: .npz, or .pt where torch is installed.'
)
_CONFIG = flags.DEFINE_string('config', None, 'Its configuration: JSON, the fields of GHNConfig.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory to make.')


def main() -> None:
    """Run the command."""
    logging.set_verbosity(logging.ERROR)  # Orbax tells everything it does
    for name, flag in (('state', _STATE), ('config', _CONFIG)):
        if not flag.value:
            raise UserError(f'--{name} is missing: give the file, see --help')
    environment.start_devices()
    ghn_config = convert(_STATE.value or '', _CONFIG.value or '', _WORKDIR.value or '')
    print(f'{_WORKDIR.value}: checkpoint of step 0, {ghn_config}')


if __name__ == '__main__':
    cli.run(main, {'config_file': 'config'})
