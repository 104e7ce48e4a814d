r"""Compares strategies: trains a hypernetwork with each and scores all on the same unseen networks.

python -m ghn_jax.study --config=configs/quickstart.py --strategies=configs/strategies.json \
    --workdir=runs/study --batch_size=60 --bits=w32a32,w4a4,w2a2 [--seeds=0,1,2] [--groups=w2a2] \
    [--config.key=value]

A strategy is a name and what it changes in the config: a JSON object {"name": {"mode": "qat", ..}, ..}. Keys
are those of `config.quant`, or any of the config: "seed", "train.steps", "ghn.bits". What no strategy changes
is the same for all: seed, space, data, number of steps. Each run has a directory of its own, WORKDIR/name,
which `evaluate` and `predict` take as well; with --seeds, WORKDIR/name.seedK. A study that was stopped goes
on where it was, and several processes on one WORKDIR may share the runs by --only or --seeds.

WORKDIR/study.json holds the tables of all runs there that are done, whichever process did them and when: of
these strategies, with any seed. A run whose config is not the study's, or that was scored in another way, is
left out of them and named.
"""

from absl import flags

from ghn_jax import config_file
from ghn_jax.base import bounds, cli
from ghn_jax.base.errors import UserError
from ghn_jax.base.fields import define_field_flags, flag_values
from ghn_jax.base.start import start
from ghn_jax.evaluation.evaluation_flags import parse_policies, parse_splits
from ghn_jax.evaluation.evaluation_spec import EvaluationSpec
from ghn_jax.studies import study_tables
from ghn_jax.studies.study import StudySpec, study
from ghn_jax.studies.study_runs import parse_seeds, read_strategies

_CONFIG = config_file.define_config()
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Directory of the study, with a run directory for each strategy.'
)
_STRATEGIES = flags.DEFINE_string(
    'strategies',
    None,
    'Strategies to compare: a JSON file, {"NAME": {"mode": "qat", ..}, ..}, or a name that ghn_jax has, such '
    'as recipe.',
)
_SEEDS = flags.DEFINE_list(
    'seeds', [], "Train every strategy with each of these seeds, as in 0,1,2. Empty: the config's."
)
_ONLY = flags.DEFINE_list(
    'only', [], 'Train and score only these strategies, or runs such as mixed.seed1. Empty: all.'
)
_BASELINE = flags.DEFINE_string(
    'baseline', '', 'Strategy that the others are compared with. Empty: the first.'
)
_SPLITS = flags.DEFINE_list('splits', ['test'], 'Score networks of these splits, as in ghn_jax.evaluate.')
_BITS = flags.DEFINE_list(
    'bits', ['w32a32', 'w8a8', 'w4a4', 'w2a2'], 'Bits to score at, a list of w<bits>a<bits>; w32a32 is float.'
)
_GROUPS = flags.DEFINE_string(
    'groups', '', 'Also score with one part of each network at these bits, as in w2a2, the rest in float.'
)
_LAYERS = bounds.define_integer('layers', 0, 'With --groups, score so many networks layer by layer.')
_SCORING = define_field_flags(
    EvaluationSpec,
    num_networks='How many networks of each split are scored. 0: all.',
    num_images='How many test images they are scored on. 0: all.',
    batch_size='Images of a batch, whose statistics batch norms use.',
)


def main() -> None:
    """Run the command."""
    config = config_file.read_config(_CONFIG)
    workdir = cli.check_workdir(_WORKDIR.value)
    if not _STRATEGIES.value:
        raise UserError('--strategies is missing: give a file or a name, as in --strategies=strategies')
    spec = StudySpec(
        seeds=parse_seeds(_SEEDS.value),
        only=tuple(_ONLY.value),
        baseline=_BASELINE.value or '',
        groups=parse_policies([_GROUPS.value])[0] if _GROUPS.value else None,
        layers=_LAYERS.value,
        evaluation=EvaluationSpec(
            splits=parse_splits(_SPLITS.value),
            policies=parse_policies(_BITS.value),
            **flag_values(_SCORING),
        ),
    )
    strategies = read_strategies(_STRATEGIES.value)
    start(config.devices.cpu)
    with config_file.named_by_flags():
        tables = study(config, strategies, workdir, spec)
    print(study_tables.text(tables))


if __name__ == '__main__':
    cli.run(main)
