"""The three claims of GHN-QAT (arXiv 2309.13773), tested on the same unseen networks.

    python -m ghn_jax.evaluate --workdir=runs/qat --splits=test,deep --num_networks=200 --json=qat.json
    python -m ghn_jax.evaluate --workdir=runs/float --splits=test,deep --num_networks=200 --json=float.json
    python -m ghn_jax.studies.claims qat.json float.json claims.json

The first hypernetwork is trained through quantization, the second in float. The claims: (a) what one that is
trained in float predicts survives 8 bits; (b) training through quantization gains at W4/A4; (c) at W2/A2 it
is what keeps networks above chance. Each is a difference on every network, whose mean has the bootstrap's
95 % interval over networks. A claim holds where the whole interval says so; that networks are not above
chance holds where it does not say that they are.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from ghn_jax.base import cli, files, paths
from ghn_jax.base.errors import UserError
from ghn_jax.evaluation import results
from ghn_jax.evaluation.results import Result
from ghn_jax.studies.study_arguments import Parser, command_line

FLOAT, W8A8, W4A4, W2A2 = BITS = ('w32a32', 'w8a8', 'w4a4', 'w2a2')
SURVIVES = -1.0  # points that 8 bits may cost at most
COLUMNS = ('split', 'networks', 'claim', 'difference', 'points', 'holds')


def claims(quantized: Result, floating: Result) -> list[list[Any]]:
    """Return a row of COLUMNS for each claim on each split.

    Args:
      quantized: the evaluation of a hypernetwork trained through quantization, at BITS.
      floating: of one trained in float, on the same networks and images.

    Raises:
      UserError: two evaluations that are not of the same networks, images and bits.
    """
    _check(quantized, floating)
    rows = []
    for split in dict.fromkeys(network['split'] for network in quantized['networks']):
        q, f = _scores(quantized, split), _scores(floating, split)
        chance = [100 / quantized['protocol']['num_classes']] * len(q[W2A2])
        of_split = [
            ('a', 'trained in float: W8/A8 − float', f[W8A8], f[FLOAT], SURVIVES, True),
            ('b', 'W4/A4: trained through quantization − in float', q[W4A4], f[W4A4], 0, True),
            ('c', 'W2/A2, trained through quantization − chance', q[W2A2], chance, 0, True),
            ('c', 'W2/A2, trained in float − chance', f[W2A2], chance, 0, False),
        ]
        for claim, said, these, those, level, claims_above in of_split:
            points, verdict = results.mean_difference(these, those), ''
            if interval := points.get('interval'):
                is_above = interval[0] > level
                verdict = 'yes' if is_above == claims_above else 'no'
            rows.append([split, len(these), claim, said, points, verdict])
    return rows


def table(quantized: Result, floating: Result) -> dict[str, Any]:
    """Return the claims as a table of `reporting.docs_tables`. Raises UserError as `claims`."""
    rows, protocol = claims(quantized, floating), quantized['protocol']
    about = {
        key: protocol[key] for key in ('dataset', 'note', 'images', 'seed', 'device') if protocol.get(key)
    }
    about |= {
        'protocol': f'batch norms: {protocol["batch_norm"]}, ranges: {protocol["ranges"]}',
        'claims': f'a: 8 bits cost less than {-SURVIVES:g} point; b: above 0; c: above chance with it, '
        'not without',
        'interval': '95 %, bootstrap over networks',
        'trained': '; '.join(_about_run(result['protocol']) for result in (quantized, floating)),
    }
    return {'title': 'Claims', 'about': about, 'columns': list(COLUMNS), 'rows': rows}


def _about_run(protocol: Mapping[str, Any]) -> str:
    grids = protocol.get('quantization', {})
    reach = [grids[key] for key in ('weight_range', 'activation_range') if key in grids]
    return f'{protocol["workdir"]}, {protocol["training"]}, ranges {" and ".join(reach) or "unknown"}'


def _check(quantized: Result, floating: Result) -> None:
    networks, protocol = quantized['networks'], quantized['protocol']
    results.check_comparable(floating, 'the second result', networks, BITS, protocol)
    results.check_comparable(quantized, 'the first result', networks, BITS, protocol)
    if not isinstance(protocol.get('num_classes'), int):
        raise UserError('the first result does not say how many classes there are: evaluate the run again')
    modes = [r['protocol'].get('training_mode') for r in (quantized, floating)]
    if modes[0] == 'float' or modes[1] != 'float':
        raise UserError(
            f'the first result is of a run trained in mode {modes[0]}, the second in mode {modes[1]}: give '
            'the one trained through quantization first, and then the one trained in float'
        )


def _scores(result: Result, split: str) -> dict[str, list[float]]:
    members = [network['scores'] for network in result['networks'] if network['split'] == split]
    return {bits: [scores[bits]['top1'] for scores in members] for bits in BITS}


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    made = Parser(prog='python -m ghn_jax.studies.claims', description=__doc__)
    made.add_argument('quantized', metavar='QAT.json', help='evaluation of one trained through quantization')
    made.add_argument('floating', metavar='FLOAT.json', help='of one trained in float')
    made.add_argument('out', metavar='OUT.json', help='the table')
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Test the claims, print them, and write the table."""
    args = parser().parse_args(arguments)
    with cli.errors_in_one_line():
        made: Mapping[str, Any] = table(
            results.read_result(args.quantized), results.read_result(args.floating)
        )
        made['about']['command'] = command_line(parser(), arguments)
        files.write_json(paths.place(args.out, 'out'), made)
    for split, networks, claim, said, points, holds in made['rows']:
        low, high = points.get('interval', (None, None))
        interval = '' if low is None else f' [{low:+.1f}, {high:+.1f}]'
        print(f'{split} ({networks})  {claim}  {said}: {points["difference"]:+.1f}{interval}  {holds}')


if __name__ == '__main__':
    main()
