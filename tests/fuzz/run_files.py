"""What a run and its evaluations leave in files, damaged: made, and read."""

import json
import os
import pathlib
import random
from typing import Any

from ghn_jax import config as configs
from ghn_jax.base.jsonlines import Records, read_jsonl
from ghn_jax.benchmarks import ratios
from ghn_jax.evaluation import results
from ghn_jax.hypernet.ghn import GHNConfig
from ghn_jax.hypernet.published import load_published
from ghn_jax.reporting import tables
from ghn_jax.runs.run import read_meta
from tests.fuzz import states
from tests.fuzz.mutation import mutate_bytes, mutate_json, text_of


def written(data: bytes, path: pathlib.Path) -> pathlib.Path:
    path.write_bytes(data)
    return path


def make_saved_config(rng: random.Random) -> tuple[str, str]:
    config = json.loads(configs.to_json(configs.default()))
    both = mutate_json(rng, {'config': config, 'ghn': GHNConfig().to_dict()})
    both = both if isinstance(both, dict) else {'config': both}
    return json.dumps(both.get('config')), json.dumps(both.get('ghn'))


def call_saved_config(value: Any, folder: pathlib.Path) -> None:
    """What a checkpoint says about itself."""
    read_meta({'config': value[0], 'ghn': json.loads(value[1]), 'step': 3}, folder)


# ---- state files


def make_state(rng: random.Random) -> tuple[bytes, bytes, str]:
    config = states.TINY.to_dict() | {'seed': 0}
    text = text_of(rng, mutate_json(rng, config)) if rng.random() < 0.3 else json.dumps(config).encode()
    what = rng.random()
    if what < 0.002:
        return states.bomb(rng.choice((64, 300))), text, '.npz'
    data = states.archive(rng)
    data = mutate_bytes(rng, data) if what < 0.5 else data
    return data, text, rng.choice(('.npz', '.npz', '.npz', '.npz', '.npz', '.pt', '.safetensors', ''))


def call_state(value: Any, folder: pathlib.Path) -> None:
    state, text, suffix = value
    path = written(state, folder / f'state{suffix}')
    load_published(path, written(text, folder / 'ghn.json'))


# ---- metrics of an older run


def make_metrics(rng: random.Random) -> tuple[bytes, int]:
    rows = [
        {'step': i, 'train/loss': 2.0 / (i + 1), 'val/top1_w4a4': None} for i in range(rng.randrange(1, 8))
    ]
    lines = [json.dumps(mutate_json(rng, row) if rng.random() < 0.5 else row).encode() for row in rows]
    lines += rng.choices(
        (
            b'',
            b'\0' * 9,
            b'[' * 9000,
            b'{"step": true}',
            b'{"step": NaN}',
            b'{"step": 1e400}',
            b'\xff\xfe{',
            b'{"step": ' + b'9' * 5000 + b'}',
            b'x' * (3 << 20),
        ),
        k=rng.randrange(3),
    )
    data = b'\n'.join(lines) + b'\n' * rng.randrange(2)
    return mutate_bytes(rng, data) if rng.random() < 0.5 else data, rng.randrange(5)


def call_metrics(value: Any, folder: pathlib.Path) -> None:
    """Read, then resumed: rows up to the step are kept, the new one is written once."""
    data, step = value
    path = written(data, folder / 'metrics.jsonl')
    part, outside = folder / 'metrics.jsonl.part', folder.parent / 'beside' / 'out'
    if not part.is_symlink():
        os.symlink(outside, part)
    before = [row for row in read_jsonl(path) if row['step'] <= step]
    Records(path, step).close()
    after = read_jsonl(path)
    assert len(after) == (len(before) if step else 0), 'rows of before are lost or new'


# ---- results of other runs


def make_result(rng: random.Random) -> bytes:
    scores = {'w4a4': {'top1': 30.0, 'top5': 70.0}, 'w32a32': {'top1': 40.0, 'top5': 80.0}}
    networks = [
        {'split': 'test', 'name': f'n{i}', 'digest': 'ab' * 8, 'C': 32, 'scores': scores} for i in range(3)
    ]
    protocol = dict.fromkeys((*results._NAMES, *results._SAME), 1) | {
        'training': 'qat w4a4',
        'workdir': 'runs/a',
        'step': 9,
        'images': 640,
        'bits': list(scores),
    }
    if rng.random() < 0.5:
        protocol[results._DIGEST] = 1
    value = {'rows': results.make_rows(networks, list(scores)), 'networks': networks, 'protocol': protocol}
    if rng.random() < 0.2:
        return mutate_bytes(rng, json.dumps(value).encode())
    return text_of(rng, mutate_json(rng, value) if rng.random() < 0.9 else value)


def call_result(data: Any, folder: pathlib.Path) -> None:
    """As evaluate --against does with the other run's file, and with its own result."""
    other = results.read_result(written(data, folder / 'other.json'))
    own = results.read_result(written(make_result(_Plain()), folder / 'own.json'))
    results.check_comparable(other, 'other.json', own['networks'], ['w4a4', 'w32a32'], own['protocol'])
    json.dumps(results.compare(own, other), allow_nan=False)
    tables.labels(own, other)


class _Plain(random.Random):
    """Chooses what changes nothing."""

    def random(self) -> float:
        return 0.99

    def randrange(self, *args) -> int:
        return 19


def make_figures(rng: random.Random) -> tuple[bytes, bytes]:
    rows = [
        {
            'what': what,
            'mode': mode,
            'networks': 24,
            'mean_s': 0.1,
            'median_s': 0.1,
            'peak_rss_gib': 2.0,
            'compilations_after_warmup': 0,
        }
        | ({'images': 1024, 'images_per_s': 50.0} if what == 'evaluate' else {})
        for what in ('predict', 'train', 'evaluate')
        for mode in ('float', 'qat')
    ]
    ours = {'machine': {'probe_matmul2048_f32_s': [0.1, 0.11], 'device': 'cpu'}, 'rows': rows}
    step = {'mean_step_per_net_s': 1.0, 'peak_rss_gib': 5.8}
    peer = {
        'predict': {'predict_mean_s': 0.1, 'per_arch': [1, 2]},
        'train:8': step,
        'qtrain:8': step,
        'evaluate_10k_images_median_s': {'float': 60.0, 'w4a4': 55.0},
        'probe_matmul2048_f32_s': 0.08,
    }

    def one() -> bytes:
        value = rng.choice((ours, peer))
        return text_of(rng, mutate_json(rng, value) if rng.random() < 0.7 else value)

    return one(), one()


def call_figures(value: Any, folder: pathlib.Path) -> None:
    """As benchmark --compare does."""
    a, b = (ratios.read_figures(written(data, folder / f'{name}.json')) for name, data in zip('ab', value))
    compared = ratios.compare(a, b)
    ratios.text(compared)
    json.dumps(compared, allow_nan=False)
