"""A checkpoint is whole after a kill, on a full disk and with a flipped bit: the old one or the new one, never a mixture."""

from __future__ import annotations

import errno
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from fault_figures import count, publish

from fer_lab.core.errors import FerLabError
from fer_lab.training import checkpoint
from fer_lab.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills and limits are POSIX")

context = get_context("forkserver")
PAGE = 4096  # bytes: what a tmpfs gives out at a time


def make(epoch: int, numbers: int = 2000) -> Checkpoint:
    """A checkpoint whose content tells its epoch."""
    return Checkpoint(epoch, {"history": [{"epoch": epoch - 1.0, "lr": 1e-5}]}, {"w": torch.full((numbers,), float(epoch))})


def loaded_epoch(folder: Path) -> int:
    """The epoch of the checkpoint in `folder`, whose content must be that epoch's."""
    found = checkpoint.load(folder)
    assert found is not None
    wanted = make(found.epoch, len(found.tensors["w"]))
    assert found.state == wanted.state
    assert torch.equal(found.tensors["w"], wanted.tensors["w"])
    return found.epoch


def save_on_and_on(folder: Path, first: int, told: Connection) -> None:
    """Write one checkpoint after the other and tell each that is done."""
    for epoch in range(first, first + 10_000):
        checkpoint.save(folder, make(epoch, 500_000))
        told.send(epoch)


def test_a_killed_writer_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    """kill -9 at random moments of writing, flushing and renaming 2 MB, in one folder, again and again."""
    kills, draw = count(4, 200), random.Random(5)
    context.set_forkserver_preload(["pytest", "fault_figures", "safetensors.torch", "fer_lab.training.checkpoint"])
    checkpoint.save(tmp_path, make(1, 500_000))
    newest, left = 1, Counter[str]()
    for _ in range(kills):
        here, there = context.Pipe(duplex=False)
        writer = context.Process(target=save_on_and_on, args=(tmp_path, newest + 1, there))
        writer.start()
        there.close()
        newest = here.recv()
        time.sleep(draw.uniform(0, 0.05))
        writer.kill()
        writer.join()
        try:
            while True:
                newest = here.recv()
        except EOFError:
            pass
        found = loaded_epoch(tmp_path)
        assert found in (newest, newest + 1)
        left["new" if found > newest else "old"] += 1
        left["staged"] += any(path.name.startswith(".") for path in tmp_path.iterdir())
        newest = found
    checkpoint.save(tmp_path, make(newest + 1, 500_000))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(f"checkpoint-{e:06d}.{kind}" for e in (newest, newest + 1) for kind in ("json", "safetensors"))
    publish(
        "checkpoint_kill", kills=kills, loadable=kills, loaded_old=left["old"], loaded_new=left["new"],
        killed_while_a_file_was_staged=left["staged"],
    )  # fmt: skip


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes. Skips where this account may not mount one."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def error_of_saving(folder: Path) -> int | None:
    """The errno with which saving the second checkpoint fails, or None."""
    try:
        checkpoint.save(folder, make(2))
    except OSError as error:
        return error.errno
    return None


def test_a_full_disk_leaves_the_old_one(tmp_path: Path) -> None:
    """ENOSPC at each page of the tensors and of the record, in turn; with room again, the same save succeeds."""
    with small_disk(tmp_path / "disk", 64 * PAGE) as disk:
        checkpoint.save(disk, make(1))
        ballast, full = disk / "ballast", 0
        while True:
            ballast.write_bytes(b"x" * (shutil.disk_usage(disk).free - full * PAGE))
            failure = error_of_saving(disk)
            ballast.unlink()
            if failure is None:
                break
            assert failure == errno.ENOSPC
            assert loaded_epoch(disk) == 1
            assert not list(disk.glob(".*"))
            for path in disk.glob("checkpoint-000002.*"):  # so that the next round starts from the same state
                path.unlink()
            full += 1
        assert loaded_epoch(disk) == 2
        assert full >= 3  # two pages of tensors, one of the record
    publish("checkpoint_full_disk", pages_at_which_the_disk_was_full=full, old_one_loadable=full)


def test_a_file_limit_leaves_the_old_one(tmp_path: Path) -> None:
    """RLIMIT_FSIZE at each of many sizes: no root needed, every size of file ends somewhere."""
    checkpoint.save(tmp_path, make(1))
    size = (tmp_path / "checkpoint-000001.safetensors").stat().st_size
    limits = range(0, size, max(1, size // count(40, 1000)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            failure = error_of_saving(tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert failure == errno.EFBIG
        assert loaded_epoch(tmp_path) == 1
    publish("checkpoint_file_limit", limits=len(limits), old_one_loadable=len(limits))


@pytest.mark.parametrize("kind", ["safetensors", "json"])
def test_every_flipped_bit_is_refused(tmp_path: Path, kind: str) -> None:
    """Each bit of sampled bytes, in the only checkpoint: an error. In the newer of two: the older is loaded."""
    checkpoint.save(tmp_path, make(1))
    path = tmp_path / f"checkpoint-000001.{kind}"
    good = path.read_bytes()
    positions = range(0, len(good), max(1, len(good) // count(60, 10_000)))
    accepted = []
    for position in positions:
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            path.write_bytes(bad)
            try:
                checkpoint.load(tmp_path)
                accepted.append((position, bit, bytes(bad[max(0, position - 15) : position + 15])))
            except FerLabError:
                pass
    assert accepted == []
    checkpoint.save(tmp_path, make(2))
    path.write_bytes(good)
    newer = tmp_path / f"checkpoint-000002.{kind}"
    newer.write_bytes(newer.read_bytes()[:-1] + b"!")
    assert loaded_epoch(tmp_path) == 1
    publish(f"checkpoint_bits_{kind}", bytes=len(good), bits_flipped=8 * len(positions), refused=8 * len(positions))
