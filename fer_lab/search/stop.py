"""Ctrl-C, SIGTERM and a closed terminal as a flag: the work ends itself at its next safe place; a second signal aborts at once."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from fer_lab.core.errors import Interrupted

HANG_UP = getattr(signal, "SIGHUP", None)  # not on Windows
BREAK = getattr(signal, "SIGBREAK", None)  # only on Windows: what a fleet sends its workers there


class Stop:
    """Collects signals while it is entered; `number` is the first one, or None."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # Python sets handlers in no other thread
            numbers = [signal.SIGINT, signal.SIGTERM]
            if HANG_UP is not None and signal.getsignal(HANG_UP) is not signal.SIG_IGN:  # nohup asks to go on
                numbers.append(HANG_UP)
            if BREAK is not None:
                numbers.append(BREAK)
            for number in numbers:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
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
        if self.number is not None:
            raise KeyboardInterrupt
        if number == HANG_UP:
            _leave_terminal()
        self.number = signal.SIGTERM if number in (HANG_UP, BREAK) else number


def _leave_terminal() -> None:
    """Send what is printed from here on nowhere: a line to a terminal that is gone would be an error in the midst of stopping."""
    with open(os.devnull, "wb") as nowhere:
        for descriptor in (1, 2):
            with suppress(OSError):
                if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                    os.dup2(nowhere.fileno(), descriptor)
