"""Asking again: one loop for all that waits for a database."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def retried(ask: Callable[[], T], passes: Callable[[Exception], bool], seconds: float, pause_s: float) -> T:
    """Return what `ask` returns, asking again after each error that passes, for some seconds; then its error is raised."""
    until = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except Exception as error:
            if not passes(error) or time.monotonic() > until:
                raise
            time.sleep(pause_s)
