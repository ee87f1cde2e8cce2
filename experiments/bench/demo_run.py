"""What the benches of the demo share: their arguments, the demo in a process of its own, the record with its host."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fer_lab.backends.bundle import Bundle
from fer_lab.measure.host import this_host

WIDTH, HEIGHT, FPS = 1280, 720, 30


def parser(text: str | None) -> argparse.ArgumentParser:
    """Return a parser with BUNDLE, --yunet and --out."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("bundle", type=Path)
    made.add_argument("--yunet", type=Path, default=os.environ.get("FER_LAB_YUNET"))
    made.add_argument("--out", type=Path)
    return made


def detectors(yunet: Path | None) -> dict[str, str]:
    """The detectors at hand by name, as `--detector` takes them; says what is left out."""
    if yunet is None:
        print("left out: yunet (no --yunet PATH)")
        return {"haar": "haar"}
    return {"yunet": f"yunet={yunet}", "haar": "haar"}


def write_film(path: Path, frames: Iterable[np.ndarray]) -> None:
    """Encode frames, BGR uint8 [720, 1280, 3], as MPEG-4."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (WIDTH, HEIGHT))
    for frame in frames:
        writer.write(frame)
    writer.release()


def headless(bundle: Path, source: Path, detector: str, *more: str) -> list[str]:
    """The command of the headless demo."""
    command = [sys.executable, "-m", "fer_lab.demo", str(bundle), "--source", str(source), "--view", "none"]
    return [*command, "--detector", detector, *more]


def watch(bundle: Path, source: Path, detector: str, *more: str) -> dict[str, Any]:
    """Run the headless demo in a process of its own; returns its last line."""
    done = subprocess.run(headless(bundle, source, detector, *more), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    record: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return record


def finish(what: str, command: str, bundle: Bundle, facts: dict[str, Any], out: Path | None) -> None:
    """Print the record as one line of JSON, and write it to `out`."""
    host = this_host()
    record = {
        "schema": 1, "what": what, "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "command": command,
        "host": {
            "name": host.name, "system": host.system, "cpu": host.cpu, "cores": host.cores, "flags": list(host.flags),
            "versions": dict(host.versions),
        },
        "model": {"name": bundle.card.name, "backbone": bundle.card.backbone, "image_size": bundle.card.image_size},
        "digest": bundle.digest, **facts,
    }  # fmt: skip
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))
