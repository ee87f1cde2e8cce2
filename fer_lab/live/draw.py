"""Boxes, labels and bars on a frame, sized to it."""

from __future__ import annotations

import numpy as np

from fer_lab.live.frames import Image, Result, colour_rgb


def annotated(
    result: Result,
    *,
    show_input: bool = False,
    banner: str = "",
    bars: bool = True,
    canvas: Image | None = None,
    factor: float = 1.0,
) -> Image:
    """Return a copy of the frame with a box and a label per face, bars of the largest face on the left.

    `show_input` puts each face's pixels, exactly what the model saw, beside its box. `canvas` is the frame already
    reduced by `factor`; it is drawn on instead of a copy of the frame.
    """
    image: Image = result.frame.image.copy() if canvas is None else canvas
    unit = max(0.55, min(image.shape[:2]) / 720)
    for face in reversed(result.faces):  # the largest on top
        bgr = colour_rgb(face.label)[::-1]
        x0, y0, x1, y1 = (round(v * factor) for v in face.box_px)
        corners(image, (x0, y0, x1, y1), bgr, max(1, round(2 * unit)))
        _tag(image, f"{face.label} {face.confidence:.0%}", (x0, y0), bgr, unit)
        if show_input:
            _inset(image, face.crop, x1 + 4, y0)
    if bars and result.faces:
        _bars(image, result, unit)
    if banner:
        _tag(image, banner, (round(12 * unit), image.shape[0] - round(8 * unit)), (0, 200, 255), unit)
    return image


def corners(image: Image, box: tuple[int, int, int, int], bgr: tuple[int, ...], thick: int) -> None:
    """Draw a thin box with strong corners."""
    import cv2

    x0, y0, x1, y1 = box
    arm = max(4, min(x1 - x0, y1 - y0) // 5)
    cv2.rectangle(image, (x0, y0), (x1, y1), bgr, max(1, thick // 2), cv2.LINE_AA)
    for cx, cy, sx, sy in ((x0, y0, 1, 1), (x1, y0, -1, 1), (x0, y1, 1, -1), (x1, y1, -1, -1)):
        cv2.line(image, (cx, cy), (cx + sx * arm, cy), bgr, thick * 2, cv2.LINE_AA)
        cv2.line(image, (cx, cy), (cx, cy + sy * arm), bgr, thick * 2, cv2.LINE_AA)


def _tag(image: Image, text: str, at: tuple[int, int], bgr: tuple[int, ...], unit: float) -> None:
    import cv2

    scale, thick = 0.75 * unit, max(1, round(1.6 * unit))
    (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    pad = round(7 * unit)
    full = height + base + 2 * pad
    x = int(np.clip(at[0], 0, max(0, image.shape[1] - width - 2 * pad)))
    bottom = at[1] if at[1] - full >= 0 else min(image.shape[0], at[1] + full)
    cv2.rectangle(image, (x, bottom - full), (x + width + 2 * pad, bottom), bgr, -1)
    bright = 0.114 * bgr[0] + 0.587 * bgr[1] + 0.299 * bgr[2]
    ink = (20, 20, 20) if bright > 120 else (255, 255, 255)
    cv2.putText(image, text, (x + pad, bottom - pad - base // 2), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, thick, cv2.LINE_AA)


def _bars(image: Image, result: Result, unit: float) -> None:
    import cv2

    row, width = round(30 * unit), round(240 * unit)
    height = row * len(result.labels) + round(16 * unit)
    if height + 8 > image.shape[0] or width + 8 > image.shape[1]:
        return
    panel = image[8 : 8 + height, 8 : 8 + width]
    panel[:] = (panel * 0.35).astype(np.uint8)
    for i, (label, p) in enumerate(zip(result.labels, result.faces[0].probs, strict=True)):
        y = 8 + round(8 * unit) + i * row
        left, length = 8 + round(110 * unit), round(120 * unit)
        cv2.rectangle(image, (left, y + row // 4), (left + length, y + row * 3 // 4), (70, 70, 70), -1)
        cv2.rectangle(image, (left, y + row // 4), (left + round(length * float(p)), y + row * 3 // 4), colour_rgb(label)[::-1], -1)
        cv2.putText(
            image, label, (8 + round(8 * unit), y + row * 2 // 3), cv2.FONT_HERSHEY_SIMPLEX, 0.55 * unit, (235, 235, 235),
            max(1, round(unit)), cv2.LINE_AA,
        )  # fmt: skip


def _inset(image: Image, crop: np.ndarray, x: int, y: int) -> None:
    import cv2

    side = min(max(48, min(image.shape[:2]) // 5), *image.shape[:2])
    big = cv2.cvtColor(cv2.resize(crop, (side, side), interpolation=cv2.INTER_NEAREST), cv2.COLOR_GRAY2BGR)
    x = int(np.clip(x, 0, image.shape[1] - side))
    y = int(np.clip(y, 0, image.shape[0] - side))
    image[y : y + side, x : x + side] = big
    cv2.rectangle(image, (x, y), (x + side - 1, y + side - 1), (255, 255, 255), 1)
