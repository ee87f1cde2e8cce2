"""Several workers on one machine: subprocesses of the same command, GPUs round robin, CPU threads shared out."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from fer_lab.core.console import note
from fer_lab.core.errors import Conflict
from fer_lab.core.signals import Stop

POLL_S = 0.5
STOP = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM)  # on Windows, where SIGTERM kills at once, and only there
ABORT_S = 10.0
"""How long a worker may take to hand its job back when it is told to stop at once."""
ABORT = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT)  # a second SIGTERM may be the first one, passed on by a launcher
RESTARTS_PER_WORKER = 2
"""A worker that a signal killed (out of memory, kill -9) is started again this often."""


def cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; asked without importing torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in {"", "-1"}]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i, line in enumerate(filter(lambda line: line.startswith("GPU "), listed.stdout.splitlines()))]


def environment(index: int, workers: int, devices: Sequence[str]) -> dict[str, str]:
    """The environment of one worker: its GPU, and its share of the CPU threads."""
    changed = dict(os.environ)
    if devices:
        changed["CUDA_VISIBLE_DEVICES"] = devices[index % len(devices)]
    changed.setdefault("OMP_NUM_THREADS", str(threads_each(workers)))
    return changed


def threads_each(workers: int) -> int:
    """CPU threads of one worker."""
    return max(1, cores() // workers)


def run_fleet(command: Sequence[str], workers: int, stop: Stop, is_finished: Callable[[], bool]) -> None:
    """Run `workers` processes of `command` until they have ended; killed ones are started again while work is left.

    Raises Interrupted when a signal came (it was passed on, and every worker saved its work).
    """
    devices = gpus()
    running = {index: _start(command, index, workers, devices) for index in range(workers)}
    restarts = 0
    passed_on = False
    codes: list[int] = []
    try:
        while running:
            if stop.number is not None and not passed_on:
                passed_on = True
                for process in running.values():
                    process.send_signal(STOP)
            for index, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[index]
                died = not 0 <= code <= 255 or code == Conflict.exit_code  # killed (on Windows: crashed), or paused past its lease
                if died and stop.number is None and restarts < RESTARTS_PER_WORKER * workers and not is_finished():
                    restarts += 1
                    note(f"a worker ended with code {code}; starting another")
                    running[index] = _start(command, index, workers, devices)
                else:
                    codes.append(code)
            _sleep()
    finally:
        _abort(running.values())  # a second Ctrl-C, or an error of our own: leave no orphans
    stop.check()
    bad = [code for code in codes if code]
    if bad:
        note(f"note: {len(bad)} of {len(codes)} workers ended with an error (codes {', '.join(map(str, bad))})")


def _start(command: Sequence[str], index: int, workers: int, devices: Sequence[str]) -> subprocess.Popen[bytes]:
    # The terminal sends Ctrl-C to a whole process group, and we pass it on: a worker in our group would get two signals, and the
    # second one aborts.
    own_group: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        own_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    # Progress goes to our stderr; the worker's last line of JSON would not be ours.
    return subprocess.Popen(
        [sys.executable, *command], env=environment(index, workers, devices), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        **own_group,
    )  # fmt: skip


def _abort(workers: Iterable[subprocess.Popen[bytes]]) -> None:
    """End workers at once: a second signal, so that they hand their jobs back, then a kill."""
    try:
        for worker in workers:
            worker.send_signal(ABORT)
        for worker in workers:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(ABORT_S)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _sleep() -> None:
    import time

    time.sleep(POLL_S)
