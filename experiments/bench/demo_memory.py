"""Memory of the headless demo over half an hour of a looping film.

    python experiments/bench/demo_memory.py BUNDLE [--yunet PATH] [--minutes 30] [--out FILE]

The film is that of demo_speed.py with one face. Resident memory of the demo's process is read once a second; growth is the
highest mean of a later minute over the mean of the second one, less 1 (the first minute fills caches). Linux only: reads /proc.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from demo_run import detectors, finish, headless, parser, write_film
from demo_speed import film

from fer_lab.backends.bundle import open_bundle


def resident_mb(process: int) -> float:
    """Resident memory of a process in MB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Run the demo for the time asked for and watch it."""
    arguments = parser(__doc__)
    arguments.add_argument("--minutes", type=float, default=30)
    args = arguments.parse_args()
    detector = next(iter(detectors(args.yunet).values()))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "looping.mp4"
        write_film(source, film(1, 300))
        command = headless(args.bundle, source, detector, "--loop", "--seconds", str(args.minutes * 60))
        demo = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        taken: list[tuple[float, float]] = []
        started = time.monotonic()
        while demo.poll() is None:
            taken.append((time.monotonic() - started, resident_mb(demo.pid)))
            time.sleep(1)
        said = json.loads(demo.communicate()[0].strip().splitlines()[-1])
    seconds, memory = np.array(taken).T
    by_minute = [round(float(memory[seconds // 60 == m].mean()), 2) for m in range(int(seconds[-1] // 60))]  # whole ones
    facts = {
        "minutes": args.minutes, "frames": said["frames"], "detector": detector.split("=")[0],
        "growth": round(max(by_minute[2:]) / by_minute[1] - 1, 5), "by_minute_mb": by_minute,
    }  # fmt: skip
    command_line = f"python experiments/bench/demo_memory.py BUNDLE --yunet YUNET --minutes {args.minutes:g}"
    finish("demo_memory", command_line, open_bundle(args.bundle), facts, args.out)


if __name__ == "__main__":
    main()
