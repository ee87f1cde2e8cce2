"""The Haar cascade that OpenCV ships: no file, no download, works offline on a fresh machine.

Viola & Jones, "Rapid Object Detection using a Boosted Cascade of Simple Features", CVPR 2001; Lienhart & Maydt 2002.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fer_lab.core.errors import InputError
from fer_lab.live.detectors import Search, check_file, largest_first, reduced
from fer_lab.live.frames import Found, Image

CASCADE = "haarcascade_frontalface_alt2.xml"  # finds more faces in reduced images than `default` at equal speed


class HaarFinder:
    """A loaded cascade."""

    name = "haar"
    # Medians over 185 FERPlus validation faces that the cascade finds when they are enlarged: where the 48×48 picture lies.
    margin = 1.05
    drop = 0.01

    def __init__(self, cascade: Any, search: Search) -> None:
        self._cascade = cascade
        self._search = search
        self._search_px = search.search_px or 320

    def find(self, image: Image) -> list[Found]:
        """BGR uint8 [H, W, 3] → faces, largest first."""
        import cv2

        small, factor = reduced(image, self._search_px)
        gray = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
        smallest = max(20, round(min(gray.shape) * self._search.smallest))
        boxes, _, weights = self._cascade.detectMultiScale3(
            gray, scaleFactor=1.1, minNeighbors=3, minSize=(smallest, smallest), outputRejectLevels=True
        )
        threshold = self._search.threshold if self._search.threshold is not None else 0.0
        found = []
        for (x, y, w, h), weight in zip(boxes, weights, strict=True):
            score = float(min(1.0, max(0.0, float(weight) / 5)))  # alt2's last stage sums to about 5 for a clear face
            if score >= threshold:
                found.append(Found((x * factor, y * factor, (x + w) * factor, (y + h) * factor), score))
        return largest_first(found, self._search.most)


class Haar:
    """The plug-in."""

    name = "haar"
    wants_file = False

    def open(self, path: Path | None, search: Search) -> HaarFinder:
        """Load the bundled cascade, or another cascade file. Raises InputError when it is none."""
        import cv2

        if not hasattr(cv2, "CascadeClassifier"):
            raise InputError(f"OpenCV {cv2.__version__} has no cascades. Install opencv-python-headless >= 4.14, < 5")
        file = check_file(path, "cascade") if path else Path(cv2.__file__).parent / "data" / CASCADE
        try:
            cascade = cv2.CascadeClassifier(str(file))
        except (cv2.error, SystemError) as error:
            raise InputError(f"{file} is not a cascade file ({type(error).__name__})") from None
        if cascade.empty():
            raise InputError(f"{file} is not a cascade file of OpenCV")
        return HaarFinder(cascade, search)


DETECTOR = Haar()
