"""Trains networks through quantization, from predicted, random or given parameters, and compares these.

python -m ghn_jax.finetune --workdir=zoo:digits-bits --arch=net.json --init=predicted,he --bits=w4a4 --out=DIR
python -m ghn_jax.finetune --workdir=RUN --model=nets:resnet --init=FILE --bits=w2a2 --epochs=10 --out=DIR
python -m ghn_jax.finetune --workdir=zoo:digits-bits --arch=net.json --method=slb --bits=w1a4 --out=DIR

Each network, bit-width, initialisation and seed is a training of its own. The table has the accuracy after 0,
1, 5 and all epochs, in float and rounded. DIR has the parameters of each, for `evaluate` and `export`.

--method=slb searches weights of at most 4 bits in place of rounding them straight-through; flags that begin
with --slb are of its schedule.

--init: predicted (by the hypernetwork of --workdir), he, he_uniform, glorot, glorot_normal, orthogonal,
uniform_R and normal_R (R 0.005, 0.05 or 0.5), or a file of parameters.
Images and rounding are those of the run; without --workdir, images are --dataset's.
"""

from absl import flags

from ghn_jax.base import cli, outputs
from ghn_jax.base.errors import UserError, prefixed
from ghn_jax.base.fields import define_field_flags, flag_values
from ghn_jax.evaluation.evaluation_flags import parse_policies
from ghn_jax.runs import source_flags
from ghn_jax.runs.model_flags import make_models, read_networks
from ghn_jax.runs.prediction import with_names
from ghn_jax.tuning import comparison_table, training_flags
from ghn_jax.tuning.finetune import STATISTICS, FinetuneSpec, finetune
from ghn_jax.tuning.initialization import check_starts, parse_starts
from ghn_jax.tuning.slb import SearchSpec

_ARCH = flags.DEFINE_string('arch', None, 'Architecture file: JSON of one network or a list.')
_MODEL = flags.DEFINE_string('model', None, 'Model of your own, in place of --arch: package.module:function.')
_INIT = flags.DEFINE_list('init', ['predicted'], 'Where training begins, a list: see above.')
_BITS = flags.DEFINE_list('bits', ['w4a4'], 'Bits of weights and activations, a list: a training for each.')
_METHOD = flags.DEFINE_enum(
    'method', 'straight_through', ['straight_through', 'slb'], 'How weights of few bits are trained.'
)
_SEARCH = define_field_flags(
    SearchSpec,
    'slb_',
    temperature='Of the softmax at the beginning.',
    growth='What it is multiplied by with each pass; 0: 100 in all.',
    start='Share of all passes after which it grows.',
    end='Share of all passes after which weights are hard.',
    rate='Learning rate of the logits.',
    logits='Where they begin: distance or random.',
)
_OUT = flags.DEFINE_string('out', None, 'Folder of the trained parameters.')
_BN = flags.DEFINE_enum(
    'bn', 'batch', STATISTICS, 'Statistics of batch norms; fixed ones want --learning_rate=3e-5.'
)
_SOURCE = source_flags.define_flags()
_TRAINING = training_flags.define_flags()
_OUTPUTS = outputs.define_flags()


def main() -> None:
    """Run the command."""
    spec = FinetuneSpec(
        policies=parse_policies(_BITS.value),
        batch_norm=_BN.value,
        search=_search(),
        **_TRAINING(),
    )
    source = _SOURCE()
    if not _OUT.value:
        raise UserError('--out is missing: give a folder, such as --out=runs/finetune')
    out, written = cli.check_folder(_OUT.value, 'out'), _OUTPUTS()
    specs = with_names(read_networks(_ARCH.value, _MODEL.value))
    check_starts(_INIT.value, predicted=source.workdir is not None)
    hypernetwork = source.load_hypernetwork(predicts=False)
    dataset = hypernetwork.load_data()
    models, sources = make_models(specs, _MODEL.value, dataset.train.images.shape[1])
    result = finetune(
        models,
        parse_starts(_INIT.value, models, hypernetwork),
        spec,
        out,
        dataset=dataset,
        sources=sources,
        scheme=hypernetwork.scheme,
        used=hypernetwork.used,
    )
    result['about']['command'] = cli.command_line('finetune')
    written.write(result, table=comparison_table.text)


def _search() -> SearchSpec | None:
    if _METHOD.value == 'slb':
        with prefixed('slb_'):
            return SearchSpec(**flag_values(_SEARCH))
    if given := [flag.name for flag in _SEARCH.values() if flag.present]:
        raise UserError(f'--{given[0]} is of --method=slb, which is not given: give it, or leave this out')
    return None


if __name__ == '__main__':
    cli.run(main, {'batch_norm': 'bn'})
