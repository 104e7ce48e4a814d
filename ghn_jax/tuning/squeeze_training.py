"""One squeezing: a wide network trained with a penalty on its channels, of which some go between two passes.

The penalty is that of network slimming (arXiv 1708.06519, eq. 1), an l1 norm of the channels' scales. What is
removed is 0 from then on in the parameters, in their average and in what the optimizer remembers, and the
masks are arguments of the step, so one program serves whatever is left.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ghn_jax
from ghn_jax.base import files
from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.base.fields import bounded, check_declared, number
from ghn_jax.base.paths import Place
from ghn_jax.evaluation.evaluation_spec import BATCH_SIZE
from ghn_jax.quant.policy import Policy
from ghn_jax.runs.model_parameters import write_params
from ghn_jax.runs.progress import Progress
from ghn_jax.tuning import comparison_table
from ghn_jax.tuning.images import TuningImages
from ghn_jax.tuning.initialization import Start
from ghn_jax.tuning.loop import fit
from ghn_jax.tuning.records import TrainingRecord
from ghn_jax.tuning.removal import Removal
from ghn_jax.tuning.training import Trainer, TrainingSpec, TrainingState, make_optimizer

KINDS = ('original', 'widened', 'squeezed')
"""What is trained: the network as it is, with all its channels more, with those that are left of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SqueezeSpec:
    """What is trained, how much of it is left, and how it is scored.

    Attributes:
      policies: the bits; each is a training of its own.
      training: the budget, equal for all kinds. Removal takes place before half of the passes, at least one,
        beginning with the second.
      cost: BOPs of what is left, over those of the original at the same bits.
      penalty: of the loss, times the sum of the channels' scales (`Removal.scales`), until the last removal.
      seeds: of random parameters, and of the order of the images.
      kinds: of `KINDS`.
      eval_batch_size: test images of a batch, whose statistics batch norms use.
      num_images: test images; 0: all.

    Raises:
      FieldError: a number out of its bounds, or another kind.
    """

    policies: tuple[Policy, ...]
    training: TrainingSpec
    cost: float = number(1.0, 1e-3, 300)
    penalty: float = number(1e-3, 0, 100)
    seeds: tuple[int, ...] = (0,)
    kinds: tuple[str, ...] = KINDS[2:]
    eval_batch_size: int = bounded('batch_size', BATCH_SIZE)
    num_images: int = bounded('num_images', 0)

    def __post_init__(self) -> None:
        check_declared(self)
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise FieldError('kinds', f'={",".join(self.kinds)}: expected of {", ".join(KINDS)}')
        if self.training.epochs < 2 and 'squeezed' in self.kinds:
            raise FieldError('epochs', f'={self.training.epochs}: channels go between passes: give 2 or more')

    @property
    def removals(self) -> int:
        """How many times channels are removed."""
        return max(1, self.training.epochs // 2)


class Squeezing(NamedTuple):
    """What a squeezing knows beside what is trained (`TrainingState.fixed`).

    Attributes:
      alive: bool [channels + 1], the channels that are left.
      masks: a pytree as the parameters, 1 for what is left and 0 for what is removed.
      penalty: float32 [], of this pass (`SqueezeSpec.penalty`).
      costs: float32 [passes], BOPs during each pass so far.
    """

    alive: Any
    masks: Any
    penalty: Any
    costs: Any


@dataclasses.dataclass(frozen=True)
class SqueezeTask:
    """One network at one bit-width, of one kind.

    Attributes:
      name: of the network.
      kind: one of `KINDS`.
      bits: what the policy is called.
      policy: as it is used.
      removal: takes channels off the wide network.
      original: BOPs of the original network.
      most: BOPs of what is left in the end.
      score: parameters -> top-1.
      settings: all that a result depends on beside the start and the seed, in JSON's types.
    """

    name: str
    kind: str
    bits: str
    policy: Policy
    removal: Removal
    original: int
    most: float
    spec: SqueezeSpec
    images: TuningImages
    trainer: Trainer
    score: Callable[[Any], float]
    settings: Mapping[str, Any]

    def run(self, start: Start, seed: int, out: Place, progress: Progress) -> dict[str, Any]:
        """Do a training, or what is left of it, and keep its parameters; return its record."""
        name, model = f'{self.name}.{self.bits}.{self.kind}.seed{seed}', self.removal.model
        parameters = out / f'{name}.safetensors'
        record = TrainingRecord(out / 'runs', name, {**self.settings, 'seed': seed, 'from': start.about})
        if (done := record.read()) and files.exists(parameters):
            progress.update(self.trainer.steps)
            return done
        state, history = fit(
            self.trainer,
            self.images.train,
            self.begin(start.params(model, self.policy, seed), seed),
            record,
            marks=comparison_table.marks(self.trainer.epochs),
            score=lambda state: self.score(state.averaged),
            progress=progress,
            between=self.between,
        )
        params, alive = jax.device_get((state.averaged, state.fixed.alive))
        self._check(params, alive)
        about = {'bits': self.bits, 'kind': self.kind, 'begun_from': start.name, 'seed': str(seed)}
        write_params(parameters, model, params, about | {'ghn_jax': ghn_jax.__version__})
        bops = self.removal.cost(alive)
        done = {
            'network': self.name,
            'bits': self.bits,
            'kind': self.kind,
            'init': start.name,
            'seed': seed,
            'file': parameters.name,
            'channels': len(alive) - 1,
            'left': int(alive.sum()) - 1,
            'bops': bops,
            'cost': bops / self.original,
            'schedule': [round(float(cost) / self.original, 4) for cost in state.fixed.costs],
            **history,
        }
        record.write(done)
        return done

    def begin(self, params: Any, seed: int) -> TrainingState:
        """Return the first state, with all channels."""
        alive, costs = self.removal.all(), np.zeros(self.trainer.epochs, np.float32)
        return self.trainer.begin(
            params, seed, Squeezing(alive, self.removal.masks(alive), np.float32(0), costs)
        )

    def between(self, state: TrainingState, epoch: int) -> TrainingState:
        """Remove what is due before a pass, and say what the pass costs and how it is penalised."""
        alive, removals = np.asarray(state.fixed.alive), self.spec.removals
        penalty = 0.0
        if self.kind == 'squeezed':
            penalty = self.spec.penalty if epoch < removals else 0.0
            if 1 <= epoch <= removals:
                wide = self.removal.cost(self.removal.all())
                goal = wide * (self.most / wide) ** (epoch / removals)
                alive = self.removal.remove(alive, np.asarray(self.removal.scales(state.average)), goal)
                state = self._removed(state, alive)
        costs = state.fixed.costs.at[epoch].set(float(self.removal.cost(alive)))  # it may be beyond int32
        return state._replace(fixed=state.fixed._replace(penalty=jnp.float32(penalty), costs=costs))

    def _removed(self, state: TrainingState, alive: np.ndarray) -> TrainingState:
        """Put zeros for what is gone, also in what the optimizer remembers, which would move it."""
        masks = jax.tree.map(jnp.asarray, self.removal.masks(alive))
        cut = lambda tree: jax.tree.map(jnp.multiply, tree, masks)
        optimizer = make_optimizer(self.spec.training, 1)
        moments: Any = optax.tree_utils.tree_map_params(optimizer, jnp.multiply, state.optimizer, masks)
        fixed = state.fixed._replace(alive=jnp.asarray(alive), masks=masks)
        return state._replace(
            params=cut(state.params), average=cut(state.average), optimizer=moments, fixed=fixed
        )

    def _check(self, params: Any, alive: np.ndarray) -> None:
        if (bops := self.removal.cost(alive)) > self.most:
            raise UserError(
                f'{self.name} costs {bops / self.original:.3f} of the original with the fewest channels that '
                'were found: give a larger cost'
            )
        self.removal.check(params, alive, self.images.test.normalized()[0])
