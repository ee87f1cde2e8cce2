"""Steady labels: faces are followed from frame to frame, their probabilities averaged, their labels held.

Greedy association by intersection over union (as in SORT, Bewley et al., ICIP 2016, without the motion model); an
exponential average in time, so that it does not depend on the frame rate; hysteresis: another label wins only when it
leads by `lead` for `hold_s` seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fer_lab.live.frames import UNCERTAIN, Found

Box = tuple[float, float, float, float]
LONGEST_STEP_S = 5.0  # between two frames of what still counts as watching


@dataclass(frozen=True)
class Steadiness:
    """How labels are steadied."""

    overlap: float = 0.25  # smallest intersection over union that continues a track
    memory_s: float = 0.45  # time constant of the average
    lead: float = 0.08  # by how much another label must lead
    hold_s: float = 0.25  # and for how long
    patience_s: float = 0.7  # a track survives this long without its face
    uncertain_below: float = 0.4  # calibrated probability below which the label shown is "uncertain"
    cut: float = 45.0  # mean gray difference of two crops that means another face: a new track begins


@dataclass
class Track:
    """One face over time."""

    number: int
    box_px: Box
    seen_s: float
    probs: npt.NDArray[np.float32]
    label: int
    thumb: npt.NDArray[np.float32]
    rival: int | None = None
    rival_since_s: float = 0.0
    changes: int = 0
    frames: int = 1


@dataclass
class Tracker:
    """Follows the faces of one stream. Feed frames in order of time."""

    labels: tuple[str, ...]
    steady: Steadiness = field(default_factory=Steadiness)
    tracks: list[Track] = field(default_factory=list)
    started: int = 0
    changes: int = 0  # label changes within tracks, so far
    face_s: float = 0.0  # seconds of followed faces, so far
    last_s: float = 0.0  # time of the frame before

    def update(
        self, found: Sequence[Found], probs: npt.NDArray[np.float32], crops: npt.NDArray[np.uint8], time_s: float
    ) -> list[Track]:
        """Take the faces of one frame (probs float32 [N, K], crops uint8 [N, 1, h, w]); return one track per face."""
        # At low frame rates a track must survive to the next frame; a pause or an outage ends it.
        patience_s = max(self.steady.patience_s, min(time_s - self.last_s, LONGEST_STEP_S))
        self.tracks = [t for t in self.tracks if 0 <= time_s - t.seen_s <= patience_s]
        self.last_s = time_s
        matched = self._associate([f.box_px for f in found])
        result = []
        for i, face in enumerate(found):
            thumb = crops[i, 0, ::4, ::4].astype(np.float32)
            track = matched.get(i)
            if track is not None and _difference(thumb, track.thumb) > self.steady.cut:
                self.tracks.remove(track)  # another face stands in the same place
                track = None
            if track is None:
                self.started += 1
                track = Track(self.started, face.box_px, time_s, probs[i].copy(), int(probs[i].argmax()), thumb)
                self.tracks.append(track)
            else:
                self._continue(track, face.box_px, probs[i], thumb, time_s)
            result.append(track)
        return result

    def shown(self, track: Track) -> tuple[str, float]:
        """The label to show and the smoothed probability of the steady label."""
        confidence = float(track.probs[track.label])
        return (self.labels[track.label] if confidence >= self.steady.uncertain_below else UNCERTAIN), confidence

    def restart(self, labels: tuple[str, ...]) -> None:
        """Forget the tracks; another label set begins."""
        self.labels, self.tracks = labels, []

    def _associate(self, boxes: list[Box]) -> dict[int, Track]:
        pairs = [(overlap(t.box_px, box), -t.number, i, t) for t in self.tracks for i, box in enumerate(boxes)]
        pairs = sorted((p for p in pairs if p[0] >= self.steady.overlap), key=lambda p: (p[0], p[1]), reverse=True)
        matched: dict[int, Track] = {}
        taken: set[int] = set()
        for _, _, i, track in pairs:
            if i not in matched and track.number not in taken:
                matched[i] = track
                taken.add(track.number)
        return matched

    def _continue(
        self, track: Track, box: Box, probs: npt.NDArray[np.float32], thumb: npt.NDArray[np.float32], time_s: float
    ) -> None:
        gap = max(0.0, time_s - track.seen_s)
        keep = math.exp(-gap / self.steady.memory_s)
        track.probs = (keep * track.probs + (1 - keep) * probs).astype(np.float32)
        track.box_px, track.seen_s, track.thumb = box, time_s, thumb
        track.frames += 1
        self.face_s += gap
        best = int(track.probs.argmax())
        if best == track.label or float(track.probs[best] - track.probs[track.label]) < self.steady.lead:
            track.rival = None
            return
        if best != track.rival:
            track.rival, track.rival_since_s = best, time_s
        if time_s - track.rival_since_s >= self.steady.hold_s:
            track.label, track.rival = best, None
            track.changes += 1
            self.changes += 1


def _difference(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    return float(np.abs(_levelled(a) - _levelled(b)).mean())


def _levelled(thumb: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mean and contrast removed, so that light alone is no cut; unit: gray levels at a contrast of 50."""
    return np.asarray((thumb - thumb.mean()) / (thumb.std() + 4) * 50, np.float32)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0–1.

    >>> overlap((0, 0, 2, 2), (0, 0, 2, 2)), overlap((0, 0, 1, 1), (2, 2, 3, 3))
    (1.0, 0.0)
    """
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
