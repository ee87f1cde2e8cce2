"""Progress of a run on stderr: a bar on a terminal, one plain line per epoch elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from fer_lab.core.console import note


class Progress:
    """Shows epochs, faces/s and the time left. Its two methods fit `fit`'s `on_step` and `on_epoch`."""

    def __init__(self, epochs: int, batch: int, *, label: str = "", metric: str = "val/accuracy") -> None:
        self._epochs = epochs
        self._batch = batch
        self._label = label
        self._metric = metric
        self._start = time.monotonic()
        self._first: int | None = None  # steps done before this process (a resumed run)
        self._ended = 0  # epochs, in this process
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(f"{self._label} starting", total=None, speed="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        """After a step: move the bar."""
        done, total = epoch * steps + step, self._epochs * steps
        if self._first is None:
            self._first = done - 1
        if self._bar is None:
            return
        speed = (done - self._first) * self._batch / max(time.monotonic() - self._start, 1e-6)
        text = f"{self._label} epoch {epoch + 1}/{self._epochs}"
        self._bar.update(self._task, completed=done, total=total, description=text, speed=f"{speed:,.0f} faces/s")

    def on_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """After an epoch: one line with what it reached and how long the rest may take."""
        self._ended += 1
        value = metrics[self._metric]
        line = (
            f"{self._label} epoch {epoch + 1}/{self._epochs}  loss {metrics['train/loss']:.4f}  {self._metric} {value:.4f}  "
            f"val/nll {metrics['val/nll']:.4f}  {metrics['train/faces_per_s']:,.0f} faces/s at {metrics['train/image_size']:.0f} px"
        )
        if left := self._epochs - epoch - 1:
            left_s = left * (time.monotonic() - self._start) / self._ended
            line += f", about {math.ceil(left_s / 60)} min left"
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            note(line)
