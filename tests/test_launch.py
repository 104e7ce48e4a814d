"""The launch scripts: a dry run prints what would run, and runs nothing; bad arguments are one line."""

import os
import shlex
import subprocess

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
        ('gpu.sh', [CONFIG, '--workdir=gs://bucket/a'], 'not supported yet'),
        ('gpu.sh', [CONFIG, '--workdir=file:///a'], 'not supported yet'),
        ('tpu_vm.sh', [*TPU], '--type is missing'),
        ('tpu_vm.sh', [*TPU, '--type=big'], '--type=big'),
        ('tpu_vm.sh', [*TPU, '--type=v4-8', '--zone=here'], '--zone=here'),
        ('tpu_vm.sh', [*TPU, '--type=v4-8', '--workdir=runs/a'], 'absolute path'),
        ('tpu_pod.sh', [*TPU, '--type=v4-32', '--workdir=gs://bucket/a'], 'mount'),
        ('tpu_pod.sh', [*TPU, '--type=v4-32', '--name=GHN 1'], '--name=GHN 1'),
        ('tpu_pod.sh', ['now'], "unexpected argument 'now'"),
    ],
)
def test_bad_arguments_are_one_line_and_code_2(script, args, word):
    done = launch(script, *args, '--dry_run')
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1 and word in done.stderr


def test_the_quickstart_refuses_cloud_storage_before_it_makes_anything():
    done = launch('quickstart.sh', '--workdir=gs://bucket/a')
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (2, '', 1)
    assert done.stderr.startswith('error: --workdir=gs://bucket/a: cloud storage is not supported yet')


def test_configs_have_names_and_home_is_left_to_the_training():
    train = printed('gpu.sh', '--config=quickstart', '--workdir=~/runs/a')[-1]
    assert '--config=quickstart' in train and '--workdir=~/runs/a' in train


def test_where_gcloud_is_missing_nothing_begins():
    done = launch('tpu_vm.sh', *TPU, '--type=v4-8')
    assert done.returncode == 2 and 'Google Cloud CLI' in done.stderr and not done.stdout
