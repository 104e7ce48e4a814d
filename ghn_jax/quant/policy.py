"""Policies: how many bits every weight and every activation of a network gets.

A policy is two bit-widths and exceptions: for single layers, by the exact name of the weight
(`cells.3._ops.1.op.1.weight`); for many, by a regular expression on it; for the first and the last layer of
any network. Each gives the bits of the weight and of the activation entering its layer.
Weights here are those of convolutions and linear layers; norms, biases and position encodings stay float.

Names: `w4a8` is 4-bit weights and 8-bit activations, `w1a2` the signs of the weights times a scale, `wta2`
ternary weights (-s, 0, s), `w32a32` or `float` no quantization.

A policy file is a JSON object; all but the first two fields may be left out:

    {"weight_bits": 4, "activation_bits": 4,
     "rules": [["stem.*", 8, 8], ["classifier.*", 8, 4]],
     "layers": {"cells.0._ops.1.op.1.weight": [2, 4]},
     "edges": [8, 8],
     "network": "net-7"}

Pairs of numbers are bits of the weight and of the activation, 1 to 16, 32 for float, 0 for a ternary weight.
What `layers` says of a weight comes first, then the first rule whose regex matches its whole name, then
`edges`, if it is the first or the last layer, then the two bit-widths. Every rule must match a weight of the
network and every name must be one; with `network`, the policy is refused for networks of other names. In
tables the policy is called as its file is, without `.json`.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ghn_jax.base import jsonfile
from ghn_jax.base.errors import FieldError, UserError, shown
from ghn_jax.base.whole_numbers import is_int
from ghn_jax.quant.pattern import check_pattern

FLOAT_BITS = 32
TERNARY = 0  # stands for the bits of a ternary weight, of which there is no whole number
ACTIVATION_BITS = (*range(1, 17), FLOAT_BITS)
WEIGHT_BITS = (TERNARY, *ACTIVATION_BITS)
_ALLOWED = '1 to 16, or 32 for float'
Widths = tuple[int, int]  # of a weight, of the activation entering its layer
NamedWidths = Mapping[str, Widths]  # of each weight of a network, by name


@dataclasses.dataclass(frozen=True)
class Policy:
    """Bits of weights and activations; 32 means not quantized.

    Attributes:
        weight_bits, activation_bits: of all layers but the exceptions.
        rules: (regex, weight_bits, activation_bits), ...; a regex matches whole names; the first match wins.
        layers: (name, weight_bits, activation_bits), ..., of single layers; these come before the rules.
        edges: (weight_bits, activation_bits) of the first and the last layer, where no layer or rule names
          them, of what would be quantized there at all; None: like the others.
        network: the name of the one network the policy is for; '' for any.
        name: what to call the policy.

    Raises:
        UserError: a bit-width outside 1..16 and 32 (and TERNARY, of weights), a rule that is no such triple,
          an invalid regex, a layer named twice.
    """

    weight_bits: int = FLOAT_BITS
    activation_bits: int = FLOAT_BITS
    rules: tuple[tuple[str, int, int], ...] = ()
    layers: tuple[tuple[str, int, int], ...] = ()
    edges: Widths | None = None
    network: str = ''
    name: str = dataclasses.field(default='', compare=False)

    def __post_init__(self) -> None:
        for field in ('weight_bits', 'activation_bits'):
            object.__setattr__(self, field, _whole(getattr(self, field)))
        _check_bits((self.weight_bits, self.activation_bits))
        if self.edges is not None:
            try:
                weights, activations = map(_whole, self.edges)
            except (TypeError, ValueError):
                raise UserError(
                    f'edges={shown(self.edges)}: expected (weight_bits, activation_bits) or None'
                ) from None
            _check_bits((weights, activations), 'edges: ')
            object.__setattr__(self, 'edges', (weights, activations))
        for field, what in (('rules', 'regex'), ('layers', 'name')):
            # Lists become tuples: a policy is hashable.
            object.__setattr__(self, field, _triples(getattr(self, field), field, what))
        for pattern, _, _ in self.rules:
            check_pattern(pattern)
        if len(self._by_name) < len(self.layers):
            raise UserError(f'layers={shown(self.layers)} names a weight twice: keep one')
        if not isinstance(self.network, str):
            raise UserError(f'network={shown(self.network)}: expected the name of a network')

    def __str__(self) -> str:
        """Its name, else `w4a8`, followed by the exceptions: `w4a8 stem.*=w8a8 edges=w8a8`."""
        rules = (f'{pattern}={name_of(*widths)}' for pattern, *widths in (*self.layers, *self.rules))
        edges = () if self.edges is None else (f'edges={name_of(*self.edges)}',)
        return self.name or ' '.join([name_of(self.weight_bits, self.activation_bits), *rules, *edges])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a policy file has them, without those of exceptions that there are none of."""
        fields: dict[str, Any] = {
            'weight_bits': self.weight_bits,
            'activation_bits': self.activation_bits,
            'rules': [list(rule) for rule in self.rules],
            'layers': {name: list(bits) for name, bits in self._by_name.items()},
            'edges': list(self.edges or ()),
            'network': self.network,
        }
        return {key: value for key, value in fields.items() if value or isinstance(value, int)}

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized, whatever the network."""
        exceptions = (bits for rule in (*self.rules, *self.layers) for bits in rule[1:])
        return all(bits == FLOAT_BITS for bits in (self.weight_bits, self.activation_bits, *exceptions))

    def widths(self, name: str, *, edge: bool = False) -> Widths:
        """Return the bits of the weight called `name` and of the activation that enters its layer.

        edge: whether that is the first or the last layer of its network.
        """
        if name in self._by_name:
            return self._by_name[name]
        for pattern, weights, activations in self.rules:
            if re.fullmatch(pattern, name):
                return weights, activations
        usual = (self.weight_bits, self.activation_bits)
        if not edge or self.edges is None:
            return usual
        weights, activations = (FLOAT_BITS if u == FLOAT_BITS else e for u, e in zip(usual, self.edges))
        return weights, activations

    def check(self, names: Iterable[str], network: str | None = None) -> None:
        """Raise UserError if the policy is not for a network of these weights (`quantizable`) and this name.

        Then a rule matches none of them, a layer is not among them, or another network is named.
        """
        names = tuple(names)
        example = f', such as {names[0]!r}' if names else ''
        if self.network and network is not None and network != self.network:
            raise UserError(f'the policy is for network {self.network!r}, not for {network!r}: give its own')
        if missing := sorted(set(self._by_name) - set(names)):
            raise UserError(
                f'layer {missing[0]!r} is none of the {len(names)} weights of the network{example}: '
                'give the policy of this network, or correct the name'
            )
        for pattern, _, _ in self.rules:
            if not any(re.fullmatch(pattern, name) for name in names):
                raise UserError(
                    f'rule {pattern!r} matches none of the {len(names)} weights of the network{example}: '
                    'correct or remove it (a rule must match the whole name)'
                )

    def resolve(
        self, names: Iterable[str], network: str | None = None, *, edges: Collection[str] | None = None
    ) -> dict[str, Widths]:
        """Return the bits of every weight of a network, and of the activation entering its layer.

        Args:
            names: the network's weights (`quantizable`).
            network: its name, if it is to be checked.
            edges: the weights of its first and last layer; None: the first and the last of `names`.

        Raises:
            UserError: as `check`.
        """
        names = tuple(names)
        self.check(names, network)
        if edges is None:
            edges = edges_of(names) if names else ()
        return {name: self.widths(name, edge=name in edges) for name in names}

    @functools.cached_property
    def _by_name(self) -> dict[str, Widths]:
        return {name: (weights, activations) for name, weights, activations in self.layers}


def check_policy(policy: object) -> None:
    """Raise UserError for what is no policy, such as the name of one."""
    if not isinstance(policy, Policy):
        raise UserError(f"policy is {shown(policy)}: expected one such as parse_bits('w4a4')")


def parse_bits(text: str) -> Policy:
    """Return the policy of one name, the same bits for all layers.

    Args:
        text: w<bits>a<bits> with bits of weights and activations, 32 for those that are not rounded, or `wt`
            for ternary weights; or `float`.

    Raises:
        UserError: anything else.

    Example:
        >>> policy = parse_bits('w4a8')
        >>> policy.weight_bits, policy.activation_bits
        (4, 8)
    """
    lowered = text.strip().lower() if isinstance(text, str) else ''
    if lowered == 'float':
        return Policy()
    match = re.fullmatch(r'w([1-9][0-9]{0,2}|t)/?a([1-9][0-9]{0,2})', lowered)
    bits = [TERNARY if group == 't' else int(group) for group in match.groups()] if match else []
    if not bits or bits[0] not in WEIGHT_BITS or bits[1] not in ACTIVATION_BITS:
        raise UserError(
            f'bits {shown(text)}: expected float, or w<bits>a<bits> such as w4a8 with bits {_ALLOWED}; '
            'wt for ternary weights'
        )
    return Policy(weight_bits=bits[0], activation_bits=bits[1])


def name_of(weight_bits: int, activation_bits: int) -> str:
    """Name bits as `parse_bits` reads them."""
    return f'w{"t" if weight_bits == TERNARY else weight_bits}a{activation_bits}'


def load_policy(path: str | os.PathLike) -> Policy:
    """Read the policy of a JSON file, whose format is at the top of this module.

    Args:
        path: the file; its name without the ending names the policy.

    Raises:
        UserError: a file that cannot be read or is no such object, and what is wrong with it.
    """
    fields = jsonfile.read(path, 'policy', 'give a JSON file with weight_bits and activation_bits')
    path = os.fspath(path)
    try:
        return policy_from_dict(fields, pathlib.PurePath(path).stem)
    except UserError as e:
        raise UserError(f'policy {path!r}: {e}') from None


def read_policy(bits: str | None, file: str | None) -> Policy:
    """Return the policy of bits (`parse_bits`) or of a file, of which one may be given; float without them.

    Raises:
        UserError: both are given, and as `parse_bits` and `load_policy`.
    """
    if file is None:
        return parse_bits('float' if bits is None else bits)
    if bits is not None:
        raise FieldError('policy', f'={shown(file)} and bits={shown(bits)} are both given: give one of them')
    return load_policy(file)


def policy_from_dict(fields: Any, name: str) -> Policy:
    """Make the policy of a policy file's object, as `Policy.to_dict` writes it. Raises UserError."""
    required, optional = ('weight_bits', 'activation_bits'), ('rules', 'layers', 'edges', 'network')
    fields = jsonfile.object_fields('it', fields, required=required, optional=optional)
    if 'layers' in fields:
        fields['layers'] = _listed(fields['layers'])
    return Policy(**fields, name=name)


def quantizable(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[str, ...]:
    """Name the conv and linear weights among a network's (name, shape) parameters, in their order."""
    return tuple(name for name, shape in shapes if len(shape) > 1 and name != 'pos_enc.weight')


def edges_of(names: tuple[str, ...]) -> tuple[str, str]:
    """Name the weights of the first and of the last layer, of weights in the order of a network's graph."""
    return names[0], names[-1]


def _listed(layers: Any) -> list[tuple]:
    """Turn {name: [weight_bits, activation_bits]} into [(name, weight_bits, activation_bits)]."""
    if not isinstance(layers, Mapping) or not all(isinstance(v, list) for v in layers.values()):
        raise UserError(
            f'layers={shown(layers)}: expected an object such as {{"stem.0.weight": [weight_bits, '
            'activation_bits]}'
        )
    return [(name, *bits) for name, bits in layers.items()]


def _triples(triples: Any, field: str, what: str) -> tuple[tuple[str, int, int], ...]:
    try:
        checked = tuple(
            (name, _whole(weights), _whole(activations)) for name, weights, activations in triples
        )
    except (TypeError, ValueError):
        raise UserError(
            f'{field}={shown(triples)}: expected a list of ({what}, weight_bits, activation_bits)'
        ) from None
    for name, *widths in checked:
        if not isinstance(name, str):
            raise UserError(f'{field}: {shown(name)} is no {what}: expected a string')
        _check_bits(widths, f'{field} {shown(name)}: ')
    return checked


def _whole(bits: Any) -> Any:
    """An integer of NumPy as one of Python, which JSON has; anything else as it is, for `_check_bits`."""
    return int(bits) if is_int(bits) else bits


def _check_bits(widths: Iterable[object], where: str = '') -> None:
    rows = zip(widths, ('weight_bits', 'activation_bits'), (WEIGHT_BITS, ACTIVATION_BITS), strict=True)
    for bits, what, allowed in rows:
        if type(bits) is not int or bits not in allowed:
            ternary = f'; {TERNARY} for ternary weights' if TERNARY in allowed else ''
            raise UserError(f'{where}{what}={shown(bits)}: expected an integer, {_ALLOWED}{ternary}')
