"""What a report is about: a result, and which two of its networks are looked at closely."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ghn_jax.base import files, paths
from ghn_jax.base.errors import FieldError, UserError, shown
from ghn_jax.evaluation import results
from ghn_jax.evaluation.evaluation_spec import GIVEN
from ghn_jax.evaluation.protocol import RANGE_RULE, Protocol
from ghn_jax.evaluation.results import Result
from ghn_jax.networks.spaces import SPLITS
from ghn_jax.quant.policy import Policy, parse_bits, policy_from_dict

USUAL = 'w4a4'  # the bit-width of the closer look, where it was scored
# Flags of an evaluation that go with a result already made; the others are in the result.
WITH_RESULT = frozenset({'workdir', 'archs', 'data_dir', 'devices', 'against'})

# The fields of a protocol that a report reads and `results.read_result` does not check.
_PROTOCOL: dict[str, type | tuple[type, ...]] = {
    'dataset': str, 'note': str, 'image_split': str, 'predicted_for': str, 'batch_norm': str, 'ranges': str,
    'bits': list, 'policies': dict, 'num_classes': int, 'image_size': int, 'batch_size': int, 'seed': int,
    'range_rule': (str, type(None)), 'calibration_images': (int, type(None)),
    'sqnr_images': (int, type(None)),
}  # fmt: skip
_BY_LAYER = ('sqnr_weights_by_layer', 'sqnr_activations_by_layer')  # of a score, like the network's `layers`


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSubject:
    """A result, and what a report looks at more closely.

    Attributes:
      result: as `ghn_jax.evaluate` makes it, its rows with the differences to `other` where there is one.
      other: that of another run on the same networks.
      policies: by the names in the result.
      closeup: the name of the policy of the closer look.
      best, worst: places among the networks of the first split, of the extreme top-1 at that policy.
      protocol: where the statistics and ranges of the scored networks came from.
      predicted_for: the policy that the weights were predicted for, if not the one that was run.
    """

    result: Result
    other: Result | None
    policies: Mapping[str, Policy]
    closeup: str
    best: int
    worst: int
    protocol: Protocol
    predicted_for: Policy | None

    @property
    def splits(self) -> list[str]:
        """The splits, in the order of the result."""
        return list(dict.fromkeys(network['split'] for network in self.result['networks']))

    def networks(self, split: str) -> list[dict[str, Any]]:
        """The networks of a split, in the order of the result."""
        return [network for network in self.result['networks'] if network['split'] == split]

    @property
    def extremes(self) -> dict[str, int]:
        """'best' and 'worst' -> place in the first split; of a single network only 'best'."""
        return {'best': self.best} | ({'worst': self.worst} if self.worst != self.best else {})

    @property
    def float_bits(self) -> str | None:
        """The name of the policy that rounds nothing; None if there is none."""
        return next((name for name, policy in self.policies.items() if policy.is_float), None)


def make_subject(result: Result, other: Result | None = None, *, closeup: str | None = None) -> ReportSubject:
    """Make what a report is about of a result, fresh or read from a file.

    closeup: the name of a policy; None: USUAL, else the last.

    Raises:
      UserError: what a report reads is not there or of the wrong kind, or there is no such policy.
    """
    if wrong := _wrong_part(result):
        raise UserError(f'the result cannot be reported ({wrong}): evaluate again with this version')
    bits = result['protocol']['bits']
    policies = {name: policy_from_dict(result['protocol']['policies'][name], name) for name in bits}
    closeup = choose_closeup(bits, closeup)
    networks = result['networks']
    result = {**result, 'rows': results.make_rows(networks, bits)}
    if other is not None:
        result = results.compare(result, other)
    top1 = [n['scores'][closeup]['top1'] for n in networks if n['split'] == networks[0]['split']]
    p = result['protocol']
    rule = p['range_rule'] or RANGE_RULE
    return ReportSubject(
        result=result,
        other=other,
        policies=policies,
        closeup=closeup,
        best=top1.index(max(top1)),
        worst=top1.index(min(top1)),
        protocol=Protocol(batch_norm=p['batch_norm'], ranges=p['ranges'], range_rule=rule),
        predicted_for=None if p['predicted_for'] in ('any', 'each') else parse_bits(p['predicted_for']),
    )


def choose_closeup(bits: Sequence[str], wanted: str | None) -> str:
    """Return the policy of the closer look, of the names of those scored. Raises UserError for another."""
    if wanted is None:
        return USUAL if USUAL in bits else bits[-1]
    if wanted not in bits:
        raise FieldError(
            'closeup', f'={wanted} is none of the bit-widths scored: choose from {", ".join(bits)}'
        )
    return wanted


def read_subject(
    path: str | os.PathLike, against: str | None = None, *, closeup: str | None = None
) -> ReportSubject:
    """Read the JSON file that `ghn_jax.evaluate --json` wrote. against: that of another run.

    Raises:
      UserError: as `results.read_result`, `results.check_comparable` and `make_subject`.
    """
    result = results.read_result(path)
    subject = make_subject(result, closeup=closeup)
    if against is None:
        return subject
    if files.is_folder(paths.place(against, 'against')):
        raise FieldError(
            'against',
            f'={against} is a directory, whose run would have to be scored: beside a result give the '
            'JSON file of its evaluation',
        )
    other, p = results.read_result(against), result['protocol']
    results.check_comparable(other, against, result['networks'], p['bits'], p)
    return make_subject(result, other, closeup=closeup)


def _wrong_part(result: Result) -> str | None:
    """What is missing or of the wrong kind, beyond what `results.read_result` has checked."""
    protocol, networks = result['protocol'], result['networks']
    for key, kind in _PROTOCOL.items():
        if key not in protocol:
            return f'its protocol lacks {key}'
        if not isinstance(value := protocol[key], kind) or isinstance(value, bool):
            return f'{key} of its protocol is {shown(value)}'
        if isinstance(value, int) and value < (key != 'seed'):  # which may be 0
            return f'{key} of its protocol is {value}'
    bits, policies = protocol['bits'], protocol['policies']
    if not bits or not all(isinstance(name, str) and name in policies for name in bits):
        return f'its bits are {shown(bits)}, its policies {shown(policies)}'
    if not networks:
        return 'it has no networks'
    for i, network in enumerate(networks):
        if network['split'] not in (*SPLITS, GIVEN):
            return f'split of network {i} is {shown(network["split"])}'
        if missing := [name for name in bits if name not in network['scores']]:
            return f'network {i} has no scores at {shown(missing[0])}'
        for key in ('C', 'n_cells', 'parameters', 'depth'):
            if type(network.get(key)) is not int:
                return f'{key} of network {i} is {shown(network.get(key))}'
        for name in bits:
            if wrong := _wrong_score(network['scores'][name], network.get('layers')):
                return f'{wrong[0]} of network {i} at {name} is {shown(wrong[1])}'
    return None


def _wrong_score(score: Mapping[str, Any], layers: Any) -> tuple[str, Any] | None:
    """(key, value) of what is wrong with the measurements of a network at a bit-width."""
    for key in results.MEANS:
        if not _is_number_or_none(score.get(key)):
            return key, score[key]
    for key in _BY_LAYER:
        values = score.get(key, [])
        if key in score and not (
            _is_list(layers, lambda x: isinstance(x, str))
            and _is_list(values, _is_number_or_none)
            and len(values) == len(layers)
        ):
            return key, values
    return None


def _is_number_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_list(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))
