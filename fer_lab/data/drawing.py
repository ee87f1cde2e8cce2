"""Schematic gray faces drawn from facial action units, a whole batch at a time.

Every shape is a curve with an analytic distance, so a face can be drawn at 48 or at 480 pixels with smooth edges and
without supersampling. Action units follow Ekman, Friesen & Hager, "Facial Action Coding System" (2002).
Coordinates: the picture spans -1..1 in x (right) and y (down); the face's own axes are turned, moved and scaled in it.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]  # float32 throughout; NumPy's stubs cannot tell

_ONE = np.float32(1)  # two Python numbers in np.where would make everything after it float64

UNITS = (
    "inner_brow_raiser", "outer_brow_raiser", "brow_lowerer", "upper_lid_raiser", "cheek_raiser", "lid_tightener",
    "nose_wrinkler", "upper_lip_raiser", "lip_corner_puller", "dimpler", "lip_corner_depressor", "chin_raiser",
    "lip_stretcher", "lip_tightener", "lips_part", "jaw_drop", "teeth",
)  # fmt: skip
"""Columns of `Faces.units`: action units 1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26 and bared teeth."""


@dataclass(frozen=True)
class Faces:
    """What to draw, N faces: action units 0–1 and everything that varies beside the expression. All float32 [N]."""

    units: Array  # [N, len(UNITS)]
    one_sided: Array  # -1, 0, 1: which corner of the mouth AU 12 and 14 pull alone (0 = both)
    visible: Array  # 1 a face, 0 only the background
    # pose, in the picture
    x: Array
    y: Array
    size: Array
    roll: Array  # radians
    yaw: Array  # -1..1 ≈ ±45°
    pitch: Array
    # identity
    width: Array
    jaw: Array
    skin: Array
    hair: Array  # tone
    hairline: Array
    long_hair: Array  # 0–1
    eye_distance: Array
    eye_size: Array
    brow_thickness: Array
    brow_arch: Array
    nose: Array
    mouth_width: Array
    lips: Array
    beard: Array  # 0–1
    glasses: Array  # 0–1
    age: Array  # 0–1, wrinkles
    # picture
    background: Array
    light_x: Array
    light_y: Array
    contrast: Array
    blur: Array  # 0–1
    noise: Array  # standard deviation in gray levels
    occlusion: Array  # 0 or 1: a bar or a hand before the face
    occlusion_x: Array
    occlusion_y: Array
    occlusion_size: Array
    occlusion_tone: Array

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, start: int, stop: int) -> Faces:
        """The faces start..stop-1."""
        return Faces(*(getattr(self, field.name)[start:stop] for field in fields(self)))


def draw(faces: Faces, size: int) -> Array:
    """Return gray pictures, float32 [N, size, size] in 0–255, without noise."""
    step = max(1, 48 * 48 * 8 // (size * size))  # so few at a time that they stay in the cache
    batches = [faces.rows(i, i + step) for i in range(0, len(faces), step)]
    if not batches:
        return np.zeros((0, size, size), np.float32)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # NumPy works outside the interpreter lock
        return np.concatenate(list(pool.map(lambda batch: _draw(batch, size), batches)))


class _Canvas:
    """A batch of pictures under construction, in the axes of the face."""

    def __init__(self, faces: Faces, size: int) -> None:
        line = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)
        self.px = line[None, None, :]
        self.py = line[None, :, None]
        cos, sin = np.cos(of(faces.roll)), np.sin(of(faces.roll))
        dx, dy = self.px - of(faces.x), self.py - of(faces.y)
        self.x: Array = (dx * cos + dy * sin) / of(faces.size)
        self.y: Array = (dy * cos - dx * sin) / of(faces.size)
        # Features sit on a rounded head: turning it moves them and narrows the far side.
        self.fx: Array = (self.x - 0.30 * of(faces.yaw)) * (1 + 0.40 * of(faces.yaw) * self.x)
        self.fy: Array = self.y - 0.16 * of(faces.pitch) * (1 - 0.5 * self.x**2)
        self.edge: Array = (2.2 / size) / of(faces.size)  # width of a smooth edge, in face units
        self.visible = of(faces.visible)
        self.image: Array = np.broadcast_to(of(faces.background), self.x.shape).copy()

    def cover(self, distance: Array) -> Array:
        """Coverage 0–1 of the region where `distance` (in face units) is negative."""
        return np.clip(0.5 - distance / self.edge, 0, 1)

    def paint(self, cover: Array, tone: Array | float, strength: Array | float = 1.0) -> None:
        """Lay a tone over the picture."""
        self.image += (cover * strength * self.visible) * (tone - self.image)

    def stroke(self, offset: Array, thickness: Array | float, inside: Array, tone: Array | float, strength: Array | float) -> None:
        """A line where `offset` is near zero and `inside` (a distance) negative."""
        # A line thinner than a pixel gets paler instead of thinner.
        pale = np.minimum(1, 2 * thickness / self.edge)
        wide = np.maximum(thickness, self.edge / 2)
        self.paint(self.cover(np.abs(offset) - wide) * self.cover(inside) * pale, tone, strength)


def _length(a: Array, b: Array) -> Array:
    return np.asarray(np.sqrt(a * a + b * b))  # np.hypot guards against overflow and is several times slower


def of(values: Array) -> Array:
    """A per-face value, shaped to broadcast over pixels."""
    return values[:, None, None]


def _draw(faces: Faces, size: int) -> Array:
    canvas = _Canvas(faces, size)
    unit = {name: of(faces.units[:, i]) for i, name in enumerate(UNITS)}
    # Something happens behind the head.
    canvas.image += (
        22 * np.sin(5 * canvas.px * of(faces.light_x) + 9 * of(faces.width)) * np.cos(4 * canvas.py + 30 * of(faces.jaw))
    )
    _head(canvas, faces, unit)
    for side in (-1.0, 1.0):
        _eye(canvas, faces, unit, side)
        _brow(canvas, faces, unit, side)
    _nose(canvas, faces, unit)
    _mouth(canvas, faces, unit)
    _wrinkles(canvas, faces, unit)
    _fringe(canvas, faces)
    _glasses(canvas, faces)
    _occlusion(canvas, faces)
    image = canvas.image
    image = (image - 120) * of(faces.contrast) + 120
    image *= 1 + 0.28 * of(faces.light_x) * canvas.px + 0.22 * of(faces.light_y) * canvas.py
    return _blurred(image, of(faces.blur), max(1, round(size / 48)))


def _head(canvas: _Canvas, faces: Faces, unit: dict[str, Array]) -> None:
    x, y = canvas.x, canvas.y
    hair = of(faces.hair)
    # Hair behind the head: a cap, or a long shape that falls to the shoulders.
    fall = np.where(y > 0, 1 - 0.75 * of(faces.long_hair), 1.0)
    canvas.paint(
        canvas.cover((_length(x / 0.92, (y + 0.12) * fall / 1.02) - 1) * 0.9), hair, np.where(y > 0.9, of(faces.long_hair), 1.0)
    )
    # Neck and shoulders.
    skin = of(faces.skin)
    canvas.paint(canvas.cover(np.maximum(np.abs(x) - 0.36, 0.5 - y)), skin * 0.72)
    canvas.paint(canvas.cover(1.22 + 0.35 * x**2 - y), of(faces.background) * 0.35 + 40)
    # Ears, then the face: an ellipse whose lower half narrows to the jaw and grows with a dropped jaw.
    canvas.paint(canvas.cover((_length((np.abs(x) - of(faces.width) * 1.0) / 0.10, (y - 0.02) / 0.20) - 1) * 0.1), skin * 0.85)
    half_width = of(faces.width) * (1 - of(faces.jaw) * np.clip(y, 0, 1) ** 2)
    half_height = np.where(y > 0, 1.0 + 0.13 * unit["jaw_drop"], 0.98)
    radius = _length(x / half_width, y / half_height)
    shade = 1.06 - 0.24 * radius**3 + 0.20 * of(faces.light_x) * x + 0.10 * of(faces.light_y) * y
    canvas.paint(canvas.cover((radius - 1) * 0.85), skin * shade)
    # Beard: the lower face, darker.
    lower = np.clip((y - 0.30 - 0.25 * (1 - (x / 0.8) ** 2) * (y < 0.5)) * 6, 0, 1) * canvas.cover((radius - 1) * 0.85)
    canvas.paint(lower, np.minimum(hair, skin * 0.75), 0.65 * of(faces.beard))
    # Eye sockets and the shadow under the brow.
    for side in (-1.0, 1.0):
        dx = (canvas.fx - side * of(faces.eye_distance)) / 0.30
        socket = np.clip(1 - dx**2 - ((canvas.fy + 0.16) / 0.20) ** 2, 0, 1)
        canvas.paint(socket, skin * 0.62, 0.55)
        cheek = np.clip(
            1 - ((canvas.fx - side * 0.45) / 0.30) ** 2 - ((canvas.fy - 0.22 + 0.07 * unit["cheek_raiser"]) / 0.22) ** 2, 0, 1
        )
        canvas.paint(cheek, np.minimum(skin * 1.16, 245), 0.35 + 0.45 * unit["cheek_raiser"])


def _eye(canvas: _Canvas, faces: Faces, unit: dict[str, Array], side: float) -> None:
    skin = of(faces.skin)
    half = 0.175 * of(faces.eye_size)
    dx = canvas.fx - side * of(faces.eye_distance)
    t = dx / half
    arch = 1 - t**2
    tilt = 0.02 * side * t
    raised, tight, cheek, wrinkled = (
        unit[name] for name in ("upper_lid_raiser", "lid_tightener", "cheek_raiser", "nose_wrinkler")
    )  # fmt: skip
    open_up = 0.085 * of(faces.eye_size) * (1 + 0.85 * raised - 0.40 * tight - 0.25 * cheek - 0.25 * wrinkled)
    open_down = 0.060 * of(faces.eye_size) * (1 + 0.25 * raised - 0.75 * tight - 0.95 * cheek - 0.5 * wrinkled)
    y = canvas.fy + 0.14 - tilt
    inside = np.maximum(np.maximum(-(y + open_up * arch), y - open_down * arch), np.abs(dx) - half)
    canvas.paint(canvas.cover(inside), np.minimum(skin * 1.1 + 55, 240))
    gaze = dx - 0.05 * of(faces.yaw) * half
    iris = _length(gaze, y + 0.012) - 0.080 * of(faces.eye_size)
    canvas.paint(canvas.cover(np.maximum(iris, inside)), 52.0)
    canvas.paint(canvas.cover(_length(gaze - 0.025, y + 0.035) - 0.022) * canvas.cover(inside), 225.0)
    within = np.abs(dx) - half * 1.05
    canvas.stroke(y + open_up * arch, 0.024, within, skin * 0.25, 0.95)  # lashes
    canvas.stroke(y - open_down * arch, 0.010, within, skin * 0.5, 0.6)
    canvas.stroke(y + (open_up + 0.055) * arch, 0.010, within, skin * 0.5, 0.5 * (1 - unit["upper_lid_raiser"]))
    bag = y - open_down * arch - 0.06
    canvas.stroke(bag, 0.014, np.abs(dx) - half, skin * 0.62, 0.25 * of(faces.age) + 0.6 * unit["cheek_raiser"])


def _brow(canvas: _Canvas, faces: Faces, unit: dict[str, Array], side: float) -> None:
    # Along the brow: 0 at the nose, 1 at the temple.
    inner = 0.13 - 0.055 * unit["brow_lowerer"]
    outer = of(faces.eye_distance) + 0.25
    s = (canvas.fx * side - inner) / (outer - inner)
    lowered = 0.105 * unit["brow_lowerer"] + 0.05 * unit["nose_wrinkler"]
    at_nose = -0.345 - 0.18 * unit["inner_brow_raiser"] + lowered * 1.15
    at_temple = -0.335 - 0.16 * unit["outer_brow_raiser"] + lowered * 0.15 + 0.03 * unit["inner_brow_raiser"]
    bow = (0.07 * of(faces.brow_arch) + 0.06 * unit["outer_brow_raiser"] - 0.03 * unit["brow_lowerer"]) * 4
    curve = at_nose + (at_temple - at_nose) * s - bow * s * (1 - s)
    slope = (at_temple - at_nose - bow * (1 - 2 * s)) / (outer - inner)
    offset = (canvas.fy - curve) / np.sqrt(1 + slope**2)
    thickness = of(faces.brow_thickness) * (1.15 - 0.65 * np.clip(s, 0, 1))
    inside = (np.abs(s - 0.5) - 0.5) * (outer - inner)
    canvas.stroke(offset, thickness, inside, np.minimum(of(faces.hair) * 0.8, of(faces.skin) * 0.55), 0.92)


def _nose(canvas: _Canvas, faces: Faces, unit: dict[str, Array]) -> None:
    skin, x = of(faces.skin), canvas.fx - 0.10 * of(faces.yaw)
    tip = 0.22 + 0.05 * of(faces.nose) - 0.035 * unit["nose_wrinkler"]
    wing = 0.11 + 0.04 * of(faces.nose) + 0.025 * unit["nose_wrinkler"] + 0.01 * unit["upper_lip_raiser"]
    y = canvas.fy - tip
    ridge = np.clip(1 - (x / 0.075) ** 2, 0, 1) * np.clip((canvas.fy + 0.25) * 8, 0, 1) * np.clip((0.02 - y) * 10, 0, 1)
    canvas.paint(ridge, np.minimum(skin * 1.2, 250), 0.45)
    shaded = x * np.where(of(faces.light_x) > 0, _ONE, -_ONE) + 0.075 + 0.03 * (canvas.fy + 0.2)
    canvas.stroke(shaded, 0.018, np.maximum(-0.15 - canvas.fy, y), skin * 0.62, 0.5)
    for side in (-1.0, 1.0):
        nostril = _length((x - side * wing * 0.55) / 0.05, (y - 0.01) / 0.024) - 1
        canvas.paint(canvas.cover(nostril * 0.03), skin * 0.32, 0.85)
    canvas.stroke(y - 0.035 + 0.06 * (x / wing) ** 2, 0.013, np.abs(x) - wing, skin * 0.5, 0.7)


def _mouth(canvas: _Canvas, faces: Faces, unit: dict[str, Array]) -> None:
    skin, pull, stretch = of(faces.skin), unit["lip_corner_puller"], unit["lip_stretcher"]
    alone = of(faces.one_sided)
    x = canvas.fx - 0.04 * of(faces.yaw)
    half = of(faces.mouth_width) * (1 + 0.24 * pull * (1 - 0.6 * np.abs(alone)) + 0.24 * stretch - 0.16 * unit["lip_tightener"]
                                    - 0.28 * unit["jaw_drop"] * (1 - pull) * (1 - stretch))  # fmt: skip
    t = x / half
    # A one-sided pull lifts one corner only: the contempt of EMFACS (AU 12 or 14 on one side).
    share = np.where(alone == 0, 1.0, np.clip(0.5 + 0.9 * alone * t, 0, 1.15))
    lift = 0.175 * pull * share + 0.05 * unit["dimpler"] * share
    drop = 0.145 * unit["lip_corner_depressor"] + 0.03 * stretch + 0.05 * unit["chin_raiser"]
    middle = 0.50 + 0.02 * pull - 0.035 * unit["chin_raiser"]
    line = middle + (drop - lift) * t**2
    arch = np.clip(1 - t**2, 0, 1)
    part, jaw = unit["lips_part"], unit["jaw_drop"]
    bare = unit["upper_lip_raiser"]
    root = np.sqrt(arch)
    square = arch + np.maximum(bare, unit["teeth"]).clip(0, 1) * (root - arch)  # bared teeth make the mouth square
    upper = line - (0.030 * part + 0.045 * jaw + 0.055 * bare * part + 0.012 * bare) * square
    lower = line + (0.050 * part + 0.215 * jaw + 0.02 * unit["teeth"] * part) * square
    inside = np.maximum(np.maximum(upper - canvas.fy, canvas.fy - lower), np.abs(x) - half)
    lip = of(faces.lips) * (1 - 0.55 * unit["lip_tightener"] - 0.2 * pull - 0.25 * stretch)
    full = 0.4 * arch + 0.6 * root
    lip_tone = skin * 0.66
    over, under = lip * full, 1.25 * lip * (1 + 0.35 * unit["chin_raiser"]) * full
    around = np.maximum(np.maximum(upper - over - canvas.fy, canvas.fy - lower - under), np.abs(x) - half)
    canvas.paint(canvas.cover(around), lip_tone, 0.85)
    canvas.paint(canvas.cover(inside), 34.0, np.clip(part + jaw, 0, 1))
    shown = 0.075 * np.clip(unit["teeth"] + 0.35 * pull, 0, 1)
    teeth = np.maximum(inside, canvas.fy - upper - np.minimum(shown, (lower - upper) * 0.85))
    canvas.paint(
        canvas.cover(teeth),
        np.minimum(skin * 0.7 + 90, 235),
        np.clip((part + jaw) * 1.5, 0, 1) * np.clip(unit["teeth"] + 0.4 * pull, 0, 1),
    )
    canvas.stroke(
        canvas.fy - line, 0.020 + 0.006 * unit["lip_tightener"], np.abs(x) - half, skin * 0.30, np.clip(1 - 3 * (part + jaw), 0, 1)
    )
    # The shadow below the lower lip, and the corners.
    canvas.stroke(
        canvas.fy - lower - under - 0.055 + 0.05 * t**2,
        0.024,
        np.abs(x) - half * 0.6,
        skin * 0.68,
        0.45 + 0.4 * unit["chin_raiser"],
    )
    for side in (-1.0, 1.0):
        tuck = np.where(alone == 0, 1.0, np.clip(alone * side, 0, 1)) * np.clip(unit["dimpler"] + 0.5 * pull, 0, 1)
        corner = _length(x - side * half * 1.02, canvas.fy - (middle + drop - lift)) - 0.035
        canvas.paint(canvas.cover(corner), skin * 0.4, 0.75 * tuck)


def _wrinkles(canvas: _Canvas, faces: Faces, unit: dict[str, Array]) -> None:
    skin, x, y, age = of(faces.skin), canvas.fx, canvas.fy, of(faces.age)
    frown = np.clip(unit["brow_lowerer"] * (0.35 + 0.65 * age) + 0.1 * age, 0, 1)
    for side in (-1.0, 1.0):
        canvas.stroke(x - side * 0.045, 0.011, np.abs(y + 0.34) - 0.075, skin * 0.45, 0.8 * frown)
        # Nasolabial furrow: from the wing of the nose to beside the mouth.
        s = np.clip((y - 0.20) / 0.30, 0, 1)
        furrow = x * side - (0.17 + 0.23 * s + 0.03 * unit["lip_corner_puller"])
        alone = of(faces.one_sided)
        deep = 0.18 * age + 0.65 * unit["nose_wrinkler"] + 0.45 * unit["upper_lip_raiser"]
        deep = deep + 0.55 * unit["lip_corner_puller"] * np.where(alone == 0, 1.0, np.clip(alone * side, 0, 1))
        canvas.stroke(furrow * 0.8, 0.016, np.abs(y - 0.34) - 0.15, skin * 0.55, np.clip(deep, 0, 0.9))
        crow = (y + 0.12) - 0.35 * (x * side - of(faces.eye_distance) - 0.2) * np.where(y > -0.12, _ONE, -_ONE)
        canvas.stroke(crow, 0.009, np.abs(x * side - of(faces.eye_distance) - 0.27) - 0.07, skin * 0.5, 0.6 * unit["cheek_raiser"])
    for height in (-0.62, -0.70, -0.78):
        raised = np.clip((unit["inner_brow_raiser"] + unit["outer_brow_raiser"] - 0.4) * (0.4 + 0.6 * age), 0, 1)
        reach = 0.20 + 0.30 * unit["outer_brow_raiser"]
        canvas.stroke(y - height - 0.10 * x**2, 0.012, np.abs(x) - reach, skin * 0.58, 0.7 * raised)
    for height in (-0.10, -0.04):
        canvas.stroke(y - height + 0.25 * np.abs(x), 0.012, np.abs(x) - 0.10, skin * 0.5, 0.8 * unit["nose_wrinkler"])


def _fringe(canvas: _Canvas, faces: Faces) -> None:
    x, y = canvas.x, canvas.y
    line = of(faces.hairline) + 0.30 * (x - 0.3 * of(faces.light_y)) ** 2
    head = (_length(x / 0.94, (y + 0.10) / 1.04) - 1) * 0.9
    canvas.paint(canvas.cover(np.maximum(y - line, head)), of(faces.hair))
    # Long hair falls beside the face, from the temples down.
    strand = np.maximum(np.abs(np.abs(x) - of(faces.width) * 1.08 - 0.05 * y) - 0.13, np.maximum(-0.35 - y, y - 1.2))
    canvas.paint(canvas.cover(strand), of(faces.hair) * 0.9, np.clip(of(faces.long_hair) * 2 - 1, 0, 1))


def _glasses(canvas: _Canvas, faces: Faces) -> None:
    worn = of(faces.glasses)
    for side in (-1.0, 1.0):
        ring = _length((canvas.fx - side * of(faces.eye_distance)) / 1.25, canvas.fy + 0.12) - 0.19
        canvas.stroke(ring, 0.020, ring - 1, 38.0, 0.9 * worn)
    canvas.stroke(canvas.fy + 0.15, 0.018, np.abs(canvas.fx) - 0.14, 38.0, 0.9 * worn)


def _occlusion(canvas: _Canvas, faces: Faces) -> None:
    before = of(faces.occlusion)
    x, y = canvas.px - of(faces.occlusion_x), canvas.py - of(faces.occlusion_y)
    side = of(faces.occlusion_size)
    blob = np.maximum(np.abs(x) - side, np.abs(y + 0.4 * x) - side * 0.7)
    canvas.image += canvas.cover(blob) * before * (of(faces.occlusion_tone) - canvas.image)


def _blurred(image: Array, amount: Array, radius: int) -> Array:
    """Mix in a box blur of the given radius in pixels."""
    soft = image
    for axis in (1, 2):
        soft = (np.roll(soft, radius, axis) + soft + np.roll(soft, -radius, axis)) / 3
    edge = radius
    soft[:, :edge], soft[:, -edge:], soft[:, :, :edge], soft[:, :, -edge:] = (
        image[:, :edge], image[:, -edge:], image[:, :, :edge], image[:, :, -edge:],
    )  # fmt: skip
    return np.asarray(image + amount * (soft - image), np.float32)
