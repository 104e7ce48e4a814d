"""What an evaluation is asked for, as one frozen value: from flags, or from Python."""

import dataclasses
import pathlib
from collections.abc import Iterable

from ghn_jax.base.errors import FieldError
from ghn_jax.base.fields import bounded, check_declared
from ghn_jax.evaluation.protocol import CALIBRATION_BATCHES, PAPERS, Protocol
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import Policy, check_policy, parse_bits

GIVEN = 'archs'  # what rows call the networks of an architecture file
BITS = ('w32a32', 'w8a8', 'w4a8', 'w4a4', 'w2a2')
BATCH_SIZE = 64  # as in training
NUM_NETWORKS = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSpec:
    """Which networks are scored, on which images, at which bits, and how.

    Attributes:
      splits: of the run's space, the first num_networks of each.
      policies: the bits that the networks run with.
      num_networks: of each split; 0: all.
      num_images: the first ones of the test images, in whole batches of batch_size; 0: all.
      batch_size: images of a batch, whose statistics BatchNorm uses.
      seed: which networks the splits have; the same for every run that is to be compared.
      networks: score these, and no split.
      deepnets: folder of DeepNets-1M's published files, whose splits are taken; '': those of the run's space.
      protocol: what BatchNorm and ranges go by; the default is the papers'.
      calibration_batches: of training images, the first ones, for a protocol that measures.
      against: JSON file of an evaluation of the same networks, or another run's directory: it is scored too.
      workdir: what the result calls the run.
      devices: that share the images; 0: all.
      predicted_for: the policy that a hypernetwork which reads the bits predicts the weights for, in place of
        the one that is run.
      partial: file on a disk that keeps what each network has scored, for an evaluation that is stopped and
        begun again (`partial`); who has the result removes it. None: nothing is kept.

    Raises:
      UserError: a number out of its bounds, no policy, two policies of one name.
    """

    splits: tuple[str, ...] = ('test',)
    policies: tuple[Policy, ...] = tuple(map(parse_bits, BITS))
    num_networks: int = bounded('num_networks', NUM_NETWORKS)
    num_images: int = bounded('num_images', 0)
    batch_size: int = bounded('batch_size', BATCH_SIZE)
    seed: int = bounded('seed', 0)
    networks: tuple[NetworkSpec, ...] | None = None
    deepnets: str = ''
    protocol: Protocol = PAPERS
    calibration_batches: int = bounded('calibration_batches', CALIBRATION_BATCHES)
    against: str | None = None
    workdir: str = ''
    devices: int = bounded('devices', 1)
    predicted_for: Policy | None = None
    partial: pathlib.Path | None = None

    def __post_init__(self) -> None:
        check_declared(self)
        for name in ('splits', 'policies', 'networks'):  # lists become tuples: a spec does not change
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(values))
        object.__setattr__(self, 'policies', _by_name(self.policies))


def _by_name(policies: Iterable[Policy]) -> tuple[Policy, ...]:
    """Return policies without repetitions; raise UserError unless each has a name of its own."""
    named: dict[str, Policy] = {}
    for policy in policies:
        check_policy(policy)
        if named.setdefault(str(policy), policy) != policy:
            raise FieldError('bits', f': two policies are called {str(policy)!r}: give one another name')
    return tuple(named.values())
