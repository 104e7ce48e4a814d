"""Scores networks with predicted weights at several bit-widths: a table, the same as JSON, a picture.

python -m ghn_jax.evaluate --workdir=runs/quickstart/float --splits=test,deep --json=float.json
python -m ghn_jax.evaluate --workdir=runs/quickstart/qat --splits=test,deep --against=float.json --plot=b.png

The weights of a network are predicted once and quantized to every bit-width; a hypernetwork that takes the
bits as an input predicts them anew for each. Policies beyond one bit-width for all are read from files:
--policy, see `quant/policy.py` for their format. Accuracies are in percent.
"""

from ghn_jax.base import cli, outputs
from ghn_jax.evaluation import evaluation_flags
from ghn_jax.evaluation.evaluate import evaluate
from ghn_jax.reporting import plotting, tables

_READ = evaluation_flags.define_flags()
_OUTPUTS = outputs.define_flags(plotting.PICTURES)


def main() -> None:
    """Run the command."""
    request, written = _READ(), _OUTPUTS()
    result, other = evaluate(request.load_run(), request.spec)
    result['protocol']['command'] = cli.command_line('evaluate')
    written.write(
        result,
        table=lambda result: tables.text(result, other),
        picture=lambda result, suffix: plotting.accuracy_picture(result, other, suffix=suffix),
    )


if __name__ == '__main__':
    cli.run(main, evaluation_flags.FLAG_OF)
