"""What a measurement is asked for."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ghn_jax import config as configs
from ghn_jax.base import bounds
from ghn_jax.base.errors import FieldError
from ghn_jax.base.fields import bounded, check_declared
from ghn_jax.config import RunConfig
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.runs import scheme_flags

MODES = ('float', 'qat')


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Everything a measurement may ask for; each takes what it needs.

    Attributes:
      specs: networks to time.
      modes: of MODES.
      meta_batch: networks in a training step.
      devices: that these are spread over.
      batch_size: images in a batch.
      num_images: to score each network on.
      config: of a run, whose programs or steps are measured.
      split: of the networks whose programs are compiled.
      widths: only programs of these; () is all.
      target: what `compile` compiles for; '' is the device at hand.
      cells, width: lengths and width of the networks of `cells`.
      repeats: times each thing is timed there and in `profile` and `models`, after warm-up.
      models: 'package.module:function' of functions that return one.
      workdir: of the run whose hypernetwork predicts their parameters.
      data_dir: the folder of its images; None: where the run has them.
      agreement: bits at which their ONNX files are run in onnxruntime, on num_images images.
      epochs: passes over the training images that they are trained for before that, in float, from their
        predicted parameters; None: they are not.
      scheme, batch_norm: of what is rounded in them, as in `export.export.ExportSpec`.

    Raises:
      FieldError: a number out of its bounds.
    """

    specs: tuple[NetworkSpec, ...] = ()
    modes: tuple[str, ...] = MODES
    meta_batch: int = bounded('meta_batch', 8)
    devices: int = bounded('devices', 1)
    batch_size: int = bounded('batch_size', 64)
    num_images: int = bounded('num_images', 1024)
    config: RunConfig | None = None
    split: str = 'train'
    widths: tuple[int, ...] = ()
    target: str = ''
    cells: tuple[int, ...] = (4, 12, 20, 28, 36)
    width: int = bounded('width', 16)
    repeats: int = bounded('repeats', 5)
    models: tuple[str, ...] = ()
    workdir: str = 'zoo:digits-bits'
    data_dir: str | None = None
    agreement: tuple[str, ...] = ()
    epochs: int | None = None
    batch_norm: str = 'corrected'
    scheme: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_declared(self)
        if self.epochs is not None:
            bounds.check(epochs=self.epochs)


_ON_NETWORKS = 'train', 'evaluate', 'pytorch'
_OF_MODELS = ('models', 'workdir', 'data_dir', 'agreement', 'epochs', 'bn', *scheme_flags.FIELDS)
USED_BY: Mapping[str, tuple[str, ...]] = {
    'archs': ('predict', *_ON_NETWORKS),
    'mode': (*_ON_NETWORKS, 'cells', 'profile'),
    'meta_batch': ('train',),
    'devices': ('train', 'evaluate'),
    'batch_size': (*_ON_NETWORKS, 'cells'),
    'num_images': ('evaluate', 'pytorch', 'models'),
    'config': ('compile', 'profile'),
    **dict.fromkeys(('split', 'target', 'widths'), ('compile',)),
    **dict.fromkeys(('cells', 'width'), ('cells',)),
    'repeats': ('cells', 'profile', 'scaling', 'models'),
    **dict.fromkeys(_OF_MODELS, ('models',)),
}
"""What uses a flag of the command."""


def check_used(given: Iterable[str], what: Sequence[str]) -> None:
    """Raise FieldError for a flag that is used by nothing of `what`: it would change nothing."""
    for flag in given:
        if not set(USED_BY[flag]) & set(what):
            raise FieldError(flag, f' is for what={",".join(USED_BY[flag])}: leave it out')


Row = dict[str, Any]  # one measurement as JSON: 'what', 'mode', figures; see `timing.row`


def config_of(options: BenchmarkOptions, what: str) -> RunConfig:
    """Check the config and give it. Raises FieldError if there is none, or a bad one."""
    if options.config is None:
        raise FieldError('config', f' is missing, which {what} is about: give one, such as ghn_qat_cifar10')
    return configs.freeze(options.config)


def parts_of_cpu() -> int:
    """Return 2 where a CPU has the cores and the memory: large networks have workspaces of 5 GiB each."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    forced = 'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
    return 2 if (os.cpu_count() or 1) > 1 and memory >= 20 * 2**30 and not forced else 1
