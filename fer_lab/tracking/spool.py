"""What could not be sent to the tracking server waits here: one JSON line per operation, one file per run.

    home/mlruns/spool/<server>/<run id>.jsonl    operations in order; a torn last line is ignored
    home/mlruns/spool/<server>/<run id>/         copies of the files that an operation uploads

Replaying is idempotent (the store skips metrics that are there already), so that a replay that was cut off is repeated.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fer_lab.core.files import write_whole

Operation = Mapping[str, Any]


class Spool:
    """The waiting operations of one run."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.run_id = run_id
        self._path = folder / f"{run_id}.jsonl"
        self._files = folder / run_id

    @property
    def pending(self) -> bool:
        """Whether anything waits."""
        return self._path.is_file()

    def append(self, operation: Operation) -> None:
        """Append one operation durably; a file that it names is copied, since its owner may delete it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            operation = dict(operation)
            if operation["op"] == "file":
                self._files.mkdir(exist_ok=True)
                copy = self._files / f"{len(list(self._files.iterdir())):04d}"
                copy.mkdir()
                operation["path"] = os.fspath(shutil.copy2(operation["path"], copy / Path(operation["path"]).name))
            with self._path.open("a+b") as file:
                _drop_torn_line(file)
                file.write(json.dumps(operation).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

    def operations(self) -> list[Operation]:
        """The waiting operations in order, without a torn last line."""
        if not self.pending:
            return []
        whole, _, _ = self._path.read_text(encoding="utf-8").rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def replay(self, apply: Callable[[Operation], None]) -> int:
        """Apply all waiting operations in order and forget them; others may be appended meanwhile, and are applied too.

        Returns how many; what `apply` raises passes through, and the operation that raised is the first of the next replay.
        """
        total = 0
        with self._lock("replay"):  # one sender; appending does not wait for it
            while operations := self.operations():
                done = 0
                try:
                    for operation in operations:
                        apply(operation)
                        done += 1
                finally:
                    self._forget(done)
                    total += done
        return total

    def _forget(self, done: int) -> None:
        with self._lock():
            rest = self.operations()[done:]
            if rest:
                write_whole(self._path, "".join(json.dumps(line) + "\n" for line in rest))
            else:
                self._path.unlink(missing_ok=True)
                shutil.rmtree(self._files, ignore_errors=True)

    def _lock(self, what: str = "lock") -> Any:
        from filelock import FileLock

        return FileLock(self._path.with_suffix(f".{what}"))


def _drop_torn_line(file: BinaryIO) -> None:
    """Cut off the line that a process was writing when it was killed; `file` is open for reading and appending."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def waiting(folder: Path) -> list[Spool]:
    """The spools below `folder` that hold anything."""
    return [Spool(folder, path.stem) for path in sorted(folder.glob("*.jsonl"))]
