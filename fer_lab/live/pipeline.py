"""Decode, detect, classify: three stages in three threads, one frame in each, so that they overlap.

    pipeline = Pipeline(source, [finder], models, Settings())
    for result in pipeline.results():
        …

Live sources hand over their newest frame whenever the detector is free; files hand over every frame. A stage starts on a
frame only when the next stage has taken the one before: frames that wait in a row would be late ones.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from fer_lab.core.errors import InputError
from fer_lab.live.detectors import Finder, largest_first
from fer_lab.live.frames import Face, Found, Frame, Image, Result
from fer_lab.live.models import Models
from fer_lab.live.sources import Source
from fer_lab.live.tracks import Steadiness, Tracker

Item = TypeVar("Item")


@dataclass(frozen=True)
class Settings:
    """What can be turned without another file."""

    align: bool = False
    margin: float | None = None  # instead of the detector's own
    known_boxes: bool = False  # take the boxes that the source itself knows, where it does, instead of a detector's
    pace: bool = False  # play files at their own speed (for people); False: as fast as possible
    steady: Steadiness = field(default_factory=Steadiness)


@dataclass(frozen=True)
class _End:
    error: BaseException | None = None


@dataclass(frozen=True)
class _Searched:
    frame: Frame
    decode_ms: float
    finder: Finder
    found: list[Found]
    detect_ms: float


class _Box(queue.Queue[Item]):
    """Holds one item between two stages. The first starts on another only when it is `wanted`: the last one was taken."""

    def __init__(self) -> None:
        super().__init__(1)
        self.wanted = threading.Semaphore(1)


class KnownBoxes:
    """Stands for the source's own boxes; they already have the model's framing."""

    name = "known boxes"
    margin = 1.0
    drop = 0.0

    def find(self, image: Image) -> list[Found]:
        """Only a frame knows its boxes, an image does not."""
        return []


KNOWN = KnownBoxes()


def known_faces(frame: Frame) -> list[Found]:
    """The boxes that the source knows, largest first."""
    return largest_first([Found(known.box_px, 1.0) for known in frame.known or ()], 100)


class Pipeline:
    """Runs one source through one detector and the models."""

    def __init__(self, source: Source, finders: list[Finder], models: Models, settings: Settings | None = None) -> None:
        if not finders:
            raise InputError("no detector is configured; give --detector haar")
        self.source = source
        self.finders = finders
        self.models = models
        self.settings = settings or Settings()
        self.tracker = Tracker(models.front.predictor.labels, self.settings.steady)
        self.told_to_stop = False  # by `stop`, not by the source's end
        self._which = 0
        self._paused = threading.Event()
        self._stop = threading.Event()
        self._decoded: _Box[tuple[Frame, float] | _End] = _Box()
        self._searched: _Box[_Searched | _End] = _Box()
        self._threads: list[threading.Thread] = []

    @property
    def finder(self) -> Finder:
        """The detector in use."""
        return self.finders[self._which]

    def next_finder(self) -> Finder:
        """Use the next configured detector from the next frame on."""
        self._which = (self._which + 1) % len(self.finders)
        return self.finder

    @property
    def paused(self) -> bool:
        """Whether decoding stands still."""
        return self._paused.is_set()

    def pause(self, on: bool) -> None:
        """Stop or continue taking frames."""
        (self._paused.set if on else self._paused.clear)()

    def stop(self) -> None:
        """End soon; `results` then ends too."""
        self.told_to_stop = True
        self._stop.set()

    def results(self) -> Iterator[Result]:
        """Yield one result per frame until the source ends or `stop` is called; errors of the stages come out here."""
        self._threads = [
            threading.Thread(target=self._guard, args=(stage, out), name=name, daemon=True)
            for stage, out, name in ((self._decode, self._decoded, "decode"), (self._detect, self._searched, "detect"))
        ]
        for thread in self._threads:
            thread.start()
        try:
            while True:
                item = self._take(self._searched)
                if isinstance(item, _End):
                    if item.error is not None:
                        raise item.error
                    return
                yield self._label(item)
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(timeout=3)
            self.source.close()  # only now: OpenCV aborts the process when a film is released while a thread reads it

    def _guard(self, stage: Callable[[], None], out: _Box[Any]) -> None:
        error: BaseException | None = None
        try:
            stage()
        except BaseException as caught:  # raised again in the reader's thread
            error = caught
        self._put(out, _End(error), force=True)

    def _decode(self) -> None:
        origin_s: float | None = None
        wanted = False
        while not self._stop.is_set():
            if self._paused.is_set():
                origin_s = None
                time.sleep(0.02)
                continue
            wanted = wanted or self._decoded.wanted.acquire(timeout=0.2)
            if not wanted:
                continue
            frame = self.source.read(0.2)
            if frame is None:
                if self.source.ended:
                    return
                continue
            decode_ms = (time.perf_counter() - frame.born_s) * 1e3
            if self.settings.pace and not self.source.live and not self.source.stills:
                now_s = time.perf_counter()
                if origin_s is None:
                    origin_s = now_s - frame.time_s
                wait_s = origin_s + frame.time_s - now_s
                if wait_s < -0.5:
                    origin_s = None  # the machine is slower than the film: play on from here
                elif wait_s > 0 and self._stop.wait(wait_s):
                    return
                frame = replace(frame, born_s=time.perf_counter() - decode_ms / 1e3)
            self._put(self._decoded, (frame, decode_ms))
            wanted = False

    def _detect(self) -> None:
        while True:
            while not self._searched.wanted.acquire(timeout=0.2):
                if self._stop.is_set():
                    return
            item = self._take(self._decoded)
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            frame, decode_ms = item
            finder = KNOWN if self.settings.known_boxes and frame.known is not None else self.finder
            start_s = time.perf_counter()
            found = known_faces(frame) if finder is KNOWN else finder.find(frame.image)
            self._put(self._searched, _Searched(frame, decode_ms, finder, found, (time.perf_counter() - start_s) * 1e3))

    def _label(self, item: _Searched) -> Result:
        start_s = time.perf_counter()
        result = label_frame(
            item.frame, item.found, item.finder, self.models, self.tracker, self.settings, stills=self.source.stills
        )
        done_s = time.perf_counter()
        faces, labels, shown, runtime, shadow = result
        return Result(
            item.frame, faces, labels, shown, runtime, item.decode_ms, item.detect_ms,
            (done_s - start_s) * 1e3, (done_s - item.frame.born_s) * 1e3, shadow,
        )  # fmt: skip

    def _take(self, box: _Box[Item]) -> Item | _End:
        while True:
            try:
                item = box.get(timeout=0.2)
                box.wanted.release()
                return item
            except queue.Empty:
                if self._stop.is_set() and not any(t.is_alive() for t in self._threads if t is not threading.current_thread()):
                    return _End()

    def _put(self, box: _Box[Item], item: Item, force: bool = False) -> None:
        while force or not self._stop.is_set():
            try:
                box.put(item, timeout=0.2)
                return
            except queue.Full:
                if self._stop.is_set():
                    return


def label_frame(
    frame: Frame, found: list[Found], finder: Finder, models: Models, tracker: Tracker, settings: Settings, *, stills: bool
) -> tuple[tuple[Face, ...], tuple[str, ...], str, str, tuple[str, ...]]:
    """Classify the faces of one frame in one batch and steady their labels.

    Returns the faces, the label set, the model and the runtime that ran, and the shadow's labels.
    """
    margin = settings.margin if settings.margin is not None else finder.margin
    front, probs, crops, shadow = models.classify(frame.image, found, margin, finder.drop, settings.align)
    labels = front.predictor.labels
    if tracker.labels != labels:
        tracker.restart(labels)
    if stills:
        tracker.tracks = []
    tracks = tracker.update(found, probs, crops, frame.time_s)
    faces = []
    for i, (one, track) in enumerate(zip(found, tracks, strict=True)):
        label, confidence = tracker.shown(track)
        faces.append(Face(track.number, one.box_px, one.score, track.probs.copy(), probs[i], label, confidence, crops[i, 0]))
    return tuple(faces), labels, front.shown, front.predictor.runtime, shadow
