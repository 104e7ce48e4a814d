"""Widens a network, and squeezes it: more channels at few bits, trained, then removed down to a cost.

python -m ghn_jax.squeeze --workdir=zoo:digits-low-bits --arch=net.json --width=2 --bits=w2a8 --out=DIR
python -m ghn_jax.squeeze --workdir=RUN --model=nets:resnet --width=2 --cost=0.5 --bits=w1a8,w4a8 --out=DIR

The hypernetwork of --workdir writes the network with --width times the channels; it is trained through
quantization with a penalty on the scales of channels, and those with the least are removed until the network
costs --cost times the bit operations of the original. DIR has the parameters of each training, the removed
channels 0 in them, for `evaluate` and `export`, and the architecture that they are for.

--model: a function of the factor: nets:resnet(1) is the original, nets:resnet(2) has twice its channels.
--kinds: `original` and `widened` train these beside, for a comparison. docs/squeezing.md says more.
"""

from absl import flags

from ghn_jax.base import bounds, cli, outputs
from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.base.start import start
from ghn_jax.datasets.load import DATASETS, Dataset, load
from ghn_jax.evaluation.evaluation_flags import parse_policies
from ghn_jax.evaluation.evaluation_spec import BATCH_SIZE
from ghn_jax.quant.scheme import QAT
from ghn_jax.runs.hypernetwork import Hypernetwork
from ghn_jax.runs.hypernetwork import load as load_hypernetwork
from ghn_jax.tuning import comparison
from ghn_jax.tuning.initialization import PREDICTED, RANDOM, Start, parse_starts
from ghn_jax.tuning.squeeze_training import SqueezeSpec
from ghn_jax.tuning.squeezing import Pair, squeeze
from ghn_jax.tuning.training import TrainingSpec
from ghn_jax.tuning.widening import MOST, beyond_training, check_predicted, pairs_of_file, pairs_of_model

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory, or zoo:NAME.')
_ARCH = flags.DEFINE_string('arch', None, 'Architecture file: JSON of one network or a list, the originals.')
_MODEL = flags.DEFINE_string('model', None, 'Function of the factor, in place of --arch: see above.')
_INIT = flags.DEFINE_string('init', PREDICTED, f'Where training begins: {PREDICTED}, {", ".join(RANDOM)}.')
_WIDTH = flags.DEFINE_float('width', 2.0, 'Factor on the channels of every layer.', 1, MOST)
_COST = flags.DEFINE_float('cost', 1.0, 'Bit operations of what is left, over those of the original.')
_PENALTY = flags.DEFINE_float('penalty', SqueezeSpec.penalty, 'Of the loss, times the sum of scales.')
_KINDS = flags.DEFINE_list('kinds', list(SqueezeSpec.kinds), 'Of original, widened, squeezed.')
_BITS = flags.DEFINE_list('bits', ['w2a8'], 'Bits of weights and activations, a list: a training for each.')
_EPOCHS = bounds.define_integer('epochs', 10, 'Passes over the training images.')
_SEEDS = flags.DEFINE_list('seeds', ['0'], 'A training for each: of random weights, of the order of images.')
_OUT = flags.DEFINE_string('out', None, 'Folder of the trained parameters.')
_BATCH_SIZE = bounds.define_integer('batch_size', TrainingSpec.batch_size, 'Images of a step.')
_EVAL_BATCH_SIZE = flags.DEFINE_integer(
    'eval_batch_size', BATCH_SIZE, 'Images of a batch that is scored.', *bounds.BOUNDS['batch_size']
)
_NUM_IMAGES = bounds.define_integer('num_images', 0, 'Test images; 0 takes all.')
_RATE = flags.DEFINE_float('learning_rate', TrainingSpec.learning_rate, 'Of the first step.', 0, 10)
_EMA = flags.DEFINE_float('ema', TrainingSpec.ema, 'Decay of the average that is kept; 0: none.', 0, 0.999999)
_AUGMENT = flags.DEFINE_bool('augment', False, 'Crop training images from 4 pixels of padding, and mirror.')
_DATASET = flags.DEFINE_enum('dataset', None, list(DATASETS), 'Images, where no run has any.')
_IMAGE_SIZE = flags.DEFINE_integer('image_size', 32, 'Pixels on a side, with --dataset.', 8, 1024)
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where TFDS data lie, with --dataset.')
_OUTPUTS = outputs.define_flags()


def main() -> None:
    """Run the command."""
    spec = SqueezeSpec(
        policies=parse_policies(_BITS.value),
        training=TrainingSpec(
            epochs=_EPOCHS.value,
            batch_size=_BATCH_SIZE.value,
            learning_rate=_RATE.value,
            ema=_EMA.value,
            augment=_AUGMENT.value,
        ),
        cost=_COST.value,
        penalty=_PENALTY.value,
        seeds=bounds.integers('seeds', _SEEDS.value, 'seed'),
        kinds=tuple(_KINDS.value),
        eval_batch_size=_EVAL_BATCH_SIZE.value,
        num_images=_NUM_IMAGES.value,
    )
    if not _OUT.value:
        raise FieldError('out', ' is missing: give a folder, such as --out=runs/squeeze')
    if _INIT.value != PREDICTED and _INIT.value not in RANDOM:
        raise FieldError('init', f'={_INIT.value}: expected {PREDICTED} or one of {", ".join(RANDOM)}')
    out, written = cli.check_folder(_OUT.value, 'out'), _OUTPUTS()
    loaded, dataset = _task()
    pairs = _pairs(dataset.train.images.shape[1])
    result = squeeze(
        pairs,
        _start(pairs, loaded),
        spec,
        out,
        dataset=dataset,
        scheme=loaded.scheme if loaded else QAT,
        **({'used': loaded.used} if loaded else {}),
    )
    if loaded is not None and _INIT.value == PREDICTED:
        result['notes'] += beyond_training(pairs, loaded.space.channels)
    result['about']['command'] = cli.command_line('squeeze')
    written.write(result, table=comparison.text)


def _task() -> tuple[Hypernetwork | None, Dataset]:
    if bool(_WORKDIR.value) == bool(_DATASET.value):
        given = 'are both given' if _DATASET.value else 'are missing'
        raise UserError(f'--workdir and --dataset {given}: give a run, whose images are taken, or a data set')
    start()
    if not _WORKDIR.value:
        return None, load(_DATASET.value or '', data_dir=_DATA_DIR.value, image_size=_IMAGE_SIZE.value)
    loaded = load_hypernetwork(cli.check_workdir(_WORKDIR.value, must_exist=True))
    return loaded, loaded.load_data()


def _pairs(size: int) -> list[Pair]:
    if bool(_ARCH.value) == bool(_MODEL.value):
        given = 'both given' if _ARCH.value else 'missing'
        raise UserError(f'--arch and --model are {given}: give one of them')
    if _MODEL.value:
        return pairs_of_model(_MODEL.value, _WIDTH.value, size)
    return pairs_of_file(_ARCH.value or '', _WIDTH.value, size)


def _start(pairs: list[Pair], loaded: Hypernetwork | None) -> Start:
    models = [model for pair in pairs for model in (pair.original, pair.wide)]
    (begun,) = parse_starts([_INIT.value], models, loaded)
    if _INIT.value == PREDICTED and loaded is not None:
        for pair in pairs:
            check_predicted(pair.wide, loaded.run.ghn, _WIDTH.value)
    return begun


if __name__ == '__main__':
    cli.run(main)
