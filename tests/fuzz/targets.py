"""What a user hands in, and the library's doors for it: one Target each."""

import contextlib
import functools
import json
import os
import pathlib
import random
import sys
from typing import Any
from unittest import mock

from absl import flags

from ghn_jax import config as configs
from ghn_jax import config_file
from ghn_jax.base import cli
from ghn_jax.base.errors import UserError
from ghn_jax.base.jsonlines import Records, read_jsonl
from ghn_jax.benchmarks import comparison, tasks
from ghn_jax.evaluation import results
from ghn_jax.evaluation.selection import check_given
from ghn_jax.hypernet.ghn import GHN, GHNConfig
from ghn_jax.hypernet.predict import check_network
from ghn_jax.hypernet.published import load_published
from ghn_jax.networks.files import load_networks
from ghn_jax.quant.policy import Policy, parse_bits
from ghn_jax.reporting import tables
from ghn_jax.runs import prediction
from ghn_jax.runs.run import read_meta
from ghn_jax.runs.task import make_ghn, make_space_of
from tests.fuzz import architectures, states
from tests.fuzz.harness import Target
from tests.fuzz.mutation import STRANGE, mutate_bytes, mutate_json, text_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
_GHN = GHN(GHNConfig())


def written(data: bytes, path: pathlib.Path) -> pathlib.Path:
    path.write_bytes(data)
    return path


# ---- architecture files


def make_architectures(rng: random.Random) -> bytes:
    value = architectures.file(rng)
    what = rng.random()
    if what < 0.4:
        return text_of(rng, value)
    if what < 0.9:
        return text_of(rng, mutate_json(rng, value))
    return mutate_bytes(rng, json.dumps(value).encode())


def call_architectures(data: Any, folder: pathlib.Path) -> None:
    """As predict, evaluate --archs and benchmark --archs do before they work."""
    specs = load_networks(written(data, folder / 'nets.json'))
    refusals = []
    for door in (
        lambda: [check_network(spec, _GHN) for spec in specs],
        lambda: check_given(specs, 32),
        lambda: tasks.check_networks(specs),
        lambda: prediction.output_files(str(folder / '{name}.safetensors'), prediction.with_names(specs)),
    ):
        try:
            door()
        except UserError as e:
            refusals.append(e)
    if refusals:
        raise refusals[0]


# ---- policies


def make_policy(rng: random.Random) -> tuple:
    pieces = (
        'a',
        '.',
        '.*',
        '\\.',
        '(',
        ')',
        '[',
        ']',
        '+',
        '*',
        '?',
        '{2,}',
        '{9}',
        '|',
        'cells',
        '\\d+',
        '^',
        '$',
        '(?:',
        '(?i)',
        '\\1',
        'weight',
        '\0',
        '\ud800',
        '{999999999999}',
        '(a+)+',
        '(.|.)*',
    )
    bits = (2, 4, 8, 16, 32, 3, 1, 33, True, '4', None, 4.0, 10**30)
    good = bits[:6]

    def pattern() -> (
        str
    ):  # something that compiles, mostly: of pieces that do, side by side or one in another
        text = rng.choice(('.*', 'cells', '\\.', '[0-9]', '\\d+', 'w', '.?', '(a|b)', '[^)]', 'a{2,3}', '.'))
        for _ in range(rng.randrange(7)):
            other = rng.choice(
                pieces if rng.random() < 0.1 else ('.*', '.', '(.|c)', '\\w+', 's?', '(?:x|)', 'op')
            )
            text = rng.choice((text + other, other + text, f'({text}){rng.choice("*+?")}', f'{text}|{other}'))
        return text

    rules = [
        (pattern() + rng.choice(('', '.*')), rng.choice(good), rng.choice(good))
        for _ in range(rng.randrange(4))
    ]
    if rng.random() < 0.1:
        rules = mutate_json(rng, [list(rule) for rule in rules])
    text = ''.join(rng.choices('wa0123456789/ ٣xF', k=rng.choice((4, 4, 5, 6, 3000))))
    widths = [rng.choice(bits if rng.random() < 0.05 else good) for _ in range(2)]
    return *widths, rules, rng.choice((text, 'w4a4', 'W8/A8', 'float', None, 4))


def call_policy(value: Any, folder: pathlib.Path) -> None:
    weights, activations, rules, text = value
    policy = Policy(weights, activations, rules)
    policy.check(_names())
    for name in _names():
        policy.widths(name)
    str(policy), hash(policy)
    parse_bits(text)


@functools.cache
def _names() -> list[str]:
    return [f'cells.{i}._ops.{j}.op.{k}.weight' for i in range(12) for j in range(4) for k in (1, 2)]


# ---- configs


@functools.cache
def _keys() -> list[str]:
    def flat(config: Any, prefix: str):
        for key, value in config.items():
            yield prefix + key
            if hasattr(value, 'items'):
                yield from flat(value, f'{prefix}{key}.')

    return list(flat(configs.default(), ''))


def make_config(rng: random.Random) -> list[str]:
    values = (
        *'''0 1 -1 7 8 16 64 512 1000000 0x10 1_000 0.5 1e3 nan inf -inf 1e999 true maybe () (4,) (4,5)
        (5,4) (1,512) (4,40) ('a',) (None,) (16,24) (16,32) (10**9,) (3,) ('bnorm',) ('conv_1x1',) ('none',)
        ('msa','conv_3x3') {} {"a":1} [1,2] w4a4 float qat digits deepnets1m ../.. 漢字'''.split(),
        '', '\0', '\udcff', '9' * 30, '9' * 5000, '(' * 3000, '[' * 500, 'x' * 3000,
        str(tuple(range(16, 2000, 16))),
    )  # fmt: skip
    keys = (
        *_keys(),
        *_keys(),
        *_keys(),
        '',
        '.',
        'a.b',
        '__class__',
        'lock',
        'space.__init__',
        'ghn.hid.x',
        'seed ',
    )
    return [f'--config.{rng.choice(keys)}={rng.choice(values)}' for _ in range(rng.choice((1, 1, 2, 3)))]


def call_config(overrides: Any, folder: pathlib.Path) -> None:
    """As `train` does before it makes anything."""
    values = flags.FlagValues()
    flag = config_file.define('', values)
    argv = ['fuzz', f'--config={ROOT}/configs/test.py', *overrides]
    with mock.patch.object(sys, 'argv', argv):  # where ml_collections looks for overrides
        parsed(argv, values)
        config = config_file.read_config(flag)
    space = make_space_of(config)
    make_ghn(config)
    parse_bits(config.quant.bits)
    space.sample('train', config.seed, 0)
    configs.from_json(configs.to_json(config))


def parsed(argv: list[str], values: flags.FlagValues) -> flags.FlagValues:
    """The flags, with what `cli` makes of bad ones as a UserError."""

    def fail(error: object) -> None:
        raise UserError(cli.message_of(error))

    with mock.patch.object(flags, 'FLAGS', values), mock.patch.object(cli, 'fail', fail):
        cli._parse(argv)
    return values


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
    protocol = dict.fromkeys(results._SAME, 1) | {
        'training': 'qat w4a4',
        'workdir': 'runs/a',
        'step': 9,
        'images': 640,
        'bits': list(scores),
    }
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
    a, b = (
        comparison.read_figures(written(data, folder / f'{name}.json')) for name, data in zip('ab', value)
    )
    compared = comparison.compare(a, b)
    comparison.text(compared)
    json.dumps(compared, allow_nan=False)


# ---- names of files and flags


def make_path(rng: random.Random) -> str:
    return rng.choice(
        [s for s in STRANGE if isinstance(s, str)]
        + ['/dev/zero', '/dev/null', '/', 'fifo', 'link', '~nobody/x']
    )


def call_path(name: Any, folder: pathlib.Path) -> None:
    """Names of files that are none: whatever the door, it is a UserError."""
    fifo, link = folder / 'fifo', folder / 'link'
    if not fifo.exists():
        os.mkfifo(fifo)
        os.symlink('link', link)
    path = name if name.startswith('/') else f'{folder}/{name}'
    loaders = (load_networks, results.read_result, comparison.read_figures, read_jsonl)
    for load in (*loaders, lambda p: load_published(p, p)):
        try:
            load(path)
        except UserError:
            continue
        raise AssertionError(f'{path!r} was read')
    for check in (cli.check_workdir, lambda p: cli.check_output(p, 'out')):
        for given in (path, name):
            with contextlib.suppress(UserError):
                assert isinstance(check(given), pathlib.Path)
    raise UserError('none was read')


TARGETS = (
    Target('architectures', make_architectures, call_architectures, 0.40),
    Target('policies', make_policy, call_policy, 0.10),
    Target('configs', make_config, call_config, 0.08),
    Target('saved-configs', make_saved_config, call_saved_config, 0.05),
    Target('states', make_state, call_state, 0.10),
    Target('metrics', make_metrics, call_metrics, 0.09),
    Target('results', make_result, call_result, 0.09),
    Target('figures', make_figures, call_figures, 0.08),
    Target('paths', make_path, call_path, 0.01),
)
