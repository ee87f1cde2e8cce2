"""A study on a PostgreSQL that restarts under it, really: nothing is lost, nobody dies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import postgres
from sqlalchemy import create_engine, text

from fer_lab.core.config import with_values
from fer_lab.core.signals import Stop
from fer_lab.data.faces import FaceDataset
from fer_lab.search.storage import open_storage
from fer_lab.search.study import open_sweep
from fer_lab.search.worker import work
from fer_lab.tracking.store import open_store
from tests.unit.search.test_worker import CONFIG, Formula


@pytest.fixture
def database() -> Iterator[str]:
    with postgres("optuna") as server:
        yield server


def cut(server: str) -> None:
    """Drop every connection to the study's database, idle or not; the server stays up."""
    engine = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'optuna'"))
    engine.dispose()


def paused(server: str, seconds: float) -> None:
    """Let nobody connect for a while, and drop who is; as a restart looks from outside."""
    engine = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("ALTER DATABASE optuna ALLOW_CONNECTIONS false"))
        cut(server)
    engine.dispose()

    def again() -> None:
        back = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
        with back.connect() as connection:
            connection.execute(text("ALTER DATABASE optuna ALLOW_CONNECTIONS true"))
        back.dispose()

    threading.Timer(seconds, again).start()


@pytest.mark.parametrize("how", ["cut", "away"])
def test_a_restart_of_the_database_costs_no_trial(how: str, database: str, home: Path, drawn: FaceDataset) -> None:
    """At every epoch the connections are gone, or once nobody answers for seconds: all trials complete in their first attempt."""
    store = open_store(home)
    storage = open_storage(home, f"{database}/optuna")
    changes = {"name": how, "sweep.trials": 3, "sweep.lease_s": 30, "sweep.pruner.startup_trials": 9}
    sweep = open_sweep(with_values(CONFIG, changes), drawn, home, storage, "local")

    def disturb(key: str, epoch: int) -> None:
        if how == "cut":
            cut(database)
        elif (key, epoch) == ("trial-001", 1):
            paused(database, 4)

    trainers: list[Formula] = []

    def below(parent: str) -> Formula:
        trainers.append(Formula(sweep, store, parent, disturb))
        return trainers[-1]

    result = work(sweep, store, below, Stop())
    assert result["trials"] == {"complete": 3, "pruned": 0, "failed": 0}
    assert {job.deaths for job in sweep.leases.jobs()} == {0}
    assert len(trainers[0].started) == 3 + 6
    storage.close()
