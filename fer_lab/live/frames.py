"""What travels through the demo: frames, found faces, labelled faces, results."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
"""BGR, uint8 [H, W, 3]."""

COLOURS_RGB = {
    "anger": (239, 68, 68),
    "contempt": (251, 146, 60),
    "disgust": (74, 222, 128),
    "fear": (232, 121, 249),
    "happiness": (250, 204, 21),
    "neutral": (203, 213, 225),
    "sadness": (96, 140, 255),
    "surprise": (34, 211, 238),
}
"""The seed's colours: anger red, contempt orange, disgust green, fear magenta, happiness yellow, neutral light gray,
sadness blue, surprise cyan, in shades that read on dark and on light."""

UNCERTAIN = "uncertain"
UNCERTAIN_RGB = (148, 163, 184)


def colour_rgb(label: str) -> tuple[int, int, int]:
    """Return the colour of a label, 0–255; labels outside the seed's eight share one gray."""
    return COLOURS_RGB.get(label, UNCERTAIN_RGB)


@dataclass(frozen=True)
class Known:
    """A face of which the source itself knows where it is and what it shows (the drawn sample, composed videos)."""

    box_px: tuple[float, float, float, float]
    label: str
    face: int  # number of the face; labels are steady within one


@dataclass(frozen=True)
class Frame:
    """One picture of a source."""

    index: int
    time_s: float  # position in the file, or seconds since a live source was opened
    image: Image
    born_s: float  # time.perf_counter() when its decoding began
    known: tuple[Known, ...] | None = None


@dataclass(frozen=True)
class Found:
    """One face that a detector found."""

    box_px: tuple[float, float, float, float]  # x0, y0, x1, y1 in the frame, may reach over its border
    score: float  # 0–1
    eyes_px: tuple[tuple[float, float], tuple[float, float]] | None = None  # left and right in the picture


@dataclass(frozen=True)
class Face:
    """One labelled face of a frame."""

    track: int
    box_px: tuple[float, float, float, float]
    score: float
    probs: npt.NDArray[np.float32]  # [K], smoothed over the track
    raw: npt.NDArray[np.float32]  # [K], of this frame alone
    label: str  # steady, or "uncertain"
    confidence: float  # smoothed probability of the steady label
    crop: npt.NDArray[np.uint8] = field(repr=False)  # uint8 [h, w], exactly what the model saw


@dataclass(frozen=True)
class Result:
    """Everything the demo knows about one frame."""

    frame: Frame
    faces: tuple[Face, ...]  # largest first
    labels: tuple[str, ...]
    model: str
    runtime: str
    decode_ms: float
    detect_ms: float
    classify_ms: float
    total_ms: float  # from the start of decoding to the labels, waiting included
    shadow: tuple[str, ...] = ()  # the challenger's label of each face, when one runs beside
