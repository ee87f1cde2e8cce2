"""Files that a reader never meets half-written: staged beside their place, flushed to the disk, renamed over it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that takes the place of `path` when the block ends; after an error `path` is what it was.

    Raises OSError, of a full disk for one.
    """
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")  # containers that share a disk have the same process ids
    try:
        with staged.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    if os.name == "posix":  # a rename is durable once its folder is flushed; Windows has no such call, nor have some network disks
        with suppress(OSError):
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write text (UTF-8, its line ends as they are) or bytes so that a reader sees the old content or the new one, never a part."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path


def is_staged(path: Path) -> bool:
    """Whether this is what a process that was killed in the midst of writing left behind."""
    return path.name.startswith(".") and path.name.endswith(".tmp")
