"""Writes a report on a run: one HTML page that needs nothing else, and its figures as PNGs beside it.

python -m ghn_jax.report --workdir=runs/quickstart/qat --batch_size=60 [--splits=test,deep] [--against=FILE]
python -m ghn_jax.report --workdir=runs/quickstart/qat --result=qat.json [--out=reports/qat]

The run is evaluated first, with the flags of `ghn_jax.evaluate`; with --result an evaluation already made is
reported, of which only the best network is run again. The page is DIR/report/index.html.
"""

import datetime
import platform

from absl import flags

import ghn_jax
from ghn_jax.base import cli
from ghn_jax.base.errors import UserError
from ghn_jax.base.jsonlines import read_jsonl
from ghn_jax.evaluation import evaluation_flags
from ghn_jax.evaluation.evaluate import evaluate
from ghn_jax.reporting import closeup, contents, page
from ghn_jax.reporting.evaluation import WITH_RESULT, choose_closeup, make_evaluation, read_evaluation

if __name__ == '__main__':
    _READ = evaluation_flags.define_flags(sqnr=True)
    _RESULT = flags.DEFINE_string(
        'result', None, 'Evaluation already made: the --json file of ghn_jax.evaluate.'
    )
    _CLOSEUP = flags.DEFINE_string(
        'closeup',
        None,
        'Bit-width of the closer look, of --bits. Default: w4a4 or, without it, the last.',
    )
    _OUT = flags.DEFINE_string('out', None, 'Directory to write to. Default: WORKDIR/report.')

    def _main() -> None:
        asked = _READ()
        folder = cli.check_folder(_OUT.value or asked.workdir / 'report', 'out')
        if folder.is_dir():
            for name in (page.INDEX, *(f'{name}.png' for name in contents.NAMES)):
                cli.check_output(folder / name, 'out')
        metrics = asked.workdir / 'metrics.jsonl'
        rows = read_jsonl(metrics) if metrics.is_file() else None
        if _RESULT.value:
            if wrong := sorted(asked.given - WITH_RESULT):
                raise UserError(
                    f'--{wrong[0]} is for an evaluation, --result is one already made: give one of them'
                )
            evaluation = read_evaluation(_RESULT.value, asked.spec.against, closeup=_CLOSEUP.value)
            run = asked.load_run(str(evaluation.result['protocol']['step']))
        else:
            choose_closeup([str(policy) for policy in asked.spec.policies], _CLOSEUP.value)
            run = asked.load_run()
            evaluation = make_evaluation(*evaluate(run, asked.spec), closeup=_CLOSEUP.value)
        selection = closeup.select(run, evaluation, asked.spec.networks)
        specs = {which: selection.specs[place] for which, place in evaluation.extremes.items()}
        layers = closeup.look(run, evaluation, selection, asked.spec.devices)
        about = {
            'date': datetime.date.today().isoformat(),
            'ghn_jax': ghn_jax.__version__,
            'python': platform.python_version(),
            'system': platform.platform(),
            'command': cli.command_line('report'),
        }
        sections = contents.sections(evaluation, specs, layers, rows, about)
        html = page.render(f'Report on {asked.spec.workdir}', contents.lead(evaluation), sections)
        figures = [figure for section in sections for figure in section.figures]
        print(f'report: {page.write(folder, html, figures, contents.NAMES)}')

    cli.run(_main)
