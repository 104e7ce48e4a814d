"""One network quantized after training, by a method of choice, and what that costs in accuracy."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import ghn_jax
from ghn_jax.base.digests import array_digests, json_digest
from ghn_jax.base.errors import FieldError, UserError, shown
from ghn_jax.base.paths import Place
from ghn_jax.datasets.load import Dataset
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.models.folding import Calibrated, fold
from ghn_jax.models.model import Model
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.scheme import Scheme
from ghn_jax.runs.calibrated_file import UNFINISHED, QuantizedNetwork, load_unfinished, save
from ghn_jax.tuning.blocks import blocks_of
from ghn_jax.tuning.correction import norm_statistics
from ghn_jax.tuning.pd_quant import count_chunks, pd_quant
from ghn_jax.tuning.ranges import FixedRanges, layer_bits, round_nearest
from ghn_jax.tuning.reconstruction import ReconstructionOptions
from ghn_jax.tuning.scoring import count_correct

DEFAULT_SCHEME = Scheme('qat', granularity='channel')
"""Of all methods: asymmetric grids, of weights one for each output channel."""

_BATCH = 64  # images of a batch whose statistics norms go by, as in training
_SCORED = 1000  # test images that are run at once: an image's logits do not depend on the others


@dataclasses.dataclass(frozen=True)
class Network:
    """A network in float, and the images that it is quantized with.

    Attributes:
      calibrated: the network, folded.
      params: of the model, that it is made of.
      batches: calibration images [K, B, ...].
    """

    calibrated: Calibrated
    params: Any
    batches: Array

    @classmethod
    def of(cls, model: Model, params: Any, images: Array | np.ndarray) -> 'Network':
        """Fold a model's batch norms by the statistics of calibration images [N, ...], in whole batches.

        Raises:
          UserError: no images, parameters of another model, and as `fold`.
        """
        if not len(images):
            raise FieldError('images', '=0: there are no calibration images: give at least one batch')
        size = min(_BATCH, len(images))
        count = len(images) // size
        batches = jnp.asarray(images[: count * size]).reshape(count, size, *images.shape[1:])
        return cls(fold(model, params, list(batches)), params, batches)

    @property
    def images(self) -> Array:
        """The calibration images, [N, ...]."""
        return self.batches.reshape(-1, *self.batches.shape[2:])


def calibration_images(dataset: Dataset, count: int) -> np.ndarray:
    """Return the first training images, normalised. Raises FieldError where there are not so many."""
    if count > (most := len(dataset.train.labels)):
        raise FieldError('images', f'={count}: {dataset.name} has {most} training images: give fewer')
    return dataset.normalized('train', count)


METHODS = ('minmax', 'mse', 'pd_quant')


def quantize(
    network: Network,
    policy: Policy,
    method: str,
    options: ReconstructionOptions | None = None,
    done: Callable[[int], object] = lambda parts: None,
    begun: tuple[int, Calibrated] | None = None,
    keep: Callable[[int, Calibrated], object] = lambda blocks, network: None,
) -> Calibrated:
    """Quantize a network.

    Args:
      network: in float.
      policy: the bits.
      method: one of METHODS: 'minmax', ranges of all values; 'mse', with the least L2.4 error, both with
        weights rounded to the nearest level (`ranges`); 'pd_quant'.
      options: of 'pd_quant'; None: the published ones.
      done: called with the number of parts done since the last call, `count_parts` in all.
      begun: the last arguments of `keep`, to go on from; None: begin anew.
      keep: called with the number of blocks done, and the network so far.

    Returns:
      The network with rounded weights, and ranges of weights and activations.

    Raises:
      UserError: an unknown method, a policy of another model, bits that the method has no grid for.
    """
    if method not in METHODS:
        raise UserError(f'method {shown(method)} is not one of {", ".join(METHODS)}')
    widths = resolve(policy, network.calibrated.model.graph)
    if method != 'pd_quant':
        return round_nearest(network.calibrated, network.images, widths, method)
    (found,) = pd_quant(
        network.calibrated,
        network.images,
        [(widths, options or ReconstructionOptions())],
        norm_statistics(network.calibrated.model, network.params, list(network.batches)),
        done,
        (begun[0], [begun[1]]) if begun else (0, ()),
        lambda blocks, networks: keep(blocks, networks[0]),
    )
    return found


def count_parts(network: Network, method: str, options: ReconstructionOptions) -> int:
    """Return how many parts `quantize` reports in all."""
    if method != 'pd_quant':
        return 0
    return len(blocks_of(network.calibrated, 1)) * count_chunks((None, options))


def top1(
    calibrated: Calibrated, images: Array | np.ndarray, labels: np.ndarray, policy: Policy | None = None
) -> float:
    """Score a network on images [N, ...]: percent of labels that are predicted (`scoring.count_correct`).

    policy: the bits of its activations; None: they stay float.
    """
    widths = resolve(policy or Policy(), calibrated.model.graph)
    _, bits = layer_bits(calibrated.model, widths)
    ranges = {name: (*pair, bits[name]) for name, pair in calibrated.ranges.items() if name in bits}
    cuts = [slice(i, i + _SCORED) for i in range(0, len(labels), _SCORED)]
    correct = [_count(calibrated, jnp.asarray(images[cut]), jnp.asarray(labels[cut]), ranges) for cut in cuts]
    return 100 * sum(map(int, correct)) / len(labels)


@jax.jit
def _count(calibrated: Calibrated, images: Array, labels: Array, ranges: Mapping[str, Any]) -> Array:
    return count_correct(calibrated.apply(images, FixedRanges(ranges)), labels)


def quantize_into(
    folder: Place,
    network: Network,
    policy: Policy,
    method: str,
    options: ReconstructionOptions,
    source: Mapping[str, str],
    test: tuple[Array | np.ndarray, np.ndarray],
    done: Callable[[int], object],
) -> dict[str, Any]:
    """Quantize a network and write it to a folder; go on there where the same was stopped before.

    Args:
      source: how its model is made (`calibrated_file`).
      test: images and labels that it is scored on.
      done: as of `quantize`.

    Returns:
      A description of the result, ready for JSON.

    Raises:
      UserError: as `quantize`; a folder that cannot be written.
    """
    begin = time.perf_counter()
    about: dict[str, Any] = {
        'network': network.calibrated.model.name,
        'method': method,
        'bits': str(policy),
        'calibration_images': len(network.images),
        'ghn_jax': ghn_jax.__version__,
    }
    if method == 'pd_quant':
        about['options'] = dataclasses.asdict(options)
    key, strings = key_of(about, network.calibrated, network.batches), strings_of(about)

    def write(calibrated: Calibrated, **more: str) -> Place:
        return save(folder, QuantizedNetwork(calibrated, policy, DEFAULT_SCHEME, source, strings | more))

    keep = lambda blocks, so_far: write(so_far, **{UNFINISHED: json.dumps({'key': key, 'blocks': blocks})})
    begun = load_unfinished(folder, network.calibrated.model, key)
    made = quantize(network, policy, method, options, done, begun, keep)
    return about | {
        'file': str(write(made)),
        'blocks_from_before': begun[0] if begun else 0,
        'seconds': round(time.perf_counter() - begin, 1),
        'test_images': len(test[1]),
        'float_top1': top1(network.calibrated, *test),
        'top1': top1(made, *test, policy),
    }


def key_of(about: Mapping[str, Any], calibrated: Calibrated, *images: Any) -> str:
    """Return a digest of all that a result depends on, by which a stopped method finds what it had done."""
    arrays = array_digests([calibrated, *images])
    return f'{json_digest([about, calibrated.model.digest, arrays]):08x}'


def strings_of(about: Mapping[str, Any]) -> dict[str, str]:
    """Return a description as `QuantizedNetwork.about` takes it: what is no string is written as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}


def in_words(result: Mapping[str, Any]) -> str:
    """Return what `quantize_into` found, as a line."""
    return (
        f'{result["file"]}: {result["network"]}, {result["method"]}, {result["bits"]}: top-1 '
        f'{result["top1"]:.1f} % of {result["test_images"]} test images, in float '
        f'{result["float_top1"]:.1f} %; {result["seconds"]} s'
    )
