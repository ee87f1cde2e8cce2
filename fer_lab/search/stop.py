"""Ctrl-C, SIGTERM and a closed terminal as a flag: the work ends itself at its next safe place; a second signal aborts at once."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from fer_lab.core.errors import Interrupted
from fer_lab.core.signals import HANG_UP, ONE_SIGNAL_S, Terminated, ending, leave_terminal

BREAK = getattr(signal, "SIGBREAK", None)  # only on Windows: what a fleet sends its workers there


class Stop:
    """Collects signals while it is entered; `number` is the first one, or None."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._since_s = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # Python sets handlers in no other thread
            numbers = [signal.SIGINT, *ending()]
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
            if number in (signal.SIGTERM, HANG_UP) and time.monotonic() - self._since_s <= ONE_SIGNAL_S:
                return
            raise Terminated if self.number == signal.SIGTERM else KeyboardInterrupt
        if number == HANG_UP:
            leave_terminal()
        self._since_s = time.monotonic()
        self.number = signal.SIGTERM if number in (HANG_UP, BREAK) else number
