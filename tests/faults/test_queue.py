"""Eight workers on one queue of trials: each is handed out once, and no database refuses anybody."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fault_figures import count, publish
from postgres_server import postgres
from sweep_workers import context

from fer_lab.core.config import SweepConfig
from fer_lab.core.signals import Stop
from fer_lab.data.faces import FaceDataset
from fer_lab.search.storage import open_storage
from fer_lab.search.study import open_sweep, optuna_study
from fer_lab.search.trial import Trained, run_trial

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

pytestmark = [pytest.mark.faults, pytest.mark.skipif(sys.platform == "win32", reason="a forkserver is POSIX")]

WORKERS = 8


def config(trials: int) -> SweepConfig:
    """A study of one float; half of its trials are random, the others TPE's."""
    space = {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}}
    sweep = {"study": "queue", "trials": trials, "pruner": {"name": "none"}}
    return SweepConfig.model_validate({"data": {"dataset": "synthetic"}, "space": space, "sweep": sweep})


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_each_queued_trial_is_run_once(tmp_path: Path, drawn: FaceDataset, database: str) -> None:
    """Claimed, asked, told and closed as in a sweep; the training is a return statement."""
    trials, rounds = count(40, 200), count(1, 3)
    faces = drawn.take(drawn.indices("valid")[:2])
    took = []
    for number in range(rounds):
        home = tmp_path / str(number)
        home.mkdir()
        with postgres("optuna") if database == "postgresql" else nullcontext() as server:
            url = f"{server}/optuna" if server else f"sqlite:///{home / 'optuna.db'}"
            barrier = context.Barrier(WORKERS)
            workers = [context.Process(target=work, args=(home, url, faces, trials, barrier)) for _ in range(WORKERS)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join(300)
            assert [worker.exitcode for worker in workers] == [0] * WORKERS
            took.append(max(float(line) for line in (home / "seconds").read_text().split()))
            check(home, url, faces, trials)
    rates = {"trials_per_min": [round(trials / seconds * 60) for seconds in took]}
    publish(
        f"queue_{database}", workers=WORKERS, trials=trials, rounds=rounds, handed_out_twice=0, not_run=0, lock_errors=0, **rates
    )


def work(home: Path, url: str, faces: FaceDataset, trials: int, barrier: Barrier) -> None:
    """One worker: everything from an empty database on, at the same moment as the others."""
    from sqlalchemy import Engine, event

    @event.listens_for(Engine, "handle_error")
    def _(error: Any) -> None:  # also those that a retry would hide; a row that is there already is Optuna's way to ask
        if any(kind.__name__ == "OperationalError" for kind in type(error.original_exception).__mro__):
            write(home / "lock-errors", str(error.original_exception))

    def train(*_: Any, name: str, **__: Any) -> Trained:
        write(home / "run", name)
        return Trained("none", {"val/accuracy": 0.5}, {})

    barrier.wait()
    began = time.monotonic()
    storage = open_storage(home, url)
    sweep = open_sweep(config(trials), faces, home, storage, "local")
    while (job := sweep.leases.claim("trial", f"here:{os.getpid()}:0")) is not None:
        run_trial(sweep, job, train, Stop(), lambda *_: None)
    storage.close()
    write(home / "seconds", str(time.monotonic() - began))


def write(path: Path, line: str) -> None:
    """Append a line; short writes of several processes do not mix."""
    with path.open("a") as file:
        file.write(line.replace("\n", " ") + "\n")


def check(home: Path, url: str, faces: FaceDataset, trials: int) -> None:
    """Each slot was trained once, claimed once, and is one trial of Optuna's."""
    errors = home / "lock-errors"
    assert not errors.exists(), errors.read_text()[:2000]
    assert Counter((home / "run").read_text().split()) == Counter(f"trial-{number:03d}" for number in range(trials))
    storage = open_storage(home, url)
    sweep = open_sweep(config(trials), faces, home, storage, "local")
    assert {(job.status, job.fence, job.deaths) for job in sweep.leases.jobs("trial")} == {("complete", 1, 0)}
    assert {job.trial for job in sweep.leases.jobs("trial")} == set(range(trials))
    assert Counter(trial.state.name for trial in optuna_study(sweep, 0).get_trials()) == {"COMPLETE": trials}
    storage.close()
