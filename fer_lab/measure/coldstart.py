"""How long a fresh process needs to its first answer, and how much memory it takes: one model, one runtime, one process.

    python -m fer_lab.measure.coldstart MODEL RUNTIME THREADS PROTOCOL     → {"load_ms", "first_call_ms", "peak_memory_mb"}

`load_ms` holds the import of the runtime's library, the check of the manifest and the loading of the graph.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence

from fer_lab.core.errors import FerLabError

TIMEOUT_S = 120


def cold_start(path: str, runtime: str, threads: int, protocol: str) -> tuple[float, float, float | None]:
    """Return load time and first call in ms and peak memory in MB of a fresh process. Raises FerLabError when it fails."""
    command = [sys.executable, "-m", "fer_lab.measure.coldstart", path, runtime, str(threads), protocol]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise FerLabError(f"{path} ({runtime}) gave no answer within {TIMEOUT_S} s in a fresh process") from None
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FerLabError(f"{path} ({runtime}) failed in a fresh process: {said}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["load_ms"], found["first_call_ms"], found["peak_memory_mb"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure this process itself."""
    path, runtime, threads, protocol = list(sys.argv[1:] if argv is None else argv)
    from fer_lab.measure.candidates import from_path
    from fer_lab.measure.host import peak_memory_mb
    from fer_lab.measure.latency import drawn_faces

    faces = drawn_faces(1)
    started = time.perf_counter()
    predictor = from_path(path, protocol).open(runtime, int(threads), protocol)
    loaded = time.perf_counter()
    predictor.predict(faces)
    answered = time.perf_counter()
    figures = {"load_ms": (loaded - started) * 1e3, "first_call_ms": (answered - loaded) * 1e3, "peak_memory_mb": peak_memory_mb()}
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
