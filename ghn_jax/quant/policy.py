"""Policies: how many bits every weight and every activation of a network gets.

A policy is two bit-widths and a list of exceptions. An exception is a regular expression on the name of a
weight (`cells.3._ops.1.op.1.weight`) with the bits of that weight and of the activation entering its layer.
Weights here are those of convolutions and linear layers; norms, biases and position encodings stay float.
"""

import dataclasses
import re
from collections.abc import Iterable

from ghn_jax.errors import UserError, shown
from ghn_jax.quant.pattern import check_pattern

FLOAT_BITS = 32
ALLOWED_BITS = (*range(2, 17), FLOAT_BITS)
_ALLOWED = '2 to 16, or 32 for float'


@dataclasses.dataclass(frozen=True)
class Policy:
    """Bits of weights and activations; 32 means not quantized.

    rules: (regex, weight_bits, activation_bits), ...; a regex matches whole names; the first match wins.

    Raises:
        UserError: a bit-width outside 2..16 and 32, a rule that is no such triple, an invalid regex.
    """

    weight_bits: int = FLOAT_BITS
    activation_bits: int = FLOAT_BITS
    rules: tuple[tuple[str, int, int], ...] = ()

    def __post_init__(self) -> None:
        _check_bits(self.weight_bits, 'weight_bits')
        _check_bits(self.activation_bits, 'activation_bits')
        try:
            rules = tuple((pattern, weights, activations) for pattern, weights, activations in self.rules)
        except (TypeError, ValueError):
            raise UserError(
                f'rules={shown(self.rules)}: expected a list of (regex, weight_bits, activation_bits)'
            ) from None
        for pattern, weights, activations in rules:
            _check_bits(weights, f'rule {shown(pattern)}: weight_bits')
            _check_bits(activations, f'rule {shown(pattern)}: activation_bits')
            check_pattern(pattern)
        object.__setattr__(self, 'rules', rules)  # lists become tuples: a policy is hashable

    def __str__(self) -> str:
        """`w4a8`, followed by the rules: `w4a8 stem.*=w8a8`."""
        rules = (f'{pattern}=w{weights}a{activations}' for pattern, weights, activations in self.rules)
        return ' '.join([f'w{self.weight_bits}a{self.activation_bits}', *rules])

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized, whatever the network."""
        widths = (self.weight_bits, self.activation_bits, *(bits for rule in self.rules for bits in rule[1:]))
        return all(bits == FLOAT_BITS for bits in widths)

    def weights(self, name: str) -> int:
        """Bits of the weight called `name`."""
        return self._lookup(name)[0]

    def activations(self, name: str) -> int:
        """Bits of the activation that enters the layer whose weight is called `name`."""
        return self._lookup(name)[1]

    def check(self, names: Iterable[str]) -> None:
        """Raises UserError if a rule matches none of `names`, a network's weights (`quantizable`)."""
        names = tuple(names)
        for pattern, _, _ in self.rules:
            if not any(re.fullmatch(pattern, name) for name in names):
                example = f', such as {names[0]!r}' if names else ''
                raise UserError(
                    f'rule {pattern!r} matches none of the {len(names)} weights of the network{example}: '
                    'correct or remove it (a rule must match the whole name)'
                )

    def _lookup(self, name: str) -> tuple[int, int]:
        for pattern, weights, activations in self.rules:
            if re.fullmatch(pattern, name):
                return weights, activations
        return self.weight_bits, self.activation_bits


def parse_bits(text: str) -> Policy:
    """`w4a8` -> 4-bit weights, 8-bit activations; `w32a32` or `float` -> no quantization.

    Raises:
        UserError: anything else.
    """
    lowered = text.strip().lower() if isinstance(text, str) else ''
    if lowered == 'float':
        return Policy()
    match = re.fullmatch(r'w([0-9]{1,3})/?a([0-9]{1,3})', lowered)
    bits = [int(group) for group in match.groups()] if match else []
    if not bits or not set(bits) <= set(ALLOWED_BITS):
        raise UserError(
            f'bits {shown(text)}: expected float, or w<bits>a<bits> such as w4a8 with bits {_ALLOWED}'
        )
    return Policy(weight_bits=bits[0], activation_bits=bits[1])


def quantizable(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[str, ...]:
    """Of a network's (name, shape) parameters, the names of the conv and linear weights, in their order."""
    return tuple(name for name, shape in shapes if len(shape) > 1 and name != 'pos_enc.weight')


def _check_bits(bits: object, what: str) -> None:
    if type(bits) is not int or bits not in ALLOWED_BITS:
        raise UserError(f'{what}={shown(bits)}: expected an integer, {_ALLOWED}')
