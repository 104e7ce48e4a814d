"""From nothing to one network: what each command says is read alike, and rows keep to their budget."""

import pathlib
import re

import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.studies.one_network import BITS, CASES, Way, run_way, scores, study, table

TOP1 = {'w2a2': 50.0, 'w4a4': 60.0, 'w8a8': 70.0}


def test_what_each_command_writes_comes_to_the_same_scores():
    evaluated = {'networks': [{'scores': {bits: {'top1': top1} for bits, top1 in TOP1.items()}}]}
    runs = [
        {'bits': b, 'scores': {'9': {'calibrated': {b: 0.0}}, '10': {'calibrated': {b: top1, 'float': 99.0}}}}
        for b, top1 in TOP1.items()
    ]
    assert scores(evaluated) == scores({'runs': runs}) == TOP1
    assert scores({'bits': 'w4a4 edges=w8a8', 'top1': 60.0}) == {'w4a4': 60.0}


@pytest.mark.parametrize('case', CASES.values(), ids=list(CASES))
def test_each_way_makes_and_scores_its_networks_with_files_of_its_own(case):
    for way in case.ways:
        results = re.findall(r'--json=(\S+)', ' '.join(way.commands))
        assert len(set(results)) == len(results) and all(file.startswith('DIR/') for file in results)
        assert all('ARCH' in command and case.workdir in command for command in way.commands)
        for bits in BITS[:1] if 'PD-Quant' in way.name else BITS:
            assert any('--json' in command and bits in command for command in way.commands)
    assert len({way.name for way in case.ways}) == len(case.ways)


def test_a_row_has_the_least_budget_that_it_keeps_to_and_longer_ones_are_said_to_be_unneeded():
    found = [{'way': str(s), 'cpu_seconds': s, 'top1': TOP1} for s in (60, 299, 301, 1500)]
    made = table(found, {})
    assert [row[0] for row in made['rows']] == ['5 minutes', '5 minutes', '30 minutes', '30 minutes']
    assert made['rows'][1][1:] == ['299', 5.0, 50.0, 60.0, 70.0]
    assert made['notes'] == ['The longest of these ways took 25.0 minutes. None was given 120 minutes.']
    lossy = [*found, found[0] | {'note': 'lossy'}]
    assert made['about'] == {} and table(lossy, {'seed': 0})['about'] == {'seed': 0, 'note': 'lossy'}
    some = [{'way': 'some', 'cpu_seconds': 1, 'top1': {'w4a4': 60.04}}]
    assert table(some, {})['rows'] == [['5 minutes', 'some', 0.0, None, 60.0, None]]
    assert table(found[:2], {})['notes'][0].endswith('None was given 30 or 120 minutes.')
    assert table([{'way': 'long', 'cpu_seconds': 7201, 'top1': TOP1}], {})['rows'][0][0] == 'none of these'


@pytest.fixture
def spinning(monkeypatch, tmp_path):
    """Ways of a module that spends a third of a second of CPU time and writes scores."""
    (tmp_path / 'spinning.py').write_text(
        'import json, pathlib, sys, time\n'
        'while time.process_time() < 0.3: pass\n'
        f'scores = {dict(TOP1)!r}\n'
        "bad = '--fail' in sys.argv\n"
        "text = json.dumps({'networks': [{'scores': {b: {'top1': t} for b, t in scores.items()}}]})\n"
        'bad or pathlib.Path(sys.argv[-1]).write_text(text)\n'
        'sys.exit(bad)\n'
    )
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'net.json').write_text('{}')
    return out


def test_the_time_is_that_of_the_cpu_and_what_is_done_is_not_done_again(spinning):
    both = [Way(name, ('spinning DIR/result.json',)) for name in 'ab']
    found = list(study(both, spinning))[-1]
    assert [one['top1'] for one in found] == [TOP1, TOP1]
    assert all(one['cpu_seconds'] >= 0.2 for one in found)
    records = sorted(spinning.glob('*/record.json'))
    before = [record.stat().st_mtime_ns for record in records]
    (spinning / 'b' / 'record.json').unlink()
    assert list(study(both, spinning))[-1][0] == found[0]
    after = [record.stat().st_mtime_ns for record in records]
    assert after[0] == before[0] and after[1] != before[1]


def test_what_other_commands_have_found_is_refused(spinning):
    list(study([Way('a', ('spinning DIR/result.json',))], spinning))
    with pytest.raises(UserError, match='other settings .commands differ'):
        list(study([Way('a', ('spinning --more DIR/result.json',))], spinning))


def test_a_command_that_fails_is_named(tmp_path, spinning):
    with pytest.raises(UserError, match=r'python -m spinning .*--fail.* failed \(status 1\)'):
        run_way(Way('a', ('spinning --fail DIR/result.json',)), pathlib.Path('net.json'), tmp_path)
