"""Progress lines without a terminal: position, figures and remaining time, as often as lines of the log."""

import json
import re

import pytest

from facelt.training import logs
from facelt.training.logs import StageDisplay


@pytest.fixture
def clock(monkeypatch):
    """A clock of seconds that the test sets: clock[0] = 5."""
    now = [0.0]
    monkeypatch.setattr(logs.time, "perf_counter", lambda: now[0])
    return now


def test_a_line_has_position_figures_and_remaining_time(clock, capsys):
    display = StageDisplay("plain", epochs=3, steps_per_epoch=100)
    with display.start(completed=120):
        for _ in range(5):
            clock[0] += 30
            display.advance(600)
        display.show(124, 6.1234, 0.05, display.samples_per_second())
        clock[0] += 3600
        display.advance(600)
        display.show(125, 6.0, 1e-4, display.samples_per_second())
    first, second = capsys.readouterr().err.splitlines()
    # 175 steps of 30 s remain, then 174 of (150 + 3600) / 6 s.
    assert first == "plain: epoch 2/3  step 25/100  loss 6.1234  lr 0.05  20 images/s  ETA 1:27:30"
    assert second == "plain: epoch 2/3  step 26/100  loss 6.0000  lr 0.0001  0 images/s  ETA 1 day, 6:12:30"


def test_a_terminal_has_a_bar_and_no_lines(clock, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    display, printed = StageDisplay("plain", epochs=1, steps_per_epoch=2), []
    monkeypatch.setattr(display, "print", printed.append)
    with display.start(completed=0):
        display.advance(8)
        display.show(0, 1.0, 0.1, 4.0)
    assert printed == []
    assert "loss 1.0000" in capsys.readouterr().err


def test_a_run_prints_a_line_for_each_line_of_its_log(train, plain_stage, tmp_path, capsys):
    folder = train(tmp_path / "run", stages=plain_stage(), log_every=2)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = [
        f"plain: epoch {line['epoch'] + 1}/2  step {line['step'] + 1}/4  loss {line['loss']:.4f}  lr {line['lr']:.2g}"
        f"  {line['samples_per_s']:,.0f} images/s"
        for line in lines
        if "loss" in line
    ]
    assert len(expected) == 4
    shown = re.findall(r"^(plain: .*)  ETA [0-9:]+$", capsys.readouterr().err, re.MULTILINE)
    assert shown == expected
