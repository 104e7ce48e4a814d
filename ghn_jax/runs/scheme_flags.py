"""--granularity, --weight_range and --activation_range: grids other than those of the training."""

from collections.abc import Callable, Iterable, Mapping

from absl import flags

from ghn_jax.quant.scheme import ACTIVATION_RANGES, GRANULARITIES, WEIGHT_RANGES

flags.disclaim_key_flags()  # --help shows them as the flags of the command that defines them

FIELDS: Mapping[str, tuple[Iterable[str], str]] = {
    'granularity': (GRANULARITIES, 'Weights have one grid for each tensor, or for each output channel.'),
    'weight_range': (WEIGHT_RANGES, 'How the range of the grids of weights is found.'),
    'activation_range': (ACTIVATION_RANGES, 'How the range of the grids of activations is found.'),
}
"""Fields of the run's `Scheme` that may be others than in training: their values, and what they are."""


def define_scheme_flags() -> Callable[[], dict[str, str]]:
    """Define a flag for each field; what is returned reads those that were given, once they are parsed."""
    default = 'Default: as in training.'
    holders = [flags.DEFINE_enum(name, None, of, f'{said} {default}') for name, (of, said) in FIELDS.items()]
    return lambda: {holder.name: holder.value for holder in holders if holder.value is not None}
