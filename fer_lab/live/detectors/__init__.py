"""Face detectors: one file each with a constant `DETECTOR`; `build` makes the ones that are configured.

A detector looks at a reduced copy of the frame (`search_px` is its longer side) and answers in pixels of the frame.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fer_lab.core.errors import InputError, NotFound, nearest
from fer_lab.core.plugins import discover
from fer_lab.live.frames import Found, Image


@dataclass(frozen=True)
class Search:
    """How a detector looks. None takes the detector's own value."""

    threshold: float | None = None  # smallest score, 0–1
    smallest: float = 0.06  # smallest face as a fraction of the frame's shorter side
    search_px: int | None = None  # longer side of the reduced image
    most: int = 100  # faces per frame, the largest ones are kept


class Finder(Protocol):
    """A detector that is ready to look."""

    name: str
    margin: float  # side of the model's square over the mean side of this detector's box
    drop: float  # how far down the square's centre lies, as a fraction of the box' mean side

    def find(self, image: Image) -> list[Found]:
        """BGR uint8 [H, W, 3] → faces in pixels of the image, largest first."""


class Detector(Protocol):
    """A kind of detector: a plug-in."""

    name: str
    wants_file: bool  # needs a model file by path

    def open(self, path: Path | None, search: Search) -> Finder:
        """Load the model. Raises NotFound or InputError naming the file."""


class Shared:
    """A detector that several threads may ask: one looks at a time. OpenCV's own end the process when two look at once."""

    def __init__(self, finder: Finder) -> None:
        self.name, self.margin, self.drop = finder.name, finder.margin, finder.drop
        self._finder = finder
        self._lock = threading.Lock()

    def find(self, image: Image) -> list[Found]:
        """What the detector finds."""
        with self._lock:
            return self._finder.find(image)


def detectors() -> dict[str, Detector]:
    """All kinds of detectors by name."""
    return discover("fer_lab.live.detectors", "DETECTOR")


BEST_FIRST = ("yunet", "openvino-ssd", "haar")


def build(texts: Sequence[str], search: Search) -> list[Finder]:
    """Return the finders of `haar`, `yunet=PATH`, `openvino-ssd=PATH`, `auto`; the first one is used first.

    `auto` is the best detector that is configured, by a path in this list or in FER_LAB_YUNET / FER_LAB_SSD, else haar.
    """
    import os

    known = detectors()
    paths: dict[str, Path | None] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if name == "auto":
            continue
        if name not in known:
            raise InputError(f"unknown detector {name!r}; known: auto, {', '.join(known)}{nearest(name, known)}")
        if known[name].wants_file and not path:
            raise InputError(f"detector {name} needs its model file: --detector {name}=PATH")
        paths[name] = Path(path) if path else None
    if "auto" in texts or not texts:
        for name, variable in (("yunet", "FER_LAB_YUNET"), ("openvino-ssd", "FER_LAB_SSD")):
            if name not in paths and os.environ.get(variable):
                paths[name] = Path(os.environ[variable])
        paths.setdefault("haar", None)
        paths = {name: paths[name] for name in sorted(paths, key=lambda n: BEST_FIRST.index(n) if n in BEST_FIRST else 0)}
    return [Shared(known[name].open(path, search)) for name, path in paths.items()]


def check_file(path: Path | None, kind: str) -> Path:
    """Return the path when it can be a model file. Raises NotFound, or InputError for a Git-LFS pointer or a web page."""
    if path is None or not path.is_file():
        raise NotFound(f"no {kind} model file at {path}. Give the path of the downloaded file, or use --detector haar")
    head = path.read_bytes()[:200] if path.stat().st_size < 10_000 else b""
    if head.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{path} is a Git-LFS pointer of {path.stat().st_size} bytes, not the model. Fetch the real file (git lfs pull)"
        )
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")) or not path.stat().st_size:
        raise InputError(f"{path} is {'a web page' if head else 'empty'}, not a {kind} model. Download the raw file")
    return path


def reduced(image: Image, search_px: int) -> tuple[Image, float]:
    """Return the image with its longer side at most `search_px`, and the factor back to the frame's pixels."""
    import cv2

    height, width = image.shape[:2]
    factor = max(height, width) / search_px
    if factor <= 1:
        return image, 1.0
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    # Area averaging keeps small faces; for large factors a first cheap step keeps it fast.
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), factor


def largest_first(found: list[Found], most: int) -> list[Found]:
    """Order by area, keep the `most` largest."""
    return sorted(found, key=lambda f: -(f.box_px[2] - f.box_px[0]) * (f.box_px[3] - f.box_px[1]))[:most]
