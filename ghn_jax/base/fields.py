"""Fields of frozen dataclasses that say in one place what they are: a default, a type, what they may be.

Their flags on a command line are made from that (`define_field_flags`).

@dataclasses.dataclass(frozen=True)
class TrainConfig:
    steps: int = number(1000, least=0, most=10**6)
    schedule: str = choice('cosine', ('cosine', 'constant'))

    def __post_init__(self) -> None:
        check_fields(self)

The type of a field is that of its default. Lists do for tuples and integers for floats, and become them.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from absl import flags

from ghn_jax.base.bounds import BOUNDS, check_number, define_number
from ghn_jax.base.errors import FieldError, shown

flags.disclaim_key_flags()  # --help shows them as the flags of the command that defines them

N = TypeVar('N', int, float)


def number(default: N, least: float, most: float) -> N:
    """Declare a number with the least and the most that it may be."""
    return dataclasses.field(default=default, metadata={'least': least, 'most': most})


def bounded(name: str, default: int) -> int:
    """Declare a number with the bounds of the flags and arguments of this name."""
    return number(default, *BOUNDS[name])


def choice(default: str, choices: Sequence[str]) -> str:
    """Declare a name that is one of a few."""
    return dataclasses.field(default=default, metadata={'choices': tuple(choices)})


def items(default: tuple, kind: type) -> Any:
    """Declare a tuple of any length whose items are of one type."""
    return dataclasses.field(default=default, metadata={'kind': kind})


def define_field_flags(owner: Any, prefix: str = '', /, **help_strings: str) -> dict[str, flags.FlagHolder]:
    """Define a flag for each of some fields, with the field's default, bounds and choices.

    Args:
      owner: a dataclass; or an instance of one, whose values are the defaults.
      prefix: what the name of each flag has before that of its field.
      help_strings: what the flags are, by the names of the fields.

    Returns:
      The flags, by the names of the fields.
    """
    declared, found = {field.name: field for field in dataclasses.fields(owner)}, {}
    for name, said in help_strings.items():
        flag, default, rules = prefix + name, getattr(owner, name), declared[name].metadata
        if 'choices' in rules:
            found[name] = flags.DEFINE_enum(flag, default, rules['choices'], said)
        elif isinstance(default, bool):
            found[name] = flags.DEFINE_bool(flag, default, said)
        elif isinstance(default, int):
            found[name] = flags.DEFINE_integer(flag, default, said, rules['least'], rules['most'])
        else:
            found[name] = define_number(flag, default, said, rules['least'], rules['most'])
    return found


def flag_values(holders: Mapping[str, flags.FlagHolder]) -> dict[str, Any]:
    """Return what flags say, by the names of their fields, once they are parsed."""
    return {name: holder.value for name, holder in holders.items()}


def check_fields(instance: Any) -> None:
    """Judge every field of a dataclass by its declaration, and give it its declared type.

    A field whose default is itself a dataclass must hold one of that class.

    Raises:
      FieldError: the first field that is not what it may be.
    """
    for field in dataclasses.fields(instance):
        value = _checked(field, as_tuple(getattr(instance, field.name)))
        object.__setattr__(instance, field.name, value)


def check_declared(instance: Any) -> None:
    """Judge the fields that are declared here, as `check_fields` does, and leave all others as they are."""
    for field in dataclasses.fields(instance):
        if field.metadata:
            object.__setattr__(instance, field.name, _checked(field, as_tuple(getattr(instance, field.name))))


def as_tuple(value: Any) -> Any:
    """Return lists, as they come from JSON, as tuples, however deep; other values as they are."""
    return tuple(map(as_tuple, value)) if isinstance(value, (list, tuple)) else value


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:
    wanted, rules = type(field.default), field.metadata

    def refuse(expected: str) -> FieldError:
        return FieldError(field.name, f'={shown(value)}: {expected}')

    if 'least' in rules:
        return check_number(field.name, value, wanted, rules['least'], rules['most'])
    if type(value) is not wanted:
        raise refuse(f'expected a value of type {wanted.__name__}')
    if 'choices' in rules and value not in rules['choices']:
        raise refuse(f'expected one of {", ".join(rules["choices"])}')
    if 'kind' in rules and not all(type(item) is rules['kind'] for item in value):
        raise refuse(f'expected a tuple of {rules["kind"].__name__}')
    for text in _texts(value):
        if text != text.strip():  # it would be another name in results, and another run
            raise FieldError(field.name, f'={text!r}: remove the white space at its ends')
    return value


def _texts(value: Any) -> Iterator[str]:
    """The strings in a value: a string, or tuples of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _texts(part)
