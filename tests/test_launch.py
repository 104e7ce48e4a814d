"""The launch scripts: a dry run prints what would run, and runs nothing; bad arguments are one line."""

import os
import shlex
import shutil
import subprocess
import time

import psutil
import pytest

from tests.small_run import ROOT

CONFIG = '--config=configs/ghn_qat_cifar10.py'
TPU = ('--name=ghn', '--zone=us-central2-b', CONFIG, '--workdir=/mnt/runs/a')
OVERRIDE = '--config.space.channels=(16, 32)'  # must survive two shells


def launch(script, *args):
    # No command but bash's own and these can be found.
    env = {**os.environ, 'GCLOUD': '/nowhere/gcloud'}
    return subprocess.run(
        ['bash', f'launch/{script}', *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )


def printed(script, *args):
    done = launch(script, *args, '--dry_run')
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [shlex.split(line) for line in done.stdout.replace("$'", "'").splitlines()]


@pytest.mark.parametrize('script', sorted(path.name for path in (ROOT / 'launch').glob('*.sh')))
def test_scripts_are_bash(script):
    done = subprocess.run(['bash', '-n', f'launch/{script}'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_dry_run_on_gpus_trains_in_one_process():
    *_, visible, train = printed('gpu.sh', CONFIG, '--workdir=/runs/a', '--gpus=0,1', OVERRIDE)
    assert visible == ['export', 'CUDA_VISIBLE_DEVICES=0,1']
    assert train[:3] == ['python', '-m', 'ghn_jax.train']
    assert OVERRIDE in train and '--workdir=/runs/a' in train
    assert not any('coordinator' in word for word in train)


def test_a_dry_run_on_several_gpu_machines_names_the_coordinator():
    more = ('--coordinator=10.0.0.2:1234', '--num_processes=2', '--process_id=1')
    assert set(more) <= set(printed('gpu.sh', CONFIG, '--workdir=/runs/a', *more)[-1])


def remote_command(words):
    (command,) = [w.removeprefix('--command=') for w in words if w.startswith('--command=')]
    return command


@pytest.mark.parametrize(
    'script, type_, coordinator',
    [('tpu_vm.sh', 'v4-8', False), ('tpu_pod.sh', 'v4-32', True)],
)
def test_a_dry_run_on_tpus_creates_sets_up_trains_and_deletes(script, type_, coordinator):
    commands = printed(script, *TPU, f'--type={type_}', '--spot', OVERRIDE)
    verbs = [words[4] if words[0].endswith('gcloud') else words[0] for words in commands]
    assert verbs == ['create', 'tar', 'scp', 'ssh', 'ssh', 'delete']
    assert f'--accelerator-type={type_}' in commands[0] and '--spot' in commands[0]
    assert all('--zone=us-central2-b' in words for words in commands if words[0].endswith('gcloud'))
    assert all('--worker=all' in words for words in commands[2:5])
    train = shlex.split(remote_command(commands[4]))
    assert 'ghn_jax.train' in train and CONFIG in train and OVERRIDE in train
    assert ('--coordinator=auto' in train) == coordinator


def test_a_run_in_a_bucket_gets_the_extra_that_it_needs_and_its_address_as_it_is():
    for script, type_ in (('tpu_vm.sh', 'v4-8'), ('tpu_pod.sh', 'v4-32')):
        commands = printed(script, *TPU, '--workdir=gs://bucket/a', f'--type={type_}')
        assert remote_command(commands[3]).endswith(' && environment tpu,gcs')
        assert '--workdir=gs://bucket/a' in shlex.split(remote_command(commands[4]))
    commands = printed('gpu.sh', CONFIG, '--workdir=gs://bucket/a')
    assert ['environment', 'cuda,gcs'] in commands and '--workdir=gs://bucket/a' in commands[-1]
    assert ['environment', 'cuda'] in printed('gpu.sh', CONFIG, '--workdir=/runs/a')


def test_a_queued_and_kept_tpu_is_asked_for_and_not_deleted():
    commands = printed('tpu_pod.sh', *TPU, '--type=v5litepod-16', '--queued', '--keep')
    assert commands[0][3:5] == ['queued-resources', 'create']
    assert not any('delete' in words for words in commands)


@pytest.mark.parametrize(
    'script, args, word',
    [
        ('gpu.sh', [CONFIG], '--workdir is missing'),
        ('gpu.sh', ['--config=configs/none.py', '--workdir=a'], 'no such file'),
        ('gpu.sh', [CONFIG, '--workdir=a', '--gpus=two'], '--gpus=two'),
        ('gpu.sh', [CONFIG, '--workdir=a', '--gpu=1'], "unexpected argument '--gpu=1'"),
        ('gpu.sh', [CONFIG, '--workdir=a', '--coordinator=here'], 'HOST:PORT'),
        ('gpu.sh', [CONFIG, '--workdir=a', '--process_id=1'], 'HOST:PORT'),
        (
            'gpu.sh',
            [CONFIG, '--workdir=a', '--coordinator=a:1', '--num_processes=2', '--process_id=2'],
            'expected 0..1',
        ),
        ('gpu.sh', [CONFIG, '--workdir=s3://bucket/a'], 'as in gs://bucket/run'),
        ('gpu.sh', [CONFIG, '--workdir=gs://bucket'], 'as in gs://bucket/run'),
        ('gpu.sh', [CONFIG, '--workdir=file:///a'], 'expected a directory'),
        ('first_hour.sh', ['--workdir=a'], '--out=DIR'),
        ('first_hour.sh', ['12'], "unexpected argument '12'"),
        ('first_hour.sh', ['--out=gs://bucket/a'], 'give a directory'),
        ('tpu_vm.sh', [*TPU], '--type is missing'),
        ('tpu_vm.sh', [*TPU, '--type=big'], '--type=big'),
        ('tpu_vm.sh', [*TPU, '--type=v4-8', '--zone=here'], '--zone=here'),
        ('tpu_vm.sh', [*TPU, '--type=v4-8', '--workdir=runs/a'], 'absolute path'),
        ('tpu_pod.sh', [*TPU, '--type=v4-32', '--name=GHN 1'], '--name=GHN 1'),
        ('tpu_pod.sh', ['now'], "unexpected argument 'now'"),
    ],
)
def test_bad_arguments_are_one_line_and_code_2(script, args, word):
    done = launch(script, *args, '--dry_run')
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1 and word in done.stderr


@pytest.mark.parametrize('workdir', ['gs://bucket/a', ''])
def test_the_quickstart_refuses_what_is_no_directory_before_it_makes_anything(workdir):
    done = launch('quickstart.sh', f'--workdir={workdir}')
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (2, '', 1)
    assert done.stderr.startswith(f'error: --workdir={workdir}: expected a directory of this machine')


PYTHON = r"""#!/usr/bin/env bash
# In the place of python: a training leaves metrics and says a line, or fails with CODE_qat, CODE_float.
echo "$*" >>calls
for arg in "$@"; do [[ "$arg" != --workdir=* ]] || workdir="${arg#--workdir=}"; done
[[ "$*" == *ghn_jax.train* ]] || exit 0
name="CODE_${workdir##*/}"
if [ "${!name:-0}" != 0 ]; then echo "error: $name" >&2; exit "${!name}"; fi
mkdir -p "$workdir"
[[ "$*" == *train.steps=0* ]] || echo '{}' >"$workdir/metrics.jsonl"
echo "step 250/250   of ${workdir##*/}"
"""


@pytest.fixture
def quickstart(tmp_path):
    """run(*arguments, **environment) -> (its end, what it called): the script, where python is PYTHON."""
    (tmp_path / 'launch').mkdir()
    shutil.copy(ROOT / 'launch/quickstart.sh', tmp_path / 'launch')
    (tmp_path / 'launch/environment.sh').write_text(f'environment() {{ export PATH="{tmp_path}:$PATH"; }}')
    (tmp_path / 'python').write_text(PYTHON)
    (tmp_path / 'python').chmod(0o755)

    def run(*args, **env):
        done = subprocess.run(
            ['bash', 'launch/quickstart.sh', '--workdir=runs/a', *args], cwd=tmp_path, text=True,
            env=os.environ | env, capture_output=True, timeout=60,
        )  # fmt: skip
        calls = tmp_path / 'calls'
        return done, calls.read_text().splitlines() if calls.exists() else []

    return run


def test_the_quickstart_trains_twice_by_one_config_and_scores_both_together(quickstart, tmp_path):
    done, (first, qat, exact, scores) = quickstart('--config.seed=7', '--config.space.channels=(16, 32)')
    assert first == 'launch/first.py' and done.returncode == 0 and not done.stderr, done.stderr
    assert qat.replace('/qat', '/float').replace('=w4a4', '=float') == exact != qat
    assert '--config.seed=7 --config.space.channels=(16, 32)' in qat
    assert f'--workdir={tmp_path}/runs/a/qat --against={tmp_path}/runs/a/float' in scores
    headings = [line for line in done.stdout.splitlines() if line.startswith('==')]
    assert len(headings) == 4
    # The lines of one training are not mixed with those of the other.
    said = [line for line in done.stdout.splitlines() if line.startswith('step')]
    assert said == ['step 250/250   of qat', 'step 250/250   of float']


def test_a_quickstart_of_no_steps_does_not_wait_for_the_first(quickstart):
    done, calls = quickstart('--config.train.steps=0')
    assert done.returncode == 2 and len(calls) == 2 and done.stderr.count('\n') == 1, done.stderr
    assert 'nothing was trained: give --config.train.steps=1 or more' in done.stderr


@pytest.mark.parametrize(('which', 'called'), [('qat', 2), ('float', 3)])
def test_a_training_of_the_quickstart_that_fails_ends_it_with_its_code_and_words(quickstart, which, called):
    done, calls = quickstart(**{f'CODE_{which}': '3'})
    assert done.returncode == 3 and done.stderr == f'error: CODE_{which}\n'
    assert len(calls) == called  # nothing is scored, and no training waits for the other for ever


def test_a_quickstart_that_is_killed_leaves_nobody_waiting_for_its_first_training(quickstart, tmp_path):
    """Else the training in float would begin beside that of the next start."""
    pid = tmp_path / 'pid'
    python = '#!/usr/bin/env bash\n[[ "$*" != *train* ]] || { echo $$ >pid; exec sleep 60; }\n'
    (tmp_path / 'python').write_text(python)
    script = subprocess.Popen(['bash', 'launch/quickstart.sh'], cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (pid.exists() and pid.read_text().endswith('\n')):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # The script has no other child by now: what it ran before the training has ended.
    children = {child.pid: child for child in psutil.Process(script.pid).children()}
    training = children.pop(int(pid.read_text()))
    (waiting,) = children.values()
    script.kill()
    script.wait()
    _, alive = psutil.wait_procs([waiting], timeout=20)
    for process in (training, *alive):
        process.kill()
    assert not alive


def test_the_bits_of_the_quickstart_are_not_to_be_set(quickstart):
    done, calls = quickstart('--config.quant.bits=w2a2')
    assert (done.returncode, done.stderr.count('\n'), calls) == (2, 1, []) and 'quant.bits' in done.stderr


def test_the_quick_tests_are_there():
    paths = (ROOT / 'tests/quick.txt').read_text().split()
    assert len(paths) == len(set(paths)) > 10 and all((ROOT / path).exists() for path in paths)


def test_configs_have_names_and_home_is_meant_as_in_a_shell(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    train = printed('gpu.sh', '--config=quickstart', '--workdir=~/runs/a')[-1]
    assert '--config=quickstart' in train and f'--workdir={tmp_path}/runs/a' in train
    (tmp_path / 'mine.py').touch()
    assert f'--config={tmp_path}/mine.py' in printed('gpu.sh', '--config=~/mine.py', '--workdir=a')[-1]
    (tmp_path / 'a.whl').touch()
    assert ['environment_there', '', str(tmp_path)] in printed('first_hour.sh', '--wheels=~')


def test_a_dry_run_of_the_first_hour_takes_paths_from_where_it_is_called():
    args = ('--minutes=2', '--out=a', '--config=configs/test.py', '--unpack=b.pack', OVERRIDE)
    *_, hour = printed('first_hour.sh', *args)
    assert hour[:3] == ['python', '-m', 'ghn_jax.first_hour']
    assert {'--minutes=2', f'--out={ROOT}/a', f'--unpack={ROOT}/b.pack', OVERRIDE} <= set(hour)
    assert f'--config={ROOT}/configs/test.py' in hour


@pytest.mark.parametrize('folder', ['.', 'launch', 'docs/results', '..'])
def test_the_first_hour_may_be_started_from_anywhere(tmp_path, folder):
    """From the folder above and from one below, by the path of the script from there."""
    python = tmp_path / 'a python'
    python.write_text('#!/usr/bin/env bash\n[[ "$*" != *ghn_jax* ]] || echo "$PWD: $*"\n')
    python.chmod(0o755)
    script = os.path.relpath(ROOT / 'launch/first_hour.sh', ROOT / folder)
    done = subprocess.run(
        ['bash', script, f'--out={tmp_path}'], cwd=ROOT / folder, env=os.environ | {'PYTHON': str(python)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.startswith(f'{ROOT}: -m ghn_jax.first_hour --out={tmp_path}'), done.stderr


GCLOUD = """#!/usr/bin/env bash
# In the place of gcloud: the state of a TPU is what the file `state` says, until it is deleted or created.
here="${0%/*}"
if [[ "$*" == *describe* ]]; then cat "$here/$STATE"; exit; fi
echo "$4" >>"$here/calls"
[[ "$4" != delete ]] || rm "$here/state"
[[ "$4" != create ]] || echo "$CREATED" >"$here/state"
"""


@pytest.mark.parametrize(
    'state, queued, calls',
    [
        ('', False, 'create scp ssh ssh delete'),
        ('READY', False, 'scp ssh ssh delete'),  # the script was interrupted: the machine is used again
        ('PREEMPTED', False, 'delete create scp ssh ssh delete'),
        ('', True, 'create scp ssh ssh delete'),
        ('ACTIVE', True, 'scp ssh ssh delete'),
        ('SUSPENDED', True, 'delete create scp ssh ssh delete'),
    ],
)
def test_started_again_a_tpu_script_goes_on_with_the_machine_there_is(tmp_path, state, queued, calls):
    if state:
        (tmp_path / 'state').write_text(state)
    done = tpu_vm(tmp_path, 'ACTIVE' if queued else 'READY', *['--queued'] * queued)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'calls').read_text().split() == calls.split()


def test_a_request_for_a_tpu_that_failed_is_not_waited_for(tmp_path):
    done = tpu_vm(tmp_path, 'FAILED', '--queued')
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'is FAILED' in done.stderr
    assert (tmp_path / 'calls').read_text().split() == ['create']


def test_where_gcloud_fails_nobody_waits_for_ever(tmp_path):
    done = tpu_vm(tmp_path, 'ACTIVE', '--queued', state_of='absent')
    assert done.returncode == 2 and 'error: ' in done.stderr.splitlines()[-1]
    assert (tmp_path / 'calls').read_text().split() == ['create']


def tpu_vm(folder, created, *args, state_of='state'):
    """The script where gcloud is GCLOUD. created: the state of a TPU that is created."""
    (folder / 'tar').symlink_to('/bin/true')
    (folder / 'gcloud').write_text(GCLOUD)
    (folder / 'gcloud').chmod(0o755)
    env = {
        'STATE': state_of,
        'GCLOUD': str(folder / 'gcloud'),
        'CREATED': created,
        'PATH': f'{folder}:{os.environ["PATH"]}',
    }
    return subprocess.run(
        ['bash', 'launch/tpu_vm.sh', *TPU, '--type=v4-8', *args], cwd=ROOT, env=os.environ | env,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_where_gcloud_is_missing_nothing_begins():
    done = launch('tpu_vm.sh', *TPU, '--type=v4-8')
    assert done.returncode == 2 and 'Google Cloud CLI' in done.stderr and not done.stdout
