"""What asks a process to end: SIGTERM, and SIGHUP of a terminal that was closed, unless nohup asked to go on."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HANG_UP = getattr(signal, "SIGHUP", None)  # not on Windows

ONE_SIGNAL_S = 2.0  # a launcher and its process group both pass SIGTERM on: the second must not end the cleaning up


class Terminated(KeyboardInterrupt):
    """A signal that unwinds as Ctrl-C does: half-built folders are removed, runs end as KILLED."""


def ending() -> list[int]:
    """The signals that ask this process to end, Ctrl-C aside."""
    if HANG_UP is None or signal.getsignal(HANG_UP) is signal.SIG_IGN:
        return [signal.SIGTERM]
    return [signal.SIGTERM, HANG_UP]


@contextmanager
def terminable() -> Iterator[None]:
    """Let those signals raise Terminated inside; a verb that hears them in a way of its own puts its handler over this one."""
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers in no other thread
        yield
        return

    first: float | None = None

    def terminate(number: int, frame: object) -> None:
        nonlocal first
        if number == HANG_UP:
            leave_terminal()
        if first is None:
            first = time.monotonic()
            raise Terminated
        if time.monotonic() - first > ONE_SIGNAL_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    before = {number: signal.signal(number, terminate) for number in ending()}
    try:
        yield
        if first is not None:  # raised where Python only prints it, in a finalizer
            raise Terminated
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_terminal() -> None:
    """Send what is printed from here on nowhere: a line to a terminal that is gone would be an error in the midst of stopping."""
    with open(os.devnull, "wb") as nowhere:
        for descriptor in (1, 2):
            with suppress(OSError):
                if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                    os.dup2(nowhere.fileno(), descriptor)
