"""A clip of drawn faces with known labels and boxes, made on the spot: the demo without a camera."""

from __future__ import annotations

import math
import time

import numpy as np
import numpy.typing as npt

from fer_lab.core.labels import EIGHT
from fer_lab.data.synthetic import draw_large
from fer_lab.live.frames import Frame, Image, Known

WIDTH, HEIGHT, FPS = 960, 540, 30.0
SECONDS_PER_FACE = 2.0
SIDE = 264  # of the big portrait, in pixels


class SampleSource:
    """Eight portraits in turn, two seconds each, wandering before a dark background; a smaller one beside every other."""

    name = "sample"
    live = False
    stills = False
    fps: float | None = FPS

    def __init__(self, *, loop: bool = False, seed: int = 0) -> None:
        self.ended = False
        self.status = ""
        self.bad_frames = 0
        self._loop = loop
        self._index = 0
        rng = np.random.default_rng(seed)
        self._faces = [draw_large(label, SIDE, rng) for label in EIGHT.labels]
        self._small = [draw_large(label, SIDE * 2 // 3, rng) for label in EIGHT.labels]
        self._background = _background()

    def read(self, timeout_s: float = 0.5) -> Frame | None:
        """The next frame, or None at the end."""
        born_s = time.perf_counter()
        per_face = round(FPS * SECONDS_PER_FACE)
        turn = self._index // per_face
        if self.ended or (turn >= len(self._faces) and not self._loop):
            self.ended = True
            return None
        which = turn % len(self._faces)
        t = self._index / FPS
        image = self._background.copy()
        x = WIDTH * 0.36 - SIDE / 2 + 90 * math.sin(t * 0.9)
        y = HEIGHT * 0.5 - SIDE / 2 + 40 * math.sin(t * 1.7)
        known = [_place(image, self._faces[which], round(x), round(y), EIGHT.labels[which], 2 * turn)]
        if turn % 2:
            other = (which + 3) % len(self._small)
            x, y = WIDTH * 0.76 - SIDE / 3 + 40 * math.cos(t), HEIGHT * 0.42 - SIDE / 3 + 30 * math.sin(t * 1.3)
            known.append(_place(image, self._small[other], round(x), round(y), EIGHT.labels[other], 2 * turn + 1))
        self._index += 1
        return Frame(self._index - 1, t, image, born_s, tuple(known))

    def close(self) -> None:
        """Nothing is held open."""
        self.ended = True


def _background() -> Image:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    glow = np.exp(-(((x - WIDTH * 0.4) / 420) ** 2 + ((y - HEIGHT * 0.45) / 300) ** 2))
    return np.stack([38 + 46 * glow, 30 + 26 * glow, 28 + 18 * glow], axis=-1).astype(np.uint8)


def _place(image: Image, face: npt.NDArray[np.uint8], x: int, y: int, label: str, number: int) -> Known:
    side = len(face)
    image[y : y + side, x : x + side] = face[:, :, None]
    return Known((float(x), float(y), float(x + side), float(y + side)), label, number)
