"""The programs that a config needs, from shapes alone: no workspace is allocated, no data are read.

Training needs one program for each family of the split `train`: a training step. Networks of other splits are
scored, with two functions of each program: predicting weights, scoring; and a third where something is
calibrated: measuring.

Axes: M networks of a meta-batch | K batches | N images of a batch | H pixels.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ghn_jax.assembly.mesh import OVER_DEVICES, OVER_IMAGES, arrange, mesh_of, of_each_process
from ghn_jax.assembly.network_batch import prepare
from ghn_jax.assembly.shapes import Placing
from ghn_jax.base.errors import FieldError
from ghn_jax.base.recipes import Recipe
from ghn_jax.cnn.covering import Family, covering_networks, family, training_program, widths
from ghn_jax.cnn.deploy.observer import Index, Wanted
from ghn_jax.cnn.packing import BLOCK
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.tables import Ranges, RunnableNetwork
from ghn_jax.config import RunConfig, image_sizes
from ghn_jax.evaluation import compiled
from ghn_jax.evaluation.evaluation_spec import EvaluationSpec
from ghn_jax.evaluation.selection import ImageBatches, room_for, select_split
from ghn_jax.hypernet.ghn import GHN, init_params
from ghn_jax.networks.space_rules import split_rules
from ghn_jax.networks.spaces import Space
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.strategy import strategy_of
from ghn_jax.runs.task import make_ghn, make_space_of, sizes_of
from ghn_jax.training.compiled import ImageStream
from ghn_jax.training.optimizer import make_optimizer
from ghn_jax.training.state import make_state
from ghn_jax.training.stepper import recipe_of, settings_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A function of a program to compile.

    Attributes:
      split: of the networks that it runs.
      family: what these have in common.
      program: what runs them.
      recipe: the function and its static arguments.
      arguments: their shapes, placed on the devices that it is for.
      workspace: which of them is overwritten by every network, as shapes.
      build_s: seconds that making the program took, on the host.
    """

    split: str
    family: Family
    program: Program
    recipe: Recipe
    arguments: tuple[Any, ...]
    workspace: Any
    build_s: float

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.recipe.function.__name__

    def trace(self) -> Any:
        """Trace the function (`jax.stages.Traced`)."""
        return self.recipe.function.trace(*self.arguments, **self.recipe.static)


def families(space: Space, split: str) -> tuple[Family, ...]:
    """List the families that networks of a split can have: each has a program of its own."""
    ops = set(split_rules(space, split).ops) - {'none'}
    attention = [vit for vit in (False, True) if ('msa' in ops if vit else ops - {'msa'})]
    return tuple(itertools.starmap(Family, itertools.product(widths(space, split), attention)))


def training_jobs(config: RunConfig, devices: Sequence[Any], wanted: Sequence[int] = ()) -> Iterator[Job]:
    """Yield the training step of each program of a run.

    Args:
      config: of the run.
      devices: that the step is for; the run takes as many of each process as `devices.per_process` says.
      wanted: only programs of these widths; () is all.

    Raises:
      UserError: devices that do not divide the work, a width that no training network has.
    """
    space, sizes = make_space_of(config), sizes_of(config)
    own = of_each_process(devices, config.devices.per_process)
    placing = Placing(own, arrange(config, own))
    ghn, optimizer = make_ghn(config), make_optimizer(config)
    settings = settings_of(config, ghn, optimizer, flip=sizes.flip, mesh=placing.mesh)
    M, N, H = config.train.meta_batch, config.train.batch_size, config.image_size
    state = jax.eval_shape(lambda p: make_state(p, optimizer, averaged=config.train.ema > 0), _params_of(ghn))
    shapes: Any = (
        _shape((sizes.train, H, H, 3), np.uint8), _shape((sizes.train,), np.int32),
        _shape((3,), np.float32), _shape((3,), np.float32),
    )  # fmt: skip
    stream = ImageStream(*shapes)
    key = jax.eval_shape(lambda: jax.random.key(0))
    chosen = _chosen(families(space, 'train'), wanted, 'train')
    for each, size in itertools.product(chosen, image_sizes(config)):
        start = time.perf_counter()
        program = training_program(space, each, size)
        example = next(iter(covering_networks(space, 'train', each)))
        networks, _ = prepare(program, [example] * M, Policy(), max_nodes=config.program.max_nodes)
        workspace = placing.workspace(program, N, config.train.dtype)
        yield Job(
            split='train', family=each, program=program,
            recipe=recipe_of(program, settings, config.train),
            arguments=(
                placing.shapes(state), placing.networks(networks), placing.shapes(stream),
                placing.shapes(_shape((N,), np.int32), OVER_IMAGES), placing.shapes(key), workspace,
            ),
            workspace=workspace, build_s=time.perf_counter() - start,
        )  # fmt: skip


def validation_jobs(config: RunConfig, devices: Sequence[Any], wanted: Sequence[int] = ()) -> Iterator[Job]:
    """Yield what a run's validations need, as `training.validation` makes them; nothing where it has none.

    Each process runs the validation, on its first device, and a program is of one device.
    """
    if config.eval.every_steps:
        spec = EvaluationSpec(
            num_networks=config.eval.num_networks, batch_size=config.train.batch_size, seed=config.seed,
            num_images=min(config.eval.num_images, sizes_of(config).val),
        )  # fmt: skip
        for device in of_each_process(devices, 1):
            yield from _scoring_jobs(config, [device], 'val', spec, wanted)


def evaluation_jobs(
    config: RunConfig, devices: Sequence[Any], split: str, spec: EvaluationSpec, wanted: Sequence[int] = ()
) -> Iterator[Job]:
    """Yield what predicts and scores networks of a split by the papers' protocol.

    Args:
      config: of the run.
      devices: those of the first process share the images.
      split: of the networks.
      spec: its number of networks, seed, number of images, batch size and protocol count.
      wanted: only programs of these widths; () is all.

    Raises:
      UserError: fewer images than a batch, a width that none of the networks has.
    """
    images = spec.num_images or sizes_of(config).test
    spec = dataclasses.replace(spec, num_images=images)
    yield from _scoring_jobs(config, devices, split, spec, wanted)


def _scoring_jobs(
    config: RunConfig, devices: Sequence[Any], split: str, spec: EvaluationSpec, wanted: Sequence[int]
) -> Iterator[Job]:
    devices = [device for device in devices if device.process_index == devices[0].process_index]
    placing, first = Placing(devices, mesh_of(devices, 1)), Placing(devices[:1])
    ghn, scheme = make_ghn(config), strategy_of(config).scheme.when_used()
    params, images = _params_of(ghn), _image_shapes(placing, config, spec)
    measures = spec.protocol.measures
    start, count = time.perf_counter(), spec.num_networks
    space, size = make_space_of(config), config.image_size
    selection = select_split(space, split, seed=spec.seed, count=count, image_size=size)
    groups = {family(selection.specs[places[0]]): (p, places) for p, places in selection.groups}
    for each in _chosen(tuple(groups), wanted, split):
        program, places = groups[each]
        nodes = room_for(selection.graphs[i] for i in places)
        networks, _ = prepare(program, [selection.specs[places[0]]], Policy(), max_nodes=nodes)
        workspace = placing.workspace(program, spec.batch_size, train=False)
        out = _shape((program.capacity.blocks * BLOCK,), np.float32)
        tables, bits = (jax.tree.map(lambda a: a[0], t) for t in (networks.tables, networks.bits))
        about: dict[str, Any] = {'split': split, 'family': each, 'program': program}
        yield Job(
            **about, recipe=compiled.recipe_of_prediction(ghn),
            arguments=tuple(map(first.shapes, (params, networks, out))),
            workspace=out, build_s=time.perf_counter() - start,
        )  # fmt: skip
        network = RunnableNetwork(placing.shapes(out), tables, bits)  # tables are the host's, as in scoring
        if measures:
            network = placing.shapes(network)
            yield Job(
                **about, recipe=compiled.recipe_of(compiled.measure, program, scheme, placing.mesh),
                arguments=(network, *_measured(placing, config, spec, program), workspace),
                workspace=workspace, build_s=0.0,
            )  # fmt: skip
        if spec.protocol.ranges == 'calibrated':
            network = network._replace(ranges=placing.shapes(_ranges(program)))
        yield Job(
            **about, recipe=compiled.recipe_of(compiled.score, program, scheme, placing.mesh),
            arguments=(network, images, workspace), workspace=workspace, build_s=0.0,
        )  # fmt: skip
        start = time.perf_counter()


def _measured(
    placing: Placing, config: RunConfig, spec: EvaluationSpec, program: Program
) -> tuple[ImageBatches, Index, Any]:
    """Return the shapes of calibration images, of the numbers of tensors, and of what is wanted of them."""
    K, N, H, T = spec.calibration_batches, spec.batch_size, config.image_size, program.capacity.tensors
    constants = _shape((3,), np.float32), _shape((3,), np.float32)
    images = ImageBatches(_shape((K, N, H, H, 3), np.uint8), None, *constants)
    index = Index(_shape((program.capacity.rows, 2), np.int32), _shape((2,), np.int32))
    wish = _shape((), np.bool_)
    return placing.shapes((images, index, Wanted(wish, wish, wish, _shape((T, 2), np.float32))))


def _ranges(program: Program) -> Ranges:
    return Ranges(_shape((program.capacity.rows, 2, 2), np.float32), _shape((2, 2), np.float32))


def _image_shapes(placing: Placing, config: RunConfig, spec: EvaluationSpec) -> ImageBatches:
    """Return the shapes of the batches that devices share (`selection.spread_images`)."""
    N, H = spec.batch_size, config.image_size
    K = spec.num_images // N
    if K == 0:
        raise FieldError('batch_size', f'={N} is more than the {spec.num_images} images: give fewer')
    count = placing.mesh.size if placing.mesh else 1
    K += -K % count
    images, labels = _shape((K, N, H, H, 3), np.uint8), _shape((K, N), np.int32)
    spread = placing.shapes((images, labels), OVER_DEVICES)
    return ImageBatches(*spread, *placing.shapes((_shape((3,), np.float32),) * 2))


def _chosen(found: Sequence[Family], wanted: Sequence[int], split: str) -> list[Family]:
    known = sorted({each.width for each in found})
    if unknown := sorted(set(wanted) - set(known)):
        raise FieldError('widths', f'={unknown[0]}: {split} has {", ".join(map(str, known))}')
    return [each for each in found if not wanted or each.width in wanted]


def _params_of(ghn: GHN) -> Any:
    return jax.eval_shape(lambda: init_params(ghn.config, jax.random.key(0)))


def _shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)
