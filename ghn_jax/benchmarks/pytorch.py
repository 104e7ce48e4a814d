"""Times the networks in PyTorch on the CPU: what `tasks` measures is compared with it, in one run.

Training is timed as the forward and the backward pass of each network on given weights, without the
hypernetwork, the optimizer and the augmentation of images, all of which `train` times as well.
"""

# pyright: reportMissingImports=false

import importlib.util
import sys
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from ghn_jax.base.errors import UserError
from ghn_jax.benchmarks import tasks, timing
from ghn_jax.benchmarks.options import BenchmarkOptions, Row
from ghn_jax.hypernet.ghn import GHN, GHNConfig, init_params
from ghn_jax.hypernet.predict import predict_weights
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import NamedWidths, quantizable


def check() -> None:
    """Raise UserError where PyTorch is not installed."""
    if importlib.util.find_spec('torch') is None:
        raise UserError('what=pytorch needs PyTorch, which is not installed: pip install torch')


def measure(options: BenchmarkOptions) -> list[Row]:
    """Time a training step and scoring of each network in each mode, after a first run of it.

    Returns:
      Rows 'pytorch_train' and 'pytorch_evaluate', as those of `tasks.measure_train` and `measure_evaluate`.
    """
    batches = max(1, options.num_images // options.batch_size)
    count, rows = batches * options.batch_size, []
    for mode in options.modes:
        seconds = list(_seconds('train', mode, options))
        rows.append({'what': 'pytorch_train', 'mode': mode, **timing.row(seconds, 0)})
        seconds = [batches * s for s in _seconds('evaluate', mode, options, batches)]
        more = {'images': count, 'mean_s_per_10k_images': float(np.mean(seconds)) / count * 10_000}
        rows.append({'what': 'pytorch_evaluate', 'mode': mode, **timing.row(seconds, 0, **more)})
    return rows


def _seconds(what: str, mode: str, options: BenchmarkOptions, repeats: int = 1) -> Iterator[float]:
    """The mean seconds that each network takes for a batch, after the first."""
    import torch
    from torch.nn.functional import cross_entropy

    from ghn_jax.benchmarks.pytorch_networks import logits

    print(f'PyTorch, {what}, {mode}: {len(options.specs)} networks ...', file=sys.stderr, flush=True)
    images, labels = (torch.tensor(np.array(a)) for a in tasks.random_images(options.batch_size))
    images, labels = images.permute(0, 3, 1, 2).contiguous(), labels.long()
    policy, ghn = tasks.policy_of(mode), GHN(GHNConfig(num_classes=options.specs[0].num_classes))
    of_ghn = init_params(ghn.config, jax.random.key(0))

    def run(spec: NetworkSpec, params: Mapping[str, torch.Tensor], widths: NamedWidths) -> None:
        if what == 'train':
            cross_entropy(logits(spec, params, images, widths), labels).backward()
        else:
            with torch.no_grad():
                (logits(spec, params, images, widths).argmax(1) == labels).sum().item()

    for spec in options.specs:
        weights = predict_weights(ghn, of_ghn, spec)
        params = {name: torch.tensor(w, requires_grad=True) for name, w in weights.items()}
        widths = policy.resolve(quantizable((name, w.shape) for name, w in weights.items()))
        run(spec, params, widths)
        start = time.perf_counter()
        for _ in range(repeats):
            run(spec, params, widths)
        yield (time.perf_counter() - start) / repeats
