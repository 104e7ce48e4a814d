"""--granularity, --weight_range and --activation_range: grids other than those of the training."""

from collections.abc import Callable, Mapping, Sequence

from absl import flags

from ghn_jax.quant.scheme import ACTIVATION_RANGES, GRANULARITIES, WEIGHT_RANGES

flags.disclaim_key_flags()  # --help shows them as the flags of the command that defines them

OF_WEIGHTS = ('granularity', 'weight_range')
FIELDS: Mapping[str, tuple[Sequence[str], str]] = {
    'granularity': (GRANULARITIES, 'Grids of weights: one for the tensor, or for each output channel.'),
    'weight_range': (WEIGHT_RANGES, 'How far grids of weights reach.'),
    'activation_range': (ACTIVATION_RANGES, 'How far grids of activations reach.'),
}
"""Fields of the run's `Scheme` that may be others than in training: their values, and what they are."""


def define_scheme_flags(names: Sequence[str] = tuple(FIELDS)) -> Callable[[], dict[str, str]]:
    """Define the flags of some of the fields; what is returned reads those that were given, once parsed."""
    default = 'Default: as in training.'
    holders = [flags.DEFINE_enum(n, None, list(FIELDS[n][0]), f'{FIELDS[n][1]} {default}') for n in names]
    return lambda: {holder.name: holder.value for holder in holders if holder.value is not None}
