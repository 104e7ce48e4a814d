"""The exceptions that commands end with in one line, as opposed to "the program is wrong"."""

import contextlib
import re
import reprlib
from collections.abc import Container, Iterator
from typing import Any


class UserError(ValueError):
    """Bad input. The message is one line: what came, what was expected, what to do.

    Entry points print it as `error: ...` and exit with code 2 (`ghn_jax.base.cli.run`).
    """


class FieldError(UserError):
    """A field, argument or key with a value that it may not have: `seed=-3: expected an integer from 0`.

    Whoever raises it knows the name that Python has for the field. Whoever built the object from something
    else, a section of a config or a command line, puts the name that it has there in its place: `prefixed`.

    field: its name.   problem: what follows the name in the message, from the equals sign on.
    """

    def __init__(self, field: str, problem: str):
        super().__init__(field + problem)
        self.field, self.problem = field, problem


@contextlib.contextmanager
def prefixed(prefix: str, names: Container[str] | None = None) -> Iterator[None]:
    """Put `prefix` before the field's name in a `FieldError` that leaves the block.

    names: the fields that this is for; None is all.

    with prefixed('--config.'): ...   turns `train.steps=-1: ...` into `--config.train.steps=-1: ...`
    """
    try:
        yield
    except FieldError as e:
        if names is not None and e.field not in names:
            raise
        raise FieldError(prefix + e.field, e.problem) from e


@contextlib.contextmanager
def of_field(field: str) -> Iterator[None]:
    """Make a `UserError` that leaves the block one of this field: `strategies: file 'a.json' is no JSON`."""
    try:
        yield
    except UserError as e:
        raise FieldError(field, f': {e}') from e


class NotFinite(UserError):
    """Training that no longer computes numbers; exit code 3."""


class Stopped(Exception):
    """Training ended at a signal, with everything saved; exit code 75 (`ghn_jax.training.preemption`)."""


def one_line(error: BaseException) -> str:
    """Return what an exception of another library says, in one line of at most 300 characters."""
    return ' '.join(str(error).split())[:300]


_LENGTH = 60
_BREAK = re.compile(r'\s*\n\s*')
_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxlist, _repr.maxtuple, _repr.maxdict = 4, 20, 20, 10
_repr.maxstring = _repr.maxlong = _repr.maxother = _LENGTH + 1


def shown(value: Any) -> str:
    """repr of a value that somebody gave us, short enough for one line of an error message.

    What is not shown is not visited either: the value may be a million lists, one inside the other.
    """
    try:
        text = _repr.repr(value)
    except ValueError:  # Python writes out no integer of more than 4300 digits
        text = f'{type(value).__name__} of too many digits'
    text = _BREAK.sub(' ', text)
    return text if len(text) <= _LENGTH else text[: _LENGTH - 3] + '...'
