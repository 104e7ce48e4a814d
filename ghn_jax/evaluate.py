"""Scores networks with predicted weights at several bit-widths: a table, the same as JSON, a picture.

python -m ghn_jax.evaluate --workdir=runs/quickstart/float --splits=test,deep --json=float.json
python -m ghn_jax.evaluate --workdir=runs/quickstart/qat --splits=test,deep --against=float.json --plot=b.png

The weights of a network are predicted once and quantized to every bit-width; a hypernetwork that is told the
bits predicts them anew for each. Policies beyond one bit-width for all are read from files: --policy, see
`quant/policy.py` for their format. Accuracies are in percent.
"""

from absl import flags

from ghn_jax.base import cli, files, screen
from ghn_jax.evaluation import evaluation_flags
from ghn_jax.evaluation.evaluate import evaluate
from ghn_jax.reporting import plotting, tables

if __name__ == '__main__':
    _READ = evaluation_flags.define_flags()
    _JSON = flags.DEFINE_string('json', None, 'File to write the result to.')
    _PLOT = flags.DEFINE_string('plot', None, 'Picture to write (.png, .pdf, .svg).')

    def _main() -> None:
        asked = _READ()
        json_file = cli.check_output(_JSON.value, 'json') if _JSON.value else None
        plot_file = cli.check_output(_PLOT.value, 'plot', plotting.PICTURES) if _PLOT.value else None
        result, other = evaluate(asked.load_run(), asked.spec)
        result['protocol']['command'] = cli.command_line('evaluate')
        try:  # the files first; the table also where they cannot be written
            if json_file:
                files.write_json(json_file, result)
            if plot_file:
                files.write(plot_file, plotting.accuracy_picture(result, other, suffix=plot_file.suffix))
        finally:
            screen.show(tables.text(result, other), kept=bool(json_file))
        if plot_file:
            print(f'picture: {_PLOT.value}')

    cli.run(_main)
