"""Labels and faces of the demo on a film composed from labelled FERPlus validation faces.

    python experiments/bench/demo_faces.py BUNDLE [--yunet PATH] [--faces 100] [--out experiments/results/demo_faces.json]

Each face is enlarged to 260–380 pixels, its edges faded into a moving background, and jittered in place, scale and light
for two seconds at 30 frames/s in 1280×720. The film is made in a temporary folder and removed: it holds dataset faces.
Three questions: in how many frames is the face found (its box overlaps the face's by IoU ≥ 0.3), how often does a detector
fire on face-free frames, and how often is the stable label right, against the model's own accuracy on these very faces (the
label of the most frames of the second second; the likeliest one where "uncertain" is shown). Only the validation split is
read.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from demo_run import FPS, HEIGHT, WIDTH, detectors, finish, parser, watch, write_film

from fer_lab.backends.bundle import open_bundle
from fer_lab.backends.session import Predictor
from fer_lab.data import datasets, faces
from fer_lab.live.frames import UNCERTAIN
from fer_lab.live.tracks import Box, overlap
from fer_lab.measure.evaluate import kept_faces
from fer_lab.measure.stats import wilson

PER_FACE = 2 * FPS


def ground() -> list[np.ndarray]:
    """Face-free backgrounds: everyday pictures, textures and a page of text, uint8 [720, 1280, 3]."""
    from skimage import data

    pictures = [data.coffee(), data.rocket(), data.brick(), data.grass(), data.coins(), data.moon(), data.page(), data.gravel()]
    sized = [cv2.resize(p, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for p in pictures]
    return [cv2.cvtColor(p, cv2.COLOR_GRAY2BGR if p.ndim == 2 else cv2.COLOR_RGB2BGR) for p in sized]


def paste(frame: np.ndarray, face: np.ndarray, x: int, y: int, side: int) -> None:
    """Blend an enlarged face into the frame: its border is continued, blurred, and fades out over a quarter of its side."""
    pad = side // 4
    inner = cv2.copyMakeBorder(cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC), *[pad] * 4, cv2.BORDER_REPLICATE)
    outer = cv2.GaussianBlur(inner, (0, 0), pad / 3)
    n = len(inner)
    near, far = np.zeros((n, n), np.float32), np.zeros((n, n), np.float32)
    near[pad:-pad, pad:-pad] = 1
    far[pad // 2 : -(pad // 2), pad // 2 : -(pad // 2)] = 1
    near, far = cv2.GaussianBlur(near, (0, 0), pad / 12), cv2.GaussianBlur(far, (0, 0), pad / 5)
    patch = inner * near + outer * (1 - near)
    x0, y0 = x - pad, y - pad
    left, top = max(0, -x0), max(0, -y0)
    right, bottom = min(n, WIDTH - x0), min(n, HEIGHT - y0)
    region = frame[y0 + top : y0 + bottom, x0 + left : x0 + right]
    mask = far[top:bottom, left:right, None]
    region[:] = (patch[top:bottom, left:right, None] * mask + region * (1 - mask)).clip(0, 255).astype(np.uint8)


def film(path: Path, pixels: np.ndarray, seed: int) -> list[Box]:
    """Write the film of these faces, uint8 [N, 48, 48]; returns the true box of every frame."""
    rng = np.random.default_rng(seed)
    boxes: list[Box] = []
    blurred = cv2.GaussianBlur(ground()[0], (0, 0), 6)

    def frames() -> Iterator[np.ndarray]:
        for k, face in enumerate(pixels):
            side, phase = rng.uniform(270, 360), rng.uniform(0, 6)
            cx, cy = rng.uniform(300, WIDTH - 300), rng.uniform(260, HEIGHT - 260)
            for i in range(PER_FACE):
                t = i / FPS
                now = round(side * (1 + 0.05 * np.sin(3 * t + phase)))
                x = round(cx + 40 * np.sin(2 * t + phase) + rng.normal(0, 1.5) - now / 2)
                y = round(cy + 20 * np.cos(3 * t + phase) + rng.normal(0, 1.5) - now / 2)
                light = 1 + 0.15 * np.sin(2.5 * t + phase)
                frame = np.roll(blurred, k * PER_FACE + i, axis=1)
                paste(frame, (face * light).clip(0, 255).astype(np.uint8), x, y, now)
                boxes.append((x, y, x + now, y + now))
                yield frame

    write_film(path, frames())
    return boxes


def empty(path: Path) -> int:
    """Write a film without faces; returns its frames."""
    pictures = ground()

    def frames() -> Iterator[np.ndarray]:
        for picture in pictures:
            for i in range(PER_FACE):
                yield np.roll(picture, (3 * i, 7 * i), axis=(0, 1))

    write_film(path, frames())
    return len(pictures) * PER_FACE


def watched(bundle: Path, source: Path, detector: str, lines: Path) -> tuple[str, list[dict[str, Any]]]:
    """Watch a film; returns the runtime that ran, and one line per face."""
    runtime = watch(bundle, source, detector, "--json", str(lines))["runtime"]
    return runtime, [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]


def judge(said: list[dict[str, Any]], boxes: list[Box], truth: list[str]) -> dict[str, Any]:
    """Frames in which the face was found, faces whose stable label is right, label changes per second within a face."""
    by_frame: dict[int, str] = {}
    likeliest: dict[int, str] = {}  # what stands behind "uncertain"
    for line in said:
        frame = line["frame"]
        if overlap(tuple(line["box_px"]), boxes[frame]) >= 0.3:
            by_frame.setdefault(frame, line["label"])
            likeliest.setdefault(frame, max(line["probs"], key=line["probs"].get))
    votes: defaultdict[int, Counter[str]] = defaultdict(Counter)
    changes = 0
    for frame, label in by_frame.items():
        face, i = divmod(frame, PER_FACE)
        if i >= FPS:
            votes[face][likeliest[frame] if label == UNCERTAIN else label] += 1
        before = by_frame.get(frame - 1)
        changes += i > 0 and before is not None and UNCERTAIN not in (before, label) and before != label
    right = sum(bool(votes[k]) and votes[k].most_common(1)[0][0] == label for k, label in enumerate(truth))
    return {
        "found": round(len(by_frame) / len(boxes), 4), "stable_right": round(right / len(truth), 4),
        "wilson": [round(bound, 4) for bound in wilson(right, len(truth))],
        "label_changes_per_s": round(changes / (len(boxes) / FPS), 4),
    }  # fmt: skip


def main() -> None:
    """Make the films, watch them with every detector, print a table and one JSON record."""
    arguments = parser(__doc__)
    arguments.add_argument("--faces", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=0)
    args = arguments.parse_args()
    bundle = open_bundle(args.bundle)
    dataset = datasets.resolve("ferplus", faces.home())
    rows, targets = kept_faces(dataset, bundle.card.protocol, "valid")
    chosen = np.random.default_rng(args.seed).permutation(len(rows))[: args.faces]
    pixels, truth = dataset.pixels[rows[chosen]], [bundle.card.labels[i] for i in targets[chosen]]
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        boxes, blank = film(folder / "faces.mp4", pixels, args.seed), empty(folder / "empty.mp4")
        for name, detector in detectors(args.yunet).items():
            runtime, said = watched(args.bundle, folder / "faces.mp4", detector, folder / "lines.jsonl")
            _, fired = watched(args.bundle, folder / "empty.mp4", detector, folder / "lines.jsonl")
            with Predictor.open(bundle, runtime, threads=1) as predictor:
                own = float((predictor.predict(pixels[:, None]).argmax(axis=1) == targets[chosen]).mean())
            row = {"detector": name, "runtime": runtime, **judge(said, boxes, truth), "model_on_these_faces": round(own, 4)}
            row["false_fire"] = round(len({line["frame"] for line in fired}) / blank, 4)
            results.append(row)
            print(
                f"{name:<6} found {row['found']:.1%}  false fire {row['false_fire']:.1%}  stable label right "
                f"{row['stable_right']:.1%} (the model on these faces {own:.1%})  {row['label_changes_per_s']} changes/s",
                flush=True,
            )
    command = f"python experiments/bench/demo_faces.py BUNDLE --yunet YUNET --faces {args.faces} --seed {args.seed}"
    data = {"name": dataset.name, "fingerprint": dataset.fingerprint, "split": "valid", "faces": len(truth)}
    finish(
        "demo_faces", command, bundle, {"dataset": data, "frames": len(boxes), "face_free_frames": blank, "rows": results}, args.out
    )


if __name__ == "__main__":
    main()
