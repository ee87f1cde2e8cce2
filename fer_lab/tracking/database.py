"""The sqlite file of a local store, made at most once however many processes start together."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from fer_lab.core.console import note
from fer_lab.core.errors import InputError
from fer_lab.tracking.address import sqlite_uri
from fer_lab.tracking.importing import importing


def initialise(database: Path) -> None:
    """Create the database once: built beside its place under a lock, then renamed, so that a kill leaves nothing half-built."""
    from filelock import FileLock

    if _has_tables(database):
        return
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(database.with_name(f".{database.name}.lock")):
            if not _has_tables(database):
                _build(database)
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"cannot create the store {database}: {error}. Set FER_LAB_HOME to a folder that can be written") from None


def _build(database: Path) -> None:
    with importing("a local store"):
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    note(f"note: creating the store {database}")
    temporary = database.with_name(f".{database.name}.new")
    temporary.unlink(missing_ok=True)
    artifacts = database.parent / "artifacts"
    artifacts.mkdir(exist_ok=True)
    store = SqlAlchemyStore(sqlite_uri(temporary), artifacts.as_uri())
    store.engine.dispose()
    connection = sqlite3.connect(temporary)
    try:
        connection.execute("PRAGMA journal_mode=WAL")  # stays in the file: readers do not wait for the writer
    finally:
        connection.close()
    temporary.replace(database)


def _has_tables(database: Path) -> bool:
    """Whether the file is a database of MLflow. Raises InputError when it is something else."""
    if not database.is_file() or database.stat().st_size == 0:
        return False
    try:
        connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=30)
        try:
            found = connection.execute("SELECT name FROM sqlite_master WHERE name IN ('alembic_version', 'experiments')").fetchall()
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise InputError(f"{database} is not an MLflow store ({error}). Move it away, or set FER_LAB_HOME") from None
    if not found:
        return False
    if len(found) != 2:
        raise InputError(f"{database} is a database, but not MLflow's. MLflow and Optuna need a file each")
    return True
