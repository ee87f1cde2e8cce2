"""Progress of a run on stderr: a bar on a terminal, one plain line per epoch elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from fer_lab.core.console import note


class Progress:
    """Shows epochs, faces/s and the time left. Its two methods fit `fit`'s `on_step` and `on_epoch`.

    sizes: the side of the faces in pixels in each epoch; an epoch is taken to last as long as it has pixels. The clock
    starts with the first step: what comes before (teachers that predict) does not come again.
    """

    def __init__(self, sizes: Sequence[int], batch: int, *, label: str = "", metric: str = "val/accuracy") -> None:
        self._epochs = len(sizes)
        self._pixels = [size * size for size in sizes]
        self._batch = batch
        self._label = label
        self._metric = metric
        self._start = 0.0  # of the clock, at the first step that this process reports
        self._first: int | None = None  # steps done by then, those before this process (a resumed run) too
        self._seen = 0  # pixels of the epochs that ended in this process
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
        done, now = epoch * steps + step, time.monotonic()
        if self._first is None:
            self._first, self._start = done, now
        if self._bar is None:
            return
        speed = (done - self._first) * self._batch / max(now - self._start, 1e-6)
        text = f"{self._label} epoch {epoch + 1}/{self._epochs}"
        completed, total = sum(self._pixels[:epoch]) * steps + self._pixels[epoch] * step, sum(self._pixels) * steps
        self._bar.update(self._task, completed=completed, total=total, description=text, speed=f"{speed:,.0f} faces/s")

    def on_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """After an epoch: one line with what it reached and how long the rest may take."""
        self._seen += self._pixels[epoch]
        value = metrics[self._metric]
        line = (
            f"{self._label} epoch {epoch + 1}/{self._epochs}  loss {metrics['train/loss']:.4f}  {self._metric} {value:.4f}  "
            f"val/nll {metrics['val/nll']:.4f}  {metrics['train/faces_per_s']:,.0f} faces/s at {metrics['train/image_size']:.0f} px"
        )
        if left := sum(self._pixels[epoch + 1 :]):
            left_s = left * (time.monotonic() - self._start) / self._seen
            line += f", about {math.ceil(left_s / 60)} min left"
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            note(line)
