"""JSON from somebody else, strictly: a limit on the size, every name once, numbers that float64 holds."""

import collections
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ghn_jax.base import files, paths
from ghn_jax.base.errors import UserError, shown
from ghn_jax.base.paths import Place

MAX_BYTES = 8 * 2**20
"""Of a file: 8,000 networks, or results of as many. Parsed it may take 25 times as much memory, and 2 s."""
MAX_LINE = 2**20
"""Bytes of a row, where a file has one in each line."""

# An integer beyond int64, or an exponent beyond float64, is possible only where the text has one of these.
_LONG_NUMBER = re.compile(r'[0-9]{19}|[eE]\+?[0-9]{3}')


def read(path: str | os.PathLike, what: str, advice: str) -> Any:
    """Read the value in a JSON file.

    Args:
      path: The file.
      what: Its role, for messages.
      advice: What to give instead, for messages.

    Raises:
      UserError: it is no regular file, cannot be read, is larger than MAX_BYTES, is not UTF-8, or as `parse`.
    """
    place, name = paths.place(path, what), f'{what} {os.fspath(path)!r}'
    try:
        data, size = files.read(place, MAX_BYTES + 1)
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else e  # a null byte in the path
        raise UserError(f'{name} cannot be read ({reason}): {advice}') from None
    if len(data) > MAX_BYTES:
        raise UserError(f'{name} has {size:,} bytes, more than {MAX_BYTES:,}: {advice}, or split it')
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise UserError(f'{name} cannot be read (it is not UTF-8 text): {advice}') from None
    return parse(text, name, advice)


def parse(text: str, name: str, advice: str) -> Any:
    """Parse JSON, and refuse what `json` lets pass: names given twice, NaN, infinities, longer integers.

    Longer ones are those that do not fit 64 bits.

    Args:
      text: The JSON.
      name: What it is called in messages.
      advice: What to give instead, for messages.

    Raises:
      UserError: it is no such JSON.
    """

    def unique(pairs):
        fields = dict(pairs)
        if len(fields) < len(pairs):
            counts = collections.Counter(name for name, _ in pairs)
            twice = max(counts, key=counts.__getitem__)
            raise UserError(f'{name} names the field {shown(twice)} twice in one object: keep one')
        return fields

    def constant(text):
        raise UserError(f'{name} has {text}, which is no JSON: give a number')

    def integer(text):
        if len(text) >= 19 and not -(2**63) <= int(text[:30]) < 2**63:
            raise UserError(f'{name} has the integer {text[:20]}..., beyond 64 bits: {advice}')
        return int(text)

    def real(text):
        if not math.isfinite(value := float(text)):
            raise UserError(f'{name} has the number {text[:30]}, beyond what a float holds: {advice}')
        return value

    long = _LONG_NUMBER.search(text)  # looking at each number takes a while
    hooks: dict[str, Any] = {'parse_int': integer, 'parse_float': real} if long else {}
    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant, **hooks)
    except UserError:
        raise
    except json.JSONDecodeError as e:
        raise UserError(f'{name} is no JSON ({e.msg}, line {e.lineno} column {e.colno}): {advice}') from None
    except RecursionError:
        raise UserError(f'{name} is no such JSON (its brackets are nested too deep): {advice}') from None


def object_fields(
    what: str, fields: Any, *, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return a JSON object as a dict, once its fields are those it should have.

    Args:
      what: it is called in messages.
      fields: the object, of any type.
      required: names of fields that it must have.
      optional: names of fields that it may have besides.

    Raises:
      UserError: it is no object, lacks a required field, or has an unknown one.
    """
    if not isinstance(fields, Mapping):
        raise UserError(
            f'{what} is {shown(fields)}: expected an object with the fields {", ".join(required)}'
        )
    unknown = [name for name in fields if name not in required + optional]
    missing = [name for name in required if name not in fields]
    if unknown:
        raise UserError(
            f'{what} has the unknown field {shown(unknown[0])}: '
            f'the fields are {", ".join(required + optional)}'
        )
    if missing:
        raise UserError(
            f'{what} lacks the field {missing[0]!r}: add it; the fields are {", ".join(required + optional)}'
        )
    return dict(fields)


def rows(path: Place) -> Iterator[tuple[str, dict]]:
    """Yield (line, object) for each line of a file that is an object with an integer `step`, and no others.

    Those are lines torn by a kill in the middle of a write, and what somebody else may have put there. One
    row at a time is in memory.
    """
    with files.opened(path) as file:
        while line := file.readline(MAX_LINE):
            if not line.endswith(b'\n') and len(line) == MAX_LINE:
                while (rest := file.readline(MAX_LINE)) and not rest.endswith(b'\n'):
                    pass
                continue
            try:
                text = line.decode()
                row = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and type(row.get('step')) is int:
                yield text.rstrip('\r\n'), row
