"""What a run of the demo amounts to: frames, speed, steadiness, expressions."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from fer_lab.live.frames import Result
from fer_lab.live.models import Models
from fer_lab.live.tracks import Tracker

WINDOW = 20_000  # latest frames whose times are kept: percentiles of hours without growing memory


class Ring:
    """The latest `size` numbers in memory that is taken once: a deque of floats grows by megabytes in the first minutes."""

    def __init__(self, size: int) -> None:
        self._values = np.full(size, np.nan)
        self._count = 0

    def append(self, value: float) -> None:
        """Add a number, over the oldest one when full."""
        self._values[self._count % len(self._values)] = value
        self._count += 1

    def percentile(self, q: float) -> float:
        """The q-th percentile; 0 while empty."""
        kept = self._values[: self._count]
        return float(np.percentile(kept, q)) if len(kept) else 0.0


class Summary:
    """Counts results. Percentiles are over the latest 20 000 frames."""

    def __init__(self) -> None:
        self.frames = 0
        self.with_face = 0
        self.faces = 0
        self.first_s: float | None = None
        self.last_s = 0.0
        self._times = {name: Ring(WINDOW) for name in ("total", "decode", "detect", "classify")}
        self._recent: deque[float] = deque(maxlen=60)
        self._recent_times = {name: Ring(240) for name in self._times}
        self._shares: Counter[str] = Counter()

    def add(self, result: Result) -> None:
        """Count one frame."""
        now_s = time.perf_counter()
        if self.first_s is None:
            self.first_s = now_s
        self.last_s = now_s
        self._recent.append(now_s)
        self.frames += 1
        self.faces += len(result.faces)
        self.with_face += bool(result.faces)
        self._shares.update(face.label for face in result.faces)
        stages = {"total": result.total_ms, "decode": result.decode_ms, "detect": result.detect_ms, "classify": result.classify_ms}
        for name, ms in stages.items():
            self._times[name].append(ms)
            self._recent_times[name].append(ms)

    @property
    def fps(self) -> float:
        """Frames per second over the whole run."""
        if self.first_s is None or self.frames < 2:
            return 0.0
        return (self.frames - 1) / max(1e-9, self.last_s - self.first_s)

    @property
    def recent_fps(self) -> float:
        """Frames per second over the latest 60 frames."""
        if len(self._recent) < 2:
            return 0.0
        return (len(self._recent) - 1) / max(1e-9, self._recent[-1] - self._recent[0])

    def percentile_ms(self, stage: str, q: float) -> float:
        """The q-th percentile of a stage (total, decode, detect, classify) in milliseconds; 0 before the first frame."""
        return self._times[stage].percentile(q)

    def recent_ms(self, stage: str, q: float) -> float:
        """The same over the latest 240 frames, for the screen."""
        return self._recent_times[stage].percentile(q)

    def result(self, trackers: Sequence[Tracker], models: Models, detector: str, bad_frames: int) -> dict[str, Any]:
        """The last JSON line of the demo."""
        shadow = models.shadow
        changes, face_s = sum(t.changes for t in trackers), sum(t.face_s for t in trackers)
        record: dict[str, Any] = {
            "frames": self.frames,
            "fps": round(self.fps, 2),
            "p50_ms": round(self.percentile_ms("total", 50), 2),
            "p95_ms": round(self.percentile_ms("total", 95), 2),
            "stages": {
                stage: {"p50_ms": round(self.percentile_ms(stage, 50), 2), "p95_ms": round(self.percentile_ms(stage, 95), 2)}
                for stage in ("decode", "detect", "classify")
            },
            "frames_with_face": self.with_face,
            "faces": self.faces,
            "tracks": sum(t.started for t in trackers),
            "label_changes_per_s": round(changes / face_s, 4) if face_s > 0 else 0.0,
            "expressions": {label: round(n / self.faces, 4) for label, n in self._shares.most_common()},
            "model": models.front.shown,
            "digest": models.front.predictor.bundle.digest,
            "runtime": models.front.predictor.runtime,
            "detector": detector,
            "bad_frames": bad_frames,
            "swaps": models.swaps,
        }
        if shadow is not None:
            record["shadow"] = {"model": shadow.shown, "compared": models.compared, "disagreements": models.disagreements}
        return record
