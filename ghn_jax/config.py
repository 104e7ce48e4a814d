"""The configuration of a training run: every key with its default, its unit and what it may be.

Each section is a frozen dataclass, and `RunConfig` holds them all: what this package works with. A config
file and the command line work with a `ConfigDict` of the same keys in its place, locked, so that a misspelt
key is an error: `default()` makes it, and `freeze` turns it into a `RunConfig`, once, at the door. A
checkpoint carries the configuration as JSON (`to_json`).
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from ghn_jax.base import paths
from ghn_jax.base.bounds import BOUNDS
from ghn_jax.base.errors import FieldError, UserError, one_line, prefixed, shown
from ghn_jax.base.fields import bounded, check_fields, choice, items, number
from ghn_jax.hypernet.ghn import GHNConfig
from ghn_jax.networks.counts import MAX_OPERATIONS
from ghn_jax.networks.genotype import MAX_STEPS
from ghn_jax.quant.scheme import Scheme
from ghn_jax.quant.strategy import DRAWS

SCHEDULES = ('step', 'cosine', 'constant')
OPTIMIZERS = ('adam', 'adamw', 'muon')
DTYPES = ('float32', 'bfloat16')

_MOST_STEPS = 2**31 - 2  # counted by an int32


def _steps(default: int, *, least: int = 0) -> int:
    return number(default, least, _MOST_STEPS)


class _Section:
    """A frozen dataclass whose fields are judged when it is made. Raises FieldError for the first bad one."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpaceConfig(_Section):
    """The networks that are drawn: a named space, and the rules of it that are changed."""

    name: str = 'convnets250k'  # convnets250k | deepnets1m
    folder: str = ''  # of DeepNets-1M's published files, whose networks are taken; '' draws them by the rules
    cells: tuple[int, int] = items((4, 18), int)  # fewest, most cells
    max_steps: int = number(4, 1, MAX_STEPS)  # nodes of a cell
    ops: tuple[str, ...] = items((), str)  # () is all of the space's operations
    channels: tuple[int, ...] = items((), int)  # () is the space's rule (32..128); (16,) forces a width
    fc_dims: tuple[int, ...] = items((), int)  # () is the space's rule; (64,) forces a width
    ks: tuple[int, ...] = items((3, 5, 7), int)  # kernel sizes of the stem
    C_mults: tuple[int, ...] = items((1, 2), int)  # growth of the width at a reduction
    max_params: int = number(10_000_000, 1, 10**12)  # larger networks are not drawn
    # () is the rule of the space (few and small networks without); ('bnorm',) for all.
    norms: tuple[str, ...] = items((), str)
    # Of flattened heads, where the space allows them; 0 unless image_size is 32.
    flat_head_share: float = number(0.1, 0, 1)
    plain_share: float = number(0.0, 0, 1)  # of chains of one operation, which DeepNets-1M has none of
    num_classes: int = number(10, 1, 65536)  # of the data set

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.cells) != 2:
            raise FieldError('cells', f'={shown(self.cells)}: expected (fewest, most)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class HypernetworkConfig(_Section):
    """The hypernetwork, but for what the data and the published format decide: see `GHNConfig`."""

    hid: int = number(GHNConfig.hid, 4, 4096)  # width of node embeddings and states
    hypernet: str = GHNConfig.hypernet  # gatedgnn | graphormer (GHN-3) | mlp
    decoder: str = GHNConfig.decoder  # conv, the only one
    weight_norm: bool = GHNConfig.weight_norm  # these three off: GHN-1
    ve: bool = GHNConfig.ve
    layernorm: bool = GHNConfig.layernorm
    bits: bool = GHNConfig.bits  # whether it is told the bits of every tensor, and writes weights for them
    rounds: int = number(GHNConfig.rounds, 1, 16)  # of a gatedgnn: sweeps over the graph, each there and back
    layers: int = number(GHNConfig.layers, 1, 256)  # of a graphormer
    heads: int = number(GHNConfig.heads, 1, 256)  # of its attention, a divisor of hid

    def __post_init__(self) -> None:
        super().__post_init__()
        GHNConfig(**dataclasses.asdict(self))  # which judges its fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantConfig(Scheme):
    """A scheme, with the bits that it is trained at. Evaluation uses the run's scheme.

    Bits are data: the schedule and the draw change them from step to step, and the program is the same.
    """

    bits: str = 'w4a4'  # of weights and activations; unused in mode float
    schedule: tuple = ()  # (until step, bits), ...: what applies before; ((350, 'float'),) is float first
    # Bits such as ('w2a2', 'w4a4') that each network draws one of, in place of `bits`.
    draw: tuple[str, ...] = items((), str)
    draw_per: str = choice('network', DRAWS)  # layer: each its own; either: a toss between the two
    edge_bits: str = ''  # of the first and the last layer, such as 'w8a8'; '' is those of the others


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(_Section):
    """Training steps and the optimizer."""

    steps: int = _steps(210_900)  # 300 epochs of 703 steps: 45,000 images in batches of 64
    meta_batch: int = bounded('meta_batch', 8)  # networks per step; all see the same images
    batch_size: int = bounded('batch_size', 64)  # images per step
    # adam: with L2 in the gradient, as GHN-2. adamw: decay apart from it. muon: of kernels, with AdamW.
    optimizer: str = choice('adam', OPTIMIZERS)
    learning_rate: float = number(1e-3, 1e-30, 1e6)
    decoder_rate: float = number(1.0, 0, 1e6)  # these three times the learning rate: of the decoder,
    gnn_rate: float = number(1.0, 0, 1e6)  # of the graph network and the norm behind it,
    embedding_rate: float = number(1.0, 0, 1e6)  # of the embeddings of nodes and bits
    weight_decay: float = number(1e-5, 0, 1e6)
    clip_norm: float = number(5.0, 1e-30, 1e30)  # of the global gradient norm
    network_clip_norm: float = number(0.0, 0, 1e30)  # of each network's gradient; 0 is none
    loss_power: float = number(0.0, 0, 1)  # a network's gradient is divided by its loss to it; 0 is none
    label_smoothing: float = number(0.0, 0, 1)
    distillation: float = number(0.0, 0, 1)  # share of a label that the network unrounded gives; 0 is none
    weight_penalty: float = number(0.0, 0, 1e6)  # of the predicted weights' norms; GHN-3 has 3e-5
    ema: float = number(0.0, 0, 1)  # decay of the parameters' average, which is then what is used; 0 is none
    # step: x0.1 at 2/3 and 5/6 of the steps, as GHN-2; cosine: to 0.
    schedule: str = choice('step', SCHEDULES)
    warmup_steps: int = _steps(0)  # linear, from 0
    small_first_steps: int = _steps(0)  # until then smaller networks come up more often; 0 is never
    small_images_steps: int = _steps(0)  # until then images are of half the size; 0 is never
    # Of the networks' values and their gradients; bfloat16: half the memory traffic.
    dtype: str = choice('float32', DTYPES)
    augment: bool = True  # crop from 4 pixels of padding; flip where the data set allows it


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig(_Section):
    """Validation during training."""

    every_steps: int = _steps(7_030)  # 10 epochs; 0 is never
    num_networks: int = bounded('num_networks', 20)  # of the val split
    num_images: int = bounded('num_images', 5_000)  # of the validation images
    bits: tuple[str, ...] = items((), str)  # beside float, as in ('w8a8', 'w4a4'); () is quant.bits


@dataclasses.dataclass(frozen=True, kw_only=True)
class DevicesConfig(_Section):
    """The devices that take part in a step."""

    images: int = number(1, 1, 65_536)  # that share the images of a network; others take other networks
    cpu: int = number(1, 1, BOUNDS['devices'][1])  # parts of a CPU: 2 use two cores, and twice the memory
    per_process: int = number(0, 0, 65_536)  # of each process, that take part; 0 is all


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramConfig(_Section):
    """The compiled program."""

    max_nodes: int = number(512, 1, MAX_OPERATIONS)  # of a graph, which has a matrix of all pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(_Section):
    """A training run. The defaults are float GHN-2 on CIFAR-10 with its published settings.

    Names of data sets, spaces and operations, and bits, are judged where they are used.

    Raises:
      FieldError: a field that is not what it may be, in this class and in the sections.
    """

    seed: int = bounded('seed', 0)  # of everything: initial weights, images, augmentation, networks
    dataset: str = 'cifar10'  # cifar10 | digits | synthetic | FILE.npz, images of your own
    data_dir: str = ''  # where TFDS data lie, or FILE.npz; '' is TFDS's own place, and where FILE.npz says
    image_size: int = number(32, 8, 512)  # pixels, a multiple of 8; images of another size are resized
    init_from: str = ''  # run directory whose parameters this one begins with; '' is random ones

    space: SpaceConfig = SpaceConfig()
    ghn: HypernetworkConfig = HypernetworkConfig()
    quant: QuantConfig = QuantConfig()
    train: TrainConfig = TrainConfig()

    log_every_steps: int = _steps(100, least=1)
    save_every_steps: int = _steps(2_000, least=1)  # also before a validation or a compilation
    keep_checkpoints: int = _steps(3, least=1)  # the newest; the one that validated best stays, too
    keep_every_steps: int = _steps(0)  # so do those of multiples of it; 0 is none
    save_in_background: bool = True  # False: a step waits until a checkpoint is on the disk
    # Share of the networks between two log lines beyond which training stops.
    max_not_finite: float = number(0.5, 0, 1)

    eval: EvalConfig = EvalConfig()
    devices: DevicesConfig = DevicesConfig()
    program: ProgramConfig = ProgramConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_image_size()
        if self.train.network_clip_norm and self.devices.images > 1:
            raise FieldError(
                'train.network_clip_norm',
                f'={self.train.network_clip_norm} with devices.images={self.devices.images}: no device has a '
                'whole gradient of a network: set one of them to 0 or 1',
            )
        if self.train.small_images_steps and self.image_size % 16:
            raise FieldError(
                'train.small_images_steps',
                f'={self.train.small_images_steps} with image_size={self.image_size}: half of it is no '
                'multiple of 8: set it to 0',
            )
        for key in ('data_dir', 'init_from'):
            path = getattr(self, key)
            (paths.check_place if key == 'init_from' else paths.check_local)(path, key)
            if '\0' in path:
                raise FieldError(key, f'={shown(path)}: expected a directory')

    def _check_image_size(self) -> None:
        if self.image_size % 8:  # a stem and two reductions may each halve it
            raise FieldError('image_size', f'={self.image_size}: expected a multiple of 8')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagesConfig(RunConfig):
    """What stands for the config of a run where there are images alone, of any size that a model takes."""

    image_size: int = number(32, 8, 1024)

    def _check_image_size(self) -> None:
        pass


def image_sizes(config: RunConfig) -> tuple[int, ...]:
    """Give the sizes in pixels that a training sees its images at, that of its last step first."""
    whole = config.image_size
    return (whole, whole // 2) if config.train.small_images_steps else (whole,)


def _is_section(field: dataclasses.Field) -> bool:
    return dataclasses.is_dataclass(field.default)


def _keys(config: Any) -> Iterator[str]:
    for field in dataclasses.fields(config):
        if _is_section(field):
            yield from (f'{field.name}.{key}' for key in _keys(field.default))
        else:
            yield field.name


KEYS = frozenset(_keys(RunConfig()))
"""All keys, as in `train.steps`."""


def default() -> ConfigDict:
    """Return `RunConfig()` as what a config file changes: locked, its keys as attributes."""
    return ConfigDict(dataclasses.asdict(RunConfig())).lock()


def freeze(config: ConfigDict | RunConfig) -> RunConfig:
    """Return what a config file or the command line made of `default()`, judged key by key.

    Raises:
      FieldError: the first key that is missing, unknown or of no use.
    """
    return config if isinstance(config, RunConfig) else _build(RunConfig, config.to_dict(), complete=True)


def replace(config: RunConfig, key: str, value: Any) -> RunConfig:
    """Return the config with another value of a dotted key, such as `train.steps`.

    Raises:
      FieldError: no such key, or a value that it may not have.
    """
    values = dataclasses.asdict(config)
    *sections, last = key.split('.')
    holder: Any = values
    for section in sections:
        holder = holder.get(section) if isinstance(holder, dict) else None
    if not isinstance(holder, dict) or last not in holder:
        raise FieldError(key, ' is no key')
    holder[last] = value
    return _build(RunConfig, values, complete=True)


def to_json(config: RunConfig | ConfigDict) -> str:
    """Return the config as JSON; tuples become lists, which `from_json` turns back."""
    return json.dumps(dataclasses.asdict(freeze(config)), sort_keys=True)


def from_json(text: str) -> RunConfig:
    """Return the config that `to_json` wrote.

    Keys that are absent, for they are newer than the text, have their defaults.

    Raises:
      UserError: keys that there are not, or values that they may not have.
    """
    try:
        return _build(RunConfig, _of_this_version(json.loads(text)), complete=False)
    except (ValueError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f'the config is not one of this version: {one_line(e)}: train again') from e


def _build(kind: type, values: Mapping[str, Any], *, complete: bool) -> Any:
    """The dataclass with these values, mappings for its sections. complete: whether all keys must be there,
    as they are unless somebody put a new section in place of the one there was (`--config.ghn={}`).
    """
    sections = {f.name: type(f.default) for f in dataclasses.fields(kind) if _is_section(f)}
    known = [f.name for f in dataclasses.fields(kind)]
    for key in map(str, values):
        if key not in known:
            raise FieldError(key[:60], f' is no key: expected {", ".join(known)}')
    for key in known if complete else ():
        if key not in values:
            raise FieldError(key, ' is missing: start from default(), state single keys')
    arguments = dict(values)
    for key, section in sections.items():
        if key in arguments:
            if not isinstance(arguments[key], Mapping):
                raise FieldError(key, f'={shown(arguments[key])}: expected a section with its keys')
            with prefixed(f'{key}.'):
                arguments[key] = _build(section, arguments[key], complete=complete)
    return kind(**arguments)


def _of_this_version(values: dict) -> dict:
    """With keys of earlier versions in today's words, and without those whose option was not taken."""
    quant = dict(values.get('quant', {}))
    if start := quant.pop('start_step', 0):
        quant['schedule'] = [[start, 'float']]
    for key in ('standardise', 'temperature'):
        if not quant.get(key, True):
            del quant[key]
    return values | {'quant': quant}
