"""Pages say what is true: commands parse, what is named exists, tables are those of the results."""

import contextlib
import dataclasses
import importlib
import inspect
import itertools
import json
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from unittest import mock

import pytest
from absl import flags

import ghn_jax
from ghn_jax.quant.policy import policy_from_dict
from ghn_jax.reporting import docs_tables
from ghn_jax.runs import zoo
from ghn_jax.zoo import cards
from tests.commands import COMMANDS, flags_of
from tests.small_run import ROOT

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding='utf-8') for page in PAGES}
CODE = re.compile(r'^```\w*\n(.*?)^```|((?:^    [^\n]+\n)+)', re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r'(?:\.venv/bin/)?(?:python -m [\w.]+|bash launch/\w+\.sh)( .*)?$')
NEEDS = {
    'cifar10': 'CIFAR-10',
    'launch/gpu.sh': 'GPU',
    'launch/tpu_': 'TPU',
}  # what a section must then speak of


def lines_of(text: str) -> Iterator[str]:
    """What stands in blocks of code, line by line, and in code within sentences and tables."""
    for found in CODE.finditer(text):
        yield from (found[1] or found[2]).replace('\\\n', ' ').splitlines()
    for span in re.findall(r'`([^`\n]+)`', CODE.sub('', text)):
        yield span.replace('\\|', '|')


def commands_of(text: str) -> list[str]:
    return [line.strip() for line in lines_of(text) if COMMAND.match(line.strip())]


EVERY = [(page, command) for page, text in TEXTS.items() for command in dict.fromkeys(commands_of(text))]


@contextlib.contextmanager
def defined_flags(module: str, arguments: list[str]):
    """The flags of a command; `--config.key` is defined for what the arguments say."""
    known = set(flags.FLAGS)
    with (
        mock.patch('ghn_jax.base.cli.run'),
        mock.patch.object(sys, 'argv', [module, *arguments]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore', RuntimeWarning)  # runpy: the module is imported already
        runpy.run_module(module, run_name='__main__')
        try:
            yield flags.FLAGS
        finally:
            flags.FLAGS.unparse_flags()
            for name in set(flags.FLAGS) - known:
                delattr(flags.FLAGS, name)


def check_python(module: str, arguments: list[str]) -> None:
    if module not in COMMANDS:
        assert (ROOT / module.replace('.', '/')).with_suffix('.py').is_file()
        if arguments:
            importlib.import_module(module).parser().parse_args(arguments)  # leaves where it takes no such
        return
    arguments = [re.sub(r'=[NIK]$', '=1', argument) for argument in arguments]  # stand for numbers
    with defined_flags(module, arguments) as values:
        assert values([module, *arguments]) == [module]  # raises on unknown flags, keys and impossible values
        for name in {'bits', 'closeup', 'groups'} & set(values):
            value = values[name].value or []
            for bits in [value] if isinstance(value, str) else value:
                ghn_jax.parse_bits(bits)


def check_script(script: str, arguments: list[str]) -> None:
    assert (ROOT / script).is_file()
    if script == 'launch/test.sh':
        assert all((ROOT / argument).exists() for argument in arguments if '/' in argument)
    elif arguments:
        arguments = [argument for argument in arguments if argument != '--dry_run']
        done = subprocess.run(
            ['bash', script, *arguments, '--dry_run'], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('page, command', EVERY, ids=[f'{page}-{i}' for i, (page, _) in enumerate(EVERY)])
def test_a_command_on_a_page_is_one(page, command):
    words = shlex.split(command, comments=True)
    if words[0] == 'bash':
        check_script(words[1], words[2:])
    elif words[2] != 'pytest':
        check_python(words[2], words[3:])
    for word in words:
        for path in re.findall(r'^(?:--\w+=)?((?:configs|tests|launch)/[\w./-]+)', word):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    'command',
    [
        'python -m ghn_jax.trian --workdir=DIR',
        'python -m ghn_jax.evaluate --workdir=DIR --splitz=test',
        'python -m ghn_jax.evaluate --workdir=DIR --bits=w4',
        'python -m ghn_jax.train --config=quickstart --workdir=DIR --config.train.stepz=3',
        'python -m ghn_jax.train --config=configs/quick.py --workdir=DIR',
        'bash launch/gpu.sh --config=quickstart',
        'bash launch/test.sh -m slow tests/nothing',
    ],
)
def test_a_command_that_is_none_would_be_noticed(command):
    with pytest.raises((AssertionError, AttributeError, flags.Error, ValueError)):
        test_a_command_on_a_page_is_one('page', command)


def test_the_commands_are_found_and_each_is_on_the_page_of_commands():
    assert len(EVERY) > 40
    for command in COMMANDS:
        for page in ('README.md', 'docs/commands.md'):
            assert f'python -m {command}' in TEXTS[page], (page, command)


@pytest.mark.parametrize('command', COMMANDS)
def test_each_flag_of_a_command_is_on_a_page(command):
    pages = '\n'.join(TEXTS.values())
    names = flags_of(command).keys() - {'config'}  # with its keys: `--config.key=value`
    assert not [name for name in names if not re.search(rf'--(no)?{name}\b', pages)]


def test_a_section_says_what_its_commands_need():
    for page, text in TEXTS.items():
        for section in re.split(r'^(?=#)', text, flags=re.MULTILINE):
            commands = commands_of(section)
            prose = CODE.sub('', re.sub(r'`[^`\n]+`', '', section))
            for part, need in NEEDS.items():
                if any(part in command for command in commands):
                    assert need in prose, (page, section.splitlines()[0], need)


@pytest.mark.parametrize('page', TEXTS)
def test_what_a_page_names_exists(page):
    folder = (ROOT / page).parent
    for target in re.findall(r'\]\(([^)]+)\)', CODE.sub('', TEXTS[page])):
        path, _, anchor = target.partition('#')
        linked = (folder / path) if path else ROOT / page
        assert linked.is_file(), target
        if linked.suffix != '.md':
            assert not anchor, target
            continue
        headings = re.findall(r'^#+ (.*)$', linked.read_text(encoding='utf-8'), re.MULTILINE)
        anchors = {
            re.sub(r'[^\w -]', '', h.lower()).replace(' ', '-') for h in headings
        }  # as GitHub has them
        assert not anchor or anchor in anchors, target
    rooms = '|'.join(path.name for path in (ROOT / 'ghn_jax').iterdir() if path.is_dir())
    for span in lines_of(TEXTS[page]):
        if re.fullmatch(r'(ghn_jax|configs|docs|launch|tests)/[\w./-]+', span):
            assert (ROOT / span).exists(), span
        elif re.fullmatch(rf'({rooms})/[\w/]+\.py', span):
            assert (ROOT / 'ghn_jax' / span).exists(), span
        elif re.match(r'(--)?config\.(?!key)[a-z_.]+(=|$)', span):
            key = span.removeprefix('--').partition('=')[0].split('.')[1:]
            value = ghn_jax.config.default()  # type: ignore[attr-defined]
            for part in key:
                assert part in value, span
                value = value[part]


def test_tables_are_those_of_the_results_and_each_is_shown():
    for page, text in TEXTS.items():
        assert docs_tables.fill(text, ROOT / docs_tables.RESULTS) == text, page
    shown = set(re.findall(r'^<!-- results: ([\w-]+) -->', '\n'.join(TEXTS.values()), re.MULTILINE))
    files = {path.stem for path in (ROOT / docs_tables.RESULTS).glob('*.json')}
    assert shown == files | set(docs_tables.OF_CARDS)


def test_a_cell_has_what_is_known_of_its_figure():
    cells = [
        3600,
        None,
        {'mean': 1.26, 'sem': 0.5, 'median': 2, 'max': 3.04},
        {'mean': -0.04, 'difference': 4},
    ]
    table = docs_tables.markdown({'columns': list('abcd'), 'rows': [cells], 'about': {'seed': 0}})
    assert '\n| 3,600 |  | 1.3 ± 0.5 (2.0, 3.0) | 0.0 (+4.0) |\n\nseed: 0.\n' in table


def test_the_table_of_the_zoo_has_the_scores_of_the_cards():
    table = cards.compared([zoo.read_card('digits-bits')])
    (row,) = table['rows']
    scores = dict(zip(table['columns'], row, strict=True))
    (w4a4,) = (
        r for r in zoo.read_card('digits-bits')['results'] if (r['split'], r['bits']) == ('test', 'w4a4')
    )
    assert scores['W4/A4'] == {'mean': w4a4['top1_mean'], 'sem': w4a4['top1_sem']}
    assert scores['scored'] == w4a4['n'] and scores['ternary/A2']['mean'] < scores['float']['mean']


def test_the_readme_is_of_one_screen():
    assert len(TEXTS['README.md'].splitlines()) < 90


def test_the_page_of_the_api_has_every_name_with_its_parameters():
    headings = re.findall(r'^### `(\w+)(?:\((.*)\))?`$', TEXTS['docs/api.md'], re.MULTILINE)
    assert sorted(name for name, _ in headings) == sorted(set(ghn_jax.__all__) - {'__version__'})
    for name, parameters in headings:
        value = getattr(ghn_jax, name)
        if inspect.isfunction(value):
            listed = [part.partition('=')[0].strip('* ') for part in parameters.split(',')]
            assert [part for part in listed if part not in ('', '/')] == list(
                inspect.signature(value).parameters
            )
    members = re.findall(r'^\| `?([\w`, ()=]+?)`? \| ', TEXTS['docs/api.md'], re.MULTILINE)
    for member in itertools.chain.from_iterable(re.findall(r'\b(\w+)(?:\(.*?\))?', m)[:1] for m in members):
        fields = {f.name for of in (ghn_jax.Model, ghn_jax.Calibrated) for f in dataclasses.fields(of)}
        classes = (ghn_jax.Hypernetwork, ghn_jax.Model, ghn_jax.Calibrated)
        assert member in fields or any(hasattr(of, member) for of in classes), member


def test_python_on_pages_compiles_and_policies_are_policies():
    for page, text in TEXTS.items():
        for language, code in re.findall(r'^```(\w+)\n(.*?)^```', text, re.DOTALL | re.MULTILINE):
            if language == 'json':
                assert policy_from_dict(json.loads(code), page).rules
    for page in ('README.md', 'docs/api.md'):
        for code in re.findall(r'^```python\n(.*?)^```', TEXTS[page], re.DOTALL | re.MULTILINE):
            compile(code, page, 'exec')
