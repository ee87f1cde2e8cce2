"""From a box in a frame to the bytes that the model sees: square, FERPlus' framing, gray, the card's size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fer_lab.core.errors import InputError
from fer_lab.live.frames import Found, Image

Square = tuple[float, float, float, float]  # centre x, centre y, side in pixels, roll in degrees (clockwise)


def square(found: Found, *, margin: float, drop: float = 0.0, align: bool = False) -> Square:
    """Return the square around a box: its side is `margin` times the box' mean side, its centre `drop` sides lower.

    With `align`, the square is turned so that the eyes lie level, when the detector gives eyes.
    """
    x0, y0, x1, y1 = found.box_px
    mean_side = (x1 - x0 + y1 - y0) / 2
    roll = 0.0
    if align and found.eyes_px is not None:
        (ax, ay), (bx, by) = found.eyes_px
        if math.hypot(bx - ax, by - ay) > 2:
            roll = math.degrees(math.atan2(by - ay, bx - ax))
    return (x0 + x1) / 2, (y0 + y1) / 2 + drop * mean_side, max(2.0, mean_side * margin), roll


def crops(image: Image, squares: Sequence[Square], height: int = 48, width: int = 48) -> npt.NDArray[np.uint8]:
    """Return uint8 [N, 1, height, width]: gray, reduced by area averaging, the frame's border replicated outside it."""
    faces = np.empty((len(squares), 1, height, width), np.uint8)
    for i, one in enumerate(squares):
        faces[i, 0] = _crop(image, one, height, width)
    return faces


def _crop(image: Image, one: Square, height: int, width: int) -> npt.NDArray[np.uint8]:
    import cv2

    cx, cy, side, roll = one
    if not all(map(math.isfinite, one)):
        raise InputError(f"a detector gave a box that is no number: {one}")
    if roll:
        # Turn a patch around the centre first; √2 covers the corners of the turned square.
        reach = side * math.sqrt(2) / 2
        patch = _cut(image, cx - reach, cy - reach, 2 * reach)
        scale = patch.shape[0] / (2 * reach)
        middle = (patch.shape[1] / 2, patch.shape[0] / 2)
        turned = cv2.warpAffine(
            patch,
            cv2.getRotationMatrix2D(middle, roll, 1.0),
            patch.shape[1::-1],
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        inner = max(1, round(side * scale))
        start = max(0, (patch.shape[0] - inner) // 2)
        patch = turned[start : start + inner, start : start + inner]
    else:
        patch = _cut(image, cx - side / 2, cy - side / 2, side)
    gray = cv2.cvtColor(patch, cv2.COLOR_BGR2GRAY)
    shrink = gray.shape[0] >= height and gray.shape[1] >= width
    sized = cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)
    return np.asarray(sized, np.uint8)


def _cut(image: Image, left: float, top: float, side: float) -> Image:
    """Cut a square; pixels outside the frame repeat its border."""
    import cv2

    height, width = image.shape[:2]
    n = max(1, round(side))
    x0, y0 = round(left), round(top)
    x1, y1 = x0 + n, y0 + n
    inside = image[max(0, min(y0, height - 1)) : max(1, min(y1, height)), max(0, min(x0, width - 1)) : max(1, min(x1, width))]
    pads = (max(0, -y0), max(0, y1 - height), max(0, -x0), max(0, x1 - width))
    if not any(pads):
        return inside
    # A box far outside would ask for a huge border: no more than one side each way.
    top_pad, bottom_pad, left_pad, right_pad = (min(p, n) for p in pads)
    padded = cv2.copyMakeBorder(inside, top_pad, bottom_pad, left_pad, right_pad, cv2.BORDER_REPLICATE)
    return np.asarray(padded, np.uint8)
