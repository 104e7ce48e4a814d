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
from ghn_jax.base.jsonlines import read_jsonl
from ghn_jax.benchmarks import ratios, tasks
from ghn_jax.evaluation import results
from ghn_jax.evaluation.selection import check_given
from ghn_jax.hypernet.ghn import GHN, GHNConfig
from ghn_jax.hypernet.predict import check_network
from ghn_jax.hypernet.published import load_published
from ghn_jax.networks.files import load_networks
from ghn_jax.quant.policy import Policy, parse_bits
from ghn_jax.runs import prediction
from ghn_jax.runs.task import make_ghn, make_space_of
from tests.fuzz import architectures, run_files
from tests.fuzz.harness import Target
from tests.fuzz.mutation import STRANGE, mutate_bytes, mutate_json, text_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
_GHN = GHN(GHNConfig())


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
    specs = load_networks(run_files.written(data, folder / 'nets.json'))
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
    loaders = (load_networks, results.read_result, ratios.read_figures, read_jsonl)
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
    Target('saved-configs', run_files.make_saved_config, run_files.call_saved_config, 0.05),
    Target('states', run_files.make_state, run_files.call_state, 0.10),
    Target('metrics', run_files.make_metrics, run_files.call_metrics, 0.09),
    Target('results', run_files.make_result, run_files.call_result, 0.09),
    Target('figures', run_files.make_figures, run_files.call_figures, 0.08),
    Target('paths', make_path, call_path, 0.01),
)
