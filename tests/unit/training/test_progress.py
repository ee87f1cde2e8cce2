"""What a person sees while a run goes on."""

from __future__ import annotations

import time

import pytest

from fer_lab.training.progress import Progress

METRICS = {"train/loss": 1.5, "val/accuracy": 0.8, "val/nll": 0.6, "train/faces_per_s": 1234.0, "train/image_size": 96.0}


def test_without_a_terminal_each_epoch_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, with the time that is left; stdout stays clean for the last line of JSON."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress([96] * 10, 32, label="run-s0") as progress:
        now += 500  # teachers predict
        for epoch in (7, 8, 9):  # a resumed run: its eighth epoch is the first of this process
            progress.on_step(epoch, 1, 4)
            now += 90
            progress.on_epoch(epoch, METRICS)
    out, err = capsys.readouterr()
    assert out == ""
    line = "run-s0 epoch {}/10  loss 1.5000  val/accuracy 0.8000  val/nll 0.6000  1,234 faces/s at 96 px{}\n"
    assert err == line.format(8, ", about 3 min left") + line.format(9, ", about 2 min left") + line.format(10, "")


def test_larger_faces_to_come_take_longer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two minutes at 32 px foretell eight at 64 px."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress([32, 64], 32) as progress:
        progress.on_step(0, 1, 4)
        now += 120
        progress.on_epoch(0, METRICS)
    assert "about 8 min left" in capsys.readouterr().err


def test_on_a_terminal_it_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With the epoch's line above it."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress([48] * 3, 32, label="run-s0") as progress:
        for step in range(4):
            progress.on_step(0, step + 1, 4)
        progress.on_epoch(0, METRICS)
    assert "val/accuracy 0.8000" in capsys.readouterr().err
