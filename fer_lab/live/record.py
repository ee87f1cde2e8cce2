"""Files out: annotated video, JSON lines, snapshots."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

from fer_lab.core.errors import InputError
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


class VideoFile:
    """An annotated video; frames of another size are fitted into the first one's."""

    def __init__(self, path: Path, fps: float | None) -> None:
        if not path.parent.is_dir():
            raise InputError(f"the folder of --record {path} does not exist")
        if path.suffix.lower() not in (".mp4", ".avi", ".mkv", ".mov"):
            raise InputError(f"--record {path}: expected a name ending in .mp4, .avi, .mkv or .mov")
        self.path = path
        self.frames = 0
        self._fps = fps or 25.0
        self._writer: Any = None
        self._size = (0, 0)

    def write(self, image: Image) -> None:
        """Append a frame, BGR uint8 [H, W, 3]."""
        import cv2

        if self._writer is None:
            height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2  # codecs want even sides
            code = cv2.VideoWriter.fourcc(*("MJPG" if self.path.suffix.lower() == ".avi" else "mp4v"))
            self._size = (width, height)
            self._writer = cv2.VideoWriter(str(self.path), code, self._fps, self._size)
            if not self._writer.isOpened():
                raise InputError(
                    f"--record {self.path} cannot be written: disk full, not permitted, or no codec for {width}×{height}"
                )
        if image.shape[1::-1] != self._size:
            image = _fitted(image, self._size)
        self._writer.write(image)
        self.frames += 1

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None


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
