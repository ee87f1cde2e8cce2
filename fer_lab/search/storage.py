"""Where a study lives: one database for Optuna's tables and the lease table, sqlite on one machine, PostgreSQL for many.

Optuna hands one queued trial to several workers on sqlite, because its driver does not BEGIN before a SELECT
(python/cpython#54133); BEGIN IMMEDIATE with write-ahead logging ends that. MLflow keeps another database: both own a
table `alembic_version`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fer_lab.core.errors import InputError, MissingPart
from fer_lab.search.patience import retried
from fer_lab.tracking.address import SECRETS, redact, sqlite_uri, store_uri

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import Engine

T = TypeVar("T")
VARIABLE = "FER_LAB_STORAGE"
BUSY_TIMEOUT_S = 30
CONNECT_S = 5.0  # what has a lease to lose waits longer, see leases.patiently
INIT_LOCK_KEY = 0x6665725F6C6162  # "fer_lab" in ASCII: the advisory lock under which PostgreSQL tables are made


def storage_url(home: Path) -> str:
    """Return FER_LAB_STORAGE, or the sqlite file below `home`, as a SQLAlchemy URL with an explicit driver.

    Raises InputError for a URL that is neither sqlite nor PostgreSQL.
    """
    text = os.environ.get(VARIABLE) or sqlite_uri(home / "mlruns" / "optuna.db")
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.split("+")[0] not in {"sqlite", "postgresql", "postgres"}:
        got = f"scheme {scheme!r}" if separator else "no scheme"  # what stands before a missing :// may be a password
        raise InputError(f"{VARIABLE}: expected sqlite:///FILE or postgresql://USER@HOST/DATABASE, got {got}")
    if scheme in {"postgres", "postgresql"}:  # a bare name means psycopg2 in SQLAlchemy 2.0 and psycopg 3 in 2.1
        return f"postgresql+psycopg://{rest}"
    return text


def shown(url: str) -> str:
    """Return the URL without its password. Raises InputError when it is none."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parts = make_url(url)
    except (ArgumentError, ValueError):  # their text may quote a part of the password
        parts = None
    if parts is None or "@" in (parts.host or ""):
        raise InputError(f"{VARIABLE}: not a database URL; in a password, write %2F for / and %40 for @")
    return redact(parts.render_as_string(hide_password=True))  # a password may stand in the query too


def has_password(url: str) -> bool:
    """Whether the URL carries a password, which has no place on a command line."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parts = make_url(url)
        return parts.password is not None or not SECRETS.isdisjoint(parts.query)
    except (ArgumentError, ValueError):
        return False


class StudyStorage:
    """An open database: `engine` for the lease table, `optuna()` for Optuna's part (imported on first use)."""

    def __init__(self, url: str, engine: Engine, lock: Path) -> None:
        self.url = url
        self.engine = engine
        self._lock = lock
        self._optuna: RDBStorage | None = None

    @property
    def shown_url(self) -> str:
        """The URL without its password."""
        return shown(self.url)

    def optuna(self) -> RDBStorage:
        """Return Optuna's storage on the same database; its tables are made under a lock, once."""
        if self._optuna is None:
            from optuna.storages import RDBStorage

            # Optuna stamps its schema last. Later starters take no lock: a worker that is paused in it would hold them all up.
            made = _have_rows(self.engine, "alembic_version")
            with nullcontext() if made else initialising(self.engine, self._lock), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # Optuna puts the URL through str.format, so braces of a password must not stand in it.
                url = self.url.replace("{", "%7B").replace("}", "%7D")
                try:
                    storage = RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
                    connect_patiently(storage.engine)
                except RuntimeError as error:  # the tables are of another version of Optuna
                    raise InputError(f"the study storage {self.shown_url}: {' '.join(str(error).split())}") from None
            if storage.engine.dialect.name == "sqlite":
                storage.engine.dispose()
                write_immediately(storage.engine)
            self._optuna = storage
        return self._optuna

    def close(self) -> None:
        """Close every connection."""
        if self._optuna is not None:
            self._optuna.remove_session()
            self._optuna.engine.dispose()
        self.engine.dispose()


def open_storage(home: Path, url: str | None = None) -> StudyStorage:
    """Open (and make, once) the study database. Raises InputError when it cannot be reached or written."""
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.exc import SQLAlchemyError

    from fer_lab.search.leases import create_tables, metadata

    url = url or storage_url(home)
    lock = home / "mlruns" / ".optuna.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    where = shown(url)
    try:
        engine = create_engine(url, pool_pre_ping=True)  # a restarted server has dropped the idle connections
    except ModuleNotFoundError as error:
        raise MissingPart(error.name or "a database driver", "lab", f"the study storage {where}") from None
    except SQLAlchemyError as error:
        raise InputError(f"{VARIABLE}: {where} cannot be used: {error}") from None
    try:
        if _place(url) == _place(store_uri(home)) or _while_locked(lambda: inspect(engine).has_table("experiments")):
            raise InputError(f"{VARIABLE}: {where} is MLflow's database; the study needs one of its own")
        engine.dispose()  # that look wrote nothing; from here on a connection turns write-ahead logging on
        if engine.dialect.name == "sqlite":
            write_immediately(engine)
        if not _while_locked(lambda: all(inspect(engine).has_table(name) for name in metadata().tables)):
            with initialising(engine, lock):
                _while_locked(lambda: create_tables(engine))
    except InputError:
        engine.dispose()
        raise
    except SQLAlchemyError as error:
        engine.dispose()
        reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
        raise InputError(
            f"cannot open the study storage {shown(url)}: {reason}. Check {VARIABLE} and that it is writable"
        ) from None
    connect_patiently(engine)  # from here on: one that is not there at the start is said at once
    return StudyStorage(url, engine, lock)


def _while_locked(ask: Callable[[], T]) -> T:
    """Ask a file that another process makes at this moment: what turns write-ahead logging on waits for nobody by itself."""
    from sqlalchemy.exc import OperationalError

    def passes(error: Exception) -> bool:
        return isinstance(error, OperationalError) and "locked" in str(error.orig)

    return retried(ask, passes, BUSY_TIMEOUT_S, 0.2)


def connect_patiently(engine: Engine) -> None:
    """Let every new connection to a server wait for a short break of it, a restart say, before it is an error.

    An idle connection that the break has cut is found out by the pool (`pool_pre_ping`) and made anew, here.
    """
    from sqlalchemy import event

    if engine.dialect.name == "sqlite":  # a file waits by itself, see write_immediately
        return

    @event.listens_for(engine, "do_connect")
    def _connect(dialect: Any, _: object, given: Any, named: Any) -> Any:
        away = dialect.loaded_dbapi.OperationalError
        return retried(lambda: dialect.connect(*given, **named), lambda error: isinstance(error, away), CONNECT_S, 0.5)


@contextmanager
def initialising(engine: Engine, lock: Path) -> Iterator[None]:
    """Hold the lock under which tables are made: a file lock, and an advisory lock for hosts that share PostgreSQL."""
    from filelock import FileLock
    from sqlalchemy import text

    with FileLock(str(lock)):
        if engine.dialect.name != "postgresql":
            yield
            return
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": INIT_LOCK_KEY})
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": INIT_LOCK_KEY})


def _place(url: str) -> tuple[object, ...]:
    """What names a database: its kind, server and name, whoever asks for it."""
    from sqlalchemy.engine import make_url

    if url.startswith(("http://", "https://")):
        return (url,)
    parts = make_url(url)
    name = Path(parts.database or "").absolute() if parts.get_backend_name() == "sqlite" else parts.database
    return parts.get_backend_name(), parts.host, parts.port or 5432, name


def _have_rows(engine: Engine, table: str) -> bool:
    """Whether the table is there and not empty."""
    from sqlalchemy import inspect, text

    if not inspect(engine).has_table(table):
        return False
    with engine.begin() as connection:
        return connection.execute(text(f"SELECT 1 FROM {table}")).first() is not None


def write_immediately(engine: Engine) -> None:
    """Make every transaction of a sqlite engine take the write lock at its start, and wait for it."""
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # SQLAlchemy's begin event issues BEGIN, not the driver
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_S * 1000}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
