"""Makes a run directory from a published PyTorch GHN, for `ghn_jax.evaluate` and `ghn_jax.predict`.

python -m ghn_jax.convert --state=ghn2_cifar10.pt --workdir=runs/ghn2
python -m ghn_jax.convert --state=ghn2_cifar10.npz --config=ghn_config.json --workdir=runs/ghn2

GHN-1, GHN-2 and MLP of ppuda, GHN-3 of ghn3. Files of torch are read without torch, by ptloader
(pip install 'ghn-jax[published]'); no code in them is run. The configuration is the one in the file, or, of a
GHN-3, the one that its shapes tell; --config gives another, or that of a file without.
"""

from absl import flags, logging

from ghn_jax.base import cli, environment
from ghn_jax.base.errors import UserError
from ghn_jax.runs.conversion import convert

_STATE = flags.DEFINE_string(
    'state', None, 'File of the published GHN, a checkpoint or a state dict: .pt, .npz or .safetensors.'
)
_CONFIG = flags.DEFINE_string(
    'config', None, 'JSON file with the fields of GHNConfig, where --state has no configuration.'
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Make this run directory.')


def main() -> None:
    """Run the command."""
    logging.set_verbosity(logging.ERROR)  # Orbax tells everything it does
    if not _STATE.value:
        raise UserError('--state is missing: give the file, see --help')
    cli.check_workdir(_WORKDIR.value)
    environment.start_devices()
    ghn_config = convert(_STATE.value, _CONFIG.value, _WORKDIR.value or '')
    print(f'{_WORKDIR.value}: checkpoint of step 0, {ghn_config}')


if __name__ == '__main__':
    cli.run(main, {'config_file': 'config'})
