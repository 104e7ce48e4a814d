"""Tables of results in Markdown pages, made from JSON files: no figure on a page is typed by hand.

    python -m ghn_jax.reporting.docs_tables

A page says where a table goes, and what stands between the two lines is written anew:

    <!-- results: digits_strategies -->
    <!-- end of results -->

The file is `docs/results/digits_strategies.json`; `zoo` and `curves` have none, being made of the cards of
the zoo. It is what `evaluate --json` or `benchmark --what=models --json` writes, or the `study.json` of a
study, or a table:

    {"title": ..., "about": {"date": ..., "commit": ..., "command": ...},
     "columns": ["trained", "seeds", "W4/A4"],
     "rows": [["float", 3, {"mean": 56.0, "sem": 3.0, "difference": 4.3}], ...], "notes": [...]}

A cell is text, a number, nothing (null), or an object: `mean` and `sem` (standard error), `median` and `max`,
`difference` and its `interval`. `about` says how the figures were taken and stands below the table.
"""

import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ghn_jax.base import jsonfile
from ghn_jax.base.errors import UserError
from ghn_jax.runs import zoo
from ghn_jax.zoo.cards import compared, curves

PAGES = ('README.md', 'docs')
OF_CARDS = {'zoo': compared, 'curves': curves}
"""The tables that are made of the cards of the hypernetworks that come with the package."""
RESULTS = pathlib.Path('docs/results')
_BLOCK = re.compile(r'(^<!-- results: ([\w-]+) -->\n).*?(<!-- end of results -->)$', re.DOTALL | re.MULTILINE)
_BEGINNINGS = re.compile(r'^<!-- results: ', re.MULTILINE)


def fill(page: str, results: pathlib.Path) -> str:
    """Return the page with every table made from its file in the folder `results`.

    Raises:
      UserError: a table that does not end, or whose file is absent or has another form.
    """
    blocks = len(_BLOCK.findall(page))
    if len(_BEGINNINGS.findall(page)) != blocks:
        raise UserError('a table begins and does not end: expected <!-- end of results --> below each')
    return _BLOCK.sub(lambda found: found[1] + markdown(_read(results, found[2])) + found[3], page)


def markdown(result: Mapping[str, Any]) -> str:
    """Return a result as a Markdown table, and below it how the figures were taken."""
    forms = {'over_seeds': _of_study, 'protocol': _of_evaluation, 'machine': _of_models}
    read = next((of_form for key, of_form in forms.items() if key in result), _of_table)
    columns, rows, about = read(result)
    lines = [columns, ['---'] * len(columns), *([_cell(cell) for cell in row] for row in rows)]
    table = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    taken = '; '.join(f'{key}: {_said(key, value)}' for key, value in about.items())
    notes = ''.join(f'\n{note}\n' for note in result.get('notes', ()))
    return f'\n{table}\n\n{taken}.\n{notes}\n'


def _read(results: pathlib.Path, name: str) -> Mapping[str, Any]:
    if name in OF_CARDS:
        return OF_CARDS[name](map(zoo.read_card, zoo.names()))
    path = results / f'{name}.json'
    result = jsonfile.read(path, 'results', 'expected a table, or what evaluate --json writes')
    forms = ({'columns', 'rows', 'about'}, {'rows', 'protocol'}, {'rows', 'machine'})
    if isinstance(result, dict) and any(form <= set(result) for form in forms):
        return result
    raise UserError(
        f'{path} has other fields: expected columns, rows and about, or rows and a protocol or a machine'
    )


def _of_table(result: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[Sequence[Any]], Mapping[str, Any]]:
    wrong = [row for row in result['rows'] if len(row) != len(result['columns'])]
    if wrong:
        raise UserError(f'{result.get("title")}: the row {wrong[0][0]!r} has not as many cells as columns')
    return result['columns'], result['rows'], result['about']


def _of_evaluation(result: Mapping[str, Any]) -> tuple[list[str], list[list[Any]], dict[str, Any]]:
    """A row for each split, a column for each bit-width."""
    bits = list(dict.fromkeys(row['bits'] for row in result['rows']))
    cells = {(row['split'], row['bits']): row for row in result['rows']}
    rows = []
    for split in dict.fromkeys(split for split, _ in cells):
        of_split = [cells[split, b] for b in bits]
        means = [{'mean': r['top1_mean'], 'sem': r['top1_sem']} for r in of_split]
        rows.append([split, of_split[0]['n'], *means])
    wanted = ('date', 'commit', 'device', 'dataset', 'note', 'step', 'images', 'batch_norm', 'ranges', 'seed')
    return ['split', 'networks', *bits], rows, _present(result['protocol'], (*wanted, 'command'))


def _present(protocol: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: protocol[key] for key in keys if protocol.get(key) not in (None, '')}


_COLUMNS_OF_MODELS = {
    'model': 'model', 'parameters': 'parameters', 'nodes': 'nodes', 'trace_cpu_s': 'tracing, CPU s',
    'predict_cpu_s': 'prediction, CPU s', 'float_kb': 'kB, float', 'w8a8_kb': '8 bits', 'w4a4_kb': '4 bits',
    'w2a2_kb': '2 bits', 'epochs': 'passes', 'images': 'images', 'float_top1': 'top-1, float',
    'w8a8_top1': 'W8/A8', 'w4a8_top1': 'W4/A8', 'w4a4_top1': 'W4/A4', 'w2a2_top1': 'W2/A2',
    'float_agreement': 'as here, float', 'w8a8_agreement': 'as here, W8/A8',
    'w8a8_agreement_with_biases': 'W8/A8, biases as in the file', 'w4a8_agreement': 'as here, W4/A8',
    'w4a4_agreement': 'as here, W4/A4', 'w2a2_agreement': 'as here, W2/A2',
}  # fmt: skip


def _of_models(result: Mapping[str, Any]) -> tuple[list[str], list[list[Any]], dict[str, Any]]:
    """A row for each model that `benchmark --what=models` has timed; a column for each figure there is."""
    measured = [row for row in result['rows'] if row['what'] == 'models']
    keys = [key for key in _COLUMNS_OF_MODELS if any(row.get(key) is not None for row in measured)]
    rows = [[_figure(key, row.get(key)) for key in keys] for row in measured]
    machine = result['machine']
    device = f'{machine["cpus"]} CPU cores' if machine['platform'] == 'cpu' else machine['device']
    about = {'date': result.get('date'), 'commit': result.get('commit')}
    about |= {'device': device, 'jax': machine['jax']}
    about |= {'command': result.get('command'), 'note': result.get('note')}
    return [_COLUMNS_OF_MODELS[key] for key in keys], rows, {k: v for k, v in about.items() if v}


def _figure(key: str, value: Any) -> Any:
    if key.endswith('_kb'):
        return round(value)
    return round(value, 2) if isinstance(value, float) else value


def _of_study(result: Mapping[str, Any]) -> tuple[list[str], list[list[Any]], dict[str, Any]]:
    """A row for each strategy with what it changes; a column for each split and bit-width."""
    of_all, reached = result['over_seeds']['rows'], result.get('reached') or {}
    scored = list(dict.fromkeys((row['split'], row['bits']) for row in of_all))
    cells = {(row['strategy'], row['split'], row['bits']): row for row in of_all}
    rows = []
    for strategy, changes in result['strategies'].items():
        of_strategy = [cells.get((strategy, *column), {}) for column in scored]
        line = [strategy, ', '.join(f'{key}={value}' for key, value in changes.items())]
        line += [len(next((row['seeds'] for row in of_strategy if row), ())), *map(_study_cell, of_strategy)]
        rows.append([*line, *([reached['networks'].get(strategy) or 'never'] if reached else [])])
    columns = ['strategy', 'changes', 'seeds', *(f'{split} {bits}' for split, bits in scored)]
    columns += [f'networks to {reached["top1"]:.1f} % in validation'] if reached else []
    wanted = ('date', 'commit', 'device', 'dataset', 'note', 'images', 'num_networks', 'batch_size')
    about = _present(result['protocol'], (*wanted, 'command'))
    return columns, rows, {'baseline': result['baseline'], **about}


def _study_cell(row: Mapping[str, Any]) -> dict[str, Any] | None:
    names = {'mean': 'top1_mean', 'sem': 'top1_sem', 'difference': 'difference_mean'}
    return {name: row[key] for name, key in names.items() if row.get(key) is not None} or None


def _cell(cell: Any) -> str:
    if cell is None:
        return ''
    if isinstance(cell, Mapping):
        parts = []
        if 'mean' in cell:
            sem = cell.get('sem')
            # Without the sign of what rounds to zero.
            parts.append(f'{round(cell["mean"], 1) + 0.0:.1f}' + ('' if sem is None else f' ± {sem:.1f}'))
        if 'median' in cell:
            parts.append(f'({cell["median"]:.1f}, {cell["max"]:.1f})')
        if 'difference' in cell:
            difference = f'{round(cell["difference"], 1) + 0.0:+.1f}'
            parts.append(f'({difference})' if 'mean' in cell else difference)
        if 'interval' in cell:
            low, high = cell['interval']
            parts.append(f'[{low:+.1f}, {high:+.1f}]')
        return ' '.join(parts)
    return f'{cell:,}' if isinstance(cell, int) else str(cell).replace('|', '\\|')


def _said(key: str, value: Any) -> str:
    return f'`{value}`' if key in ('command', 'commit') else str(value).rstrip('.')


def main() -> None:
    """Fill the tables of all pages of the repository this is run in."""
    for place in map(pathlib.Path, PAGES):
        for path in sorted(place.glob('*.md')) if place.is_dir() else [place]:
            old = path.read_text(encoding='utf-8')
            try:
                new = fill(old, RESULTS)
            except UserError as e:
                sys.exit(f'error: {path}: {e}')
            if new != old:
                path.write_text(new, encoding='utf-8')
                print(f'{path}: tables written')


if __name__ == '__main__':
    main()
