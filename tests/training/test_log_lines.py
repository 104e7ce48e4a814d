"""The lines of a training: one line of a terminal each, with faults only where there are any."""

import numpy as np

from ghn_jax.training.log_lines import training_line, validation_line

MEANS = {'loss': 2.31149, 'accuracy': 0.125, 'gradient_norm': 3.0, 'skipped': 0.0, 'not_finite': 0.0}


def line(**changed):
    return training_line(
        20, 700, MEANS | changed, meta_batch=4, averaged=20, networks_per_sec=43.14, seconds_left=151
    )


def test_a_line_says_step_loss_accuracy_rate_and_time_left():
    assert line() == 'step  20/700   loss 2.311   accuracy 12.5 %   43.1 networks/s   02:31 left'
    assert len(line()) < 80


def test_faults_are_told_where_there_are_any():
    assert line(not_finite=0.15).endswith(' left   3 of 80 networks not finite')
    assert line(not_finite=0.25, skipped=0.05).endswith('5 of 80 networks not finite   1 of 20 steps skipped')
    everything = line(loss=np.nan, accuracy=np.nan, not_finite=4.0, skipped=1.0)
    assert 'loss nan' in everything and '80 of 80 networks not finite   20 of 20 steps skipped' in everything


def test_what_is_not_known_yet_is_left_out():
    first = training_line(1, 7, MEANS, meta_batch=4, averaged=1)
    assert first == 'step 1/7   loss 2.311   accuracy 12.5 %'


def test_a_validation_names_the_bits():
    values = {'val/top1_w32a32': 0.3124, 'val/top1_w4a4': 0.3081}
    assert validation_line(100, 700, values) == 'step 100/700   validation: 31.2 % in float, 30.8 % in w4a4'
