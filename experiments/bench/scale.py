"""How many trials per minute the bookkeeping of a sweep carries, by number of workers.

    FER_LAB_STORAGE=postgresql+psycopg://USER@HOST/EMPTY_DATABASE python experiments/bench/scale.py [--trials 120]

Each worker is a process that claims, asks Optuna, sleeps 0.1 s in place of training, reports, tells and closes, as in a sweep;
no run is tracked. Every number of workers has a study of its own of the same length, since TPE's work grows with the study.
Writes experiments/results/faults/scale.json and scale.png and prints one line per number of workers; about 4 minutes.
The knee says what the machine below can do: workers and database share its cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from fer_lab.core.config import SweepConfig
from fer_lab.core.signals import Stop
from fer_lab.data.faces import FaceDataset
from fer_lab.data.synthetic import draw
from fer_lab.measure.host import load_average, this_host
from fer_lab.search.storage import open_storage, storage_url
from fer_lab.search.study import Sweep, open_sweep
from fer_lab.search.trial import Trained, run_trial

OUT = Path(__file__).resolve().parents[1] / "results" / "faults"
WORKERS = (1, 2, 4, 8, 16)
TRAINING_S = 0.1


def opened(home: Path, study: str, trials: int, faces: FaceDataset) -> Sweep:
    """The study, made on first use."""
    space = {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "train.weight_decay": {"low": 0.0, "high": 0.2}}
    sweep = {"study": study, "trials": trials, "pruner": {"name": "none"}}
    config = SweepConfig.model_validate({"data": {"dataset": "synthetic"}, "space": space, "sweep": sweep})
    return open_sweep(config, faces, home, open_storage(home), "local")


def train(*_: Any, on_epoch: Any, **__: Any) -> Trained:
    """One epoch of nothing."""
    time.sleep(TRAINING_S)
    metrics = {"val/accuracy": float(np.random.default_rng().uniform())}
    on_epoch(0, metrics)
    return Trained("none", metrics, {})


def work(home: Path, study: str, trials: int, faces: FaceDataset, barrier: Any, results: Any) -> None:
    """One worker; puts (seconds, CPU seconds, SQL statements) of its work, without what only the first trials cost."""
    from sqlalchemy import Engine, event

    run_all(opened(home, f"warm-up-{os.getpid()}", 3, faces))  # the third is TPE's: everything is imported
    statements = 0

    @event.listens_for(Engine, "before_cursor_execute")
    def _(*_: Any) -> None:
        nonlocal statements
        statements += 1

    sweep = opened(home, study, trials, faces)
    sweep.storage.optuna()
    barrier.wait()
    began, cpu, before = time.perf_counter(), cpu_s(), statements
    run_all(sweep)
    results.put((time.perf_counter() - began, cpu_s() - cpu, statements - before))


def run_all(sweep: Sweep) -> None:
    """Run the trials that are left of a study."""
    while (job := sweep.leases.claim("trial", f"bench:{os.getpid()}:0")) is not None:
        run_trial(sweep, job, train, Stop(), lambda *_: None)
    sweep.storage.close()


def cpu_s() -> float:
    """CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(home: Path, workers: int, trials: int, faces: FaceDataset) -> dict[str, float]:
    """Run one study with so many workers."""
    study = f"scale-{workers}-{os.getpid()}"
    opened(home, study, trials, faces).storage.close()
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["fer_lab.search.trial", "optuna", "psycopg", "sqlalchemy.dialects.postgresql.psycopg", "pandas"]
    )
    barrier, results = context.Barrier(workers), context.SimpleQueue()
    processes = [context.Process(target=work, args=(home, study, trials, faces, barrier, results)) for _ in range(workers)]
    for process in processes:
        process.start()
    spent = [results.get() for _ in processes]
    for process in processes:
        process.join()
    sweep = opened(home, study, trials, faces)
    assert {(job.status, job.fence) for job in sweep.leases.jobs("trial")} == {("complete", 1)}
    sweep.storage.close()
    seconds = max(wall for wall, _, _ in spent)
    return {
        "workers": workers, "trials": trials, "seconds": round(seconds, 2), "trials_per_min": round(60 * trials / seconds, 1),
        "worker_cpu_ms_per_trial": round(1000 * sum(cpu for _, cpu, _ in spent) / trials, 1),
        "sql_statements_per_trial": round(sum(n for _, _, n in spent) / trials, 1), "load_average": load_average() or 0.0,
    }  # fmt: skip


def plot(points: Sequence[dict[str, float]], cores: int, path: Path) -> None:
    """Trials per minute against workers, with the line of perfect growth."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    x = [point["workers"] for point in points]
    first = points[0]["trials_per_min"] / points[0]["workers"]
    axes.plot(x, [first * n for n in x], "--", color="0.6", label="one worker's rate × workers")
    axes.plot(x, [point["trials_per_min"] for point in points], "o-", label="measured")
    axes.set(xscale="log", xlabel="workers", ylabel="trials per minute", ylim=(0, 2 * max(p["trials_per_min"] for p in points)))
    axes.set_title(f"{TRAINING_S:g} s of training per trial; workers and PostgreSQL on {cores} cores", fontsize=10)
    axes.set_xticks(x, [str(n) for n in x])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure each number of workers and write the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=120)
    args = parser.parse_args()
    host, faces = this_host(), draw(20, seed=1)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=OUT.parents[2]).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        dialect = storage_url(home).partition(":")[0]
        points = []
        for workers in WORKERS:
            points.append(measure(home, workers, args.trials, faces))
            print(points[-1], flush=True)
    record = {
        "command": f"python experiments/bench/scale.py --trials {args.trials}", "storage": dialect, "training_s": TRAINING_S,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit or "unknown", "host": host.name,
        "cpu": host.cpu, "cores": host.cores, "versions": dict(host.versions), "points": points,
    }  # fmt: skip
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "scale.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    plot(points, host.cores, OUT / "scale.png")


if __name__ == "__main__":
    main()
