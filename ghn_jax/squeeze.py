"""Widens a network, and squeezes it: more channels at few bits, trained, then removed down to a cost.

python -m ghn_jax.squeeze --workdir=zoo:digits-bits --arch=net.json --width=2 --bits=w2a8 --out=DIR
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
from ghn_jax.base.errors import FieldError
from ghn_jax.base.fields import define_field_flags, flag_values
from ghn_jax.evaluation.evaluation_flags import parse_policies
from ghn_jax.runs import source_flags
from ghn_jax.runs.hypernetwork import Hypernetwork
from ghn_jax.runs.model_flags import read_networks
from ghn_jax.runs.prediction import with_names
from ghn_jax.tuning import comparison_table, training_flags
from ghn_jax.tuning.initialization import PREDICTED, RANDOM, Start, check_starts, parse_starts
from ghn_jax.tuning.squeeze_training import SqueezeSpec
from ghn_jax.tuning.squeezing import Pair, squeeze
from ghn_jax.tuning.widening import MOST, beyond_training, check_predicted, pairs_of_model, pairs_of_specs

_ARCH = flags.DEFINE_string('arch', None, 'Architecture file: JSON of one network or a list, the originals.')
_MODEL = flags.DEFINE_string('model', None, 'Function of the factor, in place of --arch: see above.')
_INIT = flags.DEFINE_string('init', PREDICTED, f'Where training begins: {PREDICTED}, {", ".join(RANDOM)}.')
_WIDTH = bounds.define_number('width', 2.0, 'Factor on the channels of every layer.', 1, MOST)
_SQUEEZING = define_field_flags(
    SqueezeSpec,
    cost='Bit operations of what is left, over those of the original.',
    penalty='Of the loss, times the sum of scales.',
)
_KINDS = flags.DEFINE_list('kinds', list(SqueezeSpec.kinds), 'Of original, widened, squeezed.')
_BITS = flags.DEFINE_list('bits', ['w2a8'], 'Bits of weights and activations, a list: a training for each.')
_OUT = flags.DEFINE_string('out', None, 'Folder of the trained parameters.')
_SOURCE = source_flags.define_flags()
_TRAINING = training_flags.define_flags()
_OUTPUTS = outputs.define_flags()


def main() -> None:
    """Run the command."""
    spec = SqueezeSpec(
        policies=parse_policies(_BITS.value),
        kinds=tuple(_KINDS.value),
        **flag_values(_SQUEEZING),
        **_TRAINING(),
    )
    source = _SOURCE()
    if not _OUT.value:
        raise FieldError('out', ' is missing: give a folder, such as --out=runs/squeeze')
    if _INIT.value != PREDICTED and _INIT.value not in RANDOM:  # no file: it would be of one width
        raise FieldError('init', f'={_INIT.value}: expected {PREDICTED} or one of {", ".join(RANDOM)}')
    out, written = cli.check_folder(_OUT.value, 'out'), _OUTPUTS()
    specs = with_names(read_networks(_ARCH.value, _MODEL.value))
    check_starts([_INIT.value], predicted=source.workdir is not None)
    hypernetwork = source.load_hypernetwork(predicts=False)
    dataset = hypernetwork.load_data()
    size = dataset.train.images.shape[1]
    if _MODEL.value:
        pairs = pairs_of_model(_MODEL.value, _WIDTH.value, size)
    else:
        pairs = pairs_of_specs(specs, _WIDTH.value, size)
    result = squeeze(
        pairs,
        _start(pairs, hypernetwork),
        spec,
        out,
        dataset=dataset,
        scheme=hypernetwork.scheme,
        used=hypernetwork.used,
    )
    if _INIT.value == PREDICTED:
        result['notes'] += beyond_training(pairs, hypernetwork.space.channels)
    result['about']['command'] = cli.command_line('squeeze')
    written.write(result, table=comparison_table.text)


def _start(pairs: list[Pair], hypernetwork: Hypernetwork) -> Start:
    models = [model for pair in pairs for model in (pair.original, pair.wide)]
    (begun,) = parse_starts([_INIT.value], models, hypernetwork)
    if _INIT.value == PREDICTED:
        for pair in pairs:
            check_predicted(pair.wide, hypernetwork.run.ghn, _WIDTH.value)
    return begun


if __name__ == '__main__':
    cli.run(main)
