"""The configuration of a training run: every key, its default and its unit.

A file of `configs/` starts from `default()` and states what it changes. The keys are locked: a misspelt one
is an error, in a file as on the command line. A checkpoint carries the configuration as JSON (`to_json`).
"""

import json
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from ghn_jax.base import paths
from ghn_jax.base.bounds import BOUNDS
from ghn_jax.base.errors import UserError, shown
from ghn_jax.networks.counts import MAX_OPERATIONS
from ghn_jax.networks.genotype import MAX_STEPS
from ghn_jax.quant.scheme import MODES

SCHEDULES = ('step', 'cosine', 'constant')
DTYPES = ('float32', 'bfloat16')


_STEPS = 2**31 - 2  # counted by an int32
# The least and the most of every number but those of `quant`, which `Scheme` judges. The most is what keeps a
# slip of the pen from asking for terabytes or for years.
_BOUNDS = {
    'seed': BOUNDS['seed'],
    'image_size': (8, 512),
    'space.max_steps': (1, MAX_STEPS),
    'space.max_params': (1, 10**12),
    'space.flat_head_share': (0, 1),
    'ghn.hid': (4, 4096),
    'train.steps': (0, _STEPS),
    'train.meta_batch': BOUNDS['meta_batch'],
    'train.batch_size': BOUNDS['batch_size'],
    'train.learning_rate': (1e-30, 1e6),
    'train.weight_decay': (0, 1e6),
    'train.clip_norm': (1e-30, 1e30),
    'train.warmup_steps': (0, _STEPS),
    'log_every_steps': (1, _STEPS),
    'save_every_steps': (1, _STEPS),
    'keep_checkpoints': (1, _STEPS),
    'keep_every_steps': (0, _STEPS),
    'max_not_finite': (0, 1),  # a share
    'eval.every_steps': (0, _STEPS),
    'eval.num_networks': BOUNDS['num_networks'],
    'eval.num_images': BOUNDS['num_images'],
    'devices.images': (1, 65_536),
    'devices.cpu': (1, BOUNDS['devices'][1]),
    'devices.per_process': (0, 65_536),
    'program.max_nodes': (1, MAX_OPERATIONS),  # a graph has a matrix of all pairs
}


def default() -> ConfigDict:
    """Float GHN-2 on CIFAR-10 with its published settings, locked."""
    c: Any = ConfigDict()  # its keys are no attributes to a type checker
    c.seed = 0  # of everything: initial weights, images, augmentation, and which networks
    c.dataset = 'cifar10'  # cifar10 | digits | synthetic
    c.data_dir = ''  # where TFDS data lie; '' is TFDS's own place
    c.image_size = 32  # pixels; images of another size are resized
    c.init_from = ''  # run directory whose parameters this one begins with; '' is random ones

    c.space = ConfigDict()
    c.space.name = 'convnets250k'  # convnets250k | deepnets1m
    c.space.cells = (4, 18)  # fewest, most cells
    c.space.max_steps = 4  # nodes of a cell
    c.space.ops = ()  # () is all of the space's operations
    c.space.channels = ()  # () is the space's rule (32..128, large networks narrower); (16,) forces a width
    c.space.fc_dims = ()  # () is the space's rule; (64,) forces a width
    c.space.ks = (3, 5, 7)  # kernel sizes of the stem
    c.space.C_mults = (1, 2)  # growth of the width at a reduction
    c.space.max_params = 10_000_000  # larger networks are not drawn
    c.space.norms = ()  # () is the rule of the space (few and small networks without); ('bnorm',) for all
    c.space.flat_head_share = (
        0.1  # of flattened heads, where the space allows them; 0 unless image_size is 32
    )

    c.ghn = ConfigDict()
    c.ghn.hid = 32  # width of node embeddings and states
    c.ghn.hypernet = 'gatedgnn'  # gatedgnn | mlp
    c.ghn.decoder = 'conv'  # the only one
    c.ghn.weight_norm = True  # these three off: GHN-1
    c.ghn.ve = True
    c.ghn.layernorm = True
    c.ghn.bits = False  # whether it is told the bits of every tensor, and writes weights for them

    c.quant = ConfigDict()
    c.quant.mode = 'float'  # float | qat (straight-through rounding) | noise (up to half a step, each side)
    c.quant.bits = 'w4a4'  # of weights and activations; unused in mode float
    # Bits are data: what follows changes them from step to step, and the program is the same.
    c.quant.schedule = ()  # (until step, bits), ...: what applies before; ((350, 'float'),) is float first
    c.quant.draw = ()  # bits such as ('w2a2', 'w4a4') that each network draws one of, in place of quant.bits
    c.quant.draw_per = 'network'  # network | layer (each its own) | either (a toss between the two)
    c.quant.edge_bits = ''  # of the first and the last layer, such as 'w8a8'; '' is those of the others
    # The scheme, static: see quant/scheme.py for what each is. Evaluation uses the run's.
    c.quant.granularity = 'tensor'  # tensor | channel (each output channel of a weight has a grid of its own)
    c.quant.symmetric = False  # grids of weights: zero point 0
    c.quant.weight_range = 'minmax'  # minmax | percentile | mse | sigma
    c.quant.percentile = 99.9  # of the weights of a tensor or channel, inside the range of 'percentile'
    c.quant.weight_sigmas = 0.0  # standard deviations to each side, for 'sigma'; 0 is the best for the bits
    c.quant.activation_range = 'minmax'  # minmax | sigma, of each batch
    c.quant.activation_clip = 1.0  # times the range of 'minmax'
    c.quant.activation_sigmas = 0.0  # as weight_sigmas

    c.train = ConfigDict()
    c.train.steps = 210_900  # 300 epochs of 703 steps: 45,000 images in batches of 64
    c.train.meta_batch = 8  # networks per step; all see the same images
    c.train.batch_size = 64  # images per step
    c.train.learning_rate = 1e-3  # Adam
    c.train.weight_decay = 1e-5
    c.train.clip_norm = 5.0  # of the global gradient norm
    c.train.schedule = 'step'  # step (x0.1 at 2/3 and 5/6 of the steps, as GHN-2) | cosine (to 0) | constant
    c.train.warmup_steps = 0  # linear, from 0
    c.train.dtype = (
        'float32'  # of the networks' values and their gradients; bfloat16: half the memory traffic
    )
    c.train.augment = True  # crop from 4 pixels of padding; flip where the data set allows it

    c.log_every_steps = 100
    c.save_every_steps = 2_000  # also before each validation, and where a program is to be compiled
    c.keep_checkpoints = 3  # the newest; the one that validated best stays, too
    c.keep_every_steps = 0  # so do those of multiples of it; 0 is none
    c.save_in_background = True  # False: a step waits until a checkpoint is on the disk
    c.max_not_finite = 0.5  # share of the networks between two log lines beyond which training stops

    c.eval = ConfigDict()
    c.eval.every_steps = 7_030  # 10 epochs; 0 is never
    c.eval.num_networks = 20  # of the val split
    c.eval.num_images = 5_000  # of the validation images
    c.eval.bits = ()  # beside float, as in ('w8a8', 'w4a4'); () is quant.bits

    c.devices = ConfigDict()
    c.devices.images = 1  # devices that share the images of a network; the others take networks of their own
    c.devices.cpu = 1  # that a CPU is divided into: 2 use two cores well, and take twice the memory
    c.devices.per_process = 0  # devices of each process that take part; 0 is all

    c.program = ConfigDict()
    c.program.max_nodes = 512  # a graph with more does not fit
    return c.lock()


def check(config: ConfigDict) -> ConfigDict:
    """The config, if what can be judged key by key is possible; raises UserError for the first that is not.

    Names of data sets, spaces and operations, and bits, are judged where they are used.
    """
    _check_keys(default(), config, '')
    tuples = {
        'space.cells': int,
        'space.ops': str,
        'space.channels': int,
        'space.fc_dims': int,
        'space.ks': int,
        'space.C_mults': int,
        'space.norms': str,
        'quant.draw': str,
        'eval.bits': str,
    }
    for key, kind in tuples.items():
        value = _get(config, key)
        if not all(type(x) is kind for x in value):
            raise UserError(f'--config.{key}={shown(value)}: expected a tuple of {kind.__name__}')
    if len(cells := _get(config, 'space.cells')) != 2:
        raise UserError(f'--config.space.cells={shown(cells)}: expected (fewest, most)')
    for key, (least, most) in _BOUNDS.items():
        if not least <= (value := _get(config, key)) <= most:  # NaN is not
            raise UserError(f'--config.{key}={shown(value)}: expected {least} to {most:,}')
    if config.image_size % 8:  # a stem and two reductions may each halve it
        raise UserError(f'--config.image_size={config.image_size}: expected a multiple of 8')
    for key in ('data_dir', 'init_from'):
        paths.check_local(_get(config, key), f'--config.{key}')
        if '\0' in _get(config, key):
            raise UserError(f'--config.{key}={shown(_get(config, key))}: expected a directory')
    _one_of(config, 'quant.mode', MODES)
    _one_of(config, 'train.schedule', SCHEDULES)
    _one_of(config, 'train.dtype', DTYPES)
    return config


def to_json(config: ConfigDict) -> str:
    """The config as JSON; tuples become lists, which `from_json` turns back."""
    return config.to_json(sort_keys=True)


def from_json(text: str) -> ConfigDict:
    """A locked config from `to_json`. Keys that are absent, for they are newer than the text, have defaults.

    Raises UserError for keys that `default()` does not have, and as `check`.
    """
    config = default()
    try:
        _fill(config, _of_this_version(json.loads(text)), '')
        return check(config)
    except (ValueError, TypeError, AttributeError, RecursionError) as e:
        reason = ' '.join(str(e).split())[:300]
        raise UserError(f'the config is not one of this version: {reason}: train again') from e


def _fill(config: Any, values: dict, prefix: str) -> None:
    if odd := sorted(set(values) - set(config.keys())):
        raise ValueError(f'it has the unknown keys {[prefix + k for k in odd]}')
    for key, value in values.items():
        if isinstance(config[key], ConfigDict):
            _fill(config[key], value, f'{prefix}{key}.')
        else:
            config[key] = tuples(value)


def tuples(value: Any) -> Any:
    """Lists, as they come from JSON, as tuples; other values as they are."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def _of_this_version(values: dict) -> dict:
    """With keys of earlier versions in today's words, and without those whose option was not taken."""
    quant = dict(values.get('quant', {}))
    if start := quant.pop('start_step', 0):
        quant['schedule'] = [[start, 'float']]
    for key in ('standardise', 'temperature'):
        if not quant.get(key, True):
            del quant[key]
    return values | {'quant': quant}


def _check_keys(wanted: Any, config: Any, prefix: str) -> None:
    """Raises UserError where a key is absent, unknown or of another type: --config.ghn={} replaces a part."""
    if odd := sorted(map(str, set(wanted.keys()) ^ set(config.keys()))):
        raise UserError(
            f'--config.{prefix}{odd[0][:60]} is missing, or no key: start from default(), state single keys'
        )
    for key, value in wanted.items():
        if isinstance(value, ConfigDict) and isinstance(config[key], ConfigDict):
            _check_keys(value, config[key], f'{prefix}{key}.')
        elif type(config[key]) is not type(value):
            raise UserError(f'--config.{prefix}{key}={shown(config[key])}: expected a {type(value).__name__}')
        for text in _texts(config[key]):
            if text != text.strip():  # it would be another name in results, and another run
                raise UserError(f'--config.{prefix}{key}={text!r}: remove the white space at its ends')


def _texts(value: Any) -> Iterator[str]:
    """The strings in a value of a key: a string, or tuples of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _texts(part)


def _get(config: ConfigDict, key: str) -> Any:
    value: Any = config
    for part in key.split('.'):
        value = value[part]
    return value


def _one_of(config: ConfigDict, key: str, names: tuple[str, ...]) -> None:
    if (value := _get(config, key)) not in names:
        raise UserError(f'--config.{key}={shown(value)}: expected one of {", ".join(names)}')
