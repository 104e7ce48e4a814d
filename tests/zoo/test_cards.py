"""Cards: the command they show trains that very run; a card is made of a run and its evaluation."""

import dataclasses
import json
import shlex
import sys
from unittest import mock

import numpy as np
import pytest
from absl import flags

from ghn_jax import config, config_file
from ghn_jax.base.errors import UserError
from ghn_jax.evaluation.results import make_rows
from ghn_jax.runs import zoo
from ghn_jax.runs.config_changes import FREE_KEYS, differing_keys
from ghn_jax.runs.pack import read_pack
from ghn_jax.runs.run import load_run
from ghn_jax.zoo import cards
from tests.small_run import ROOT, command, is_one_error_line, write_run


def config_of(words):
    values = flags.FlagValues()
    with mock.patch.object(sys, 'argv', words):
        holder = config_file.define('config', values)
        values(words)
    return config_file.read_config(holder)


@pytest.mark.parametrize('name', zoo.names())
def test_the_command_on_a_card_trains_that_run(name):
    python, _, module, *arguments = shlex.split(zoo.read_card(name)['command'])
    assert (python, module) == ('python', 'ghn_jax.train')
    arguments.remove('--workdir=DIR')
    assert not differing_keys(config_of([module, *arguments]), load_run(f'zoo:{name}').config, FREE_KEYS)


TRAINING = ROOT / 'zoo/training'


@pytest.mark.parametrize('name', sorted(file.stem for file in TRAINING.glob('*.pack')))
def test_the_command_of_a_training_under_way_goes_on_with_its_pack(name):
    text = (TRAINING / 'README.md').read_text().replace('\\\n', ' ')
    (line,) = [line for line in text.splitlines() if f'--unpack=zoo/training/{name}.pack' in line]
    module, *arguments = shlex.split(line)[2:]
    flags_of_config = [argument for argument in arguments if argument.startswith('--config')]
    begun = config.from_json(read_pack(TRAINING / f'{name}.pack').meta['config'])
    assert not differing_keys(begun, config_of([module, *flags_of_config]), FREE_KEYS)


def test_what_is_of_a_shell_is_quoted():
    for word in ("--a=('b', 'c')", "--a='$HOME'", '--a=b', '--a="b" \'c\'', "--a='!'"):
        assert shlex.split(cards._quoted(word)) == [word]


@pytest.fixture
def result(tmp_path):
    """Of the run that `write_run` makes, with two networks."""
    networks = [
        {
            'split': 'test',
            'name': str(i),
            'digest': str(i),
            'scores': {'w32a32': {'top1': 40.0 + i, 'top5': 90.0}},
        }
        for i in range(2)
    ]
    protocol = {'training': 'x', 'workdir': 'a', 'step': 3, 'images': 7, 'command': 'python x', 'extra': 1}
    value = {'rows': make_rows(networks, ['w32a32']), 'networks': networks, 'protocol': protocol}
    file = tmp_path / 'result.json'
    file.write_text(json.dumps(value))
    return file


def test_an_entry_is_made_of_a_run_and_listed_with_its_scores(tmp_path, monkeypatch, result):
    run, folder = write_run(tmp_path / 'run'), tmp_path / 'zoo'
    rows = [
        {'step': k, 'train/loss': 2.0 - k, 'train/accuracy': k / 8} for k in (1, 2, 3, 4)
    ]  # 4: not its own
    (run / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    made = '--name=some-run', '--about=for the test', '--commit=abc', '--limit=One.', '--limit=Two.'
    where = '--folder=~/zoo'  # which bash leaves as it is
    monkeypatch.setenv('HOME', str(folder.parent))
    code, said, _ = command('ghn_jax.zoo', f'--add={run}', *made, where)
    assert code == 0 and 'results  none yet' in said
    code, said, _ = command('ghn_jax.zoo', f'--add={run}', *made, where, f'--result={result}')
    assert code == 0 and '40.50 ± 0.50' in said and 'One. Two.' in said
    assert command('ghn_jax.zoo', where, '--name=some-run')[1] == said
    assert 'zoo:some-run | for the test | synthetic' in ' '.join(command('ghn_jax.zoo', where)[1].split())
    card = zoo.read_card('some-run', folder)
    assert card['steps'] == 3 and card['protocol'] == {'images': 7, 'command': 'python x'}
    params, meta = zoo.read_entry('some-run', folder)
    assert params.keys() == load_run(run).params.keys() and meta['step'] == 3
    assert zoo.read_curve('some-run', folder) == rows[:3]


def test_a_card_counts_the_networks_of_the_entry_that_a_training_began_with(tmp_path, monkeypatch):
    """Also once that entry is replaced by what was trained on from it."""
    monkeypatch.setattr(zoo, 'read_card', lambda name: entries[name])
    before = {'name': 'a', 'steps': 1000, 'networks_seen': 8000, 'commit': 'abc', 'command': 'python before'}
    entries = {'a': {**before, 'limits': []}}
    run = load_run(write_run(tmp_path / 'run'))
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, init_from='zoo:a'))
    made = lambda: cards.make_card(run, about='', commit='', limits=())
    card = made()
    assert card['begun_from'] == before
    assert card['networks_seen'] == 8000 + run.step * run.config.train.meta_batch
    entries['a'] = card
    assert made() == card
    whole = {'name': 'a', 'parameters': 1, 'dtype': 'float16', 'bytes': 1, 'sha256': ''}
    assert 'before   1,000 steps, 8,000 of these networks; commit abc: python before' in cards.text(
        whole | card
    )


def test_what_an_entry_lacks_is_one_line_and_nothing_is_written(tmp_path, result):
    run, folder = write_run(tmp_path / 'run', step=4), tmp_path / 'zoo'
    where, add = f'--folder={folder}', f'--add={run}'
    whole = '--name=a', '--about=b', '--commit=c', '--limit=d'
    for left_out in whole:
        words = [word for word in whole if word != left_out]
        flag = left_out.partition('=')[0]
        assert is_one_error_line(command('ghn_jax.zoo', add, where, *words), f'{flag} is missing')
    for words, message in (
        ((add, *whole, f'--result={result}'), '--result is of step 3, the run is of step 4'),
        ((add, *whole[1:], '--name=A b'), '--name='),
        (('--add=/nowhere', *whole), '--add=/nowhere does not exist'),
        (('--about=b',), '--about is for an entry that is made'),
        (('--name=b',), 'expected none, for there are none'),
        ((), 'holds no entries'),
    ):
        assert is_one_error_line(command('ghn_jax.zoo', where, *words), message), words
    assert not folder.exists()
    with pytest.raises(UserError, match='is of step 3'):
        cards.make_card(load_run(run), about='', commit='', limits=(), result=json.loads(result.read_text()))


def test_a_curve_has_few_points_with_the_mean_of_all_rows():
    rng, count = np.random.default_rng(0), 97
    rows = [
        {'step': 20 * k, 'train/loss': rng.random(), 'train/accuracy': rng.random()} for k in range(1, count)
    ]
    found = cards.curve([*rows, {'step': 20 * count, 'train/loss': None, 'train/accuracy': 0.5}])
    steps = found['step']
    assert len(steps) == 30 and steps[-1] == rows[-1]['step'] and steps == sorted(set(steps))
    for key in cards.CURVE:
        for k, value in enumerate(found[key]):
            begin = steps[k - 1] if k else 0
            part = [row[key] for row in rows if begin < row['step'] <= steps[k]]
            assert value == pytest.approx(np.mean(part), abs=1e-4)
    assert cards.curve([]) == {} and cards.curve(rows[:1])['step'] == [20]


def test_the_table_of_curves_has_the_accuracy_after_each_part_of_the_training():
    steps = list(range(10, 101, 10))
    card = {'name': 'a', 'networks_seen': 7, 'steps': 100}
    curve = {'step': steps, 'train/loss': [1.0] * 10, 'train/accuracy': [step / 100 for step in steps]}
    table = cards.curves([card | {'curve': curve}, card | {'curve': {}}, card], columns=5)
    assert table['columns'][2:] == ['1/5', '2/5', '3/5', '4/5', '5/5']
    assert table['rows'] == [['`zoo:a`', 7, 20.0, 40.0, 60.0, 80.0, 100.0]]
