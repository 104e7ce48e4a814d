"""Policies: how many bits every weight and every activation of a network gets.

A policy is two bit-widths and exceptions. An exception is a regular expression on the name of a weight
(`cells.3._ops.1.op.1.weight`), or its name, with the bits of that weight and of the activation entering its
layer.
Weights here are those of convolutions and linear layers; norms, biases and position encodings stay float.

A policy file is a JSON object; the last three fields may be left out:

    {"weight_bits": 4, "activation_bits": 4,
     "rules": [["stem.*", 8, 8], ["classifier.*", 8, 4]],
     "layers": {"cells.0._ops.1.op.1.weight": [2, 4]},
     "network": "net-7"}

Pairs of numbers are bits of the weight and of the activation, 2 to 16, or 32 for float. What `layers` says
of a weight comes first, then the first rule whose regex matches its whole name, then the two bit-widths.
Every rule must match a weight of the network and every name must be one; with `network`, the policy is
refused for networks of other names. In tables the policy is called as its file is, without `.json`.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ghn_jax.errors import UserError
from ghn_jax.networks.genotype import check_fields, shown

FLOAT_BITS = 32
ALLOWED_BITS = (*range(2, 17), FLOAT_BITS)
_ALLOWED = '2 to 16, or 32 for float'


@dataclasses.dataclass(frozen=True)
class Policy:
    """Bits of weights and activations; 32 means not quantized.

    rules: (regex, weight_bits, activation_bits), ...; a regex matches whole names; the first match wins.
    layers: (name, weight_bits, activation_bits), ...; of exactly these weights, whatever the rules say.
    network: the name of the one network the policy is for; '' for any.   name: what to call the policy.

    Raises:
        UserError: a bit-width outside 2..16 and 32, a rule that is no such triple, an invalid regex, a weight
            named twice.
    """

    weight_bits: int = FLOAT_BITS
    activation_bits: int = FLOAT_BITS
    rules: tuple[tuple[str, int, int], ...] = ()
    layers: tuple[tuple[str, int, int], ...] = ()
    network: str = ''
    name: str = dataclasses.field(default='', compare=False)

    def __post_init__(self) -> None:
        _check_bits(self.weight_bits, 'weight_bits')
        _check_bits(self.activation_bits, 'activation_bits')
        # Lists become tuples: a policy is hashable.
        object.__setattr__(self, 'rules', _triples('rules', self.rules, 'rule', 'regex'))
        object.__setattr__(self, 'layers', _triples('layers', self.layers, 'layer', 'name'))
        for pattern, _, _ in self.rules:
            try:
                re.compile(pattern)
            except re.error as e:
                raise UserError(f'rule {shown(pattern)} is not a regular expression: {e}') from None
        if len(self._by_name) < len(self.layers):
            raise UserError(f'layers={shown(self.layers)} names a weight twice: keep one')
        if not isinstance(self.network, str):
            raise UserError(f'network={shown(self.network)}: expected the name of a network')

    def __str__(self) -> str:
        """Its name, else `w4a8`, followed by the exceptions: `w4a8 stem.*=w8a8`."""
        exceptions = (f'{of}=w{weights}a{activations}' for of, weights, activations in self._exceptions)
        return self.name or ' '.join([f'w{self.weight_bits}a{self.activation_bits}', *exceptions])

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types, as a policy file; exceptions that there are none of are left out."""
        fields: dict[str, Any] = {'weight_bits': self.weight_bits, 'activation_bits': self.activation_bits}
        if self.rules:
            fields['rules'] = [list(rule) for rule in self.rules]
        if self.layers:
            fields['layers'] = {name: list(bits) for name, bits in self._by_name.items()}
        return fields | ({'network': self.network} if self.network else {})

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized, whatever the network."""
        exceptions = (bits for exception in self._exceptions for bits in exception[1:])
        return all(bits == FLOAT_BITS for bits in (self.weight_bits, self.activation_bits, *exceptions))

    def widths(self, name: str) -> tuple[int, int]:
        """Bits of the weight called `name`, and of the activation that enters its layer."""
        if name in self._by_name:
            return self._by_name[name]
        for pattern, weights, activations in self.rules:
            if re.fullmatch(pattern, name):
                return weights, activations
        return self.weight_bits, self.activation_bits

    def weights(self, name: str) -> int:
        """Bits of the weight called `name`."""
        return self.widths(name)[0]

    def activations(self, name: str) -> int:
        """Bits of the activation that enters the layer whose weight is called `name`."""
        return self.widths(name)[1]

    def check(self, names: Iterable[str], network: str | None = None) -> None:
        """Raises UserError if the policy is not for a network of these weights (`quantizable`) and this name.

        Then a rule matches none of them, a tensor is not among them, or another network is named.
        """
        names = tuple(names)
        if self.network and network is not None and network != self.network:
            raise UserError(f'the policy is for network {self.network!r}, not for {network!r}: give its own')
        if odd := [name for name in self._by_name if name not in names]:
            example = f', such as {names[0]!r}' if names else ''
            raise UserError(
                f'layer {odd[0]!r} is not among the {len(names)} weights of the network{example}: '
                'give the policy of this network, or correct the name'
            )
        for pattern, _, _ in self.rules:
            if not any(re.fullmatch(pattern, name) for name in names):
                example = f', such as {names[0]!r}' if names else ''
                raise UserError(
                    f'rule {pattern!r} matches none of the {len(names)} weights of the network{example}: '
                    'correct or remove it (a rule must match the whole name)'
                )

    @property
    def _exceptions(self) -> tuple[tuple[str, int, int], ...]:
        return self.layers + self.rules

    @functools.cached_property
    def _by_name(self) -> dict[str, tuple[int, int]]:
        return {name: (weights, activations) for name, weights, activations in self.layers}


def parse_bits(text: str) -> Policy:
    """`w4a8` -> 4-bit weights, 8-bit activations; `w32a32` or `float` -> no quantization.

    Raises:
        UserError: anything else.
    """
    lowered = text.strip().lower() if isinstance(text, str) else ''
    if lowered == 'float':
        return Policy()
    match = re.fullmatch(r'w(\d{1,3})/?a(\d{1,3})', lowered)
    bits = [int(group) for group in match.groups()] if match else []
    if not bits or not set(bits) <= set(ALLOWED_BITS):
        raise UserError(f'bits {text!r}: expected float, or w<bits>a<bits> such as w4a8 with bits {_ALLOWED}')
    return Policy(weight_bits=bits[0], activation_bits=bits[1])


def load_policy(path: str | os.PathLike) -> Policy:
    """The policy of a JSON file; the format is at the top.

    Raises:
        UserError: a file that cannot be read or is no such object: says what is wrong with it.
    """
    path = pathlib.Path(path)
    try:
        fields = json.loads(path.read_text(encoding='utf-8'), object_pairs_hook=_unique)
        required = ('weight_bits', 'activation_bits')
        fields = check_fields('it', fields, required=required, optional=('rules', 'layers', 'network'))
        if 'layers' in fields:
            fields['layers'] = _listed(fields['layers'])
        return Policy(**fields, name=path.stem)
    except OSError as e:
        raise UserError(f'policy {str(path)!r} cannot be read ({e.strerror}): give a JSON file') from None
    except UserError as e:
        raise UserError(f'policy {str(path)!r}: {e}') from None
    except (ValueError, RecursionError) as e:
        reason = ' '.join(str(e).split())[:80]
        raise UserError(f'policy {str(path)!r} is no JSON ({reason}): mend it') from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f'it names {shown(twice)} twice in one object: keep one')
    return fields


def _listed(layers: Any) -> list[tuple]:
    """{name: [weight_bits, activation_bits]} -> [(name, weight_bits, activation_bits)]."""
    if not isinstance(layers, Mapping) or not all(isinstance(v, list) for v in layers.values()):
        raise UserError(
            f'layers={shown(layers)}: expected an object such as {{"stem.0.weight": [weight_bits, '
            'activation_bits]}'
        )
    return [(name, *bits) for name, bits in layers.items()]


def quantizable(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[str, ...]:
    """Of a network's (name, shape) parameters, the names of the conv and linear weights, in their order."""
    return tuple(name for name, shape in shapes if len(shape) > 1 and name != 'pos_enc.weight')


def _triples(field: str, value: Any, what: str, key: str) -> tuple[tuple[str, int, int], ...]:
    """Rules or layers as tuples, their bits checked."""
    try:
        triples = tuple((name, weights, activations) for name, weights, activations in value)
    except (TypeError, ValueError):
        raise UserError(
            f'{field}={shown(value)}: expected a list of ({key}, weight_bits, activation_bits)'
        ) from None
    for name, weights, activations in triples:
        if not isinstance(name, str):
            raise UserError(f'{what} {shown(name)}: expected a {key}, in quotes')
        _check_bits(weights, f'{what} {shown(name)}: weight_bits')
        _check_bits(activations, f'{what} {shown(name)}: activation_bits')
    return triples


def _check_bits(bits: object, what: str) -> None:
    if type(bits) is not int or bits not in ALLOWED_BITS:
        raise UserError(f'{what}={shown(bits)}: expected an integer, {_ALLOWED}')
