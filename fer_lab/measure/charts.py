"""The report's charts as SVG text: no library, no script, colours from the page's style sheet so that they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

SERIES = 8
LETTER, LINE = 7.0, 13.0  # px of a label: width of a letter, height of a line
"""Number of series colours in the style sheet (classes s0 … s7)."""


@dataclass(frozen=True)
class Box:
    """A row in the Pareto plot: a point with an interval on both axes."""

    label: str
    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    y_high: float
    size_mb: float
    series: int
    on_front: bool
    dominated_by: str | None


@dataclass(frozen=True)
class Line:
    """One series of a line chart."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    series: int


@dataclass(frozen=True)
class Change:
    """One line of the forest plot: a change with its interval, in points."""

    label: str
    value: float
    low: float
    high: float
    word: str


class _Frame:
    """Maps data to pixels and draws the axes."""

    def __init__(
        self,
        width: int,
        height: int,
        xs: tuple[float, float],
        ys: tuple[float, float],
        *,
        log_x: bool = False,
        left: int = 56,
        right: int = 16,
    ) -> None:
        self.width, self.height, self.left, self.right, self.top, self.bottom = width, height, left, right, 12, 42
        self.log_x = log_x
        self.x0, self.x1 = (math.log10(xs[0]), math.log10(xs[1])) if log_x else xs
        self.y0, self.y1 = ys
        self.parts: list[str] = []

    def x(self, value: float) -> float:
        """Pixel of an x value."""
        v = math.log10(value) if self.log_x else value
        return self.left + (v - self.x0) / ((self.x1 - self.x0) or 1) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        """Pixel of a y value."""
        return self.height - self.bottom - (value - self.y0) / ((self.y1 - self.y0) or 1) * (self.height - self.top - self.bottom)

    def axes(self, x_label: str, y_label: str, *, percent: bool, x_ticks: Sequence[float] | None = None) -> None:
        """Grid, ticks and labels."""
        for tick in ticks(self.y0, self.y1):
            y = self.y(tick)
            text = f"{tick * 100:g} %" if percent else f"{tick:g}"
            self.parts.append(f'<line class="grid" x1="{self.left}" x2="{self.width - self.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self.parts.append(f'<text class="tick" x="{self.left - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
        chosen = x_ticks if x_ticks is not None else (log_ticks(self.x0, self.x1) if self.log_x else ticks(self.x0, self.x1))
        base = self.height - self.bottom
        for tick in chosen:
            x = self.x(tick)
            self.parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{base}"/>')
            self.parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 17}" text-anchor="middle">{tick:g}</text>')
        middle = (self.left + self.width - self.right) / 2
        self.parts.append(
            f'<text class="axis" x="{middle:.0f}" y="{self.height - 6}" text-anchor="middle">{escape(x_label)}</text>'
        )
        if y_label:
            across = (self.top + base) / 2
            self.parts.append(
                f'<text class="axis" transform="translate(13 {across:.0f}) rotate(-90)" '
                f'text-anchor="middle">{escape(y_label)}</text>'
            )

    def svg(self, title: str) -> str:
        """The finished picture."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(title)}">'
            f"<title>{escape(title)}</title>{''.join(self.parts)}</svg>"
        )


def pareto(boxes: Sequence[Box], per: str) -> str:
    """Accuracy over latency; the box is the 95 % interval on both axes, the dot's area the size of the artifact.

    per: what the latency is of, `per face` or `per call of 8 faces`.
    """
    low, high = min(b.x_low for b in boxes), max(b.x_high for b in boxes)
    bottom, top = min(b.y_low for b in boxes), max(b.y_high for b in boxes)
    pad = max((top - bottom) * 0.12, 0.004)
    frame = _Frame(860, 400, (low / 1.25, high * 1.25), (max(0, bottom - pad), min(1, top + pad)), log_x=True)
    frame.axes(f"median latency {per} in ms (log)", "accuracy", percent=True)
    front = sorted((b for b in boxes if b.on_front), key=lambda b: b.x)
    if len(front) > 1:
        points = " ".join(f"{frame.x(b.x):.1f},{frame.y(b.y):.1f}" for b in front)
        frame.parts.append(f'<polyline class="front" points="{points}"/>')
    largest = max(b.size_mb for b in boxes) or 1
    placed: list[tuple[float, float, float]] = []
    for b in boxes:
        x, y = frame.x(b.x), frame.y(b.y)
        left, right, up, down = frame.x(b.x_low), frame.x(b.x_high), frame.y(b.y_high), frame.y(b.y_low)
        faded = " faded" if b.dominated_by else ""
        why = f"; dominated by {b.dominated_by}" if b.dominated_by else "; on the front" if b.on_front else ""
        tip = f"{b.label}: {b.y:.2%} ({b.y_low:.2%}–{b.y_high:.2%}), {b.x:.2f} ms, {b.size_mb:.1f} MB{why}"
        radius = 4 + 7 * math.sqrt(b.size_mb / largest)
        frame.parts.append(
            f'<g class="s{b.series % SERIES}{faded}"><title>{escape(tip)}</title>'
            f'<rect class="box" x="{left:.1f}" y="{up:.1f}" width="{max(right - left, 2):.1f}" '
            f'height="{max(down - up, 2):.1f}" rx="2"/>'
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/></g>'
        )
        anchor = "end" if x > frame.width - 190 else "start"
        label_y = _free_line(x, y, radius, LETTER * len(b.label) * (-1 if anchor == "end" else 1), frame, placed)
        frame.parts.append(f'<text class="mark" x="{x:.1f}" y="{label_y:.1f}" text-anchor="{anchor}">{escape(b.label)}</text>')
    return frame.svg("Accuracy against latency")


def _free_line(x: float, y: float, radius: float, width: float, frame: _Frame, placed: list[tuple[float, float, float]]) -> float:
    """The nearest line above or below a dot where its label (`width` px from x, negative to the left) covers no other."""
    left, right = min(x, x + width), max(x, x + width)
    lines = [y - radius - 5 - LINE * i for i in range(len(placed) + 1)] + [
        y + radius + 14 + LINE * i for i in range(len(placed) + 1)
    ]
    inside = [line for line in lines if frame.top + LINE <= line <= frame.height - frame.bottom - 4] or lines[:1]

    def is_free(line: float) -> bool:
        return not any(abs(line - taken) < LINE and left < end and begin < right for begin, end, taken in placed)

    nearest = sorted(inside, key=lambda line: abs(line - y))
    chosen = next((line for line in nearest if is_free(line)), nearest[0])
    placed.append((left, right, chosen))
    return chosen


def lines(
    series: Sequence[Line], x_label: str, y_label: str, *, percent: bool = True, log_x: bool = False, width: int = 860,
    height: int = 320, y_range: tuple[float, float] | None = None, title: str = "", steps: bool = False,
    x_ticks: Sequence[float] | None = None,
) -> str:  # fmt: skip
    """A line chart; with `steps`, the lines are cumulative distributions."""
    xs = [x for line in series for x in line.xs]
    ys = [y for line in series for y in line.ys]
    if y_range is None:
        pad = max((max(ys) - min(ys)) * 0.1, 0.01)
        y_range = (max(0.0, min(ys) - pad), min(1.0, max(ys) + pad) if percent else max(ys) + pad)
    span = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) * 0.9, max(xs) * 1.1 or 1.0)
    frame = _Frame(width, height, span, y_range, log_x=log_x)
    frame.axes(x_label, y_label, percent=percent, x_ticks=x_ticks)
    for line in series:
        points: list[str] = []
        last = None
        for x, y in zip(line.xs, line.ys, strict=True):
            if steps and last is not None:
                points.append(f"{frame.x(x):.1f},{frame.y(last):.1f}")
            points.append(f"{frame.x(x):.1f},{frame.y(y):.1f}")
            last = y
        dots = (
            ""
            if steps
            else "".join(
                f'<circle class="dot" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.6"/>'
                for x, y in zip(line.xs, line.ys, strict=True)
            )
        )
        frame.parts.append(
            f'<g class="s{line.series % SERIES}"><title>{escape(line.label)}</title>'
            f'<polyline class="line" points="{" ".join(points)}"/>{dots}</g>'
        )
    return frame.svg(title or y_label)


def forest(changes: Sequence[Change], margin_points: float) -> str:
    """Changes in accuracy with intervals against the reference; the margin is the dashed line."""
    reach = max([abs(v) for c in changes for v in (c.low, c.high)] + [margin_points]) * 1.15
    left = 36 + max(len(c.label) for c in changes) * 8
    frame = _Frame(860, 62 + 30 * len(changes), (-reach, reach), (0, len(changes)), left=min(left, 380), right=120)
    base = frame.height - frame.bottom
    for tick in ticks(-reach, reach):
        x = frame.x(tick)
        frame.parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{base}"/>')
        frame.parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 17}" text-anchor="middle">{_signed(tick)}</text>')
    for value, name in ((0.0, "zero"), (-margin_points, "margin")):
        x = frame.x(value)
        frame.parts.append(f'<line class="{name}" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{base}"/>')
    for i, change in enumerate(changes):
        y = frame.top + 16 + 30 * i
        tone = change.word.replace(" ", "-")
        frame.parts.append(f'<text class="mark" x="{frame.left - 12}" y="{y + 4}" text-anchor="end">{escape(change.label)}</text>')
        frame.parts.append(
            f'<g class="w-{tone}"><line class="whisker" x1="{frame.x(change.low):.1f}" x2="{frame.x(change.high):.1f}" '
            f'y1="{y}" y2="{y}"/>'
            f'<circle class="dot" cx="{frame.x(change.value):.1f}" cy="{y}" r="5"/>'
            f'<text class="word" x="{frame.width - frame.right + 14}" y="{y + 4}">{escape(change.word)}</text></g>'
        )
    middle = (frame.left + frame.width - frame.right) / 2
    frame.parts.append(
        f'<text class="axis" x="{middle:.0f}" y="{frame.height - 6}" text-anchor="middle">'
        f"change in accuracy, points (95 % paired interval; dashed: −{margin_points:g})</text>"
    )
    return frame.svg("Change in accuracy against the reference")


def reliability(
    label: str, share: Sequence[float], confidence: Sequence[float], accuracy: Sequence[float], error: float, series: int
) -> str:
    """Accuracy over confidence per bin; the gap to the diagonal is the miscalibration; bars below: where the faces lie."""
    frame = _Frame(270, 250, (0, 1), (0, 1), left=44, right=10)
    frame.axes("confidence", "accuracy", percent=False, x_ticks=(0, 0.5, 1))
    frame.parts.append(f'<line class="margin" x1="{frame.x(0)}" y1="{frame.y(0)}" x2="{frame.x(1)}" y2="{frame.y(1)}"/>')
    bins = len(share)
    most = max(share) or 1
    for i in range(bins):
        if not share[i]:
            continue
        left, right = frame.x(i / bins) + 0.7, frame.x((i + 1) / bins) - 0.7
        low, high = sorted((accuracy[i], confidence[i]))
        frame.parts.append(
            f'<rect class="s{series % SERIES} bar" x="{left:.1f}" width="{right - left:.1f}" y="{frame.y(accuracy[i]):.1f}" '
            f'height="{frame.y(0) - frame.y(accuracy[i]):.1f}"><title>{share[i]:.1%} of the faces</title></rect>'
            f'<rect class="gap" x="{left:.1f}" width="{right - left:.1f}" y="{frame.y(high):.1f}" '
            f'height="{frame.y(low) - frame.y(high):.1f}"/>'
            f'<rect class="share" x="{left:.1f}" width="{right - left:.1f}" y="{frame.y(0.16 * share[i] / most):.1f}" '
            f'height="{frame.y(0) - frame.y(0.16 * share[i] / most):.1f}"/>'
        )
    return frame.svg(f"Reliability of {label}, ECE {error:.3f}")


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between low and high.

    >>> ticks(0.81, 0.87)
    [0.82, 0.84, 0.86]
    """
    span = high - low
    if span <= 0:
        return [low]
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 of each decade between 10^low and 10^high."""
    found = [m * 10.0**d for d in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    inside = [value for value in found if low <= math.log10(value) <= high]
    return inside or [10**low, 10**high]


def _signed(value: float) -> str:
    return f"{value:+g}".replace("-", "−") if value else "0"
