"""What was compiled, as rows of figures and as a table."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from tabulate import tabulate

from ghn_jax.aot import hlo, program_costs
from ghn_jax.aot.programs import Job
from ghn_jax.aot.targets import Target
from ghn_jax.assembly.memory import tree_bytes
from ghn_jax.cnn.shared_branches import count_branches

Row = dict[str, Any]

_SHOWN = 6  # copies of a function that the table lists


def about_program(job: Job) -> Row:
    """Say which function of which program it is, as built for the backend of `backends.current`."""
    return {
        'function': job.name,
        'split': job.split,
        'width': job.family.width,
        'msa': job.family.vit,
        'instructions': job.program.capacity.rows,
        'branches': count_branches(job.program.segments),
        'segments': len(job.program.segments),
        'build_s': job.build_s,
        'workspace_bytes': tree_bytes(of_a_device(job.workspace)),
    }


def of_a_device(shapes: Any) -> Any:
    """Return what one device has of arrays that are spread over several."""

    def part(x: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, 'sharding', None)
        return jax.ShapeDtypeStruct(sharding.shard_shape(x.shape) if sharding else x.shape, x.dtype)

    return jax.tree.map(part, shapes)


def tapes_of(job: Job) -> list[jax.ShapeDtypeStruct]:
    """Return the tapes in the workspace of a device: [*slots, and the four axes of a value] each."""
    tapes = getattr(of_a_device(job.workspace), 'executor', None)
    return jax.tree.leaves((tapes.values, tapes.gradients)) if tapes else []


def is_tape(shape: hlo.Shape, tapes: Sequence[jax.ShapeDtypeStruct]) -> bool:
    """Tell whether an array is a whole tape, whatever the order of its dimensions.

    It has as many values as one, and they are floats: images are integers. Where a slot of another tape has
    as many, too, the dimensions decide.
    """
    if not shape.type.startswith(('f', 'bf')):
        return False
    plain = lambda dims: sorted(d for d in dims if d != 1)
    same = [tape for tape in tapes if tape.size == shape.size]
    if any(tape.size == shape.size * math.prod(tape.shape[:-4]) for tape in tapes):
        return any(plain(tape.shape) == plain(shape.dims) for tape in same)
    return bool(same)


def about_text(text: str, tapes: Sequence[jax.ShapeDtypeStruct]) -> Row:
    """Say what an optimised program does, from its text.

    Returns:
      conditionals, loops: how many stand in it, by place; collectives; copies: those of at least as many
      bytes as the smallest tape; tape_copies: of these, the ones of as many values as a tape, in a loop or a
      branch and elsewhere; flops, bytes_moved: of one pass (`program_costs.cost`); operands: the operations
      of convolutions and products by the type of what they multiply (`program_costs.operand_types`). A place
      is {'loops', 'branches'}: how deep it lies in each.
    """
    module = hlo.read(text)
    counts, cost = hlo.counts(module), program_costs.cost(module)
    copies = hlo.copies(module, min((tape.size * tape.dtype.itemsize for tape in tapes), default=2**20))
    whole = Counter()
    for copy in copies:
        if copy.opcode != 'move' and is_tape(copy.shape, tapes):
            whole['inside' if any(copy.place) else 'outside'] += copy.count
    return {
        'conditionals': _by_place(counts, 'conditional'),
        'loops': _by_place(counts, 'while'),
        'collectives': [{**c._asdict(), 'place': c.place._asdict()} for c in hlo.collectives(module)],
        'copies': [_copy(copy) for copy in copies],
        'tape_copies': {name: whole[name] for name in ('inside', 'outside')},
        'flops': cost.flops,
        'bytes_moved': cost.bytes,
        'operands': program_costs.operand_types(module),
    }


def about_memory(needed: int | None, target: Target) -> Row:
    """Say whether a program fits the memory of a device."""
    memory = target.memory_bytes
    return {'memory_bytes': memory, 'fits': None if needed is None else needed <= memory}


def text(result: Mapping[str, Any]) -> str:
    """Write the table: a line for each function, the large copies under it, and what it all was for."""
    rows = result['rows']
    headers = (
        'function', 'split', 'width', 'branches', 'trace s', 'compile s', 'CPU s', 'arguments GB',
        'temporary GB', 'of memory', 'conditionals', 'loops', 'collectives', 'tape copies', 'GFLOP',
        'operands', 'GB moved', 'file MiB',
    )  # fmt: skip
    lines = [tabulate(list(map(_line, rows)), headers=headers, floatfmt='.2f', missingval='-'), '']
    for row in rows:
        lines += [f'{title(row)}: {line}' for line in _remarks(row)]
    lines.append(
        'tape copies: of whole tapes, in a loop or branch + elsewhere. GFLOP, GB moved: of one pass, where '
        'each loop turns once and each conditional takes its dearest branch.'
    )
    return '\n'.join([*lines, '', _subject(result)])


def _line(row: Row) -> list[Any]:
    needed, copies = row.get('needed_bytes'), row.get('tape_copies')
    exchanged = row.get('collectives')
    return [
        row['function'], row['split'], f'{row["width"]}{" msa" if row["msa"] else ""}', row['branches'],
        row.get('trace_s'), row.get('load_s'), row.get('load_cpu_s'), _of(row.get('argument_bytes'), 1e9),
        _of(row.get('temp_bytes'), 1e9), f'{needed / row["memory_bytes"]:.1%}' if needed else None,
        _total(row.get('conditionals')), _total(row.get('loops')),
        _collectives(exchanged) if exchanged is not None else None,
        f'{copies["inside"]} + {copies["outside"]}' if copies else None, _of(row.get('flops'), 1e9),
        _operands(row.get('operands')), _of(row.get('bytes_moved'), 1e9), _of(row.get('file_bytes'), 2**20),
    ]  # fmt: skip


def _remarks(row: Row) -> list[str]:
    lines = [row['error']] if row.get('error') else []
    if row.get('fits') is False and not row.get('error'):
        lines.append(
            f'does not fit: {row["needed_bytes"] / 1e9:.1f} GB of {row["memory_bytes"] / 1e9:.1f} GB'
        )
    copies = row.get('copies', [])
    lines += [
        f'{c["count"]} x {c["opcode"]} {c["shape"]} ({c["bytes"] / 2**20:.0f} MiB), {hlo.Place(**c["place"])}'
        for c in copies[:_SHOWN]
    ]
    if len(copies) > _SHOWN:
        lines.append(f'and {len(copies) - _SHOWN} kinds of large copies more')
    return lines


def title(row: Row) -> str:
    """Name the function of a row."""
    return f'{row["function"]}, {row["split"]}, width {row["width"]}{" with msa" if row["msa"] else ""}'


def _subject(result: Mapping[str, Any]) -> str:
    made = {name: result[name] for name in ('target', 'about', 'device', 'jax', 'compiler', 'out')}
    return ', '.join(f'{name}: {value}' for name, value in made.items() if value)


def _collectives(found: Sequence[Mapping[str, Any]]) -> str:
    inside = sum(any(c['place'].values()) for c in found)
    size = sum(c['bytes'] for c in found) / 1e6
    return f'{len(found)} ({inside} inside), {size:.1f} MB' if found else '0'


def _operands(found: Mapping[str, float] | None) -> str | None:
    whole = sum(found.values()) if found else 0
    return ', '.join(f'{name} {count / whole:.0%}' for name, count in found.items()) if found else None


def _copy(copy: hlo.Copy) -> dict[str, Any]:
    about = {'opcode': copy.opcode, 'shape': str(copy.shape), 'bytes': copy.shape.bytes}
    return about | {'place': copy.place._asdict(), 'count': copy.count}


def _by_place(counts: Counter, opcode: str) -> list[dict[str, int]]:
    found = sorted((place, n) for (op, place), n in counts.items() if op == opcode)
    return [{**place._asdict(), 'count': n} for place, n in found]


def _total(places: Sequence[Mapping[str, int]] | None) -> int | None:
    return None if places is None else sum(p['count'] for p in places)


def _of(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
