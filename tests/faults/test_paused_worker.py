"""A worker that was paused past its lease writes nothing when it wakes up: not in the databases, not in the folders.

MLflow checks no fence. So the one operation that was under way in the moment of the pause is carried through, into the run
of the attempt that was given up, never into its successor's; a run that was being made is ended at once.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sqlite3
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fault_figures import count, publish
from filelock import FileLock, Timeout
from sweep_workers import Place, faults_of_study, on_sqlite, prepare, said, start

from fer_lab.core.errors import Conflict
from fer_lab.data.faces import FaceDataset

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

pytestmark = [pytest.mark.faults, pytest.mark.skipif(sys.platform == "win32", reason="SIGSTOP is POSIX")]

TABLES = {
    "optuna": ("fer_jobs", "fer_studies", "trials", "trial_values", "trial_intermediate_values"),
    "mlflow": ("runs", "metrics", "params", "tags", "inputs", "model_versions", "registered_model_aliases"),
}


def test_a_paused_worker_changes_nothing(home: Path, drawn: FaceDataset) -> None:
    """SIGSTOP at a random moment, another worker completes the study, SIGCONT: exit 5, rows and files as before."""
    place, config, draw = on_sqlite(home), prepare(home, drawn), random.Random(3)
    rounds, paused_in, found, carried = count(2, 10), Counter[str](), Counter[str](), 0
    for number in itertools.count():
        if paused_in.total() == rounds:
            break
        arguments = ("sweep.trials=1", "--study", f"study-{number}")
        asleep = start(place, config, *arguments)
        try:
            if (paused := pause(place, asleep, draw)) is None:
                continue
            moment, run_id = paused
            paused_in[moment] += 1
            successor = start(place, config, *arguments)
            successor.join(300)
            assert successor.exitcode == 0, said(place, successor)
            before = everything(place)
            os.kill(asleep.pid or 0, signal.SIGCONT)
            asleep.join(120)
            assert asleep.exitcode == Conflict.exit_code, said(place, asleep)
            carried += carried_through(before, everything(place), run_id)
            found.update(faults_of_study(place, f"study-{number}", 1))
        finally:
            asleep.kill()
    assert not +found, dict(found)
    publish("paused_worker", rounds=rounds, paused_in=dict(paused_in), stale_writes=0, carried_through=carried, **found)


def carried_through(before: set[tuple[object, ...]], after: set[tuple[object, ...]], run_id: str | None) -> int:
    """How many operations (none or one) the worker had under way; they may be in its own run only."""
    late = after - before
    assert before <= after, sorted(before - after, key=str)[:20]
    if run_id is None:  # it had none, and may have been making it
        operations = {row[1] for row in late if row[0] == "runs"}
    else:
        operations = {row[5] if row[0] == "metrics" else row for row in late}  # the metrics of one step are one operation
    own = [run_id] if run_id is not None else [str(made) for made in operations]
    assert all(any(run in str(row) for run in own) for row in late), sorted(late, key=str)[:20]
    assert len(operations) <= 1, sorted(late, key=str)[:20]
    return len(operations)


def pause(place: Place, worker: ForkServerProcess, draw: random.Random) -> tuple[str, str | None] | None:
    """Stop the process at a random moment at which it holds a job; say which, and its run. None when it was done before.

    Not inside a transaction (sqlite lets nobody write then) or the lock under which tables are made: those hold up everybody.
    """
    pid = worker.pid or 0
    time.sleep(draw.uniform(0, 8))
    while worker.is_alive():
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.02)
        held = place.jobs("kind, epoch, run_id", f"status = 'leased' AND worker LIKE '%:{pid}:%' AND kind IN ('trial', 'confirm')")
        if held and is_free(place.home / "mlruns" / ".optuna.lock") and all(map(writable, (place.home / "mlruns").glob("*.db"))):
            kind, epoch, run_id = held[0]
            where = "before its run" if run_id is None else "before an epoch" if epoch is None else "after an epoch"
            return f"{kind}, {where}", run_id
        os.kill(pid, signal.SIGCONT)
        time.sleep(draw.uniform(0.05, 0.5))
    return None


def is_free(lock: Path) -> bool:
    """Whether nobody holds a lock."""
    try:
        FileLock(lock).acquire(timeout=0).lock.release()
    except Timeout:
        return False
    return True


def writable(database: Path) -> bool:
    """Whether no transaction holds the write lock."""
    with closing(sqlite3.connect(database, timeout=0.1, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return False
    return True


def everything(place: Place) -> set[tuple[object, ...]]:
    """Every row that fer_lab, Optuna and MLflow hold, and every file of the store with its size and time."""
    urls = {"optuna": place.optuna, "mlflow": place.mlflow}
    rows = {
        (table, *row)
        for base, tables in TABLES.items()
        for table in tables
        for row in place.query(urls[base], f"SELECT * FROM {table}")
    }
    folders = [place.home / "mlruns" / name for name in ("work", "artifacts", "spool")]
    files = {
        (path, path.stat().st_size, path.stat().st_mtime_ns) for folder in folders for path in folder.rglob("*") if path.is_file()
    }
    return rows | files
