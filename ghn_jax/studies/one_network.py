"""From nothing to one network of few bits: what each way comes to, and how many minutes of a CPU it takes.

    python -m ghn_jax.studies.one_network
    python -m ghn_jax.studies.one_network cifar10 runs/one_network

One architecture that the hypernetwork has not seen gets weights for W2/A2, W4/A4 and W8/A8, with its first
and last layer at W8/A8: predicted, predicted and quantized after training, predicted and trained through
rounding, random and trained. Each way is the commands that a user would give, in processes of their own;
their CPU time, of all cores, has all of it: imports, compilation, training, calibration, scoring. Every
network is scored as it would run on a device, with statistics and ranges that training images have fixed.

What is done stands in the folder, and the study goes on with the next way where it was stopped.
"""

import argparse
import dataclasses
import pathlib
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ghn_jax.base import cli, files, jsonfile
from ghn_jax.base.errors import UserError
from ghn_jax.reporting.tables import bits_label
from ghn_jax.runs import hypernetwork as hypernetworks
from ghn_jax.studies.study_arguments import case_parser, count_passes, provenance
from ghn_jax.tuning.records import TrainingRecord

BITS = ('w2a2', 'w4a4', 'w8a8')
BUDGETS = (5, 30, 120)  # minutes


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to the networks.

    Attributes:
      name: in the table.
      commands: in their order; in their words ARCH is the architecture's file and DIR the folder of this way.
        Results are the JSON files in DIR.
    """

    name: str
    commands: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A hypernetwork, a network that it has not seen, and the ways to it.

    Attributes:
      workdir: of the hypernetwork.
      network: place in its test split.
      passes: over the training images; each is a way of its own, from predicted and from random weights.
      fixed_passes: those with statistics that are fixed before.
      batch: test images, and calibration images, of a batch.
      num_images: of the test split; 0 takes all.
      iterations: of PD-Quant.
      images: what is said of them.
    """

    workdir: str
    network: int
    passes: tuple[int, ...]
    fixed_passes: tuple[int, ...]
    batch: int
    num_images: int
    iterations: int
    images: str

    @property
    def ways(self) -> list[Way]:
        """All ways, the short ones first."""
        return [
            Way('predicted', (f'{self._score} --bits={",".join(BITS)} --json=DIR/all.json',)),
            self._quantized('predicted, ranges of the least error', '--method=mse', BITS),
            self._quantized(
                'predicted, PD-Quant',
                f'--method=pd_quant --images=256 --iterations={self.iterations}',
                BITS[:1],
            ),
            *(self._trained(init, passes) for passes in self.passes for init in ('predicted', 'he')),
            *(self._fixed('predicted', passes) for passes in self.fixed_passes),
        ]

    @property
    def _score(self) -> str:
        how = '--bn=corrected --ranges=calibrated --calibration_batches=4'
        return (
            f'ghn_jax.evaluate --workdir={self.workdir} --archs=ARCH --batch_size={self.batch} '
            f'--num_images={self.num_images} {how}'
        )

    def _quantized(self, name: str, how: str, each: Sequence[str]) -> Way:
        """Return a way that predicts weights and quantizes them, for each bit-width in turn."""
        begin = f'ghn_jax.quantize --workdir={self.workdir} --arch=ARCH {how}'
        return Way(name, tuple(f'{begin} --bits={b} --out=DIR/{b} --json=DIR/{b}.json' for b in each))

    def _training(self, init: str, passes: int) -> str:
        return (
            f'ghn_jax.finetune --workdir={self.workdir} --arch=ARCH --init={init} --bits={",".join(BITS)} '
            f'--epochs={passes} --eval_batch_size={self.batch} --num_images={self.num_images}'
        )

    def _trained(self, init: str, passes: int) -> Way:
        """Return a way that trains through rounding, with statistics of each batch, which are then fixed."""
        begin = 'predicted, fine-tuned' if init == 'predicted' else f'random ({init}), trained'
        score = (
            f'{self._score} --bits={b} --params=DIR/net.{b}.{init}.seed0.safetensors --json=DIR/{b}.json'
            for b in BITS
        )
        return Way(f'{begin}: {count_passes(passes)}', (f'{self._training(init, passes)} --out=DIR', *score))

    def _fixed(self, init: str, passes: int) -> Way:
        """Return a way that trains through rounding with statistics that are fixed before."""
        how = '--bn=fixed --learning_rate=3e-5 --out=DIR/nets --json=DIR/all.json'
        name = f'{init}, statistics fixed, fine-tuned: {count_passes(passes)}'
        return Way(name, (f'{self._training(init, passes)} {how}',))


CASES = {
    'digits': Case(
        workdir='zoo:digits-bits', network=12, passes=(10, 50), fixed_passes=(10,), batch=60, num_images=300,
        iterations=200, images='digits, 16 pixels: 1,197 for training, 300 for testing in batches of 60',
    ),
    'cifar10': Case(
        workdir='zoo:cifar10-narrow-bits', network=17, passes=(1, 3, 10), fixed_passes=(), batch=100,
        num_images=2000, iterations=100,
        images='cifar10, 32 pixels: 45,000 for training, 2,000 for testing in batches of 100',
    ),
}  # fmt: skip


def write_network(case: Case, out: pathlib.Path) -> None:
    """Write the architecture file of a case."""
    spec = hypernetworks.load(case.workdir).space.sample('test', 0, case.network)
    files.write(out / 'net.json', dataclasses.replace(spec, name='net').to_json().encode())


def study(ways: Sequence[Way], out: pathlib.Path) -> Iterator[list[dict[str, Any]]]:
    """Run the ways one after another; after each yield the records of all so far.

    Records of ways that were done before come from the folder.

    Raises:
      UserError: a command that fails; a folder of other commands.
    """
    arch = out / 'net.json'
    found = []
    for way in ways:
        folder = out / re.sub(r'\W+', '-', way.name)
        record = TrainingRecord(folder, 'record', {'commands': list(way.commands)})
        if (done := record.read()) is None:
            shutil.rmtree(folder, ignore_errors=True)  # of a way that was stopped: its time is lost
            folder.mkdir()
            record.write(done := run_way(way, arch, folder))
        found.append(done)
        yield found


def run_way(way: Way, arch: pathlib.Path, out: pathlib.Path) -> dict[str, Any]:
    """Run a way's commands; return its name, CPU seconds, top-1 in percent by bits, a note on the images.

    Raises:
      UserError: a command that fails.
    """
    before = _cpu_seconds()
    for command in way.commands:
        words = [word.replace('ARCH', str(arch)).replace('DIR', str(out)) for word in command.split()]
        done = subprocess.run([sys.executable, '-m', *words], stdout=subprocess.DEVNULL)
        if done.returncode:
            raise UserError(f'python -m {" ".join(words)} failed (status {done.returncode}): see above')
    seconds, top1, note = _cpu_seconds() - before, dict[str, float](), ''
    for file in sorted(out.glob('*.json')):
        result = jsonfile.read(file, 'result', 'delete it')
        top1 |= scores(result)
        note = (result.get('protocol') or result.get('about') or {}).get('note') or note
    return {'way': way.name, 'cpu_seconds': round(seconds, 1), 'top1': top1, 'note': note}


def scores(result: Mapping[str, Any]) -> dict[str, float]:
    """Return top-1 in percent by bits, with fixed statistics, of what a command says of its networks."""
    if 'runs' in result:
        last = lambda scores: scores[max(scores, key=int)]
        return {run['bits']: last(run['scores'])['calibrated'][run['bits']] for run in result['runs']}
    if 'networks' not in result:
        return {str(result['bits']).split()[0]: result['top1']}  # 'w4a4 edges=w8a8'
    (network,) = result['networks']
    return {bits: score['top1'] for bits, score in network['scores'].items()}


def _cpu_seconds() -> float:
    """CPU seconds of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(found: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table: a row for each way, the fastest first, with the least budget that it keeps to."""
    rows = []
    for one in sorted(found, key=lambda one: one['cpu_seconds']):
        minutes = one['cpu_seconds'] / 60
        within = next((f'{budget} minutes' for budget in BUDGETS if minutes <= budget), 'none of these')
        scored = [round(one['top1'][bits], 1) if bits in one['top1'] else None for bits in BITS]
        rows.append([within, one['way'], round(minutes, 1), *scored])
    longest = max(one['cpu_seconds'] for one in found) / 60
    notes = [f'The longest of these ways took {longest:.1f} minutes.']
    if unneeded := [str(budget) for budget in BUDGETS if budget >= longest][1:]:
        notes[0] += f' None was given {" or ".join(unneeded)} minutes.'
    columns = ['within', 'way', 'CPU minutes, all together', *map(bits_label, BITS)]
    title = 'From nothing to a network of few bits'
    note = next((one['note'] for one in found if one.get('note')), None)
    about = {**about, **({'note': note} if note else {})}
    return {'title': title, 'about': about, 'columns': columns, 'rows': rows, 'notes': notes}


def about(name: str) -> dict[str, Any]:
    """Return how the figures of a case are taken."""
    case = CASES[name]
    count = 4 * case.batch
    said = {
        'hypernetwork': case.workdir,
        'network': f'place {case.network} of the test split',
        'images': case.images,
        'statistics and ranges': f'fixed by {count} training images with rounded weights and activations; '
        'with PD-Quant by 256, with ranges of the least error by 1,024, in float, on all test images',
        'PD-Quant': f'{case.iterations} steps a block, W2/A2 alone',
        'edges': 'first and last layer at W8/A8',
        'seed': 0,
    }
    return provenance(f'python -m ghn_jax.studies.one_network {name}', said)


def result_of(name: str) -> pathlib.Path:
    """Return the file of a case's table."""
    return pathlib.Path('docs/results') / f'one_network{"" if name == "digits" else f"_{name}"}.json'


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    return case_parser('ghn_jax.studies.one_network', __doc__, list(CASES))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study of a case."""
    args = parser().parse_args(arguments)
    name, case = args.case, CASES[args.case]
    with cli.errors_in_one_line():
        out = pathlib.Path(str(cli.check_folder(args.workdir, 'out'))) / name
        out.mkdir(parents=True, exist_ok=True)
        write_network(case, out)
        for found in study(case.ways, out):
            files.write_json(result_of(name), table(found, about(name)))


if __name__ == '__main__':
    main()
