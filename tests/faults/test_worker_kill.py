"""kill -9 of a worker in mid-trial: the study completes, nothing stays RUNNING, nothing is registered twice."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sweep_workers import prepare

from fer_lab.data.faces import FaceDataset

TINY = [
    "name=killed", "data.dataset=synthetic", "data.subset=64", "train.batch_size=16", "train.epochs=2", "train.image_size=32",
    "train.device=cpu", "train.threads=1", "train.warmup_epochs=0",
    "sweep.lease_s=3", "sweep.pruner.name=none", "sweep.confirm.top=1", "sweep.confirm.seeds=1",
]  # fmt: skip

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX"),
]


def start(config: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fer_lab.sweep", str(config), *TINY, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def query(database: Path, sql: str) -> list[tuple[Any, ...]]:
    if not database.is_file():
        return []
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        try:
            return connection.execute(sql).fetchall()
        except sqlite3.OperationalError:  # the tables are not there yet
            return []


def wait_for(database: Path, sql: str, processes: list[subprocess.Popen[str]], seconds: float = 300) -> None:
    """Wait until the query finds a row; fail when every process has ended before."""
    until = time.monotonic() + seconds
    while not query(database, sql):
        assert time.monotonic() < until, sql
        assert any(process.poll() is None for process in processes), [process.communicate() for process in processes]
        time.sleep(0.1)


def check(home: Path, result: dict[str, Any], trials: int) -> None:
    """What must hold after any kill."""
    optuna, mlflow = home / "mlruns" / "optuna.db", home / "mlruns" / "mlflow.db"
    assert sum(result["trials"].values()) == trials
    states = Counter(state for (state,) in query(optuna, "SELECT state FROM trials"))
    assert states["RUNNING"] == 0
    assert states["COMPLETE"] == result["trials"]["complete"]
    assert query(optuna, "SELECT * FROM fer_jobs WHERE status IN ('leased', 'free')") == []
    study = "SELECT run_uuid FROM tags WHERE key IN ('fer.study')"
    assert query(mlflow, f"SELECT name FROM runs WHERE status = 'RUNNING' AND run_uuid IN ({study})") == []
    finished = query(mlflow, f"SELECT name FROM runs WHERE status = 'FINISHED' AND run_uuid IN ({study})")
    assert max(Counter(finished).values()) == 1
    versions = query(mlflow, "SELECT version FROM model_versions")
    assert len(versions) == 1 + len(result["also_registered"])


def last_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    return dict(json.loads(out.splitlines()[-1]))


@pytest.mark.parametrize("moment", ["asked", "epoch", "confirm"])
def test_a_killed_worker_is_replaced(home: Path, drawn: FaceDataset, moment: str) -> None:
    """Worker A dies between ask and the first epoch, after an epoch, or while it confirms; B completes the study."""
    config = prepare(home, drawn)
    database = home / "mlruns" / "optuna.db"
    a = start(config, "sweep.trials=2")
    when = {
        "asked": "SELECT 1 FROM fer_jobs WHERE kind = 'trial' AND trial IS NOT NULL AND status = 'leased'",
        "epoch": "SELECT 1 FROM fer_jobs WHERE kind = 'trial' AND epoch = 0 AND status = 'leased'",
        "confirm": "SELECT 1 FROM fer_jobs WHERE kind = 'confirm' AND run_id IS NOT NULL AND status = 'leased'",
    }[moment]
    wait_for(database, when, [a])
    os.kill(a.pid, signal.SIGKILL)
    a.communicate()
    result = last_line(start(config, "sweep.trials=2"))
    check(home, result, 2)
    deaths = query(database, "SELECT deaths FROM fer_jobs WHERE deaths > 0")
    assert deaths == [(1,)]
    ended = query(home / "mlruns" / "mlflow.db", "SELECT value FROM tags WHERE key = 'fer.ended_by'")
    assert {value for (value,) in ended} <= {"reaper"}


def test_two_workers_of_which_one_is_killed(home: Path, drawn: FaceDataset) -> None:
    """`--workers 2`, one of them killed in mid-trial: the command itself still ends with a registered version."""
    config = prepare(home, drawn)
    database = home / "mlruns" / "optuna.db"
    both = start(config, "sweep.trials=4", "--workers", "2")
    held = "SELECT worker FROM fer_jobs WHERE kind = 'trial' AND run_id IS NOT NULL AND status = 'leased'"
    wait_for(database, held, [both])
    [(worker, *_)] = query(database, held)[:1]
    os.kill(int(worker.split(":")[1]), signal.SIGKILL)
    check(home, last_line(both), 4)


def test_a_paused_worker_is_fenced(home: Path, drawn: FaceDataset) -> None:
    """SIGSTOP past the lease, another takes over and completes, SIGCONT: the first exits 5 or 0 and changes nothing."""
    config = prepare(home, drawn)
    database = home / "mlruns" / "optuna.db"
    a = start(config, "sweep.trials=1")
    wait_for(database, "SELECT 1 FROM fer_jobs WHERE kind = 'trial' AND run_id IS NOT NULL AND status = 'leased'", [a])
    os.kill(a.pid, signal.SIGSTOP)
    result = last_line(start(config, "sweep.trials=1"))
    os.kill(a.pid, signal.SIGCONT)
    a.communicate(timeout=300)
    assert a.returncode == 5
    check(home, result, 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_requeues(home: Path, drawn: FaceDataset, number: signal.Signals, code: int) -> None:
    """SIGTERM and Ctrl-C: exit 143 and 130, the trial free again, no run RUNNING; the next start goes on."""
    config = prepare(home, drawn)
    database = home / "mlruns" / "optuna.db"
    a = start(config, "sweep.trials=1")
    wait_for(database, "SELECT 1 FROM fer_jobs WHERE kind = 'trial' AND epoch = 0 AND status = 'leased'", [a])
    a.send_signal(number)
    a.communicate(timeout=120)
    assert a.returncode == code
    assert query(database, "SELECT status, deaths FROM fer_jobs WHERE kind = 'trial'") == [("free", 0)]
    assert query(database, "SELECT 1 FROM trials WHERE state = 'RUNNING'") == []
    tagged = "SELECT run_uuid FROM tags WHERE key = 'fer.study'"
    assert query(home / "mlruns" / "mlflow.db", f"SELECT 1 FROM runs WHERE status = 'RUNNING' AND run_uuid IN ({tagged})") == []
    check(home, last_line(start(config, "sweep.trials=1")), 1)
