"""kill -9 of workers at random moments: every study completes, nothing is lost, run twice or left RUNNING."""

from __future__ import annotations

import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fault_figures import count, publish
from postgres_server import postgres
from sweep_workers import Place, epochs_begun_again, faults_of_study, on_servers, on_sqlite, prepare, said, start
from tracking_store import free_port, mlflow_server

from fer_lab.core.errors import Conflict
from fer_lab.data.faces import FaceDataset

pytestmark = [pytest.mark.faults, pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")]

TRIALS = 8
KILLS_PER_STUDY = 13
STUDY_S = 600.0


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_studies_survive_random_kills(home: Path, drawn: FaceDataset, database: str) -> None:
    """Two to four workers per study, killed wherever they stand; a killed worker is replaced by a new one."""
    config, kills = prepare(home, drawn), count(3, 50)
    if database == "sqlite":
        survive(on_sqlite(home), config, kills, database)
        return
    with postgres("optuna", "mlflow") as server, mlflow_server(home, port := free_port(), f"{server}/mlflow"):
        survive(on_servers(home, server, f"http://127.0.0.1:{port}"), config, kills, database)


def survive(place: Place, config: Path, kills: int, database: str) -> None:
    """Run studies until `kills` workers were killed; check and publish the figures after each."""
    draw = random.Random(7)
    struck: list[str] = []
    found: Counter[str] = Counter()
    studies = late = 0
    began = time.monotonic()
    while len(struck) < kills:
        study = f"study-{studies}"
        hits, fenced = sweep_under_fire(place, config, study, draw, min(KILLS_PER_STUDY, kills - len(struck)))
        struck, late, studies = struck + hits, late + fenced, studies + 1
        found.update(faults_of_study(place, study, TRIALS))
        assert not +found, dict(found)
        again = epochs_begun_again(place)
        assert max(again, default=0) <= 1
        publish(
            f"random_kills_{database}",
            kills=len(struck), where=dict(Counter(struck)), studies=studies, studies_completed=studies, trials=studies * TRIALS,
            **found, attempts_that_trained_on=len(again), epochs_repeated_max=max(again, default=0),
            epochs_repeated_mean=round(statistics.fmean(again or [0]), 3), leases_lost_unkilled=late,
            wall_s=round(time.monotonic() - began),
        )  # fmt: skip


def sweep_under_fire(place: Place, config: Path, study: str, draw: random.Random, kills: int) -> tuple[list[str], int]:
    """Run one study and kill up to `kills` of its workers.

    Returns what each was doing, and how many workers lost a lease unkilled (a host too busy to renew it in time).

    A job whose worker died is spared a second time: by design two deaths within an epoch give it up (`leases.MAX_DEATHS`).
    """
    arguments = (f"sweep.trials={TRIALS}", "--study", study)
    workers = [start(place, config, *arguments) for _ in range(draw.randint(2, 4))]
    struck: list[str] = []
    late = 0
    until = time.monotonic() + STUDY_S
    while any(worker.exitcode != 0 for worker in workers):
        in_order = time.monotonic() < until and {worker.exitcode for worker in workers} <= {None, 0, Conflict.exit_code}
        assert in_order, [(worker.exitcode, said(place, worker)) for worker in workers]
        time.sleep(draw.uniform(0.5, 5))
        victim = draw.choice(workers)
        spare_idle = draw.random() < 0.8  # most of a short study's workers are starting; the work is to be struck
        if len(struck) < kills and victim.is_alive() and (doing := kill(place, study, victim.pid or 0, spare_idle)):
            victim.join()
            struck.append(doing)
        for gone in [worker for worker in workers if worker.exitcode in (-signal.SIGKILL, Conflict.exit_code)]:
            late += gone.exitcode == Conflict.exit_code
            workers.remove(gone)
            workers.append(start(place, config, *arguments))
    return struck, late


def kill(place: Place, study: str, pid: int, spare_idle: bool) -> str | None:
    """Kill a worker and say what it was doing; None when it is spared."""
    os.kill(pid, signal.SIGSTOP)  # so that it takes no other job between the look and the kill
    time.sleep(0.02)
    held = place.jobs("kind, epoch, deaths, run_id", f"study = '{study}' AND status = 'leased' AND worker LIKE '%:{pid}:%'")
    if any(deaths for _, _, deaths, _ in held) or (not held and spare_idle):
        os.kill(pid, signal.SIGCONT)
        return None
    os.kill(pid, signal.SIGKILL)
    if not held:
        return "no job held"
    kind, epoch, _, run_id = held[0]
    where = "before its run" if run_id is None else "before its first epoch" if epoch is None else "after an epoch"
    return f"{kind}, {where}" if kind in {"trial", "confirm"} else str(kind)
