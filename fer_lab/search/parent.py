"""The study's own MLflow run: made once, RUNNING while the study is, the place of its leaderboard and pictures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fer_lab.core.config import dump_yaml, flatten
from fer_lab.core.signals import Stop
from fer_lab.measure.evaluate import kept_counts
from fer_lab.search.leases import Keeper
from fer_lab.search.study import Sweep

if TYPE_CHECKING:
    from fer_lab.tracking.run import Run
    from fer_lab.tracking.store import Store

POLL_S = 0.5


def ensure_parent(sweep: Sweep, store: Store, worker: str, stop: Stop) -> str:
    """Return the id of the study's run, created by exactly one worker; a study that goes on is RUNNING again."""
    sweep.leases.reserve("parent", {0: {}})
    while True:
        row = sweep.leases.study_row()
        if row is not None and row["parent_run_id"]:
            parent = str(row["parent_run_id"])
            if store.run_info(parent)["status"] != "RUNNING":
                store.resume_run(parent)
            return parent
        job = sweep.leases.claim("parent", worker)
        if job is None:
            for dead in sweep.leases.expired():
                if dead.kind == "parent":
                    sweep.leases.bury(dead)
            stop.wait(POLL_S)
            continue
        with Keeper(sweep.leases, job):
            tags = {"fer.study": sweep.name, "fer.kind": "study"}
            left = store.find_runs(sweep.experiment, tags)  # of a worker that was killed between the two writes
            run_id = str(left[-1]["run_id"]) if left else _create(sweep, store, tags).id
            sweep.leases.set_study(parent_run_id=run_id)
            sweep.leases.end(job, "complete")


def _create(sweep: Sweep, store: Store, tags: dict[str, str]) -> Run:
    config = sweep.config
    params = {key: value for key, value in flatten(config).items() if not key.startswith("space")}
    params |= {f"space.{key}": json.dumps(d.model_dump(exclude_defaults=True)) for key, d in config.space.items()}
    run = store.start_run(sweep.experiment, sweep.name, tags=tags, params=params)
    run.log_text(dump_yaml(config), "config.yaml")
    n = kept_counts(sweep.dataset, config.data.protocol)
    run.log_dataset(sweep.dataset.name, sweep.dataset.fingerprint, config.data.protocol, sweep.dataset.label_source, n)
    return run


def pause_parent(sweep: Sweep, store: Store, why: str) -> None:
    """Mark the study's run KILLED when its last worker has gone; the next start makes it RUNNING again."""
    from fer_lab.tracking.run import Run

    row = sweep.leases.study_row()
    if row is None or not row["parent_run_id"] or any(job.status == "leased" for job in sweep.leases.jobs()):
        return
    Run(store, str(row["parent_run_id"]), resumed=True).end("KILLED", f"{why}; the same command goes on")
