"""Metrics: what is written can be read, once for each step, whatever a run before left behind."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from ghn_jax.base.errors import UserError
from ghn_jax.base.jsonlines import read_jsonl
from ghn_jax.runs.metrics import Metrics
from ghn_jax.training.running_means import RunningMeans


def write(workdir, start, steps, value=0.5):
    with Metrics(workdir, start) as m:
        for step in steps:
            m.write(step, {'train/loss': value})


def events(workdir: pathlib.Path) -> list[event_pb2.Event]:
    """All TensorBoard events, in the order of reading. A record: uint64 length, crc, data, crc."""
    out = []
    for file in sorted((workdir / 'tensorboard').iterdir()):  # as TensorBoard orders them
        data = file.read_bytes()
        while data:
            n = int.from_bytes(data[:8], 'little')
            out.append(event_pb2.Event.FromString(data[12 : 12 + n]))
            data = data[16 + n :]
    return out


def test_scalars_of_any_kind_are_read_back_as_numbers(tmp_path):
    with Metrics(tmp_path) as m:
        m.write(1, {'loss': jnp.float32(0.5), 'n': 3, 'acc': np.array([0.25])})
    assert read_jsonl(tmp_path / 'metrics.jsonl') == [{'step': 1, 'loss': 0.5, 'n': 3.0, 'acc': 0.25}]


def test_a_value_that_is_not_finite_is_null_in_strict_json(tmp_path):
    write(tmp_path, 0, [1], float('nan'))
    text = (tmp_path / 'metrics.jsonl').read_text()
    assert json.loads(text, parse_constant=lambda s: pytest.fail(f'{s} is not JSON')) == {
        'step': 1,
        'train/loss': None,
    }


def test_a_resumed_run_has_each_step_once_and_keeps_what_came_before(tmp_path):
    write(tmp_path, 0, [1, 2, 3, 4, 5], 0.1)
    write(tmp_path, 3, [4, 5, 6], 0.2)
    records = read_jsonl(tmp_path / 'metrics.jsonl')
    assert [r['step'] for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r['train/loss'] for r in records] == [0.1] * 3 + [0.2] * 3


def test_a_torn_last_line_is_dropped_and_nothing_is_glued_to_it(tmp_path):
    write(tmp_path, 0, [1, 2, 3])
    path = tmp_path / 'metrics.jsonl'
    path.write_text(path.read_text()[:-9])
    assert [r['step'] for r in read_jsonl(path)] == [1, 2]
    write(tmp_path, 3, [4])
    assert [r['step'] for r in read_jsonl(path)] == [1, 2, 4]


def test_a_fresh_run_drops_the_records_of_the_one_before(tmp_path):
    write(tmp_path, 0, [0, 1, 2])
    write(tmp_path, 0, [0, 1])
    assert [r['step'] for r in read_jsonl(tmp_path / 'metrics.jsonl')] == [0, 1]


def test_tensorboard_is_told_to_forget_the_steps_written_again(tmp_path):
    write(tmp_path, 0, range(1, 6), 0.1)
    write(tmp_path, 3, range(4, 7), 0.2)
    shown = {}
    for event in events(tmp_path):  # as a TensorBoard reader does
        if event.HasField('session_log'):
            shown = {step: v for step, v in shown.items() if step < event.step}
        for value in event.summary.value:
            assert value.tag == 'train/loss'
            shown[event.step] = round(value.simple_value, 6)
    assert shown == {1: 0.1, 2: 0.1, 3: 0.1, 4: 0.2, 5: 0.2, 6: 0.2}


def test_two_writers_within_a_second_do_not_overwrite_each_other(tmp_path):
    write(tmp_path, 0, [1])
    write(tmp_path, 1, [2])
    assert len(list((tmp_path / 'tensorboard').iterdir())) == 2


def test_a_clock_that_goes_back_does_not_put_a_run_before_the_one_it_goes_on_from(tmp_path, monkeypatch):
    write(tmp_path, 0, [1, 2], 0.1)
    monkeypatch.setattr('time.time', lambda: 1.6e9)
    write(tmp_path, 2, [3], 0.2)
    assert [e.step for e in events(tmp_path) if e.summary.value] == [1, 2, 3]


def test_what_differs_from_run_to_run_is_kept_apart(tmp_path):
    with Metrics(tmp_path) as m:
        m.write(1, {'train/loss': 0.5}, {'time/networks_per_sec': 3})
    assert read_jsonl(tmp_path / 'metrics.jsonl') == [{'step': 1, 'train/loss': 0.5}]
    assert read_jsonl(tmp_path / 'machine.jsonl') == [{'step': 1, 'time/networks_per_sec': 3.0}]
    assert [v.tag for e in events(tmp_path) for v in e.summary.value] == [
        'train/loss',
        'time/networks_per_sec',
    ]


def test_means_of_a_window_are_those_of_one_that_was_saved_and_read_in_between():
    rng = np.random.default_rng(0)
    rows = [
        {'loss': np.float32(rng.normal()), 'skipped': np.int32(0), 'faults': np.array([0, i % 3 == 0])}
        for i in range(50)
    ] + [{'loss': np.float32('nan'), 'skipped': np.int32(1), 'faults': np.array([2, 1])}]
    whole, cut = RunningMeans(), RunningMeans()
    for row in rows:
        whole.add(row)
        cut.add(row)
        cut = RunningMeans(json.loads(json.dumps(cut.saved())))
    assert whole.means() == cut.means() and whole.share_not_finite() == cut.share_not_finite()
    assert whole.means()['loss'] == pytest.approx(np.mean([row['loss'] for row in rows[:50]], dtype=float))
    assert whole.means()['not_finite'] == (17 + 2) / 51 and whole.means()['skipped'] == 1 / 51


def test_reading_absent_metrics_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match='no metrics in'):
        read_jsonl(tmp_path / 'metrics.jsonl')
