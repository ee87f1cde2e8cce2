"""What goes wrong between a camera and a model, at rising strength: a wrong crop, a turned head, blur, dark, noise, JPEG, a hand.

Each corruption is a pure function of faces and a level; level 0 leaves them as they are. Random parts come from a seed and
the face's place in the list, so that every model sees the same corrupted faces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Corruption:
    """One corruption and the levels at which it is measured (0, the clean face, stands before them)."""

    name: str
    unit: str
    levels: tuple[float, ...]
    apply: Callable[[Pixels, float, np.random.Generator], Pixels]


def corrupt(corruption: Corruption, pixels: Pixels, level: float, seed: int = 0) -> Pixels:
    """uint8 [N, 48, 48] → uint8 [N, 48, 48]; the same faces, level and seed give the same pixels."""
    if level == 0:
        return pixels
    return corruption.apply(pixels, level, np.random.default_rng([seed, round(level * 1000)]))


def area(levels: tuple[float, ...], accuracy: tuple[float, ...]) -> float:
    """Area under the curve by trapezoids, divided by the span of the levels: the mean accuracy over strengths.

    >>> area((0.0, 1.0, 2.0), (0.8, 0.6, 0.4))
    0.6
    """
    total = sum((b - a) * (x + y) / 2 for a, b, x, y in zip(levels, levels[1:], accuracy, accuracy[1:], strict=False))
    return round(total / (levels[-1] - levels[0]), 12)


def _crop_jitter(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """The box is off: shifted in a random direction by `level` of the side, and too tight or too wide by the same."""
    n = len(pixels)
    angle, wider = rng.uniform(0, 2 * np.pi, n), rng.choice([-1.0, 1.0], n)
    moves = np.zeros((n, 2, 3))
    for i in range(n):
        zoom = 1 + wider[i] * level
        middle = 23.5 * (1 - zoom)
        moves[i] = [[zoom, 0, middle + 48 * level * np.cos(angle[i])], [0, zoom, middle + 48 * level * np.sin(angle[i])]]
    return _warp(pixels, moves)


def _rotation(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    import cv2

    signs = rng.choice([-1.0, 1.0], len(pixels))
    return _warp(pixels, np.array([cv2.getRotationMatrix2D((23.5, 23.5), level * sign, 1.0) for sign in signs]))


def _blur(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    import cv2

    return np.stack([np.asarray(cv2.GaussianBlur(face, (0, 0), level, borderType=cv2.BORDER_REPLICATE)) for face in pixels])


def _darkness(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    return (pixels * (1 - level)).round().astype(np.uint8)


def _noise(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    return (pixels + rng.normal(0, level, pixels.shape)).round().clip(0, 255).astype(np.uint8)


def _jpeg(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """`level` is 100 − quality."""
    import cv2

    quality = [int(cv2.IMWRITE_JPEG_QUALITY), round(100 - level)]
    return np.stack(
        [np.asarray(cv2.imdecode(cv2.imencode(".jpg", face, quality)[1], cv2.IMREAD_GRAYSCALE), np.uint8) for face in pixels]
    )


def _occlusion(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """A gray bar over `level` of the face, from a random side; 0.5 is half the face."""
    covered, sides = pixels.copy(), rng.integers(0, 4, len(pixels))
    width = round(48 * level)
    for face, side in zip(covered, sides, strict=True):
        turned = np.rot90(face, side)  # a view: writing to it writes to the face
        turned[:width] = 127
    return covered


def _warp(pixels: Pixels, matrices: npt.NDArray[np.float64]) -> Pixels:
    import cv2

    return np.stack(
        [
            np.asarray(cv2.warpAffine(face, matrix, (48, 48), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)
            for face, matrix in zip(pixels, matrices, strict=True)
        ]
    )


CORRUPTIONS = (
    Corruption("crop jitter", "share of the side", (0.05, 0.10, 0.15, 0.20), _crop_jitter),
    Corruption("rotation", "degrees", (10.0, 20.0, 30.0), _rotation),
    Corruption("blur", "sigma in px", (0.5, 1.0, 1.5, 2.0), _blur),
    Corruption("darkness", "share of light lost", (0.3, 0.6, 0.8), _darkness),
    Corruption("noise", "sigma of 255", (5.0, 10.0, 20.0, 40.0), _noise),
    Corruption("jpeg", "100 − quality", (50.0, 70.0, 90.0), _jpeg),
    Corruption("occlusion", "share of the face", (0.25, 0.50), _occlusion),
)
