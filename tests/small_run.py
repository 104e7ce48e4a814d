"""For the tests of commands: run directories with an untrained GHN, and calling a command in this process."""

import contextlib
import importlib.util
import io
import pathlib
import runpy
import sys
from unittest import mock

import jax
from absl import flags

from ghn_jax import config
from ghn_jax.checkpoint import Checkpoints
from ghn_jax.hypernet.ghn import GHNConfig, init_params

ROOT = pathlib.Path(__file__).resolve().parents[1]


def small_config(**quant):
    """`configs/test.py` with even fewer ops: its program compiles in seconds."""
    path = ROOT / 'configs/test.py'
    module_spec = importlib.util.spec_from_file_location('test_config', path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    c = module.get_config()
    c.space.cells = (2, 2)
    c.space.ops = ('skip_connect', 'conv_1x1', 'sep_conv_3x3')
    c.quant.update(quant)
    return c


def write_run(workdir: pathlib.Path, *, seed: int = 0, step: int = 3, **quant) -> pathlib.Path:
    """A run directory as training leaves it, with random parameters."""
    c = small_config(**quant)
    ghn = GHNConfig(hid=c.ghn.hid)
    meta = {'kind': 'train', 'config': config.to_json(c), 'ghn': ghn.to_dict(), 'dataset': {'name': c.dataset}}
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(step, {'params': init_params(ghn, jax.random.key(seed))}, meta, wait=True)
    return workdir


def command(module: str, *args: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `python -m module args`, without the seconds that a new process takes."""
    known = set(flags.FLAGS)
    out, err = io.StringIO(), io.StringIO()
    code = 0
    try:
        with mock.patch.object(sys, 'argv', [module, *map(str, args)]):
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                runpy.run_module(module, run_name='__main__')
    except SystemExit as e:
        code = e.code or 0
    finally:
        flags.FLAGS.unparse_flags()
        for name in set(flags.FLAGS) - known:
            if name not in ('help', 'helpshort', 'helpfull', 'helpxml'):  # absl defines them once
                delattr(flags.FLAGS, name)
    return code, out.getvalue(), err.getvalue()


def is_one_error_line(result: tuple[int, str, str], *words: str) -> bool:
    """Exit code 2 and nothing but one line on stderr, with these words."""
    code, out, err = result
    return code == 2 and not out and err.startswith('error: ') and err.count('\n') == 1 and all(w in err for w in words)
