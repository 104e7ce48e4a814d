"""Records of trainings: one that is done is read back, one with other settings is refused."""

import dataclasses

import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.tuning.records import TrainingRecord


@pytest.fixture
def record(tmp_path):
    return TrainingRecord(tmp_path, 'net.w4a4.he.seed0', {'training': {'epochs': 2}, 'seed': 0})


def test_a_training_is_done_once_its_record_is_written_and_its_state_is_gone(record):
    record.state.write_bytes(b'')
    assert record.read() is None
    record.write({'loss': [1.0, None]})
    assert record.read() == {'loss': [1.0, None]} and not record.state.exists()


def test_a_record_of_other_settings_is_refused_by_name(record):
    record.write({})
    other = dataclasses.replace(record, settings={**record.settings, 'training': {'epochs': 3}})
    with pytest.raises(UserError, match=r'seed0\.json is of .* other settings \(training differ\)'):
        other.read()
