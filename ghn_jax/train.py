"""Trains a hypernetwork; a run that was stopped goes on from its last checkpoint.

python -m ghn_jax.train --config=configs/quickstart.py --workdir=runs/quickstart [--config.key=value]

Everything random is a function of (seed, step): the networks and images of a step, augmentation, noise. So a
resumed run is the uninterrupted one, bit for bit. With another number of devices it is the same up to the
order in which floating-point numbers are added.

--pack=FILE keeps what the run needs to go on elsewhere in one file, replaced with each checkpoint; there,
--unpack=FILE with the same config and a fresh workdir goes on with it.

On several machines, the same command on each, with a workdir that all share:
--coordinator=HOST:PORT --num_processes=N --process_id=I, or --coordinator=auto where JAX finds these out
(Cloud TPU). Process 0 writes the logs; validation is run by every process, on its first device.
"""

from absl import flags

from ghn_jax import config_file
from ghn_jax.base import cli, counters, processes
from ghn_jax.base.bounds import define_integer
from ghn_jax.base.environment import start_devices
from ghn_jax.base.start import define_executables, divide_cpu, enable_compilation_cache
from ghn_jax.training.preemption import Stopping
from ghn_jax.training.train import train

_CONFIG = config_file.define_config()
_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Directory of the run, which training creates or goes on in: checkpoints, metrics, TensorBoard.',
)
_PACK = flags.DEFINE_string(
    'pack',
    None,
    'Keep in this file all that the run needs to go on elsewhere; replaced with each checkpoint.',
)
_UNPACK = flags.DEFINE_string('unpack', None, 'Go on from this file of --pack, in a workdir without a run.')
_COORDINATOR = flags.DEFINE_string(
    'coordinator',
    '',
    'Address of process 0 as HOST:PORT, where several processes train one run; auto on TPUs and clusters. '
    'Empty: one process.',
)
_NUM_PROCESSES = define_integer(
    'num_processes', None, 'How many processes train the run; needs --coordinator.'
)
_PROCESS_ID = define_integer('process_id', None, 'Which of the processes this one is, counted from 0.')
_TIMEOUT = define_integer(
    'distributed_timeout', processes.TIMEOUT, 'How many seconds to wait for the other processes at the start.'
)
_READ_EXECUTABLES = define_executables()


def main() -> None:
    """Run the command."""
    config = config_file.read_config(_CONFIG)
    workdir = cli.check_workdir(_WORKDIR.value)
    pack = cli.check_output(_PACK.value, 'pack') if _PACK.value else None
    _READ_EXECUTABLES()
    divide_cpu(config.devices.cpu)
    processes.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, timeout=_TIMEOUT.value)
    stopping = Stopping()
    stopping.listen()
    enable_compilation_cache()
    counters.start_counting()
    with processes.leaving_at_once(), config_file.named_by_flags():
        start_devices()
        train(config, workdir, stopping=stopping, pack=pack, unpack=_UNPACK.value)


if __name__ == '__main__':
    cli.run(main)
