"""--workdir, a run with its hypernetwork and its images, or --dataset in its place, images alone."""

import dataclasses
from collections.abc import Callable

from absl import flags

from ghn_jax.base import cli
from ghn_jax.base.errors import UserError
from ghn_jax.base.paths import Place
from ghn_jax.base.start import start
from ghn_jax.datasets.sizes import SIZES
from ghn_jax.runs.hypernetwork import Hypernetwork
from ghn_jax.runs.run import Run, load_run, run_of_images
from ghn_jax.runs.task import check_data_dir

flags.disclaim_key_flags()  # --help shows them as the flags of the command that defines them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where images come from, and the hypernetwork if there is one.

    Attributes:
      workdir: run or zoo:NAME; None where there is none.
      dataset, image_size: the images, where there is no run.
      data_dir: their folder, or that of the run's images; None: where these say.
    """

    workdir: Place | None
    dataset: str | None
    image_size: int
    data_dir: str | None

    def load(self, step: str = 'latest') -> Run:
        """Open the run at a step, or make one of the images.

        Raises:
          UserError: it cannot be read; a folder of images that lie in none.
        """
        if self.workdir is not None:
            run = load_run(self.workdir, step, data_dir=self.data_dir)
        else:
            run = run_of_images(self.dataset or '', data_dir=self.data_dir, image_size=self.image_size)
        check_data_dir(run.config.dataset, self.data_dir)
        return run

    def load_hypernetwork(self, *, predicts: bool) -> Hypernetwork:
        """Make JAX ready, and load as `load`. predicts: whether there must be a hypernetwork.

        Raises:
          UserError: as `load`; there is none.
        """
        if predicts and self.workdir is None:
            raise UserError('--params is missing: --dataset has no hypernetwork that predicts them')
        start()
        return Hypernetwork(self.load())


def define_flags() -> Callable[[], Source]:
    """Define the flags; return what reads and checks them once they are parsed (UserError)."""
    workdir = flags.DEFINE_string('workdir', None, 'Run directory, or zoo:NAME.')
    dataset, image_size = define_images()
    data_dir = define_data_dir()

    def read() -> Source:
        check_one(workdir, dataset, image_size)
        return Source(
            workdir=None if dataset.value else cli.check_workdir(workdir.value, must_exist=True),
            dataset=dataset.value,
            image_size=image_size.value,
            data_dir=data_dir.value,
        )

    return read


def define_images() -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Define --dataset and --image_size; return both."""
    dataset = flags.DEFINE_string(
        'dataset', None, f'Images, in place of --workdir: {", ".join(SIZES)}, or FILE.npz of your own.'
    )
    return dataset, flags.DEFINE_integer('image_size', 32, 'Pixels on a side, with --dataset.', 8, 1024)


def define_data_dir() -> flags.FlagHolder:
    """Define --data_dir, of every command that reads the images of a run."""
    return flags.DEFINE_string(
        'data_dir',
        None,
        'Folder of the images, TFDS data or FILE.npz, where the run or --dataset has another.',
    )


def check_one(workdir: flags.FlagHolder, dataset: flags.FlagHolder, image_size: flags.FlagHolder) -> None:
    """Raise UserError unless one of the first two is given, or where the third is, and no data set."""
    if bool(workdir.value) == bool(dataset.value):
        given = 'both given' if dataset.value else 'missing'
        raise UserError(
            f'--workdir and --dataset are {given}: give a run, whose images are taken, or a data set'
        )
    if workdir.value and image_size.present:
        raise UserError('--image_size is for --dataset; images are those of --workdir: leave it out')
