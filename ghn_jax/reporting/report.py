"""The report on a run: its evaluation and the course of its training, as a page with figures in a folder."""

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import ghn_jax
from ghn_jax.base import cli, files, paths
from ghn_jax.base.jsonlines import read_jsonl
from ghn_jax.base.paths import Place
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.reporting import closeup, contents, page
from ghn_jax.reporting.report_subject import ReportSubject
from ghn_jax.runs import zoo
from ghn_jax.runs.run import Run


def check_folder(folder: str | os.PathLike) -> Place:
    """Return the folder of a report as an absolute path, before the long work; it is not made here.

    Raises:
      FieldError: the folder, or a file of an earlier report in it, cannot be written.
    """
    path = cli.check_folder(folder, 'out')
    if files.is_folder(path):
        for name in (page.INDEX, *(f'{name}.png' for name in contents.NAMES)):
            cli.check_output(path / name, 'out')
    return path


def _metrics(workdir: str | os.PathLike) -> Sequence[Mapping[str, Any]] | None:
    """Return the rows of the metrics of a run, None without any; of an entry of the zoo those on its card."""
    if name := paths.zoo_name(workdir):
        return zoo.read_curve(name) or None
    metrics = paths.place(workdir, 'workdir') / 'metrics.jsonl'
    return read_jsonl(metrics) if files.is_file(metrics) else None


def write_report(
    run: Run,
    subject: ReportSubject,
    folder: Place,
    *,
    workdir: str | os.PathLike,
    command: str,
    specs: Sequence[NetworkSpec] | None,
    num_devices: int,
) -> Place:
    """Write the page and its figures; the best network is run once more for the closer look.

    Args:
      run: The run that was evaluated, at that step.
      subject: What is reported.
      folder: Where to write, from `check_folder`.
      workdir: The directory of the run, as the page names it; its metrics are drawn where it has some.
      command: How to make this report again, for a shell.
      specs: The networks of the architecture file, if the evaluation is of one.
      num_devices: Devices that share the images; 0 is all.

    Returns:
      The file of the page.

    Raises:
      UserError: networks or data that are not those of the evaluation, or a folder that cannot be written.
    """
    rows = _metrics(workdir)
    selection = closeup.select(run, subject, specs)
    extremes = {which: selection.specs[place] for which, place in subject.extremes.items()}
    layers = closeup.look(run, subject, selection, num_devices)
    about = {
        'date': datetime.date.today().isoformat(),
        'ghn_jax': ghn_jax.__version__,
        'python': platform.python_version(),
        'system': f'{platform.system()} {platform.machine()}',
        'command': command,
    }
    sections = contents.sections(subject, extremes, layers, rows, about)
    html = page.render(f'Report on {workdir}', contents.lead(subject), sections)
    figures = [figure for section in sections for figure in section.figures]
    return page.write(folder, html, figures, contents.NAMES)
