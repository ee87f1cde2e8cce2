"""Where exported bundles live: `OUT/<digest>/` and a one-line pointer file, so that a failed export changes nothing.

A bundle is built in a folder beside its place and renamed into it; then `OUT/CURRENT` is replaced atomically.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from fer_lab.backends.bundle import open_bundle
from fer_lab.core.errors import FerLabError, InputError, NotFound
from fer_lab.core.files import write_whole

POINTER = "CURRENT"  # one line: the folder of the newest bundle beside it
_STALE_S = 24 * 3600.0  # a building folder older than this was left by a killed export


@contextlib.contextmanager
def building(out: Path) -> Iterator[Path]:
    """A private folder in `out`, on the same disk as the result; removed at the end, whatever happens."""
    out.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    folder = out / f".building-{os.getpid()}-{time.time_ns()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def current(out: Path) -> Path:
    """Return the bundle folder that `out/CURRENT` names. Raises NotFound, or InputError when the pointer is not one name."""
    pointer = out / POINTER
    if not pointer.is_file():
        raise NotFound(f"{out} holds no exported bundle (no {POINTER}). Run: python -m fer_lab.export")
    name = pointer.read_text(encoding="utf-8").strip()
    if not name or Path(name).name != name or not (out / name).is_dir():
        raise InputError(f"{pointer} names {name!r}, which is no folder beside it. Export again")
    return out / name


def publish(stage: Path, out: Path, digest: str) -> Path:
    """Move a finished bundle to `out/<digest>` and point `out/CURRENT` at it. Returns its folder."""
    folder = out / digest[:16]
    if folder.is_dir():  # exported before, byte for byte; a damaged one is replaced
        try:
            same = open_bundle(folder).digest == digest
        except FerLabError:
            same = False
        if not same:
            shutil.rmtree(folder)
            stage.replace(folder)
    else:
        stage.replace(folder)
    write_whole(out / POINTER, f"{folder.name}\n")
    return folder


def _sweep(out: Path) -> None:
    """Remove what killed exports left a day ago or earlier."""
    for left in out.glob(".building-*"):
        if time.time() - left.stat().st_mtime > _STALE_S:
            shutil.rmtree(left, ignore_errors=True)
