"""YuNet, a face detector of 75 thousand parameters with five landmarks (Wu, Peng, Yu: Machine Intelligence Research 2023).

The file is OpenCV Zoo's `face_detection_yunet_*.onnx`, given by path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fer_lab.core.errors import InputError
from fer_lab.live.detectors import Search, check_file, largest_first, reduced
from fer_lab.live.frames import Found, Image

THRESHOLD = 0.5
"""Lower than OpenCV's own 0.9: with it, enlarged FERPlus faces are found; see experiments/bench/demo_faces.py."""
FINER = 2
"""A frame in which nothing was found is searched again, this many times finer: it costs time only where nobody is shown."""
FINER_THRESHOLD = 0.6
"""Finer pictures have more to mistake for a face."""


class YuNetFinder:
    """A loaded YuNet."""

    name = "yunet"
    # Medians over 236 FERPlus validation faces that it finds when they are enlarged: where the 48×48 picture lies.
    margin = 1.05
    drop = 0.005

    def __init__(self, network: Any, search: Search) -> None:
        self._network = network
        self._search = search
        self._search_px = search.search_px or 320
        self._size = (0, 0)

    def find(self, image: Image) -> list[Found]:
        """BGR uint8 [H, W, 3] → faces with eyes, largest first."""
        found = self._look(image, self._search_px)
        if not found and max(image.shape[:2]) > self._search_px:
            found = [face for face in self._look(image, FINER * self._search_px) if face.score >= FINER_THRESHOLD]
        return largest_first(found, self._search.most)

    def _look(self, image: Image, search_px: int) -> list[Found]:
        small, factor = reduced(image, search_px)
        size = (small.shape[1], small.shape[0])
        if size != self._size:
            self._network.setInputSize(size)
            self._size = size
        _, rows = self._network.detect(small)
        smallest = min(image.shape[:2]) * self._search.smallest
        found = []
        for row in rows if rows is not None else ():
            x, y, w, h = (float(value) * factor for value in row[:4])
            if min(w, h) < smallest:
                continue
            first, second = ((float(row[i]) * factor, float(row[i + 1]) * factor) for i in (4, 6))
            eyes = (first, second) if first[0] <= second[0] else (second, first)
            found.append(Found((x, y, x + w, y + h), float(row[14]), eyes))
        return found


class YuNet:
    """The plug-in."""

    name = "yunet"
    wants_file = True

    def open(self, path: Path | None, search: Search) -> YuNetFinder:
        """Load the ONNX file. Raises NotFound or InputError naming it."""
        import cv2

        file = check_file(path, "YuNet")
        threshold = search.threshold if search.threshold is not None else THRESHOLD
        try:
            network = cv2.FaceDetectorYN.create(str(file), "", (320, 320), threshold, 0.3, 5000)
        except cv2.error as error:
            raise InputError(f"{file} cannot be read as YuNet's ONNX file: {str(error).splitlines()[0][:120]}") from None
        return YuNetFinder(network, search)


DETECTOR = YuNet()
