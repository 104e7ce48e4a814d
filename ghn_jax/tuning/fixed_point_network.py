"""A network put into fixed point, written to a folder, and scored; stopped, it goes on there."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import ghn_jax
from ghn_jax.base import files, jsonfile
from ghn_jax.base.errors import UserError
from ghn_jax.base.paths import Place
from ghn_jax.models.folding import Calibrated
from ghn_jax.quant.scheme import Scheme
from ghn_jax.runs.calibrated_file import QuantizedNetwork, save
from ghn_jax.tuning.fixed_point import MOST_BITS, NAME, by_name, costs_of, to_network
from ghn_jax.tuning.fixed_point_budget import Attempt, Labelled, check_budget, within_budget
from ghn_jax.tuning.fixed_point_search import Search
from ghn_jax.tuning.quantize import key_of, strings_of, top1

FIXED_POINT_SCHEME = Scheme('qat')
SAVED = ('memory', 'parameters', 'activations', 'multiplications')  # of `Costs`
STATE = 'formats.json'
"""In the folder while a search goes on: 'key', of what, and the fields of `Attempt`."""


def fixed_point_into(
    folder: Place,
    calibrated: Calibrated,
    scored: tuple[Labelled, Labelled],
    test: Labelled,
    source: Mapping[str, str],
    budget: float,
    done: Callable[[int], object] = lambda layers: None,
) -> dict[str, Any]:
    """Find formats within a budget, and write the network in them to a folder.

    Args:
      folder: where the search goes on if it was stopped there.
      calibrated: folded, in float.
      scored: images and labels that choose formats, and those that check them, such as `labelled`.
      test: images and labels that the network is scored on.
      source: how its model is made (`calibrated_file`).
      budget: points of accuracy that may be lost on the images that choose and on those that check.
      done: as of `within_budget`.

    Returns:
      A description of the result, ready for JSON.

    Raises:
      FieldError: a budget that nothing meets; images without labels.
      UserError: a folder that cannot be written.
    """
    check_budget(budget)
    begin = time.perf_counter()
    search, check = (Search.of(calibrated, *part) for part in scored)
    about = _about(search, check, budget)
    key = key_of(about, calibrated, search.batches, check.batches)
    state = folder / STATE
    begun = _begun(state, key, len(search.tensors))
    formats, share = within_budget(search, check, budget, done, begun, functools.partial(_keep, state, key))
    network, policy = to_network(calibrated, search.tensors, formats)
    about |= {
        'share_of_budget': share,
        'formats': by_name(search.tensors, formats),
        'saved': saved(search, formats),
    }
    file = save(folder, QuantizedNetwork(network, policy, FIXED_POINT_SCHEME, source, strings_of(about)))
    state.unlink(missing_ok=True)
    return about | {
        'file': str(file),
        'bits': str(policy),
        'parts_from_before': begun.number * search.layers + begun.layers if begun else 0,
        'seconds': round(time.perf_counter() - begin, 1),
        'lost_in_choice': lost(search, formats),
        'lost_in_check': lost(check, formats),
        'test_images': len(test[1]),
        'float_top1': top1(calibrated, *test),
        'top1': top1(network, *test, policy),
    }


def _about(search: Search, check: Search, budget: float) -> dict[str, Any]:
    """Return what the formats depend on, beside the network and the images."""
    return {
        'network': search.calibrated.model.name,
        'method': NAME,
        'budget': budget,
        'images_that_choose': search.images,
        'images_that_check': check.images,
        'ghn_jax': ghn_jax.__version__,
    }


def _keep(state: Place, key: str, attempt: Attempt) -> None:
    """Write what is done of a search."""
    with files.writing(state):
        state.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(state, {'key': key} | attempt._asdict() | {'formats': attempt.formats.tolist()})


def saved(search: Search, formats: np.ndarray) -> dict[str, float]:
    """Return what formats save against 8 bits everywhere, as shares from 0 to 1, by the names in `SAVED`."""
    cost, widest = (costs_of(search.calibrated, search.tensors, f) for f in (formats, search.eight_bits))
    return {what: round(1 - getattr(cost, what) / getattr(widest, what), 4) for what in SAVED}


def lost(search: Search, formats: np.ndarray) -> float:
    """Return how many points of accuracy formats lose on the images of a search."""
    whole, left = (search.score(each).correct for each in (search.float_formats(), formats))
    return 100 * (whole - left) / search.images


def _begun(state: Place, key: str, tensors: int) -> Attempt | None:
    """Return how far a search was that was stopped; None: there was none, or another one."""
    if not files.exists(state):
        return None
    try:
        found = jsonfile.read(state, 'state', 'delete it')
        formats = np.array(found['formats'], np.int32)
        if found['key'] == key and formats.shape == (tensors, 2):
            return Attempt(int(found['number']), int(found['layers']), formats)
    except (UserError, ValueError, KeyError, TypeError):
        pass  # it is written anew
    return None


def in_words(result: Mapping[str, Any]) -> str:
    """Return what `fixed_point_into` found, as a line."""
    saved = result['saved']
    return (
        f'{result["file"]}: {result["network"]}, {NAME}, {100 * saved["memory"]:.1f} % less memory and '
        f'{100 * saved["multiplications"]:.1f} % less cost of multiplications than {MOST_BITS} bits: top-1 '
        f'{result["top1"]:.1f} % of {result["test_images"]} test images, in float '
        f'{result["float_top1"]:.1f} %; {result["seconds"]} s'
    )
