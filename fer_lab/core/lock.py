"""One process at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fer_lab.core.errors import Conflict

LOCK = ".lock"


@contextmanager
def held(folder: Path, busy: str) -> Iterator[None]:
    """Make `folder` and keep other processes out of it meanwhile; a process that dies lets go.

    Raises Conflict with the sentence `busy` when one is at work there. A folder that is left empty is removed.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Conflict(busy) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps an open file; a folder that holds anything stays
            (folder / LOCK).unlink()
            folder.rmdir()
        lock.release()
