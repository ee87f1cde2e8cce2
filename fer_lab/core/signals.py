"""What asks a process to end: Ctrl-C, SIGTERM, and SIGHUP of a terminal that was closed, unless nohup asked to go on."""

from __future__ import annotations

import atexit
import math
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from fer_lab.core.errors import Interrupted

HANG_UP = getattr(signal, "SIGHUP", None)  # not on Windows
BREAK = getattr(signal, "SIGBREAK", None)  # only on Windows: what a fleet sends its workers there

ONE_SIGNAL_S = 2.0  # a launcher and its process group both pass SIGTERM on: the second must not end the cleaning up

_heard_s = -math.inf  # when this process was last asked to end, whoever heard it


class Terminated(KeyboardInterrupt):
    """A signal that unwinds as Ctrl-C does: half-built folders are removed, runs end as KILLED."""


def ending() -> list[int]:
    """The signals that ask this process to end, Ctrl-C aside."""
    if HANG_UP is None or signal.getsignal(HANG_UP) is signal.SIG_IGN:
        return [signal.SIGTERM]
    return [signal.SIGTERM, HANG_UP]


class Stop:
    """Collects signals while it is entered, so that work ends itself at its next safe place; a second signal aborts at once.

    number: the first signal, or None; a closed terminal counts as SIGTERM. call: called when it comes.
    """

    def __init__(self, call: Callable[[], None] | None = None) -> None:
        self.number: int | None = None
        self._call = call
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # Python sets handlers in no other thread
            numbers = [signal.SIGINT, *ending()]
            if BREAK is not None:
                numbers.append(BREAK)
            for number in numbers:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise Interrupted when a signal came."""
        if self.number is not None:
            raise Interrupted(self.number, "interrupted; what was done is kept. The same command goes on from here")

    def wait(self, seconds: float) -> None:
        """Sleep; raise Interrupted as soon as a signal comes."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.2))
        self.check()

    def _receive(self, number: int, _: FrameType | None) -> None:
        if not _is_new(number):
            return
        if self.number is not None:
            raise Terminated if self.number == signal.SIGTERM else KeyboardInterrupt
        self.number = signal.SIGTERM if number in (HANG_UP, BREAK) else number
        if self._call is not None:
            self._call()


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise Terminated inside; a verb that hears them in a way of its own puts a `Stop` over this.

    Meant for the whole of what a process does: once this or a `Stop` heard one, the same signal passed on by a launcher
    changes nothing until the process' last moment, so that its exit code is its own.
    """
    global _heard_s  # a signal comes to the process, not to an object
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    _heard_s = -math.inf
    raised = ended = False

    def terminate(number: int, _: FrameType | None) -> None:
        nonlocal raised
        if not _is_new(number):
            return
        if raised or ended:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        raised = True
        raise Terminated

    before = {number: signal.signal(number, terminate) for number in ending()}
    atexit.register(_end_deaf)
    try:
        yield
        if raised:  # where Python only prints it, in a finalizer
            raise Terminated
    finally:
        ended = True
        if _heard_s == -math.inf:
            atexit.unregister(_end_deaf)
            for number, handler in before.items():
                signal.signal(number, handler)


def leave_terminal() -> None:
    """Send what is printed from here on nowhere: a line to a terminal that is gone would be an error in the midst of stopping."""
    with open(os.devnull, "wb") as nowhere:
        for descriptor in (1, 2):
            with suppress(OSError):
                if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                    os.dup2(nowhere.fileno(), descriptor)


def _is_new(number: int) -> bool:
    """Note a signal; False for one that was heard a moment ago already and came again from a launcher or its process group."""
    global _heard_s  # a signal comes to the process, not to an object
    if number == HANG_UP:
        leave_terminal()
    now_s = time.monotonic()
    if number in (signal.SIGTERM, HANG_UP) and now_s - _heard_s <= ONE_SIGNAL_S:
        return False
    _heard_s = now_s
    return True


def _end_deaf() -> None:
    """While Python takes itself apart our handlers are gone: a signal that was heard before would be the exit code."""
    if _heard_s > -math.inf:
        for number in ending():
            signal.signal(number, signal.SIG_IGN)
