"""The images of trainings: what is trained on, scored, and calibrated with.

Axes: B images of a batch | H pixels on a side.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from ghn_jax.base.errors import FieldError, prefixed
from ghn_jax.datasets.load import Dataset
from ghn_jax.evaluation.selection import ImageBatches, calibration_images, image_batches
from ghn_jax.tuning.training import TrainingImages, TrainingSpec


@dataclasses.dataclass(frozen=True)
class TuningImages:
    """What is trained on, scored, and calibrated with.

    Attributes:
      calibration: batches [B, H, H, 3], normalised; none where statistics are those of each batch.
    """

    dataset: Dataset
    train: TrainingImages
    test: ImageBatches
    calibration: Sequence[Any]

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        *,
        batch_size: int,
        num_images: int,
        calibration_batches: int = 0,
        filled: bool = False,
    ) -> 'TuningImages':
        """Take the images of a data set; those to train on and to calibrate with are put on the device.

        Args:
          batch_size: B, of test images and of those for calibration.
          num_images: test images; 0: all.
          calibration_batches: of training images, the first ones; 0: none.
          filled: as of `image_batches`, of test images.

        Raises:
          FieldError: there are not so many images.
        """
        with prefixed('eval_', {'batch_size'}):  # `batch_size` is that of training
            test = image_batches(
                dataset, dataset.test, batch_size=batch_size, num_images=num_images, filled=filled
            )
        calibration = []
        if calibration_batches:
            available = len(dataset.train.labels)
            if calibration_batches * batch_size > available:
                raise FieldError(
                    'eval_batch_size',
                    f'={batch_size}: {calibration_batches} batches calibrate, and {dataset.name} has '
                    f'{available} training images: give at most {available // calibration_batches}',
                )
            found = calibration_images(dataset, batch_size=batch_size, batches=calibration_batches)
            calibration = found.normalized()
        return cls(dataset, TrainingImages.of(dataset), test, calibration)

    def steps(self, training: TrainingSpec) -> int:
        """Return the steps of one training."""
        return training.steps_per_epoch(len(self.dataset.train.labels)) * training.epochs

    @property
    def identity(self) -> list[Any]:
        """What tells the images from others, in JSON's types."""
        return [self.dataset.name, list(self.dataset.train.images.shape), self.dataset.digest]

    def about(
        self, training: TrainingSpec, seeds: Sequence[int], *, before: dict[str, Any], after: dict[str, Any]
    ) -> dict[str, Any]:
        """Return what is said below a table of trainings on these images.

        Args:
          training: how each network is trained.
          seeds: of the trainings.
          before: entries that come before these, on what is trained.
          after: entries that come after these, on what else is special about the trainings.
        """
        dataset, test = self.dataset, self.test
        return {
            'dataset': dataset.name,
            **({'note': dataset.note} if dataset.note else {}),
            'image size': dataset.train.images.shape[1],
            'training images': len(dataset.train.labels),
            'test images': f'{test.count} in batches of {test.labels.shape[1]}',
            **before,
            'seeds': ', '.join(map(str, seeds)),
            'epochs': training.epochs,
            'batch size': training.batch_size,
            'optimizer': training.optimizer,
            'learning rate': training.learning_rate,
            'weight decay': training.weight_decay,
            'moving average': training.ema,
            'augmented': 'yes' if training.augment else 'no',
            **after,
            'device': f'1 x {jax.devices()[0].device_kind}',
        }
