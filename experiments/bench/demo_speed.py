"""Speed of the demo on a composed 1280×720 film.

    python experiments/bench/demo_speed.py BUNDLE [--yunet PATH] [--frames 600] [--out experiments/results/demo_speed.json]

Needs scikit-image: its `data.astronaut()` is a public-domain face. Films with one and with five moving faces, all of it
headless, the model in OpenVINO with one thread, each row run twice. Prints a table and writes one JSON record that names
host, versions, load and the exact settings. On a busy machine the figures are those of a busy machine: see `load`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from demo_run import HEIGHT, WIDTH, detectors, finish, parser, watch, write_film

from fer_lab.backends.bundle import open_bundle


def film(faces: int, frames: int) -> Iterator[np.ndarray]:
    """One or five moving portraits of 300 or 380 pixels over a moving background."""
    from skimage import data

    portrait = np.ascontiguousarray(data.astronaut()[0:300, 90:390, ::-1])
    ground = cv2.GaussianBlur(cv2.resize(data.coffee()[:, :, ::-1], (WIDTH, HEIGHT)), (0, 0), 6)
    side = 380 if faces == 1 else 300
    small = cv2.resize(portrait, (side, side), interpolation=cv2.INTER_AREA)
    for i in range(frames):
        frame = np.roll(ground, i, axis=1)
        for k in range(faces):
            x = int((WIDTH - side) * (k + 0.5) / faces + 30 * np.sin(i / 20 + k)) if faces > 1 else int(450 + 300 * np.sin(i / 30))
            y = int((40 if k % 2 else 380) + 20 * np.cos(i / 17 + k)) if faces > 1 else int(170 + 120 * np.cos(i / 25))
            x, y = min(max(x, 0), WIDTH - side), min(max(y, 0), HEIGHT - side)
            frame[y : y + side, x : x + side] = small
        yield frame


def main() -> None:
    """Measure all rows."""
    arguments = parser(__doc__)
    arguments.add_argument("--frames", type=int, default=600)
    arguments.add_argument("--repeats", type=int, default=2)
    args = arguments.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for faces in (1, 5):
            source = Path(folder) / f"{faces}.mp4"
            write_film(source, film(faces, args.frames))
            for name, detector in detectors(args.yunet).items():
                for repeat in range(args.repeats):
                    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
                    result = watch(args.bundle, source, detector)
                    row = {
                        "faces": faces, "detector": name, "repeat": repeat, "fps": result["fps"], "p50_ms": result["p50_ms"],
                        "p95_ms": result["p95_ms"], "stages": result["stages"], "frames": result["frames"],
                        "frames_with_face": result["frames_with_face"], "faces_found": result["faces"],
                        "first_result_s": result["first_result_s"], "runtime": result["runtime"], "load_before": load,
                    }  # fmt: skip
                    rows.append(row)
                    print(
                        f"{faces} faces  {name:<6} {row['fps']:>7} frames/s  p50 {row['p50_ms']:>6} ms  p95 {row['p95_ms']:>6} ms"
                        f"  found in {row['frames_with_face']}/{row['frames']}  load {load}", flush=True,
                    )  # fmt: skip
    command = f"python experiments/bench/demo_speed.py BUNDLE --yunet YUNET --frames {args.frames} --repeats {args.repeats}"
    facts = {"frame": [WIDTH, HEIGHT], "model_threads": 1, "rows": rows}
    finish("demo_speed", command, open_bundle(args.bundle), facts, args.out)


if __name__ == "__main__":
    main()
