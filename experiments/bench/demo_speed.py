"""Speed of the demo on a composed 1280×720 film: the rows of the README's table.

    python experiments/bench/demo_speed.py BUNDLE [--yunet PATH] [--frames 600] [--out experiments/results/demo_speed.json]

Needs scikit-image: its `data.astronaut()` is a public-domain face. Films with one and with five moving faces, all of it
headless, the model in OpenVINO with one thread, each row run twice. Prints a table and writes one JSON record that names
host, versions, load and the exact settings. On a busy machine the figures are those of a busy machine: see `load`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from fer_lab.backends.bundle import open_bundle
from fer_lab.measure.host import this_host


def film(path: Path, faces: int, frames: int) -> None:
    """One or five moving portraits of 90 to 260 pixels over a moving background, H.264's older sibling, 30 frames/s."""
    from skimage import data

    portrait = np.ascontiguousarray(data.astronaut()[0:300, 90:390, ::-1])
    ground = cv2.GaussianBlur(cv2.resize(data.coffee()[:, :, ::-1], (1280, 720)), (0, 0), 6)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30, (1280, 720))
    for i in range(frames):
        frame = np.roll(ground, i, axis=1)
        for k in range(faces):
            side = 380 if faces == 1 else 300
            small = cv2.resize(portrait, (side, side), interpolation=cv2.INTER_AREA)
            x = int((1280 - side) * (k + 0.5) / faces + 30 * np.sin(i / 20 + k)) if faces > 1 else int(450 + 300 * np.sin(i / 30))
            y = int((40 if k % 2 else 380) + 20 * np.cos(i / 17 + k)) if faces > 1 else int(170 + 120 * np.cos(i / 25))
            x, y = min(max(x, 0), 1280 - side), min(max(y, 0), 720 - side)
            frame[y : y + side, x : x + side] = small
        writer.write(frame)
    writer.release()


def measured(bundle: Path, source: Path, detector: str) -> dict[str, object]:
    """One run of the demo in a process of its own: its last line."""
    command = [sys.executable, "-m", "fer_lab.demo", str(bundle), "--source", str(source), "--view", "none", "--detector", detector]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    record: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return record


def main() -> None:
    """Measure all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--yunet", type=Path, default=os.environ.get("FER_LAB_YUNET"))
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    host = this_host()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for faces, detector in ((1, "yunet"), (1, "haar"), (5, "yunet"), (5, "haar")):
            if detector == "yunet" and args.yunet is None:
                print("left out: yunet (no --yunet PATH)")
                continue
            source = Path(folder) / f"{faces}.mp4"
            if not source.exists():
                film(source, faces, args.frames)
            for repeat in range(args.repeats):
                load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
                result = measured(args.bundle, source, f"{detector}={args.yunet}" if detector == "yunet" else detector)
                row = {
                    "faces": faces, "detector": detector, "repeat": repeat, "fps": result["fps"], "p50_ms": result["p50_ms"],
                    "p95_ms": result["p95_ms"], "stages": result["stages"], "frames": result["frames"],
                    "frames_with_face": result["frames_with_face"], "faces_found": result["faces"],
                    "first_result_s": result["first_result_s"], "load_before": load,
                }  # fmt: skip
                rows.append(row)
                print(
                    f"{faces} faces  {detector:<6} {row['fps']:>7} frames/s  p50 {row['p50_ms']:>6} ms  p95 {row['p95_ms']:>6} ms  "
                    f"found in {row['frames_with_face']}/{row['frames']}  load {load}", flush=True,
                )  # fmt: skip
    bundle = open_bundle(args.bundle)
    record = {
        "schema": 1, "what": "demo_speed", "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": f"python experiments/bench/demo_speed.py BUNDLE --yunet YUNET --frames {args.frames} --repeats {args.repeats}",
        "host": {
            "name": host.name, "system": host.system, "cpu": host.cpu, "cores": host.cores, "flags": list(host.flags),
            "versions": dict(host.versions),
        },
        "model": {"name": bundle.card.name, "backbone": bundle.card.backbone, "image_size": bundle.card.image_size},
        "digest": bundle.digest,
        "frame": [1280, 720], "model_threads": 1, "rows": rows,
    }  # fmt: skip
    if args.out is not None:
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
