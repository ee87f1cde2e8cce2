"""Workers of one command: a Ctrl-C at the terminal reaches each of them once."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fer_lab.core import signals
from fer_lab.core.signals import ONE_SIGNAL_S, Stop, Terminated

WORKER = """
import sys, time
from pathlib import Path
from fer_lab.core.signals import Stop

report = Path(sys.argv[1]) / f"{time.monotonic_ns()}"
with Stop() as stop:
    report.write_text("started")
    try:
        while stop.number is None:
            time.sleep(0.05)
        report.write_text("stopping")
        time.sleep(float(sys.argv[2]))  # the step at hand
        report.write_text("saved")
    except KeyboardInterrupt:
        report.write_text("aborted")
"""

FLEET = """
import sys
from fer_lab.core.errors import Interrupted
from fer_lab.search.fleet import run_fleet
from fer_lab.core.signals import Stop

with Stop() as stop:
    try:
        run_fleet(["-c", *sys.argv[1:]], 2, stop, lambda: False)
    except Interrupted as error:
        sys.exit(error.exit_code)
"""


def reports(folder: Path) -> list[str]:
    return [path.read_text() for path in folder.iterdir()]


def wait_for(folder: Path, word: str) -> None:
    until = time.monotonic() + 60
    while reports(folder) != [word, word]:
        assert time.monotonic() < until, reports(folder)
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal's Ctrl-C is a signal to a process group on POSIX")
@pytest.mark.parametrize(("presses", "step_s", "ending", "code"), [(1, 2.0, "saved", 130), (2, 60.0, "aborted", -signal.SIGINT)])
def test_ctrl_c_at_the_terminal_is_one_signal_for_each_worker(
    tmp_path: Path, presses: int, step_s: float, ending: str, code: int
) -> None:
    """The first lets every worker end its step; the second makes it hand its job back at once."""
    command = [sys.executable, "-c", FLEET, WORKER, str(tmp_path), str(step_s)]
    fleet = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    for word in ("started", "stopping")[:presses]:
        wait_for(tmp_path, word)
        os.killpg(fleet.pid, signal.SIGINT)  # what a terminal does
    assert fleet.wait(60) == code
    assert reports(tmp_path) == [ending, ending]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no such signal")
def test_a_closed_terminal_is_told_to_stop_unless_nohup_asked_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers have a session of their own: the hang-up reaches the parent only, which passes it on."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    monkeypatch.setattr(signals, "_heard_s", -math.inf)
    monkeypatch.setattr(signals, "leave_terminal", lambda: None)  # the tests' own
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number == signal.SIGTERM
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no launcher that passes SIGTERM on")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_that_a_launcher_passes_on_is_one_signal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`uv run` and its process group: the second one comes at once. Later, or as Ctrl-C, it aborts."""
    number = getattr(signal, name)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    monkeypatch.setattr(signals, "_heard_s", -math.inf)
    monkeypatch.setattr(signals, "leave_terminal", lambda: None)  # the tests' own
    try:
        with Stop() as stop:
            for _ in range(3):
                os.kill(os.getpid(), number)
            assert stop.number == signal.SIGTERM
            with pytest.raises(Terminated):
                os.kill(os.getpid(), signal.SIGINT)
        signals._heard_s -= ONE_SIGNAL_S + 1
        with Stop() as stop:
            os.kill(os.getpid(), number)
            assert stop.number == signal.SIGTERM
            signals._heard_s -= ONE_SIGNAL_S + 1
            with pytest.raises(Terminated):
                os.kill(os.getpid(), number)
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGHUP, before)
