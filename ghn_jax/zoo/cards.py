"""Model cards: what a hypernetwork of the zoo was trained on and how, what it scores and what it lacks.

A card is a dict, as it lies in NAME.json. `runs.zoo.write_entry` puts name, digest, size, number of
parameters and dtype before what `make_card` says.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from ghn_jax import config as configs
from ghn_jax import config_file
from ghn_jax.base import paths
from ghn_jax.base.errors import FieldError
from ghn_jax.config import RunConfig
from ghn_jax.evaluation.results import Result
from ghn_jax.quant.policy import parse_bits
from ghn_jax.runs import zoo
from ghn_jax.runs.config_changes import FREE_KEYS, differing_keys
from ghn_jax.runs.run import Run

_OF_ROWS = (
    'split', 'bits', 'n', 'top1_mean', 'top1_sem', 'top1_median', 'top1_max', 'difference_top1_mean',
    'difference_top1_sem',
)  # fmt: skip
_OF_PROTOCOL = (
    'dataset', 'note', 'image_split', 'images', 'batch_size', 'batch_norm', 'ranges', 'seed', 'device',
    'command',
)  # fmt: skip
_OF_BEGUN_FROM = 'name', 'sha256', 'steps', 'networks_seen', 'commit', 'command'
CURVE = 'train/loss', 'train/accuracy'
"""What a card has of the metrics of the training."""
_POINTS = 30  # of a curve at most
_LISTED = ('float', 'w4a4', 'w2a2')  # bit-widths in the list of all entries


def make_card(
    run: Run,
    *,
    about: str,
    commit: str,
    limits: Sequence[str],
    metrics: Sequence[Mapping[str, Any]] = (),
    result: Result | None = None,
) -> dict[str, Any]:
    """Return what there is to say about a run.

    Args:
      run: that has been trained.
      about: what it is for, in a sentence.
      commit: of the code that trained it.
      limits: sentences on what was not tried or does not work.
      metrics: rows of its metrics.jsonl.
      result: of `ghn_jax.evaluate`, of this very run; None is none yet.

    Raises:
      FieldError: of the field `result`: it is of another step.
    """
    if result and result['protocol']['step'] != run.step:
        raise FieldError('result', f' is of step {result["protocol"]["step"]}, the run is of step {run.step}')
    train, command = run.config.train, training_command(run.config)
    begun_from = _begun_from(run.config.init_from, command)
    return {
        'about': about,
        'dataset': run.config.dataset,
        'image_size': run.config.image_size,
        'note': run.meta.get('dataset', {}).get('note', ''),
        'steps': run.step,
        'networks_seen': run.step * train.meta_batch + begun_from.get('networks_seen', 0),
        'images_per_network': train.batch_size,
        'seed': run.config.seed,
        'commit': commit,
        'jax': run.meta['jax'],
        'command': command,
        'begun_from': begun_from,
        'results': [] if result is None else [_only(row, _OF_ROWS) for row in result['rows']],
        'protocol': {} if result is None else _only(result['protocol'], _OF_PROTOCOL),
        'limits': list(limits),
        'curve': curve(metrics),
    }


def curve(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the course of a training by a few points: each the mean of neighbouring rows, at the last step
    of these. Empty without rows.

    Example:
      >>> curve([{'step': 20, 'train/loss': 2.0, 'train/accuracy': 0.25}])
      {'step': [20], 'train/loss': [2.0], 'train/accuracy': [0.25]}
    """
    rows = [row for row in metrics if all(isinstance(row.get(key), float) for key in CURVE)]
    if not rows:
        return {}
    parts = np.array_split(np.arange(len(rows)), min(_POINTS, len(rows)))
    means = {key: [round(float(np.mean([rows[i][key] for i in part])), 4) for part in parts] for key in CURVE}
    return {'step': [rows[part[-1]]['step'] for part in parts], **means}


def _begun_from(init_from: str, command: str) -> dict[str, Any]:
    """Return what a card says of the entry that a training began with; nothing where it was none.

    An entry may be replaced by what was trained on from it. Then its card says what it was.
    command: of the training.
    """
    name = paths.zoo_name(init_from)
    if name is None:
        return {}
    card = zoo.read_card(name)
    return card['begun_from'] if card['command'] == command else _only(card, _OF_BEGUN_FROM)


def training_command(config: RunConfig) -> str:
    """Return the command that trains with this config, from the nearest config of the package."""
    nearest, changes = min(
        ((name, _changes(base, config)) for name, base in _shipped()), key=lambda found: len(found[1])
    )
    changed = [_quoted(f'--config.{key}={value}') for key, value in changes.items()]
    return ' '.join(['python -m ghn_jax.train', f'--config={nearest}', '--workdir=DIR', *changed])


def text(card: Mapping[str, Any]) -> str:
    """Return a card for the screen."""
    protocol = card['protocol']
    lines = [
        f'{paths.ZOO}{card["name"]}: {card["about"]}',
        f'file     {card["parameters"]:,} parameters, {card["dtype"]}, {card["bytes"]:,} bytes, '
        f'SHA-256 {card["sha256"]}',
        f'data     {card["dataset"]}, {card["image_size"]} pixels. {card["note"]}'.strip(),
        f'trained  {card["steps"]:,} steps, {card["networks_seen"]:,} networks with '
        f'{card["images_per_network"]} images each; seed {card["seed"]}, commit {card["commit"]}, '
        f'jax {card["jax"]}',
        f'command  {card["command"]}',
        *_before(card),
        f'limits   {" ".join(card["limits"])}',
    ]
    if not card['results']:
        return '\n'.join([*lines, 'results  none yet'])
    how = [
        f'{key} {value}' for key, value in protocol.items() if key not in ('command', 'note') and value != ''
    ]
    return '\n'.join(
        [*lines, f'results  {", ".join(how)}', f'         {protocol["command"]}', '', _table(card)]
    )


def _before(card: Mapping[str, Any]) -> list[str]:
    if not (before := card.get('begun_from')):
        return []
    return [
        f'before   {before["steps"]:,} steps, {before["networks_seen"]:,} of these networks; commit '
        f'{before["commit"]}: {before["command"]}'
    ]


def listed(cards: Iterable[Mapping[str, Any]]) -> str:
    """Return a table with a line for each card: top-1 in percent, of the first split that was scored."""
    lines = []
    for card in cards:
        rows = {row['bits']: row for row in reversed(card['results'])}
        scores = [rows.get(str(parse_bits(bits))) for bits in _LISTED]
        name, about = paths.ZOO + card['name'], card['about']
        lines.append([name, about, card['dataset'], f'{card["bytes"] / 2**20:.1f} MiB', *map(_score, scores)])
    headers = ['', 'about', 'data', 'file', *(f'top-1 {bits}' for bits in _LISTED)]
    return tabulate(lines, headers, tablefmt='github', disable_numparse=True)


def compared(cards: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a table of `reporting.docs_tables`: a row for each card with its top-1 by bit-width."""
    scored = [(card, {r['bits']: r for r in card['results'] if r['split'] == 'test'}) for card in cards]
    scored = [(card, results) for card, results in scored if results]
    bits = list(dict.fromkeys(b for _, results in scored for b in results))
    rows = []
    for card, results in scored:
        data = f'{card["dataset"]}, {card["image_size"]} pixels'
        scores = [results.get(b) for b in bits]
        means = [r and {'mean': r['top1_mean'], 'sem': r['top1_sem']} for r in scores]
        networks = next(iter(results.values()))['n']
        rows.append([f'`{paths.ZOO}{card["name"]}`', data, card['networks_seen'], networks, *means])
    return {
        'columns': ['hypernetwork', 'data', 'networks seen', 'scored', *map(_in_words, bits)],
        'rows': rows,
        'about': {
            'networks': 'of the test split, never seen in training',
            'images': ' and '.join(dict.fromkeys(_images(card) for card, _ in scored)),
            'protocol': 'statistics of batch norms and ranges of activations are those of each batch',
            'error': 'standard error over networks, one seed',
            'command': 'python -m ghn_jax.zoo --name=NAME',
        },
    }


def curves(cards: Iterable[Mapping[str, Any]], columns: int = 8) -> dict[str, Any]:
    """Return a table of `reporting.docs_tables`: accuracy in training after equal parts of all steps."""
    cards = [card for card in cards if card.get('curve')]
    rows = []
    for card in cards:
        steps, accuracy = (card['curve'][key] for key in ('step', 'train/accuracy'))
        at = np.searchsorted(steps, [card['steps'] * k // columns for k in range(1, columns + 1)])
        points = [round(100 * accuracy[min(i, len(steps) - 1)], 1) for i in at]
        rows.append([f'`{paths.ZOO}{card["name"]}`', card['networks_seen'], *points])
    return {
        'columns': ['hypernetwork', 'networks seen', *(f'{k}/{columns}' for k in range(1, columns + 1))],
        'rows': rows,
        'about': {
            'accuracy': 'in training, in percent, after that part of the steps (of the last training, '
            'where it began with another entry): of networks drawn anew, at '
            f'the bits drawn for each, on batches of training images; a mean over 1/{_POINTS} of all steps',
            'command': 'python -m ghn_jax.report --workdir=zoo:NAME',
        },
    }


def _images(card: Mapping[str, Any]) -> str:
    note = card['note'].rstrip('.')
    said = f', where {note[0].lower()}{note[1:]}' if note else ''
    return f'{card["protocol"]["images"]:,} test images of {card["dataset"]}{said}'


def _in_words(bits: str) -> str:
    policy = parse_bits(bits)
    if policy.is_float:
        return 'float'
    weights, activations = str(policy)[1:].split('a')
    return f'{"ternary" if weights == "t" else f"W{weights}"}/A{activations}'


def _table(card: Mapping[str, Any]) -> str:
    compared = any('difference_top1_mean' in row for row in card['results'])
    headers = [
        'split',
        'bits',
        'networks',
        'top-1',
        'median',
        'max',
        *(['against float32'] if compared else []),
    ]
    lines = []
    for row in card['results']:
        line = [row['split'], row['bits'], row['n'], _score(row)]
        line += [f'{row[f"top1_{name}"]:.1f}' for name in ('median', 'max')]
        lines.append([*line, *([_score(row, 'difference_top1')] if compared else [])])
    return tabulate(lines, headers, tablefmt='github', disable_numparse=True)


def _quoted(word: str) -> str:
    """A word for the shell; what holds single quotes is easier to read in double ones."""
    quoted = shlex.quote(word)
    return f'"{word}"' if quoted != word and not set(word) & set('"$`\\!') else quoted


def _score(row: Mapping[str, Any] | None, of: str = 'top1') -> str:
    if row is None:
        return ''
    sem = row.get(f'{of}_sem')
    return f'{row[f"{of}_mean"]:.2f}' + ('' if sem is None else f' ± {sem:.2f}')


def _only(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values}


def _shipped() -> Iterable[tuple[str, RunConfig]]:
    for name in paths.shipped('.py'):
        yield name, configs.freeze(config_file.Parser().parse(name))


def _changes(base: RunConfig, config: RunConfig) -> dict[str, Any]:
    """The dotted keys that make another run of `base`, with their values in `config`."""
    found = {}
    for key in differing_keys(base, config, FREE_KEYS):
        value: Any = config
        for part in key.split('.'):
            value = getattr(value, part)
        found[key] = value
    return found
