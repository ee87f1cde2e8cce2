"""Where results go besides the screen: the summary, JSON lines, the annotated video, snapshots."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer_lab.core.errors import FerLabError
from fer_lab.live.draw import annotated
from fer_lab.live.frames import Image, Result
from fer_lab.live.models import BANNER, Models
from fer_lab.live.pipeline import KNOWN, Pipeline
from fer_lab.live.record import JsonLines, VideoFile, snapshot
from fer_lab.live.summary import Summary


class Outputs:
    """Takes every result of a pipeline once, in order."""

    def __init__(
        self, pipeline: Pipeline, *, json_path: Path | None = None, video_path: Path | None = None, folder: Path = Path("."),
        show_input: bool = False, begun_s: float | None = None,
    ) -> None:  # fmt: skip
        self.pipeline = pipeline
        self.summary = Summary()
        self.show_input = show_input
        self.recording = video_path is not None
        self.known = self.known_right = 0
        self._folder = folder
        self._video_path = video_path
        self._video = VideoFile(video_path, pipeline.source.fps) if video_path is not None else None
        self._json = JsonLines(json_path) if json_path is not None else None  # last: it empties the file
        self._files: list[str] = []
        self._lock = threading.Lock()
        self._latest: Result | None = None
        self._begun_s = begun_s if begun_s is not None else time.perf_counter()
        self.first_result_s: float | None = None

    def take(self, result: Result) -> None:
        """Count the result and write what is asked for."""
        if self.first_result_s is None:
            self.first_result_s = time.perf_counter() - self._begun_s
        self.summary.add(result)
        self._compare(result)
        if self._json is not None:
            self._json.write(result)
        self._latest = result
        with self._lock:
            if self.recording and self._video is not None:
                self._video.write(self.picture(result), result.frame.time_s)

    def picture(self, result: Result) -> Image:
        """The annotated frame."""
        return annotated(result, show_input=self.show_input, banner=banner_of(self.pipeline.models))

    def toggle_recording(self) -> str:
        """Start or stop recording; returns what happened, for the screen. Raises InputError when no film can be written."""
        with self._lock:
            if self.recording:
                self.recording = False
                return f"recording paused: {self._video.path}" if self._video is not None else "recording off"
            if self._video is None:
                path = self._video_path or self._folder / time.strftime("fer-%Y%m%d-%H%M%S.mp4")
                video = VideoFile(path, self.pipeline.source.fps)
                if self._latest is not None:
                    video.begin(self.picture(self._latest))
                self._video = video
            self.recording = True
            return f"recording to {self._video.path}"

    def snapshot(self, result: Result) -> Path:
        """Save the annotated frame as PNG and return the path."""
        path = snapshot(self._folder, self.picture(result))
        self._files.append(str(path))
        return path

    def close(self) -> None:
        """Finish all files. Raises FerLabError when the film is not whole."""
        if self._json is not None:
            self._json.close()
        with self._lock:
            self.recording = False
            try:
                if self._video is not None:
                    self._video.close()
            except FerLabError as error:
                error.result = self.result()
                raise

    def result(self) -> Mapping[str, Any]:
        """The last JSON line."""
        pipeline = self.pipeline
        detector = KNOWN.name if pipeline.settings.known_boxes else pipeline.finder.name
        record = self.summary.result([pipeline.tracker], pipeline.models, detector, pipeline.source.bad_frames)
        record["first_result_s"] = round(self.first_result_s, 3) if self.first_result_s is not None else None
        record["source"] = pipeline.source.name
        if self.known:
            record["known"] = {"faces": self.known, "right": round(self.known_right / self.known, 4)}
        if self._video is not None:
            record["video"] = str(self._video.path)
        if self._files:
            record["snapshots"] = self._files
        return record

    def _compare(self, result: Result) -> None:
        """Count the steady labels that agree with what the source knows."""
        by_box = {known.box_px: known.label for known in result.frame.known or ()}
        for face in result.faces:
            if face.box_px in by_box:
                self.known += 1
                self.known_right += face.label == by_box[face.box_px]


def banner_of(models: Models) -> str:
    """The sentence that a model trained on drawings must wear, else nothing."""
    return BANNER if models.front.is_synthetic else ""
