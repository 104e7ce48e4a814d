"""Schemes: how tensors are quantized, whatever their bits. Static: a program is compiled for a scheme.

Bits are not part of it: they are data (`policy`). Every scheme serves all bit-widths in one program.
"""

import dataclasses

from ghn_jax.base.errors import FieldError, UserError, shown
from ghn_jax.base.fields import check_fields, choice, number

MODES = ('float', 'qat', 'noise')
GRANULARITIES = ('tensor', 'channel')
WEIGHT_RANGES = ('minmax', 'percentile', 'mse', 'sigma')
ACTIVATION_RANGES = ('minmax', 'sigma')
LEAST_SIGMAS = 0.01
"""Of `Scheme`'s ranges: what is far less is 0 in float32, which has another meaning."""

_CALIBRATED = ('percentile', 'mse', 'moving_average')  # of activations: they need more than one batch


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How tensors are quantized.

    The defaults are the papers': per tensor, asymmetric, over [min(0, min x), max(0, max x)].

    Attributes:
      mode: 'float' quantizes nothing; 'qat' rounds, with straight-through gradients; 'noise' adds noise in
        place of rounding, up to half a step to each side.
      granularity: of the grids of weights: one for the 'tensor', or one for each output 'channel'.
      symmetric: whether grids of weights reach equally far on both sides: zero point 0, one level fewer.
      weight_range: 'minmax'; 'percentile' or 'mse', the fraction of it that leaves 100 - `percentile` percent
        of the weights outside, or that has the least squared error; 'sigma', `weight_sigmas` standard
        deviations to each side, no further than min and max.
      percentile: of weights within their range, for 'percentile'.
      activation_range: of a batch: 'minmax', times `activation_clip`; or 'sigma', as for weights.
      activation_clip: the fraction of 'minmax' that activations are rounded within.
      weight_sigmas, activation_sigmas: standard deviations for 'sigma'; 0 is the best number for a normal
        distribution at the tensor's bits (`ranges.sigma_range`).

    Raises:
      FieldError: unknown names, numbers out of range.
    """

    mode: str = choice('float', MODES)
    granularity: str = choice('tensor', GRANULARITIES)
    symmetric: bool = False
    weight_range: str = choice('minmax', WEIGHT_RANGES)
    percentile: float = number(99.9, 50, 100)
    weight_sigmas: float = number(0.0, 0, 100)
    activation_range: str = choice('minmax', ACTIVATION_RANGES)
    activation_clip: float = number(1.0, 0.01, 1)
    activation_sigmas: float = number(0.0, 0, 100)

    def __post_init__(self) -> None:
        if self.activation_range in _CALIBRATED:
            raise FieldError(
                'activation_range',
                f'={self.activation_range}: one batch does not tell; train with '
                f'{" or ".join(ACTIVATION_RANGES)}, and calibrate when evaluating',
            )
        check_fields(self)
        for name in ('weight_sigmas', 'activation_sigmas'):
            if 0 < getattr(self, name) < LEAST_SIGMAS:
                raise FieldError(
                    name, f'={getattr(self, name)}: expected 0, for the best, or a number from {LEAST_SIGMAS}'
                )

    @property
    def clips_activations(self) -> bool:
        """Whether the range of an activation may be less than what it holds."""
        return self.activation_range != 'minmax' or self.activation_clip < 1

    def when_used(self) -> 'Scheme':
        """Return what networks are run with outside of training: rounded."""
        return dataclasses.replace(self, mode='qat')


def check_scheme(scheme: object) -> None:
    """Raise UserError for what is no scheme."""
    if not isinstance(scheme, Scheme):
        raise UserError(f'scheme is {shown(scheme)}: expected a Scheme, such as that of a hypernetwork')


FLOAT = Scheme()
QAT = Scheme('qat')
FIELDS = tuple(field.name for field in dataclasses.fields(Scheme))
