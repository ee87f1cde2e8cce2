"""What a person sees while a run goes on."""

from __future__ import annotations

import pytest

from fer_lab.training.progress import Progress

METRICS = {"train/loss": 1.5, "val/accuracy": 0.8, "val/nll": 0.6, "train/faces_per_s": 1234.0, "train/image_size": 96.0}


def test_without_a_terminal_each_epoch_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr; stdout stays clean for the last line of JSON."""
    with Progress(3, 32, label="run-s0") as progress:
        progress.on_step(0, 1, 4)
        progress.on_epoch(0, METRICS)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "run-s0 epoch 1/3  loss 1.5000  val/accuracy 0.8000  val/nll 0.6000  1,234 faces/s at 96 px\n"


def test_on_a_terminal_it_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With the epoch's line above it."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress(3, 32, label="run-s0") as progress:
        for step in range(4):
            progress.on_step(0, step + 1, 4)
        progress.on_epoch(0, METRICS)
    assert "val/accuracy 0.8000" in capsys.readouterr().err
