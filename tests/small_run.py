"""For the tests of commands: run directories with an untrained GHN, and calling a command in this process."""

import contextlib
import importlib.util
import io
import pathlib
import runpy
import sys
import warnings
from typing import TextIO
from unittest import mock

import absl.app  # noqa: F401  (it defines flags once, before a command is called)
import jax
from absl import flags

from ghn_jax.hypernet.ghn import GHNConfig, init_params
from ghn_jax.runs.checkpoint import Checkpoints
from ghn_jax.runs.run import run_meta

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


def write_run(
    workdir: pathlib.Path,
    *,
    seed: int = 0,
    step: int = 3,
    bits: bool = False,
    dataset: str = 'synthetic',
    **quant,
) -> pathlib.Path:
    """A run directory as training leaves it, with random parameters. bits: of a GHN that is told the bits.

    They predict zero shifts and biases: the signs of normalised features then differ from image to image, and
    so do classes. With random shifts a network says the same class to all images.
    """
    c = small_config(**quant)
    c.ghn.bits, c.dataset = bits, dataset
    ghn = GHNConfig(hid=c.ghn.hid, bits=bits)
    meta = run_meta(c, ghn, step, kind='train')
    params = init_params(ghn, jax.random.key(seed))
    norm, channels = params['decoder']['norm'], ghn.max_shape[0]
    norm['kernel_1'], norm['bias_1'] = (norm[k].at[..., channels:].set(0) for k in ('kernel_1', 'bias_1'))
    params['decoder']['class_bias']['bias'] *= 0
    for k, name in enumerate(params.get('bits', ())):
        params['bits'][name] += jax.random.normal(jax.random.key(seed + k), params['bits'][name].shape)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(step, {'params': params}, meta, wait=True)
    return workdir


def command(
    module: str, *args: object, stdout: TextIO | None = None, stderr: TextIO | None = None
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `python -m module args`, without the seconds a new process takes.

    module: or the path of a script.
    stdout, stderr: what it writes to, and '' is returned.
    """
    known = set(flags.FLAGS)
    said = io.StringIO(), io.StringIO()
    out, err = stdout or said[0], stderr or said[1]
    code = 0
    try:
        with (
            mock.patch.object(sys, 'argv', [module, *map(str, args)]),
            mock.patch(
                'ghn_jax.base.start.enable_compilation_cache'
            ),  # the user's, and this process's settings
            mock.patch('ghn_jax.base.start.divide_cpu'),  # JAX has its devices by now
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter('ignore', RuntimeWarning)  # runpy: the module is imported already
            run = runpy.run_path if module.endswith('.py') else runpy.run_module
            run(module, run_name='__main__')
    except SystemExit as e:
        code = e.code or 0
    finally:
        flags.FLAGS.unparse_flags()
        for name in set(flags.FLAGS) - known:
            if name not in ('help', 'helpshort', 'helpfull', 'helpxml'):  # absl defines them once
                delattr(flags.FLAGS, name)
    return code, said[0].getvalue(), said[1].getvalue()


def is_one_error_line(result: tuple[int, str, str], *words: str) -> bool:
    """Exit code 2 and nothing but one line on stderr, with these words."""
    code, out, err = result
    return (
        code == 2
        and not out
        and err.startswith('error: ')
        and err.count('\n') == 1
        and all(w in err for w in words)
    )
