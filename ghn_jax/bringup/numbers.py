"""Whether a device computes what a CPU does: six networks against references, with a tolerance for each.

Quantities of a comparison: `loss`, the largest relative error over the networks; `logits`, `gradient`, the
median over the networks of the relative error |a - b| / |b|. Rounding makes a network chaotic: where a value
lies on the border of two levels, its last bit decides, and what follows differs. Two programs of one CPU that
add in another order already differ by 0.07 (W8/A8) and 0.11 (W4/A4) in the median gradient, by 0.4 and 1.1 in
the worst. So the tolerances of float32 are tight and include the worst network; the others are loose.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ghn_jax.base import files, jsonfile
from ghn_jax.base.backends import kernels_are_launches
from ghn_jax.bringup.six_networks import NetworkOutputs, SixNetworks, Training, difference
from ghn_jax.cnn.run import run
from ghn_jax.hypernet.ghn import GHN
from ghn_jax.hypernet.predict import predict_weights
from ghn_jax.hypernet.published import load_published
from ghn_jax.networks.spec import NetworkSpec

REFERENCES = pathlib.Path(__file__).with_name('references.json')
_DIGITS = 8  # that are kept of a number

TOLERANCES: Mapping[str, Mapping[str, float]] = {
    'inputs': {'inputs': 1e-5},
    'float32': {'loss': 1e-4, 'logits': 1e-4, 'gradient': 1e-3, 'worst_gradient': 5e-2},
    'w8a8': {'loss': 5e-3, 'logits': 2e-2, 'gradient': 0.3},
    'w4a4': {'loss': 2e-2, 'logits': 5e-2, 'gradient': 0.5},
    'bfloat16': {'loss': 2e-2, 'gradient': 0.5},
    'default precision': {'loss': 2e-2, 'gradient': 0.5},  # of products: TF32 on GPUs, bfloat16 on TPUs
    'published': {'logits': 1e-4},
}
"""What each error may be, of networks with random weights."""
_BITS = {'float32': 'float', 'w8a8': 'w8a8', 'w4a4': 'w4a4'}  # of one program
_GOLDEN = ('convnets-06', 'convnets-09', 'convnets-16')  # published networks that are run


def compare(name: str, outputs: Sequence[NetworkOutputs], reference: Mapping[str, Any]) -> dict[str, Any]:
    """Compare losses and gradients of the networks with references, by the tolerances of `name`."""
    losses = [abs(o.loss / loss - 1) for o, loss in zip(outputs, reference['loss'], strict=True)]
    gradients = [difference(o.gradients, g) for o, g in zip(outputs, reference['gradients'], strict=True)]
    errors = {
        'loss': float(np.max(losses)),
        'gradient': float(np.median(gradients)),
        'worst_gradient': float(np.max(gradients)),
    }
    return judged(name, errors)


def compare_logits(name: str, logits: Sequence[np.ndarray], reference: Sequence[Any]) -> dict[str, Any]:
    """Compare the logits of the networks with references, by the tolerance of `name`."""
    return judged(name, {'logits': float(np.median([*map(_relative, logits, reference)]))})


def judged(name: str, errors: Mapping[str, float]) -> dict[str, Any]:
    """Judge errors by the tolerances of `name`; one that is no number is too large."""
    tolerances = {k: TOLERANCES[name][k] for k in errors if k in TOLERANCES[name]}
    good = all(errors[k] <= tolerances[k] for k in tolerances)
    finite = {k: float(e) if np.isfinite(e) else None for k, e in errors.items()}
    return {'check': name, 'good': bool(good), 'errors': finite, 'tolerances': tolerances}


def check(golden: str = '') -> Iterator[dict[str, Any]]:
    """Yield the outcome of one check after another: {'check', 'good', 'errors', 'tolerances'}.

    golden: the folder of the published GHN-2's numbers; '' is none.

    Raises:
      UserError: no references.
    """
    references = read_references()
    six = SixNetworks()
    yield judged('inputs', {'inputs': difference(six.inputs(), references['inputs'])})
    expected = references['training']
    with jax.default_matmul_precision('highest'):
        training = Training(six, 'float32')
        for name, bits in _BITS.items():
            yield compare(name, training.outputs(bits), expected[name])
        for name, bits in _BITS.items():
            same = training.repeats_itself(bits)
            good = same or kernels_are_launches()  # what a GPU scatters, it adds in any order
            yield {'check': f'determinism of {name}', 'good': good, 'same': same}
        for name, bits in _BITS.items():
            yield compare_logits(name, six.logits(bits), references['logits'][name])
        if golden:
            yield from check_published(pathlib.Path(golden))
    yield compare('bfloat16', Training(six, 'bfloat16').outputs('float'), expected['bfloat16'])
    if jax.default_backend() != 'cpu':  # which has one precision
        yield compare('default precision', Training(six, 'float32').outputs('float'), expected['float32'])


def check_published(golden: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yield for published networks how far their logits are from those of the published GHN-2."""
    config, params = load_published(golden / 'open/state_dict.npz', golden / 'ghn_config.json')
    known = jsonfile.read(golden / 'open/archs.json', 'the file', 'give the folder of the published numbers')
    images = np.load(golden / 'open/inputs.npz')['images'].transpose(0, 2, 3, 1)
    for name in _GOLDEN:
        spec = NetworkSpec.from_dict(next(a['args'] for a in known if a['id'] == name))
        weights = predict_weights(GHN(config), params, spec)
        logits = run(spec, weights, images, applier='executor')
        error = _relative(np.asarray(logits), np.load(golden / f'open/refs/{name}.npz')['logits'])
        yield judged('published', {'logits': error}) | {'check': f'published {name}'}


def read_references() -> dict[str, Any]:
    """Read the references that come with the package."""
    return jsonfile.read(REFERENCES, 'the references', 'make them with python -m ghn_jax.first_hour')


def write_references(path: str | os.PathLike) -> None:
    """Compute the references on this machine, a CPU, and write them. Raises UserError."""
    six = SixNetworks()
    training = Training(six, 'float32')
    outputs = {name: training.outputs(bits) for name, bits in _BITS.items()}
    outputs['bfloat16'] = Training(six, 'bfloat16').outputs('float')
    files.write_json(path, _rounded({
        'about': {'jax': jax.__version__, 'platform': jax.default_backend()},
        'inputs': six.inputs(),
        'training': {
            name: {'loss': [o.loss for o in each], 'gradients': [o.gradients for o in each]}
            for name, each in outputs.items()
        },
        'logits': {name: [x.tolist() for x in six.logits(bits)] for name, bits in _BITS.items()},
    }))  # fmt: skip


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f'{value:.{_DIGITS}g}')
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    return [*map(_rounded, value)] if isinstance(value, list | tuple) else value


def _relative(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b)) if a.shape == b.shape else float('inf')
