"""Trains networks through quantization, from predicted, random or given parameters, and compares these.

python -m ghn_jax.finetune --workdir=zoo:digits-bits --arch=net.json --init=predicted,he --bits=w4a4 --out=DIR
python -m ghn_jax.finetune --workdir=RUN --model=nets:resnet --init=FILE --bits=w2a2 --epochs=10 --out=DIR
python -m ghn_jax.finetune --workdir=zoo:digits-low-bits --arch=net.json --method=slb --bits=w1a4 --out=DIR

Each network, bit-width, initialisation and seed is a training of its own. The table has the accuracy after 0,
1, 5 and all epochs, in float and rounded. DIR has the parameters of each, for `evaluate` and `export`.

--method=slb searches weights of at most 4 bits in place of rounding them straight-through; flags that begin
with --slb are of its schedule.

--init: predicted (by the hypernetwork of --workdir), he, he_uniform, glorot, glorot_normal, orthogonal,
uniform_R and normal_R (R 0.005, 0.05 or 0.5), or a file of parameters.
Images and rounding are those of the run; without --workdir, images are --dataset's.
"""

from absl import flags

from ghn_jax.base import bounds, cli, outputs
from ghn_jax.base.errors import UserError, prefixed
from ghn_jax.base.start import start
from ghn_jax.datasets.load import DATASETS, Dataset, load
from ghn_jax.evaluation.evaluation_flags import parse_policies
from ghn_jax.evaluation.evaluation_spec import BATCH_SIZE
from ghn_jax.hypernet.predict import check_head
from ghn_jax.models.loading import load_model
from ghn_jax.models.model import Model
from ghn_jax.models.tracing import trace
from ghn_jax.networks.files import load_networks
from ghn_jax.quant.scheme import QAT
from ghn_jax.runs.hypernetwork import Hypernetwork
from ghn_jax.runs.hypernetwork import load as load_hypernetwork
from ghn_jax.runs.prediction import with_names
from ghn_jax.tuning import comparison
from ghn_jax.tuning.finetune import STATISTICS, FinetuneSpec, finetune
from ghn_jax.tuning.initialization import parse_starts
from ghn_jax.tuning.slb import SearchSpec
from ghn_jax.tuning.training import TrainingSpec

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory, or zoo:NAME.')
_ARCH = flags.DEFINE_string('arch', None, 'Architecture file: JSON of one network or a list.')
_MODEL = flags.DEFINE_string('model', None, 'Model of your own, in place of --arch: package.module:function.')
_INIT = flags.DEFINE_list('init', ['predicted'], 'Where training begins, a list: see above.')
_BITS = flags.DEFINE_list('bits', ['w4a4'], 'Bits of weights and activations, a list: a training for each.')
_METHOD = flags.DEFINE_enum(
    'method', 'straight_through', ['straight_through', 'slb'], 'How weights of few bits are trained.'
)
_SEARCH = {
    'temperature': flags.DEFINE_float('slb_temperature', 1.0, 'Of the softmax at the beginning.'),
    'growth': flags.DEFINE_float(
        'slb_growth', 0.0, 'What it is multiplied by with each pass; 0: 100 in all.'
    ),
    'start': flags.DEFINE_float('slb_start', 0.2, 'Share of all passes after which it grows.'),
    'end': flags.DEFINE_float('slb_end', 0.8, 'Share of all passes after which weights are hard.'),
    'rate': flags.DEFINE_float('slb_rate', 0.1, 'Learning rate of the logits.'),
    'logits': flags.DEFINE_string('slb_logits', 'distance', 'Where they begin: distance or random.'),
}
_EPOCHS = bounds.define_integer('epochs', 10, 'Passes over the training images.')
_SEEDS = flags.DEFINE_list('seeds', ['0'], 'A training for each: of random weights, of the order of images.')
_OUT = flags.DEFINE_string('out', None, 'Folder of the trained parameters.')
_BN = flags.DEFINE_enum('bn', 'batch', STATISTICS, 'Statistics of batch norms: docs/fine-tuning.md.')
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
    spec = FinetuneSpec(
        policies=parse_policies(_BITS.value),
        training=TrainingSpec(
            epochs=_EPOCHS.value,
            batch_size=_BATCH_SIZE.value,
            learning_rate=_RATE.value,
            ema=_EMA.value,
            augment=_AUGMENT.value,
        ),
        seeds=bounds.integers('seeds', _SEEDS.value, 'seed'),
        batch_norm=_BN.value,
        eval_batch_size=_EVAL_BATCH_SIZE.value,
        num_images=_NUM_IMAGES.value,
        search=_search(),
    )
    if not _OUT.value:
        raise UserError('--out is missing: give a folder, such as --out=runs/finetune')
    out, written = cli.check_folder(_OUT.value, 'out'), _OUTPUTS()
    loaded, dataset = _task()
    models, sources = _models(dataset.train.images.shape[1])
    result = finetune(
        models,
        parse_starts(_INIT.value, models, loaded),
        spec,
        out,
        dataset=dataset,
        sources=sources,
        scheme=loaded.scheme if loaded else QAT,
        **({'used': loaded.used} if loaded else {}),
    )
    result['about']['command'] = cli.command_line('finetune')
    written.write(result, table=comparison.text)


def _search() -> SearchSpec | None:
    if _METHOD.value == 'slb':
        with prefixed('slb_'):
            return SearchSpec(**{name: flag.value for name, flag in _SEARCH.items()})
    if given := [flag.name for flag in _SEARCH.values() if flag.present]:
        raise UserError(f'--{given[0]} is of --method=slb, which is not given: give it, or leave this out')
    return None


def _task() -> tuple[Hypernetwork | None, Dataset]:
    if bool(_WORKDIR.value) == bool(_DATASET.value):
        given = 'are both given' if _DATASET.value else 'are missing'
        raise UserError(f'--workdir and --dataset {given}: give a run, whose images are taken, or a data set')
    start()
    if not _WORKDIR.value:
        return None, load(_DATASET.value or '', data_dir=_DATA_DIR.value, image_size=_IMAGE_SIZE.value)
    loaded = load_hypernetwork(cli.check_workdir(_WORKDIR.value, must_exist=True))
    return loaded, loaded.load_data()


def _models(size: int) -> tuple[list[Model], dict[str, dict[str, str]]]:
    if bool(_ARCH.value) == bool(_MODEL.value):
        given = 'both given' if _ARCH.value else 'missing'
        raise UserError(f'--arch and --model are {given}: give one of them')
    if _MODEL.value:
        model = load_model(_MODEL.value, (1, size, size, 3))
        return [model], {model.name: {'model': _MODEL.value}}
    specs = with_names(load_networks(_ARCH.value or ''))
    for spec in specs:
        check_head(spec, size)
    sources = {spec.name: {'arch': spec.to_json()} for spec in specs}
    return [trace(spec, (1, size, size, 3)) for spec in specs], sources


if __name__ == '__main__':
    cli.run(main, {'batch_norm': 'bn'})
