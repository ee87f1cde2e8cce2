"""The lease table: who runs which job, until when, with a fence number.

Optuna suggests and prunes; this table makes counts exact and writers single. Job slots exist before anybody runs them,
so a study of 12 trials has 12 slots however many workers join. A worker claims a slot for `lease_s` seconds and renews
it; a slot whose lease ran out is given to another worker with a higher fence, until MAX_DEATHS. Every write carries the
fence and is refused (LeaseLost) when a successor holds a higher one.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from fer_lab.core.console import note
from fer_lab.core.errors import Conflict
from fer_lab.search.patience import retried

if TYPE_CHECKING:
    from sqlalchemy import MetaData, Table
    from sqlalchemy.engine import Connection, Engine, Row

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])
Kind = Literal["parent", "trial", "confirm", "finish"]
Status = Literal["free", "leased", "complete", "pruned", "failed"]
ENDED: tuple[Status, ...] = ("complete", "pruned", "failed")
MAX_DEATHS = 2
"""A job whose worker died this often without getting further is given up: one retry for each epoch that it reaches."""
PATIENCE = 0.8
"""Part of a lease for which a worker waits for a database that does not answer; then its job may be another's."""
STALLED_S = 1800.0
"""A lease is not renewed for a training loop that made no step for this long: the process lives, the work does not."""


class LeaseLost(Conflict):
    """A worker was silent past its lease and another one holds the job now; nothing was written."""


@dataclass(frozen=True)
class Job:
    """One slot as the table holds it."""

    study: str
    kind: Kind
    number: int
    status: Status
    worker: str | None
    fence: int  # counts the claims; the highest one may write
    deaths: int  # how often a worker died with it and it had not got further since the death before
    expires: float | None  # seconds since the epoch, of the database's clock
    epoch: int | None  # the last finished epoch, 0-based
    trial: int | None  # Optuna's number of the latest attempt
    run_id: str | None  # the MLflow run of the latest attempt
    reason: str | None  # why it was pruned or failed
    payload: Mapping[str, Any]  # what to run
    result: Mapping[str, Any]  # what came out

    @property
    def key(self) -> str:
        """`trial-003`: the name of its run and folder."""
        return f"{self.kind}-{self.number:03d}"


def metadata() -> MetaData:
    """Return the two tables' description."""
    from sqlalchemy import Column, Float, Integer, MetaData, PrimaryKeyConstraint, String, Table, Text

    tables = MetaData()
    Table(
        "fer_studies", tables,
        Column("name", String(128), primary_key=True),
        Column("spec", Text, nullable=False),
        Column("parent_run_id", String(64)),
        Column("tracking", Text),
        Column("created", Float, nullable=False),
        Column("result", Text),
    )  # fmt: skip
    Table(
        "fer_jobs", tables,
        Column("study", String(128), nullable=False),
        Column("kind", String(16), nullable=False),
        Column("number", Integer, nullable=False),
        Column("status", String(16), nullable=False),
        Column("worker", String(128)),
        Column("fence", Integer, nullable=False),
        Column("deaths", Integer, nullable=False),
        Column("expires", Float),
        Column("epoch", Integer),
        Column("trial", Integer),
        Column("run_id", String(64)),
        Column("reason", Text),
        Column("payload", Text, nullable=False),
        Column("result", Text, nullable=False),
        PrimaryKeyConstraint("study", "kind", "number"),
    )  # fmt: skip
    return tables


def create_tables(engine: Engine) -> None:
    """Make the tables that are not there yet; call under a lock."""
    metadata().create_all(engine)


def patiently(ask: Callable[[], T], leases: Leases) -> T:
    """Ask the study's database, again and again while it is locked or away, for PATIENCE of a lease; then its error is raised.

    At once when somebody wants to stop (`Leases.hurried`).
    """
    said = False

    def passes(error: Exception) -> bool:
        nonlocal said
        if not is_break(error) or leases.hurried():
            return False
        if not said:
            note("note: the study's database does not answer; waiting for it")
            said = True
        return True

    return retried(ask, passes, PATIENCE * leases.lease_s, min(1.0, leases.lease_s / 20))


def of_database(error: BaseException) -> BaseException | None:
    """The study's database's own error in an error of ours or of Optuna, None when it is something else."""
    from sqlalchemy.exc import SQLAlchemyError

    if type(error).__name__ == "StorageInternalError" and error.__cause__ is not None:  # Optuna's, around the cause
        error = error.__cause__
    return error if isinstance(error, SQLAlchemyError) else None


def is_break(error: BaseException) -> bool:
    """Whether the database was locked or away for a moment; a full disk or a missing table is no such break."""
    import sqlite3

    from sqlalchemy.exc import InterfaceError, OperationalError

    cause = of_database(error)
    if not isinstance(cause, OperationalError | InterfaceError):
        return False
    return not isinstance(cause.orig, sqlite3.Error) or "locked" in str(cause.orig) or "busy" in str(cause.orig)


def patient(method: Method) -> Method:
    """A question of `Leases`, one transaction each, that is asked again through a short break."""

    @wraps(method)
    def asked(self: Leases, *given: Any, **named: Any) -> Any:
        return patiently(lambda: method(self, *given, **named), self)

    return cast(Method, asked)


class Leases:
    """The jobs of one study."""

    def __init__(self, engine: Engine, study: str, lease_s: float) -> None:
        self._engine = engine
        self.study = study
        self.lease_s = lease_s
        self.hurried: Callable[[], bool] = lambda: False  # whether somebody wants to stop: then nothing is waited for
        tables = metadata().tables
        self._jobs: Table = tables["fer_jobs"]
        self._studies: Table = tables["fer_studies"]

    # -- the study's own row ------------------------------------------------------------------------------------------

    @patient
    def open_study(self, spec: Mapping[str, Any], tracking: str) -> Mapping[str, Any]:
        """Insert the study's row unless it is there; returns the row: spec, parent_run_id, tracking, created, result."""
        from sqlalchemy.exc import IntegrityError

        row = self.study_row()
        if row is None:
            try:
                with self._engine.begin() as connection:
                    connection.execute(
                        self._studies.insert().values(
                            name=self.study, spec=json.dumps(spec, sort_keys=True), tracking=tracking, created=_now(connection)
                        )
                    )
            except IntegrityError:  # another worker was first
                pass
            row = self.study_row()
        assert row is not None
        return row

    @patient
    def study_row(self) -> Mapping[str, Any] | None:
        """Return the study's row, or None."""
        with self._engine.begin() as connection:
            row = connection.execute(self._studies.select().where(self._studies.c.name == self.study)).mappings().first()
        if row is None:
            return None
        return {**row, "spec": json.loads(row["spec"]), "result": json.loads(row["result"]) if row["result"] else None}

    @patient
    def set_study(self, **values: Any) -> None:
        """Write `parent_run_id`, `tracking` or `result` of the study."""
        if values.get("result") is not None:
            values["result"] = json.dumps(values["result"], sort_keys=True)
        with self._engine.begin() as connection:
            connection.execute(self._studies.update().where(self._studies.c.name == self.study).values(**values))

    # -- jobs ---------------------------------------------------------------------------------------------------------

    @patient
    def reserve(self, kind: Kind, payloads: Mapping[int, Mapping[str, Any]]) -> None:
        """Make the slots that are not there yet; slots that exist keep what they hold."""
        from sqlalchemy import select

        table = self._jobs
        with self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":  # two starters must not insert the same slot
                connection.execute(self._studies.select().where(self._studies.c.name == self.study).with_for_update())
            known = set(connection.scalars(select(table.c.number).where(table.c.study == self.study, table.c.kind == kind)))
            rows = [
                {"study": self.study, "kind": kind, "number": number, "status": "free", "fence": 0, "deaths": 0,
                 "payload": json.dumps(payload), "result": "{}"}
                for number, payload in payloads.items() if number not in known
            ]  # fmt: skip
            if rows:
                connection.execute(table.insert(), rows)

    @patient
    def jobs(self, kind: Kind | None = None) -> list[Job]:
        """Return the study's slots by kind and number."""
        table = self._jobs
        query = table.select().where(table.c.study == self.study).order_by(table.c.kind, table.c.number)
        if kind is not None:
            query = query.where(table.c.kind == kind)
        with self._engine.begin() as connection:
            return [_job(row) for row in connection.execute(query)]

    @patient
    def expired(self) -> list[Job]:
        """Return the leased slots whose worker has been silent past its lease."""
        with self._engine.begin() as connection:
            now = _now(connection)
            table = self._jobs
            query = table.select().where(table.c.study == self.study, table.c.status == "leased", table.c.expires < now)
            return [_job(row) for row in connection.execute(query)]

    def claim(self, kind: Kind, worker: str, numbers: Iterable[int] | None = None) -> Job | None:
        """Take the first free slot of this kind, or None. The fence grows with each claim.

        `payload["previous"]` names the run, trial and fence of the attempt before, when there was one.
        """
        token = uuid.uuid4().hex
        return patiently(lambda: self._claim(kind, worker, numbers, token), self)

    def _claim(self, kind: Kind, worker: str, numbers: Iterable[int] | None, token: str) -> Job | None:
        """`token` is of one claim: a slot that holds it was claimed by it before a break swallowed the answer."""
        from sqlalchemy import select

        table = self._jobs
        with self._engine.begin() as connection:
            mine = table.select().where(table.c.study == self.study, table.c.kind == kind, table.c.worker == worker)
            for held in connection.execute(mine.where(table.c.status == "leased")):
                if (taken := _job(held)).payload.get("claim") == token:
                    return taken
            query = select(table).where(table.c.study == self.study, table.c.kind == kind, table.c.status == "free")
            if numbers is not None:
                query = query.where(table.c.number.in_(list(numbers)))
            query = query.order_by(table.c.number).limit(1)
            if connection.dialect.name == "postgresql":
                query = query.with_for_update(skip_locked=True)
            row = connection.execute(query).first()
            if row is None:
                return None
            job = _job(row)
            payload = dict(job.payload)
            if job.run_id is not None or job.trial is not None:  # what the attempt before left behind
                payload["previous"] = {"run_id": job.run_id, "trial": job.trial, "fence": job.payload.get("fence", job.fence)}
            payload |= {"fence": job.fence + 1, "claim": token}
            connection.execute(
                table.update()
                .where(*self._key(job))
                .values(
                    status="leased", worker=worker, fence=job.fence + 1, expires=_now(connection) + self.lease_s,
                    run_id=None, trial=None, payload=json.dumps(payload),
                )
            )  # fmt: skip
            claimed = connection.execute(table.select().where(*self._key(job))).one()
            return _job(claimed)

    def renew_once(self, job: Job, epoch: int | None = None) -> None:
        """Extend the lease. Raises LeaseLost when another worker took the job."""
        values: dict[str, Any] = {} if epoch is None else {"epoch": epoch}
        with self._engine.begin() as connection:
            self._write(connection, job, expires=_now(connection) + self.lease_s, **values)

    renew = patient(renew_once)

    @patient
    def note(self, job: Job, **values: Any) -> None:
        """Write `trial`, `run_id` or `payload` of a held job. Raises LeaseLost."""
        if "payload" in values:
            values["payload"] = json.dumps(values["payload"])
        with self._engine.begin() as connection:
            self._write(connection, job, **values)

    @patient
    def end(self, job: Job, status: Status, *, result: Mapping[str, Any] | None = None, reason: str | None = None) -> None:
        """Close a held job, which only the holder of the newest fence can. Raises LeaseLost."""
        with self._engine.begin() as connection:
            self._write(connection, job, status=status, expires=None, result=json.dumps(result or {}), reason=reason)

    def release(self, job: Job) -> None:
        """Give a held job back: the next claim continues it, and it does not count as a death. Raises LeaseLost."""
        with self._engine.begin() as connection:
            self._write(connection, job, status="free", expires=None)

    @patient
    def bury(self, job: Job) -> Status | None:
        """Free an expired job for its retry, or fail it after MAX_DEATHS. None when somebody else did, or it was renewed."""
        from sqlalchemy import select

        table = self._jobs
        with self._engine.begin() as connection:
            query = select(table).where(*self._key(job), table.c.fence == job.fence, table.c.status == "leased")
            if connection.dialect.name == "postgresql":
                query = query.with_for_update()
            row = connection.execute(query).first()
            if row is None or row.expires >= _now(connection):
                return None
            payload = json.loads(row.payload)
            epoch = -1 if row.epoch is None else int(row.epoch)
            went_on = epoch > payload.get("died_after", epoch)
            deaths = 1 if went_on else int(row.deaths) + 1
            payload["died_after"] = epoch
            # Bookkeeping (parent, finish) is idempotent and quick; only training can be what kills its worker.
            given_up = deaths >= MAX_DEATHS and row.kind in {"trial", "confirm"}
            status: Status = "failed" if given_up else "free"
            connection.execute(
                table.update().where(*self._key(job)).values(
                    status=status, deaths=deaths, expires=None, fence=job.fence + 1, payload=json.dumps(payload),
                    reason=f"its worker died {deaths} times without getting further" if given_up else None,
                )
            )  # fmt: skip
            return status

    def _key(self, job: Job) -> tuple[Any, ...]:
        table = self._jobs
        return (table.c.study == job.study, table.c.kind == job.kind, table.c.number == job.number)

    def _write(self, connection: Connection, job: Job, **values: Any) -> None:
        table = self._jobs
        held = (table.c.fence == job.fence, table.c.status == "leased")
        if connection.execute(table.update().where(*self._key(job), *held).values(**values)).rowcount != 1:
            there = connection.execute(table.select().where(*self._key(job))).first()
            if there is not None and (there.fence, there.status) == (job.fence, values.get("status")):
                return  # our own write of before: its answer was lost in a break
            raise LeaseLost(
                f"{job.key} of {job.study} was taken over by another worker (this one was silent for more than "
                f"{self.lease_s:g} s); nothing was written. Start the sweep again to join it"
            )


class Keeper:
    """Renews a lease from a thread while its work makes steps; `lost` tells that a successor holds the job."""

    def __init__(self, leases: Leases, job: Job) -> None:
        self._leases = leases
        self._job = job
        self._done = threading.Event()
        self._last_step = time.monotonic()
        self._renewed = time.time()  # a moment at which the lease was known to be ours
        self._thread = threading.Thread(target=self._keep, name=f"lease-{job.key}", daemon=True)
        self.lost = False

    def step(self) -> None:
        """Say that the work moves; called at every step of the training loop. Raises LeaseLost once that is known."""
        self._last_step = time.monotonic()
        if self.lost:
            self._renew()

    def check(self, epoch: int | None = None) -> None:
        """Renew now. Raises LeaseLost when the job was taken over."""
        self._last_step = time.monotonic()
        self._renew(epoch)

    def guard(self) -> None:
        """Call before a write that no fence protects. Raises LeaseLost when the job was taken over.

        Asks the database only when nothing was heard from it for a whole lease (the process was paused); else it is free.
        """
        if self.lost or time.time() - self._renewed > self._leases.lease_s:
            self._renew()

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _renew(self, epoch: int | None = None) -> None:
        before = time.time()
        self._leases.renew(self._job, epoch)
        self._renewed = before

    def _keep(self) -> None:
        # Six tries fit into one lease, so a few locked or dropped writes in a row lose nothing.
        while not self._done.wait(self._leases.lease_s / 6):
            if time.monotonic() - self._last_step > max(STALLED_S, 10 * self._leases.lease_s):
                return
            before = time.time()
            try:
                self._leases.renew_once(self._job)
                self._renewed = before
            except LeaseLost:
                self.lost = True
                return
            except Exception as error:
                if not is_break(error):
                    raise


def _now(connection: Connection) -> float:
    """Seconds since the epoch, by the database's clock where hosts share one."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy import text

        return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
    return time.time()


def _job(row: Row[Any]) -> Job:
    fields = dict(row._mapping)
    return Job(**{**fields, "payload": json.loads(fields["payload"]), "result": json.loads(fields["result"])})
