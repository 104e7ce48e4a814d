"""Schemes: how tensors are quantized, whatever their bits. Static: a program is compiled for a scheme.

Bits are not part of it: they are data (`policy`). Every scheme serves all bit-widths in one program.
"""

import dataclasses

from ghn_jax.errors import UserError

MODES = ('float', 'qat', 'noise')
GRANULARITIES = ('tensor', 'channel')
WEIGHT_RANGES = ('minmax', 'percentile', 'mse', 'sigma')
ACTIVATION_RANGES = ('minmax', 'sigma')
_CALIBRATED = ('percentile', 'mse', 'moving_average')  # of activations: they need more than one batch


@dataclasses.dataclass(frozen=True)
class Scheme:
    """The defaults are the papers': per tensor, asymmetric, over [min(0, min x), max(0, max x)].

    mode: 'float' quantizes nothing. 'qat' rounds, straight-through. 'noise' adds noise in place of rounding.
    granularity: of weights: one grid for the tensor, or for each output channel.
    symmetric: grids of weights reach equally far on both sides: zero point 0, one level fewer.
    weight_range: 'minmax'; 'percentile', 'mse': the fraction of it that leaves 100 - `percentile` percent of
      the weights outside, or that has the least squared error; 'sigma': `weight_sigmas` standard deviations
      to each side, no further than min and max.
    activation_range: of the batch: 'minmax', times `activation_clip`; or 'sigma', as for weights.
    *_sigmas: 0 is the best for a normal distribution at the tensor's bits (`ranges.sigmas_for`).
    standardise: each output channel of a weight is first brought to mean 0 and variance 2 / fan-in, at all
      bit-widths (arXiv 1903.10520).
    temperature: of rounding in mode 'qat': above 0, a smooth staircase with its own gradient (`fake_quant`).

    Raises:
      UserError: unknown names, numbers out of range, options without use in the mode.
    """

    mode: str = 'float'
    granularity: str = 'tensor'
    symmetric: bool = False
    weight_range: str = 'minmax'
    percentile: float = 99.9
    weight_sigmas: float = 0.0
    activation_range: str = 'minmax'
    activation_clip: float = 1.0
    activation_sigmas: float = 0.0
    standardise: bool = False
    temperature: float = 0.0

    def __post_init__(self) -> None:
        names = {
            'mode': MODES,
            'granularity': GRANULARITIES,
            'weight_range': WEIGHT_RANGES,
            'activation_range': ACTIVATION_RANGES,
        }
        if self.activation_range in _CALIBRATED:
            raise UserError(
                f'--config.quant.activation_range={self.activation_range}: one batch does not tell; '
                f'train with {" or ".join(ACTIVATION_RANGES)}, and calibrate when evaluating'
            )
        for key, allowed in names.items():
            if (value := getattr(self, key)) not in allowed:
                raise UserError(f'--config.quant.{key}={value}: expected one of {", ".join(allowed)}')
        bounds = {
            'percentile': (50, 100),
            'weight_sigmas': (0, 100),
            'activation_sigmas': (0, 100),
            'activation_clip': (0.01, 1),
            'temperature': (0, 10),
        }
        for key, (low, high) in bounds.items():
            if not low <= (value := getattr(self, key)) <= high:
                raise UserError(f'--config.quant.{key}={value}: expected {low} to {high}')
        if 0 < self.temperature < 0.02:
            raise UserError(
                f'--config.quant.temperature={self.temperature}: expected 0 (hard) or at least 0.02'
            )
        if self.mode == 'float' and self.standardise:
            raise UserError(
                '--config.quant.standardise=True has no use in quant.mode=float: set quant.mode=qat, '
                'and quant.bits=float to round nothing'
            )
        if self.mode == 'noise' and self.temperature:
            raise UserError(
                f'--config.quant.temperature={self.temperature} has no use in quant.mode=noise, '
                'which does not round: set quant.mode=qat'
            )

    @property
    def clips_activations(self) -> bool:
        """Whether the range of an activation may be less than what it holds."""
        return self.activation_range != 'minmax' or self.activation_clip < 1

    def when_used(self) -> 'Scheme':
        """What networks are run with outside of training: rounded, and hard."""
        return dataclasses.replace(self, mode='qat', temperature=0.0)


FLOAT = Scheme()
QAT = Scheme('qat')
FIELDS = tuple(field.name for field in dataclasses.fields(Scheme))
