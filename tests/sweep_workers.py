"""Workers of a sweep as real processes that a test may kill, and what they leave in the three places that remember.

A worker is `python -m fer_lab.sweep …` on the three-layer backbone, forked from a server that has imported the libraries:
a killed worker is replaced in a tenth of a second instead of ten, so fifty kills fit into minutes.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

    from fer_lab.data.faces import FaceDataset

SMALL = (
    "name=killed", "data.dataset=synthetic", "data.subset=200", "model.backbone=tiny", "train.batch_size=20", "train.epochs=15",
    "train.image_size=32", "train.device=cpu", "train.threads=1", "train.warmup_epochs=0",
    "sweep.lease_s=6", "sweep.pruner.name=none", "sweep.confirm.top=1", "sweep.confirm.seeds=1",
)  # fmt: skip
JOURNAL = "epochs.txt"

context = get_context("forkserver")
context.set_forkserver_preload(
    ["fer_lab.sweep", "fer_lab.search.worker", "fer_lab.search.trainer", "fer_lab.search.tracked", "fer_lab.search.finish",
     "fer_lab.training.bundle", "fer_lab.training.fit", "fer_lab.tracking.registry", "fer_lab.measure.plots", "matplotlib.pyplot",
     "optuna", "timm", "pandas", "sqlalchemy.dialects.sqlite", "psycopg", "sqlalchemy.dialects.postgresql.psycopg",
     "mlflow", "mlflow.store.tracking.sqlalchemy_store", "tiny_backbone"]
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """One store root with its two databases (SQLAlchemy URLs), and what a worker's environment adds."""

    home: Path
    optuna: str
    mlflow: str
    environment: Mapping[str, str]

    def query(self, url: str, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a query; none while the tables are not there yet."""
        from sqlalchemy import NullPool, create_engine, text
        from sqlalchemy.exc import OperationalError, ProgrammingError

        try:
            with create_engine(url, poolclass=NullPool).connect() as connection:
                return [tuple(row) for row in connection.execute(text(sql))]
        except (OperationalError, ProgrammingError):
            return []

    def jobs(self, columns: str, where: str = "1 = 1") -> list[tuple[Any, ...]]:
        """Columns of the lease table."""
        return self.query(self.optuna, f"SELECT {columns} FROM fer_jobs WHERE {where} ORDER BY kind, number")


def on_sqlite(home: Path) -> Place:
    """Both databases below `home`."""
    files = [f"sqlite:///{home / 'mlruns' / name}" for name in ("optuna.db", "mlflow.db")]
    return Place(home, files[0], files[1], {})


def on_servers(home: Path, postgres: str, tracking: str) -> Place:
    """Team mode: the study in PostgreSQL's `optuna`, the runs behind an MLflow server on its `mlflow`."""
    study, runs = f"{postgres}/optuna", f"{postgres}/mlflow"
    return Place(home, study, runs, {"FER_LAB_STORAGE": study, "MLFLOW_TRACKING_URI": tracking})


def prepare(home: Path, drawn: FaceDataset) -> Path:
    """Put a small dataset below `home` and return a sweep's configuration."""
    rows = np.concatenate([drawn.indices("train")[:200], drawn.indices("valid")[:40]])
    drawn.take(rows).save(home / "data" / "synthetic")
    config = home / "tiny.yaml"
    config.write_text("name: tiny\nspace: {train.lr: {low: 1.0e-4, high: 1.0e-3}}\n", encoding="utf-8")
    return config


def start(place: Place, config: Path, *arguments: str) -> ForkServerProcess:
    """Start a worker; what it says goes to `home/PID.log`."""
    process = context.Process(target=_worker, args=(place, [str(config), *SMALL, *arguments, "--worker"]))
    process.start()
    return process


def said(place: Place, process: ForkServerProcess) -> str:
    """The end of what a worker wrote."""
    log = place.home / f"{process.pid}.log"
    return log.read_text(encoding="utf-8")[-3000:] if log.exists() else ""


def _worker(place: Place, arguments: list[str]) -> None:
    import pytest
    from tiny_backbone import register_tiny

    from fer_lab import sweep
    from fer_lab.training import fit

    log = os.open(place.home / f"{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {"FER_LAB_HOME": str(place.home), **place.environment}
    os.chdir(place.home)
    register_tiny(pytest.MonkeyPatch())
    one_epoch = fit._Training._one_epoch

    def written_down(training: Any, *more: Any) -> Any:
        with (place.home / JOURNAL).open("a") as journal:
            journal.write(f"{training.folder.relative_to(place.home)} {training.epoch}\n")
        return one_epoch(training, *more)

    fit._Training._one_epoch = written_down  # type: ignore[method-assign]  # each epoch is written down as it begins
    sys.exit(sweep.main(arguments))


def epochs_begun_again(place: Place) -> list[int]:
    """For each attempt that followed another at the same job: epochs that it began although the one before had begun them."""
    begun: dict[tuple[str, str], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for line in (place.home / JOURNAL).read_text().splitlines():
        folder, epoch = line.split()
        *_, study, job, fence = folder.split("/")
        begun[study, job][int(fence)].append(int(epoch))
    again = []
    for attempts in begun.values():
        done: set[int] = set()
        for fence in sorted(attempts):
            if done:
                again.append(len(done & set(attempts[fence])))
            done |= set(attempts[fence])
    return again


def faults_of_study(place: Place, study: str, trials: int) -> dict[str, int]:
    """Count what must not be after a study has ended; every value is 0 when all is well."""
    states = Counter(
        state for (state,) in place.query(
            place.optuna,
            f"SELECT t.state FROM trials t JOIN studies s ON s.study_id = t.study_id WHERE s.study_name = '{study}'",
        )
    )  # fmt: skip
    jobs = place.jobs("kind, status", f"study = '{study}'")
    completed = sum(kind == "trial" and status == "complete" for kind, status in jobs)
    tagged = f"SELECT run_uuid FROM tags WHERE key = 'fer.study' AND value = '{study}'"
    runs = place.query(place.mlflow, f"SELECT name, status FROM runs WHERE run_uuid IN ({tagged})")
    finished = Counter(name for name, status in runs if status == "FINISHED")
    confirmed = sum(kind == "confirm" and status == "complete" for kind, status in jobs)
    versions = place.query(
        place.mlflow, f"SELECT version FROM model_version_tags WHERE key = 'study' AND value = '{study}'"
    )  # fmt: skip
    return {
        "trials_lost": trials - completed,
        "trials_complete_twice_in_optuna": states["COMPLETE"] - completed,
        "runs_finished_twice": sum(n - 1 for n in finished.values()),
        "runs_missing": trials + confirmed + 1 - len(finished),
        "versions_missing_or_twice": abs(1 - len(versions)),
        "running_in_optuna": states["RUNNING"],
        "running_in_leases": sum(status in {"leased", "free"} for _, status in jobs),
        "running_in_mlflow": sum(status == "RUNNING" for _, status in runs),
    }
