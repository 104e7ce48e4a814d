"""What onnxruntime computes from a file, beside the evaluation of the network here."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from ghn_jax.base.errors import FieldError
from ghn_jax.datasets.load import Dataset
from ghn_jax.export.runtime import run_onnx

_SPLITS = ('test', 'val', 'train')  # in the order in which images are taken
_BATCH = 64


class Comparison(NamedTuple):
    """Of a file in onnxruntime and the network here.

    Attributes:
      images: how many of each split.
      top1: of onnxruntime, of the network here; 0 to 1.
      agreement: the share of the images that both put into one class.
      with_biases: that share where biases are rounded here as in the file; None: a file of floats.
    """

    images: dict[str, int]
    top1: tuple[float, float]
    agreement: float
    with_biases: float | None = None

    def __str__(self) -> str:
        total = sum(self.images.values())
        splits = ', '.join(f'{n:,} {split}' for split, n in self.images.items() if n)
        theirs, ours = self.top1
        said = (
            f'onnxruntime on {total:,} images ({splits}): top-1 {theirs:.2%}, evaluated here {ours:.2%}, '
            f'the same class for {self.agreement:.2%}'
        )
        if self.with_biases is None:
            return said
        return f'{said}, and for {self.with_biases:.2%} with the integer biases of the file here, too'


def count_images(data: Dataset, count: int) -> dict[str, int]:
    """Return how many images of each split `compare` takes. Raises FieldError: more than there are."""
    sizes, left = {}, count
    for split in _SPLITS:
        sizes[split] = min(left, len(getattr(data, split).labels))
        left -= sizes[split]
    if left:
        raise FieldError('compare', f'={count}: the data have {count - left:,} images: give no more')
    return sizes


def compare(
    file: bytes,
    apply: Callable[[Array], Array],
    data: Dataset,
    count: int,
    with_biases: Callable[[Array], Array] | None = None,
) -> Comparison:
    """Compare what onnxruntime computes from a file with what a function of images does.

    Args:
      file: the contents.
      apply: compiled, from images [N, ...] to logits [N, classes], each image by itself.
      data: test images come first; where they are too few, validation images and then training images follow.
      count: of images.
      with_biases: as `apply`, with biases that are rounded as in the file.

    Raises:
      UserError: more images than there are, onnxruntime is not installed.
    """
    sizes = count_images(data, count)
    x = np.concatenate([data.normalized(split, n) for split, n in sizes.items() if n])
    labels = np.concatenate([getattr(data, split).labels[:n] for split, n in sizes.items()])
    theirs = run_onnx(file, x).argmax(1)
    whole = np.concatenate([x, np.repeat(x[:1], -len(x) % _BATCH, 0)])  # so that one program serves all

    def classes(apply: Callable[[Array], Array]) -> np.ndarray:
        parts = [apply(jnp.asarray(whole[i : i + _BATCH])) for i in range(0, len(whole), _BATCH)]
        return np.concatenate(parts).argmax(1)[: len(x)]

    ours = classes(apply)
    exact = None if with_biases is None else float(np.mean(theirs == classes(with_biases)))
    top1 = float(np.mean(theirs == labels)), float(np.mean(ours == labels))
    return Comparison(sizes, top1, float(np.mean(theirs == ours)), exact)
