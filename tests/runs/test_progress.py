"""Progress: a bar on a terminal, lines elsewhere, with rates and time left of finished steps alone."""

import io
import re

import pytest

from ghn_jax.runs.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_progress_is_plain_lines_with_rates_values_and_time_left(monkeypatch):
    monkeypatch.setattr('ghn_jax.runs.progress._SILENCE', 0)
    out = io.StringIO()
    with Progress(4, file=out, desc='train') as p:
        for _ in range(4):
            p.update(networks=8, images=512, loss=2.25, accuracy=0.125)
        rates = p.rates()
    lines = out.getvalue().splitlines()
    assert lines[0] == 'train 1/4 steps, loss 2.25, accuracy 0.125'
    rate = r'[\d.e+]+'
    wanted = rf'train 4/4 steps, {rate} networks/s, {rate} images/s, loss 2.25, accuracy 0.125, 00:00 left'
    assert len(lines) == 4 and re.fullmatch(wanted, lines[-1]), lines
    assert rates['images_per_sec'] == pytest.approx(64 * rates['networks_per_sec'])


def test_progress_adds_no_line_to_what_was_just_said(capsys):
    """The lines of a training say how far it is; the last state is shown only where no line has said it."""
    for unsaid in (0, 1):
        out = io.StringIO()
        with Progress(3, file=out, desc='train') as p:
            p.update(networks=1)
            p.say('step 1/3')
            p.update(unsaid)
        assert capsys.readouterr().out == 'step 1/3\n'
        assert out.getvalue().startswith('train 2/3 steps') == bool(unsaid)


def test_on_a_terminal_there_is_one_bar_that_redraws_itself():
    out = Terminal()
    with Progress(4, file=out, desc='train') as p:
        for _ in range(4):
            p.update(networks=8, loss=2.25)
    text = out.getvalue()
    assert text.count('\n') == 1 and text.split('\r')[-1].startswith('train: 100%')
    assert 'loss 2.25' in text and '4/4' in text


def test_time_left_is_at_the_pace_of_the_marks(monkeypatch):
    clock = iter([0.0, 10.0, 30.0])
    monkeypatch.setattr('time.perf_counter', lambda: next(clock))
    with Progress(100, file=io.StringIO(), marks=2) as p:
        p.update(10)
        assert p.seconds_left() is None
        p.update(10)
        assert p.seconds_left() == 80  # ten steps in ten seconds, 80 to go
        p.update(5, finished=False)
        p.update(15)
        assert p.seconds_left() == 60  # twenty in twenty


def test_rates_count_to_the_last_finished_update_and_leave_breaks_out():
    with Progress(10, file=io.StringIO()) as p:
        p.update(networks=8)
        p.update(networks=8, finished=False)
        assert p.rates() == {}  # only told to the device: when it ends is not known
        p.update(networks=8)
        before = p.rates()['networks_per_sec']
        p.update(networks=1000, finished=False)
        assert p.rates()['networks_per_sec'] == before
        p.restart_clock()
        assert p.rates() == {}


def test_progress_of_a_resumed_run_starts_where_the_run_before_stopped():
    out = io.StringIO()
    with Progress(10, initial=6, file=out, desc='train') as p:
        p.update(networks=1)
        assert p.rates() == {}  # one mark is no rate: the first update has paid for the compilation
    assert out.getvalue() == 'train 7/10 steps\n'
