"""What a first hour has found, as a table: a line for each part."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from ghn_jax.bringup.parts import FLAGS, MACHINE, TRAINING
from ghn_jax.bringup.runner import DONE, Record

_GIB = 2**30
_BASE = 'speed-w4a4'  # what sets of flags are compared with


def text(result: Mapping[str, Any]) -> str:
    """Return a line for each part: how it ended, its seconds, and what it found in a few words."""
    records = result['parts']
    rows = [(r['part'], r['status'], r['seconds'], r['limit_s'], _said(r, records)) for r in records]
    table = tabulate(rows, headers=('part', 'status', 's', 'of', 'found'), floatfmt='.1f')
    done = sum(r['status'] == DONE for r in records)
    return f'{table}\n\n{done} of {len(records)} parts are done'


def best_flags(records: Sequence[Record]) -> tuple[str, float] | None:
    """Return the fastest set of flags and its speed beside none; None where nothing can be compared.

    A set that computes other losses than without it does not count.
    """
    base = _result(records, _BASE)
    if not base.get('steps_per_s'):
        return None
    found = [
        (r['result']['steps_per_s'] / base['steps_per_s'], r['part'].removeprefix(FLAGS))
        for r in records
        if r['part'].startswith(FLAGS)
        and (r['result'] or {}).get('steps_per_s')
        and same_losses(r['result'], base)
    ]
    if not found:
        return None
    speed, name = max(found)
    return name, speed


def same_losses(result: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Tell whether the first losses are equal up to the order of sums, which rounding to 4 bits amplifies."""
    pairs = zip(result['losses'], base['losses'])
    return all(a is not None and b is not None and abs(a - b) <= _SAME * abs(b) for a, b in pairs)


_SAME = 0.02


def _said(record: Record, records: Sequence[Record]) -> str:
    """What a part has found, in a few words; then why it did not end well."""
    name, result = record['part'], record['result'] or {}
    kind = FLAGS if name.startswith(FLAGS) else 'speed' if name.startswith('speed-') else name
    words = []
    try:
        words = [w for w in _WORDS[kind](result, records) if w]
    except (KeyError, TypeError):  # it ended before it found that
        pass
    return '; '.join([*words, *([record['error']] if record['error'] else [])])


def _machine(result: Mapping[str, Any], records: Sequence[Record]) -> list[str]:
    versions, memory = result['versions'], result['memory']
    flops = result.get('tflops', {})
    return [
        f'{result["devices"]} x {result["device"]}',
        f'{memory / _GIB:.1f} GiB' if memory else '',
        f'jax {versions.get("jax")}, Python {result["python"]}',
        ', '.join(f'{v:.2f} TFLOP/s {k}' for k, v in flops.items()),
    ]


def _programs(result: Mapping[str, Any], records: Sequence[Record]) -> list[str]:
    step, scoring = result['training'], result.get('scoring', {})
    return [
        f'first step, of {step["branches"]} branches: {step["first_step_s"]:.1f} s',
        f'scoring: {scoring["first_s"]:.1f} s' if scoring else '',
    ]


def _numbers(result: Mapping[str, Any], records: Sequence[Record]) -> list[str]:
    wrong = [check['check'] for check in result['checks'] if not check['good']]
    good = len(result['checks']) - len(wrong)
    return [
        f'{good} of {len(result["checks"])} checks are good',
        f'WRONG: {", ".join(wrong)}' if wrong else '',
    ]


def _speed(result: Mapping[str, Any], records: Sequence[Record]) -> list[str]:
    return [
        f'{result["steps_per_s"]:.2f} steps/s of {result["meta_batch"]} x {result["batch_size"]}',
        f'loss {result["losses"][0]:.4f}' if result['losses'][0] is not None else 'loss is not finite',
        f'{result["peak_bytes"] / _GIB:.2f} GiB',
    ]


def _flags(result: Mapping[str, Any], records: Sequence[Record]) -> list[str]:
    base = _result(records, _BASE)
    words = _speed(result, records)
    if base.get('steps_per_s'):
        words.insert(1, f'{result["steps_per_s"] / base["steps_per_s"]:.2f} times as fast as without')
        words.append('' if same_losses(result, base) else 'WRONG: another loss than without')
    return words


def _cost(result: Mapping[str, Any], records: Sequence[Record]) -> list[str]:
    longest = result.get('profile', {}).get('longest', [])
    return [
        f'{result["steps_per_s"]:.2f} steps/s',
        f'{100 * result["share_waiting_for_host"]:.1f} % waiting for the host',
        f'{result["peak_bytes"] / _GIB:.2f} GiB',
        f'longest: {longest[0][0][:30]}' if longest else '',
    ]


def _evaluation(result: Mapping[str, Any], records: Sequence[Record]) -> list[str]:
    of = result['of']
    return [
        f'{result["networks"]} networks in {result["seconds"]:.1f} s',
        f'{of["networks"]} x {of["images"]:,} images x {result["bits"]} bit-widths: '
        f'{result["extrapolated_s"] / 60:.1f} min',
    ]


def _training(result: Mapping[str, Any], records: Sequence[Record]) -> list[str]:
    last = result['last'] or {}
    return [
        f'until step {last.get("step")}: {result["ended"]}',
        f'pack of {result["pack_bytes"] / 2**20:.1f} MiB' if result['pack_bytes'] else 'no pack',
    ]


_WORDS: Mapping[str, Callable[[Mapping[str, Any], Sequence[Record]], list[str]]] = {
    MACHINE: _machine,
    'programs': _programs,
    'numbers': _numbers,
    'speed': _speed,
    FLAGS: _flags,
    'cost': _cost,
    'evaluation': _evaluation,
    TRAINING: _training,
}


def _result(records: Sequence[Record], name: str) -> Mapping[str, Any]:
    return next((r['result'] or {} for r in records if r['part'] == name), {})
