"""Writes a report on a run: one HTML page that needs nothing else, and its figures as PNGs beside it.

python -m ghn_jax.report --workdir=runs/quickstart/qat --batch_size=60 [--splits=test,deep] [--against=FILE]
python -m ghn_jax.report --workdir=runs/quickstart/qat --result=qat.json [--out=reports/qat]

The run is evaluated first, with the flags of `ghn_jax.evaluate`; where that was stopped it goes on. With
--result an evaluation already made is reported, of which only the best network is run again. The page is
DIR/report/index.html.
"""

import dataclasses
import pathlib

from absl import flags

from ghn_jax.base import cli, files, outputs, paths
from ghn_jax.base.errors import UserError
from ghn_jax.evaluation import evaluation_flags, partial
from ghn_jax.evaluation.evaluate import evaluate
from ghn_jax.reporting import page
from ghn_jax.reporting.report import check_folder, write_report
from ghn_jax.reporting.report_subject import (
    WITH_RESULT,
    ReportSubject,
    choose_closeup,
    make_subject,
    read_subject,
)
from ghn_jax.runs import scheme_flags
from ghn_jax.runs.run import Run

_READ = evaluation_flags.define_flags(sqnr=True)
_RESULT = flags.DEFINE_string(
    'result', None, 'Report on this --json file of ghn_jax.evaluate, in place of evaluating.'
)
_CLOSEUP = flags.DEFINE_string(
    'closeup',
    None,
    'Which of --bits the closer look is at. Default: w4a4, or the last where it is not there.',
)
_OUT = flags.DEFINE_string('out', None, 'Write the page to this directory. Default: WORKDIR/report.')


def main() -> None:
    """Run the command."""
    request = _READ()
    workdir = cli.check_workdir(request.spec.workdir, must_exist=True)
    if not _OUT.value and paths.zoo_name(workdir) is not None:
        raise UserError(f'--out is missing: {workdir} has no directory of its own for a report')
    folder = check_folder(_OUT.value or workdir / 'report')
    kept = None if _RESULT.value else outputs.partial_file(folder / page.INDEX)
    run, subject = _read_result(request) if _RESULT.value else _evaluate(request, kept)
    written = write_report(
        run, subject, folder,
        workdir=request.spec.workdir, command=cli.command_line('report'),
        specs=request.spec.networks, num_devices=request.spec.devices,
    )  # fmt: skip
    if kept:
        partial.remove(kept)
    print(f'report: {written}')


def _read_result(request: evaluation_flags.EvaluationFlags) -> tuple[Run, ReportSubject]:
    if wrong := sorted(request.given - WITH_RESULT):
        raise UserError(f'--{wrong[0]} is for an evaluation, --result is one already made: give one of them')
    subject = read_subject(_RESULT.value or '', request.spec.against, closeup=_CLOSEUP.value)
    protocol = subject.result['protocol']
    used = protocol.get('quantization', {})
    rounded = {name: used[name] for name in scheme_flags.FIELDS if name in used}
    run = dataclasses.replace(request, scheme=rounded).load_run(str(protocol['step']))
    return run, subject


def _evaluate(
    request: evaluation_flags.EvaluationFlags, kept: pathlib.Path | None
) -> tuple[Run, ReportSubject]:
    choose_closeup([str(policy) for policy in request.spec.policies], _CLOSEUP.value)
    run = request.load_run()
    if kept:
        with files.writing(kept.parent):
            kept.parent.mkdir(parents=True, exist_ok=True)
    spec = dataclasses.replace(request.spec, partial=kept)
    return run, make_subject(*evaluate(run, spec), closeup=_CLOSEUP.value)


if __name__ == '__main__':
    cli.run(main, evaluation_flags.FLAG_OF | {'specs': 'archs'})
