"""Widening and squeezing: accuracy against bit operations of networks as they are, widened, and squeezed.

    python -m ghn_jax.studies.squeezing digits runs/squeezing

Networks of the test split of a hypernetwork's space, with half of their channels, are the originals; widened
by 2 they are as wide as those that the hypernetwork has met. Each begins from predicted weights, and is
trained at W1, W2 and W4 with 8-bit activations for equally many passes, for each seed: the original, the
widened network, and one that is squeezed to the cost of the original. What is done stands in the folder, and
the study goes on where it was stopped.
"""

import argparse
import dataclasses
import datetime
import pathlib
from collections.abc import Sequence
from typing import Any

from ghn_jax.base import cli, files
from ghn_jax.base.paths import Place
from ghn_jax.base.start import start
from ghn_jax.quant.policy import parse_bits
from ghn_jax.runs import hypernetwork as hypernetworks
from ghn_jax.studies.study_arguments import case_parser
from ghn_jax.tuning.initialization import PREDICTED, parse_starts
from ghn_jax.tuning.squeeze_training import KINDS, SqueezeSpec
from ghn_jax.tuning.squeezing import squeeze
from ghn_jax.tuning.training import TrainingSpec
from ghn_jax.tuning.widening import pair_of

WORKDIR = 'zoo:digits-bits'
NETWORKS = (12,)  # places in the test split
CHANNELS, FACTOR = 8, 2
BITS = ('w1a8', 'w2a8', 'w4a8')
SPEC = SqueezeSpec(
    policies=tuple(map(parse_bits, BITS)),
    training=TrainingSpec(epochs=14, learning_rate=1e-2),
    seeds=(0,),
    kinds=KINDS,
    eval_batch_size=60,
)
RESULT = pathlib.Path('docs/results/squeezing.json')


def study(spec: SqueezeSpec, out: Place) -> dict[str, Any]:
    """Train all networks; return the table."""
    loaded = hypernetworks.load(WORKDIR)
    dataset = loaded.load_data()
    originals = [dataclasses.replace(loaded.space.sample('test', 0, i), C=CHANNELS) for i in NETWORKS]
    pairs = [pair_of(spec, FACTOR, dataset.train.images.shape[1]) for spec in originals]
    models = [model for pair in pairs for model in (pair.original, pair.wide)]
    (begun,) = parse_starts([PREDICTED], models, loaded)
    result = squeeze(pairs, begun, spec, out, dataset=dataset, scheme=loaded.scheme, used=loaded.used)
    result['about'] |= {
        'date': datetime.date.today().isoformat(),
        'hypernetwork': WORKDIR,
        'channels': f'C={CHANNELS}, widened by {FACTOR}',
        'command': 'python -m ghn_jax.studies.squeezing',
    }
    return result


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    return case_parser('ghn_jax.studies.squeezing', __doc__, ['digits'])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study of a data set."""
    args = parser().parse_args(arguments)
    with cli.errors_in_one_line():
        out = cli.check_folder(args.workdir, 'out')
        start()
        files.write_json(RESULT, study(SPEC, out))


if __name__ == '__main__':
    main()
