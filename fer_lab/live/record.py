"""Files out: annotated video, JSON lines, snapshots."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

from fer_lab.core.errors import FerLabError, InputError
from fer_lab.live.frames import Image, Result


class JsonLines:
    """One line per face: time, track, box, probabilities, label, model version."""

    def __init__(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise InputError(f"the folder of --json {path} does not exist")
        self._file: IO[str] = path.open("w", encoding="utf-8", newline="\n")

    def write(self, result: Result) -> None:
        """Append the faces of a frame; a frame without faces gives no line."""
        for i, face in enumerate(result.faces):
            self._file.write(json.dumps(line(result, i), ensure_ascii=False) + "\n")
            del face

    def close(self) -> None:
        """Flush and close."""
        self._file.close()


def line(result: Result, i: int) -> dict[str, Any]:
    """The i-th face of a result as a JSON object."""
    face = result.faces[i]
    record: dict[str, Any] = {
        "schema": 1,
        "frame": result.frame.index,
        "time_s": round(result.frame.time_s, 3),
        "track": face.track,
        "box_px": [round(v, 1) for v in face.box_px],
        "score": round(face.score, 4),
        "label": face.label,
        "confidence": round(face.confidence, 4),
        "probs": {label: round(float(p), 4) for label, p in zip(result.labels, face.probs, strict=True)},
        "model": result.model,
        "runtime": result.runtime,
    }
    if result.shadow:
        record["shadow_label"] = result.shadow[i]
    return record


LONGEST_HOLD_S = 2.0
FINEST_FPS = 65.0  # MPEG-4 counts time in at most 65 535 parts of a second: beyond, OpenCV's thousandths do not fit


class VideoFile:
    """An annotated video that plays as fast as things happened.

    Each frame stands at its time: where frames came too slowly for the film the last one is held, where too quickly some
    are left out; a longer gap (an outage, a pause) is cut to one step. Frames of another size are fitted into the first one's.
    """

    def __init__(self, path: Path, fps: float | None) -> None:
        if not path.parent.is_dir():
            raise InputError(f"the folder of --record {path} does not exist")
        if path.suffix.lower() not in (".mp4", ".avi", ".mkv", ".mov"):
            raise InputError(f"--record {path}: expected a name ending in .mp4, .avi, .mkv or .mov")
        self.path = path
        self.frames = 0
        self._fps = fps or 25.0
        if self._fps > FINEST_FPS:
            self._fps = float(round(self._fps))
        self._writer: Any = None
        self._size = (0, 0)
        self._start_s = 0.0  # time of the source at which the film begins
        self._last: Image | None = None

    def begin(self, image: Image) -> None:
        """Open the file for pictures of this one's size. Raises InputError when it cannot be written."""
        import cv2

        height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2  # codecs want even sides
        code = cv2.VideoWriter.fourcc(*("MJPG" if self.path.suffix.lower() == ".avi" else "mp4v"))
        self._size = (width, height)
        self._writer = cv2.VideoWriter(str(self.path), code, self._fps, self._size)
        if not self._writer.isOpened():
            raise InputError(f"{self.path} cannot be written: disk full, not permitted, or no codec for {width}×{height}")

    def write(self, image: Image, time_s: float) -> None:
        """Append a frame, BGR uint8 [H, W, 3], seen at this time of its source."""
        if self._writer is None:
            self.begin(image)
        if image.shape[1::-1] != self._size:
            image = _fitted(image, self._size)
        late = round((time_s - self._start_s) * self._fps) - self.frames  # of the place where the next frame would stand
        if self._last is None or not -2 <= late <= LONGEST_HOLD_S * self._fps:
            self._start_s, late = time_s - self.frames / self._fps, 0
        for held in [self._last] * late:
            self._append(held)
        if late >= 0:
            self._append(image)
        self._last = image

    def _append(self, image: Image | None) -> None:
        self._writer.write(image)
        self.frames += 1

    def close(self) -> None:
        """Finish the file. Raises FerLabError when it does not hold what was written: OpenCV itself reports no full disk."""
        if self._writer is None:
            return
        self._writer.release()
        self._writer = self._last = None
        there = frames_in(self.path)
        if there < self.frames:
            raise FerLabError(f"{self.path} holds {there} of {self.frames} frames. Is the disk full?")


def frames_in(path: Path) -> int:
    """The number of frames that a film's header tells, 0 for what is none."""
    import cv2

    film = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        return int(film.get(cv2.CAP_PROP_FRAME_COUNT)) if film.isOpened() else 0
    finally:
        film.release()


def _fitted(image: Image, size: tuple[int, int]) -> Image:
    import cv2

    if image.shape[1] // 2 * 2 == size[0] and image.shape[0] // 2 * 2 == size[1]:
        return np.ascontiguousarray(image[: size[1], : size[0]])
    factor = min(size[0] / image.shape[1], size[1] / image.shape[0])
    small = cv2.resize(image, (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))))
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    x, y = (size[0] - small.shape[1]) // 2, (size[1] - small.shape[0]) // 2
    canvas[y : y + small.shape[0], x : x + small.shape[1]] = small
    return canvas


def snapshot(folder: Path, image: Image) -> Path:
    """Write `fer-YYYYmmdd-HHMMSS.png` (numbered when taken twice in a second) into the folder and return its path."""
    import cv2

    stem = time.strftime("fer-%Y%m%d-%H%M%S")
    path = folder / f"{stem}.png"
    for i in range(2, 1000):
        if not path.exists():
            break
        path = folder / f"{stem}-{i}.png"
    ok, data = cv2.imencode(".png", image)
    if not ok:
        raise InputError(f"the snapshot of {image.shape} cannot be encoded")
    path.write_bytes(data.tobytes())
    return path
