"""What a command that scores networks is asked for: its flags, and what they say once they are checked."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from absl import flags

from ghn_jax.base import bounds, cli
from ghn_jax.base.errors import UserError
from ghn_jax.base.paths import Place
from ghn_jax.base.start import define_executables, start
from ghn_jax.cnn.deploy import calibration
from ghn_jax.evaluation.evaluation_spec import BATCH_SIZE, BITS, NUM_NETWORKS, EvaluationSpec
from ghn_jax.evaluation.protocol import BATCH_NORMS, CALIBRATION_BATCHES, RANGE_RULE, RANGES, Protocol
from ghn_jax.networks.files import load_networks
from ghn_jax.networks.spaces import SPLITS
from ghn_jax.quant.policy import Policy, load_policy, parse_bits
from ghn_jax.runs import source_flags
from ghn_jax.runs.run import Run
from ghn_jax.runs.scheme_flags import define_scheme_flags
from ghn_jax.runs.source_flags import Source

flags.disclaim_key_flags()  # --help shows them as the flags of the command that defines them


FLAG_OF = {'batch_norm': 'bn', 'predicted_for': 'told'}
"""The flags of fields that have another name in `EvaluationSpec` and `Protocol`: for `cli.run`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationFlags:
    """What the command line asks for.

    Attributes:
      workdir, step: the checkpoint; None: there is no run.
      dataset, image_size: the images, where there is no run.
      data_dir: the folder of the images; None: where the run or `dataset` has them.
      spec: what is scored, and how.
      scheme: fields of the run's `Scheme` that are others than in training.
      given: the flags that were on the command line.
    """

    workdir: Place | None
    step: str
    data_dir: str | None
    spec: EvaluationSpec
    scheme: Mapping[str, str]
    given: frozenset[str]
    dataset: str | None = None
    image_size: int = 32

    def load_run(self, step: str | None = None) -> Run:
        """Load the run, at another step than asked for where one is given, with JAX made ready to score it.

        Raises:
          UserError: as `runs.run.load_run`.
        """
        start(self.spec.devices or 1)
        source = Source(
            workdir=self.workdir, dataset=self.dataset, image_size=self.image_size, data_dir=self.data_dir
        )
        run = source.load(step or self.step)
        config = dataclasses.replace(run.config, quant=dataclasses.replace(run.config.quant, **self.scheme))
        return dataclasses.replace(run, config=config)


def parse_splits(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names without repetitions. Raises UserError for an unknown one, and for none."""
    splits = tuple(dict.fromkeys(name.strip() for name in names))
    if not splits:
        raise UserError(f'--splits is empty: choose from {", ".join(SPLITS)}')
    for split in splits:
        if split not in SPLITS:
            raise UserError(f'--splits={split}: choose from {", ".join(SPLITS)}')
    return splits


def parse_policies(names: Sequence[str], files: Sequence[str] = ()) -> tuple[Policy, ...]:
    """Return policies from their names and from policy files, without repetitions.

    Raises:
      UserError: impossible bits, bad files, two policies of one name, or none.
    """
    policies = list(dict.fromkeys(parse_bits(name) for name in names))
    for file in dict.fromkeys(files):
        policy = load_policy(file)
        if str(policy) in map(str, policies):
            raise UserError(f'--policy={file}: another policy is called {str(policy)!r}: rename the file')
        policies.append(policy)
    if not policies:
        raise UserError(f'--bits is empty: expected a list such as {",".join(BITS)}')
    return tuple(policies)


def define_flags(*, sqnr: bool = False, images: bool = False) -> Callable[[], EvaluationFlags]:
    """Define the flags; what is returned reads and checks them, once they are parsed (UserError).

    Args:
      sqnr: whether the noise of rounding is measured where nothing is said of it.
      images: whether --dataset may stand in the place of --workdir.
    """
    before = set(flags.FLAGS)
    workdir = flags.DEFINE_string(
        'workdir', None, 'Run to score: a directory of ghn_jax.train or ghn_jax.convert, or zoo:NAME.'
    )
    of_images = source_flags.define_images() if images else None
    step = flags.DEFINE_string('step', 'latest', 'Checkpoint: latest, best (in validation), or a step.')
    read_networks = _define_network_flags()
    read_protocol = define_protocol_flags(sqnr)
    read_scheme = define_scheme_flags()
    devices = bounds.define_integer('devices', 0, 'Devices, or parts of a CPU, that share images. 0: all.')
    data_dir = source_flags.define_data_dir()
    against = flags.DEFINE_string(
        'against',
        None,
        'Compare with another run: its directory, and it is scored on the same networks on the grids of its '
        'own training; or the --json file of its evaluation.',
    )
    read_executables = define_executables()
    names = set(flags.FLAGS) - before

    def read() -> EvaluationFlags:
        read_executables()
        dataset, image_size = (flag.value for flag in of_images) if of_images else (None, 32)
        if of_images:
            source_flags.check_one(workdir, *of_images)
        if dataset and step.present:
            raise UserError('--step is of a run, and --dataset has none: leave it out')
        protocol, calibration_batches = read_protocol()
        spec = dataclasses.replace(
            read_networks(),
            protocol=protocol,
            calibration_batches=calibration_batches,
            against=against.value,
            workdir=workdir.value or '',
            devices=devices.value,
        )
        return EvaluationFlags(
            workdir=None if dataset else cli.check_workdir(workdir.value, must_exist=True),
            step=step.value or '',
            dataset=dataset,
            image_size=image_size,
            data_dir=data_dir.value,
            spec=spec,
            scheme=read_scheme(),
            given=frozenset(name for name in names if flags.FLAGS[name].present),
        )

    return read


def _define_network_flags() -> Callable[[], EvaluationSpec]:
    """Those of the networks, their bits and the images; what is returned reads a spec with these fields."""
    splits = flags.DEFINE_list(
        'splits', ['test'], f'Score networks of these splits, a list of {", ".join(SPLITS)}.'
    )
    bits = flags.DEFINE_list(
        'bits',
        None,
        'Bits of weights and activations to score at, a list such as w8a8,w4a4; w32a32 is float. '
        f'Default: {",".join(BITS)}, or none where --policy is given.',
    )
    policy = flags.DEFINE_list(
        'policy', [], 'Also score at these policy files: JSON with the bits of each tensor.'
    )
    told = flags.DEFINE_string(
        'told',
        None,
        'Bits, as in w8a8, that a hypernetwork conditioned on the bits reads in place of those that are run.',
    )
    num_networks = bounds.define_integer(
        'num_networks', NUM_NETWORKS, 'How many networks of each split are scored. 0: all.'
    )
    num_images = bounds.define_integer('num_images', 0, 'How many test images they are scored on. 0: all.')
    batch_size = bounds.define_integer(
        'batch_size',
        BATCH_SIZE,
        'Images of a batch, whose statistics batch norms use unless --bn says otherwise.',
    )
    seed = bounds.define_integer('seed', 0, 'Seed that the networks of the splits are drawn by.')
    archs = flags.DEFINE_string(
        'archs', None, 'Score the networks of this architecture file, in place of splits.'
    )
    deepnets = flags.DEFINE_string(
        'deepnets', None, "Take the splits from DeepNets-1M's published HDF5 and JSON files in this folder."
    )

    def read() -> EvaluationSpec:
        for flag in (splits, num_networks, seed, deepnets):
            if archs.value and flag.present:
                raise UserError(f'--archs and --{flag.name} are both given: give one of them')
        widths = bits.value if bits.value is not None else () if policy.value else BITS
        return EvaluationSpec(
            splits=parse_splits(splits.value),
            policies=parse_policies(widths, policy.value),
            num_networks=num_networks.value,
            num_images=num_images.value,
            batch_size=batch_size.value,
            seed=seed.value,
            networks=tuple(load_networks(archs.value)) if archs.value else None,
            deepnets=deepnets.value or '',
            predicted_for=None if told.value is None else parse_bits(told.value),
        )

    return read


def define_protocol_flags(sqnr: bool) -> Callable[[], tuple[Protocol, int]]:
    """Define the flags of what is measured; what is returned reads the protocol and its calibration batches.

    Args:
      sqnr: as for `define_flags`.
    """
    bn = flags.DEFINE_enum(
        'bn', 'batch', BATCH_NORMS,
        'Statistics of batch norms: of each batch; of training images, in the rounded network (corrected) or '
        'in float, folded into the weights before these are rounded (calibrated).',
    )  # fmt: skip
    ranges = flags.DEFINE_enum(
        'ranges',
        'batch',
        RANGES,
        'Ranges of activations: of each batch, or fixed by training images (calibrated).',
    )
    range_rule = flags.DEFINE_enum(
        'range_rule',
        None,
        calibration.RANGE_RULES,
        f'How calibrated ranges are found. Default: {RANGE_RULE}.',
    )
    calibration_batches = bounds.define_integer(
        'calibration_batches',
        None,
        f'How many batches of training images calibrate. Default: {CALIBRATION_BATCHES}.',
    )
    with_sqnr = flags.DEFINE_bool(
        'sqnr', sqnr, 'Measure the noise of rounding layer by layer, as a ratio of signal to noise in dB.'
    )
    integer = bounds.define_integer(
        'integer', 0, 'Also run so many images in integer arithmetic, and compare the predictions. 0: none.'
    )

    def read() -> tuple[Protocol, int]:
        if integer.value and 'batch' in (bn.value, ranges.value):
            raise UserError(
                f'--integer={integer.value} is for networks that do not depend on their batch: give '
                '--bn=corrected (or calibrated) and --ranges=calibrated, too'
            )
        protocol = Protocol(
            batch_norm=bn.value,
            ranges=ranges.value,
            range_rule=range_rule.value or RANGE_RULE,
            sqnr=with_sqnr.value,
            integer=integer.value,
        )
        if range_rule.value and protocol.ranges == 'batch':
            raise UserError(f'--range_rule={range_rule.value} is for --ranges=calibrated: give both or none')
        if calibration_batches.value and not protocol.measures:
            raise UserError(
                f'--calibration_batches={calibration_batches.value}: nothing is calibrated; it is for '
                '--bn=corrected, --bn=calibrated, --ranges=calibrated or --sqnr'
            )
        return protocol, calibration_batches.value or CALIBRATION_BATCHES

    return read
