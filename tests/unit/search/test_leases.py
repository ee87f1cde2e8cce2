"""The lease table: exact counts, single writers, one retry."""

from __future__ import annotations

import multiprocessing
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from fer_lab.core.errors import InputError
from fer_lab.search.leases import Keeper, LeaseLost, Leases
from fer_lab.search.storage import StudyStorage, has_password, open_storage, shown, storage_url


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StudyStorage]:
    monkeypatch.delenv("FER_LAB_STORAGE", raising=False)
    opened = open_storage(tmp_path)
    yield opened
    opened.close()


def table(storage: StudyStorage, lease_s: float = 60.0) -> Leases:
    leases = Leases(storage.engine, "s", lease_s)
    leases.open_study({"a": 1}, "here")
    return leases


def test_a_slot_is_claimed_once_and_in_order(storage: StudyStorage) -> None:
    """Two claims give two slots; a third finds none."""
    leases = table(storage)
    leases.reserve("trial", {0: {"x": 1}, 1: {}})
    leases.reserve("trial", {0: {"x": 2}, 1: {}})
    first, second = leases.claim("trial", "a"), leases.claim("trial", "b")
    assert first is not None
    assert second is not None
    assert (first.number, first.fence, second.number) == (0, 1, 1)
    assert first.payload == {"x": 1, "fence": 1, "claim": first.payload["claim"]}
    assert first.key == "trial-000"
    assert leases.claim("trial", "c") is None
    assert leases.claim("confirm", "c") is None


def test_what_was_written_in_a_break_is_known_when_it_is_asked_again(
    storage: StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a commit is lost: no second slot is taken, and the end of a job is no other worker's."""
    leases = table(storage, lease_s=3)
    leases.reserve("trial", {0: {}, 1: {}})
    lost: list[str] = []
    real = Engine.begin

    @contextmanager
    def swallowed(engine: Engine) -> Iterator[Any]:
        with real(engine) as connection:
            yield connection
        if len(lost) < 1:
            lost.append("the answer")
            raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

    monkeypatch.setattr(Engine, "begin", swallowed)
    job = leases.claim("trial", "a")
    assert job is not None
    assert (job.number, job.fence) == (0, 1)
    assert [one.status for one in leases.jobs("trial")] == ["leased", "free"]
    lost.clear()
    leases.end(job, "complete", result={"x": 1})
    assert [one.status for one in leases.jobs("trial")] == ["complete", "free"]
    with pytest.raises(LeaseLost):
        leases.end(job, "failed")


def test_a_paused_worker_cannot_write_over_its_successor(storage: StudyStorage) -> None:
    """Every write of a stale fence raises LeaseLost and changes nothing."""
    leases = table(storage, lease_s=0.01)
    leases.reserve("trial", {0: {}})
    stale = leases.claim("trial", "a")
    assert stale is not None
    time.sleep(0.05)
    [expired] = leases.expired()
    assert leases.bury(expired) == "free"
    assert leases.bury(expired) is None
    current = leases.claim("trial", "b")
    assert current is not None
    assert current.fence > stale.fence
    for write in (
        lambda: leases.renew(stale, 3),
        lambda: leases.note(stale, run_id="r"),
        lambda: leases.end(stale, "complete", result={"v": 1}),
        lambda: leases.release(stale),
    ):
        with pytest.raises(LeaseLost):
            write()
    leases.end(current, "complete", result={"v": 2})
    [job] = leases.jobs("trial")
    assert (job.status, job.result, job.run_id, job.deaths) == ("complete", {"v": 2}, None, 1)
    with pytest.raises(LeaseLost):
        leases.end(current, "failed")


def test_a_job_is_retried_once_after_a_death_and_freely_after_a_release(storage: StudyStorage) -> None:
    """Preemption does not use up the retry; the second death does."""
    leases = table(storage, lease_s=0.01)
    leases.reserve("trial", {0: {}})
    for _ in range(3):
        job = leases.claim("trial", "a")
        assert job is not None
        leases.release(job)
    for expected in ("free", "failed"):
        assert leases.claim("trial", "a") is not None
        time.sleep(0.05)
        assert [leases.bury(job) for job in leases.expired()] == [expected]
    assert leases.claim("trial", "a") is None
    assert leases.jobs("trial")[0].reason == "its worker died 2 times without getting further"


def test_a_death_after_a_finished_epoch_counts_anew(storage: StudyStorage) -> None:
    """A laptop may be closed as often as there are epochs; twice within one is what its own work may do."""
    leases = table(storage, lease_s=0.05)
    leases.reserve("trial", {0: {}})
    for epoch, expected in ((None, "free"), (0, "free"), (3, "free"), (3, "failed")):
        job = leases.claim("trial", "a")
        assert job is not None
        if epoch is not None:
            leases.renew(job, epoch)
        time.sleep(0.1)
        assert [leases.bury(job) for job in leases.expired()] == [expected]


def test_a_renewed_lease_is_not_buried(storage: StudyStorage) -> None:
    """A lease that was seen expired but renewed meanwhile stays with its worker."""
    leases = table(storage, lease_s=0.05)
    leases.reserve("trial", {0: {}})
    job = leases.claim("trial", "a")
    assert job is not None
    time.sleep(0.1)
    [expired] = leases.expired()
    leases.lease_s = 60
    leases.renew(job, epoch=4)
    assert leases.bury(expired) is None
    assert leases.jobs("trial")[0].epoch == 4


def test_the_keeper_renews_while_the_work_goes_on_and_tells_when_it_is_lost(storage: StudyStorage) -> None:
    """A lease of two seconds outlives three of work, and a successor is noticed."""
    leases = table(storage, lease_s=2)
    leases.reserve("trial", {0: {}})
    job = leases.claim("trial", "a")
    assert job is not None
    with Keeper(leases, job) as keeper:
        time.sleep(3)
        assert leases.expired() == []
        keeper.check(epoch=1)
        leases.release(job)
        until = time.monotonic() + 30
        while not keeper.lost and time.monotonic() < until:
            time.sleep(0.02)
        assert keeper.lost
        with pytest.raises(LeaseLost):
            keeper.check(epoch=2)


def test_the_study_row_is_written_once(storage: StudyStorage) -> None:
    """A second opening returns what the first wrote."""
    leases = table(storage)
    leases.set_study(parent_run_id="p", result={"study": "s"})
    row = Leases(storage.engine, "s", 9).open_study({"b": 2}, "there")
    assert (row["spec"], row["tracking"], row["parent_run_id"], row["result"]) == ({"a": 1}, "here", "p", {"study": "s"})
    assert Leases(storage.engine, "other", 9).study_row() is None


def _claim_all(home: str, start: multiprocessing.synchronize.Barrier, found: multiprocessing.Queue[int]) -> None:
    start.wait()
    storage = open_storage(Path(home))
    leases = Leases(storage.engine, "s", 60.0)
    leases.open_study({}, "here")
    leases.reserve("trial", {n: {} for n in range(60)})
    while (job := leases.claim("trial", str(multiprocessing.current_process().pid))) is not None:
        found.put(job.number)
        leases.end(job, "complete")
    storage.close()
    found.put(-1)


def test_processes_that_start_on_an_empty_database_hand_each_slot_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes, a barrier, sixty slots: every slot exactly once, no lock error."""
    monkeypatch.delenv("FER_LAB_STORAGE", raising=False)
    context = multiprocessing.get_context("spawn")
    start, found = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_claim_all, args=(str(tmp_path), start, found)) for _ in range(3)]
    for process in processes:
        process.start()
    numbers: list[int] = []
    while numbers.count(-1) < 3:
        numbers.append(found.get(timeout=60))
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(n for n in numbers if n >= 0) == list(range(60))


def test_mlflows_database_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    """Both own a table alembic_version: a study in there would break one of the two."""
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE experiments (experiment_id INTEGER)")
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
    before = path.read_bytes()
    with pytest.raises(InputError, match="is MLflow's database; the study needs one of its own"):
        open_storage(tmp_path, f"sqlite:///{path.as_posix()}")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.glob("mlflow*")] == ["mlflow.db"]


@pytest.mark.parametrize(
    ("mlflow", "study"),
    [
        ("sqlite:///shared.db", "sqlite:///shared.db"),
        ("postgresql://ann@db/shared", "postgresql+psycopg://bob:secret@db/shared"),
    ],
)
def test_a_database_that_mlflow_is_to_use_is_refused_while_it_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow: str, study: str
) -> None:
    """Nothing in it tells yet whose it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
    with pytest.raises(InputError, match="is MLflow's database"):
        open_storage(tmp_path, study)
    assert not list(tmp_path.glob("shared*"))


def test_tables_of_another_optuna_are_told(tmp_path: Path) -> None:
    """Optuna's own words, on one line, as bad input."""
    opened = open_storage(tmp_path)
    with opened.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('v9.9.9.a')")
    with pytest.raises(InputError, match=r"^the study storage sqlite:///"):
        opened.optuna()
    opened.close()


def test_the_storage_url_is_checked_and_shown_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A foreign scheme, an unreachable server and a password each get their treatment."""
    monkeypatch.delenv("FER_LAB_STORAGE", raising=False)
    assert storage_url(tmp_path) == f"sqlite:///{(tmp_path / 'mlruns/optuna.db').as_posix()}"
    monkeypatch.setenv("FER_LAB_STORAGE", "postgresql://u:secret@127.0.0.1:1/d")
    url = storage_url(tmp_path)
    assert url.startswith("postgresql+psycopg://")
    assert has_password(url)
    assert "secret" not in shown(url)
    with pytest.raises(InputError, match="cannot open the study storage") as caught:
        open_storage(tmp_path)
    assert "secret" not in str(caught.value)
    for unquoted in ("postgresql://u:sec/ret@127.0.0.1:1/d", "postgresql://u:ret@sec@127.0.0.1:1/d", "sec:ret"):
        monkeypatch.setenv("FER_LAB_STORAGE", unquoted)
        with pytest.raises(InputError) as caught:
            open_storage(tmp_path)
        assert "sec" not in str(caught.value)
    queried = "postgresql+psycopg://u@127.0.0.1:1/d?password=secret&sslmode=require"
    assert has_password(queried)
    assert not has_password("postgresql+psycopg://u@127.0.0.1:1/d?sslmode=require")
    assert shown(queried) == queried.replace("secret", "***")
    monkeypatch.setenv("FER_LAB_STORAGE", "mysql://x/y")
    with pytest.raises(InputError, match="sqlite"):
        storage_url(tmp_path)
