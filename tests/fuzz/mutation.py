"""Mutations of what is valid: of JSON values, of texts and of bytes. Everything random comes from `rng`."""

import copy
import json
import random
from typing import Any

STRANGE = (
    None, True, False, 0, 1, -1, 2, 3, 7, 8, 16, 31, 33, 100, 4096, 65537, 10**6, 2**31, 2**63, -(2**63),
    10**30, 0.5, -0.0, 1e-320, 1e308, float('nan'), float('inf'), '', ' ', '0', 'none', 'null', 'msa',
    'w4a4', 'nan', '../../etc/passwd', '/tmp/x', '.', '\0', 'a\nb', '\ud800', 'é', '漢字', '\u202e',
    '$\\frac{$', '{name}', '%s', 'a' * 300, 'a' * 5000, [], {}, [[]], [0], [None], {'a': 1},
    [['conv_3x3', 0]], ['conv_1x1', -1],
)  # fmt: skip
INTERESTING = (
    b'\0',
    b'\xff',
    b'\x7f',
    b'\x80',
    b'\n',
    b'"',
    b'{',
    b'[',
    b'\\u',
    b'1e999',
    b'NaN',
    b'\xff' * 8,
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths to all values in a JSON value, itself included."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def mutate_json(rng: random.Random, value: Any, times: int | None = None) -> Any:
    """The value with one to four places replaced, removed, doubled, nested or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(times or rng.choice((1, 1, 1, 2, 4))):
        found = places(value)
        if len(found) > 20_000:  # multiplied twice: enough
            return value
        path = rng.choice(found)
        if not path:
            if rng.random() < 0.1:
                return rng.choice(STRANGE)
            continue
        outer = value
        for key in path[:-1]:
            outer = outer[key]
        value_there, key = outer[path[-1]], path[-1]
        what = rng.randrange(9)
        if what < 3:
            outer[key] = copy.deepcopy(rng.choice(STRANGE))
        elif what == 3:
            del outer[key]
        elif what == 4 and isinstance(outer, dict):
            outer[rng.choice((key + 'x', 'op', '', '\ud800', 'C' * 500, '__class__'))] = value_there
        elif what == 4:
            outer.insert(rng.randrange(len(outer) + 1), copy.deepcopy(value_there))
        elif what == 5:
            outer[key] = nested(value_there, rng.choice((1, 2, 5, 60, 300)), rng)
        elif what == 6 and isinstance(value_there, list) and len(value_there) < 100:
            outer[key] = value_there * rng.choice((0, 2, 10, 10, 10, 300))
        elif what == 7 and isinstance(value_there, (int, float)):
            outer[key] = value_there * rng.choice((-1, 2, 0.5, 10, 1000)) + rng.choice((-1, 0, 1))
        else:
            other = value
            for k in rng.choice(found):
                other = other[k]
            outer[key] = copy.deepcopy(other)
    return value


def nested(value: Any, depth: int, rng: random.Random) -> Any:
    """The value within so many lists or objects."""
    for _ in range(depth):
        value = [value] if rng.random() < 0.7 else {'a': value}
    return value


def text_of(rng: random.Random, value: Any) -> bytes:
    """JSON, sometimes with what json.dumps never writes: names twice, byte order marks, UTF-16, comments."""
    text = json.dumps(value, indent=rng.choice((None, None, 1)), ensure_ascii=rng.random() < 0.8)
    what = rng.randrange(60)
    if what == 0 and '{' in text:
        text = text.replace('{', '{"C": 1, "C": 2, ', 1)
    elif what == 1:
        text = '\ufeff' + text
    elif what == 2:
        return text.encode('utf-16', 'surrogatepass')
    elif what == 3:
        text = '// comment\n' + text
    elif what == 4:
        text = text.replace('0', '0' * rng.choice((2, 5000)), 1).replace('1', '1' * rng.choice((1, 5000)), 1)
    return text.encode('utf-8', 'surrogatepass')


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """The bytes with one to eight places overwritten, cut out, doubled or flipped."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not data:
            return rng.randbytes(rng.randrange(40))
        at, length = rng.randrange(len(data)), rng.choice((1, 1, 2, 4, 8, 100))
        what = rng.randrange(6)
        if what == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            data[at : at + length] = rng.randbytes(length)
        elif what == 2:
            del data[at : at + length]
        elif what == 3:
            data[at:at] = data[at : at + length]
        elif what == 4:
            data[at : at + length] = rng.choice(INTERESTING)
        else:
            del data[at if rng.random() < 0.3 else len(data) :]
    return bytes(data)
