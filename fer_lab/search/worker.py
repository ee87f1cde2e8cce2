"""The worker's loop: take the next job of the study, run it, until the study has its result.

A study is trials, then confirmations, then one finish; each is a leased job, so any number of workers on any machine may
join or leave at any time, and the last one alive completes it.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fer_lab.core.console import note
from fer_lab.core.errors import InputError, Interrupted, Unreachable
from fer_lab.core.signals import Stop
from fer_lab.search.confirm import reserve_confirmations
from fer_lab.search.finish import finish
from fer_lab.search.leases import Job, of_database
from fer_lab.search.parent import POLL_S, ensure_parent, pause_parent
from fer_lab.search.reaper import reap, settle
from fer_lab.search.study import Sweep
from fer_lab.search.trial import Train, failure_reason, run_confirmation, run_trial

if TYPE_CHECKING:
    from collections.abc import Callable

    from fer_lab.tracking.store import Store


def worker_name() -> str:
    """host:pid:random, unique for as long as the table lives."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"


def stored_result(sweep: Sweep) -> Mapping[str, Any] | None:
    """Return the study's result when it has at least the trials that are asked for now, else None."""
    row = sweep.leases.study_row()
    result = row["result"] if row else None
    return result if result is not None and result["total"] >= sweep.total else None


def work(sweep: Sweep, store: Store, train_below: Callable[[str], Train], stop: Stop) -> Mapping[str, Any]:
    """Work on the study until it has its result and return it. `train_below(parent run id)` gives the trainer.

    Raises Interrupted (the job at hand is back in the queue) and LeaseLost (another worker has it).
    """
    worker = worker_name()
    sweep.leases.hurried = lambda: stop.number is not None
    try:
        parent = ensure_parent(sweep, store, worker, stop)
        settle(sweep, store)
        train = train_below(parent)
        progress = Progress(sweep)
        while (result := stored_result(sweep)) is None:
            stop.check()
            reap(sweep, store)
            job = _next_job(sweep, worker)
            if job is None:
                stop.wait(min(POLL_S, sweep.leases.lease_s / 4))
            elif job.kind == "trial":
                run_trial(sweep, job, train, stop, progress)
            elif job.kind == "confirm":
                run_confirmation(sweep, job, train, stop, progress)
            else:
                finish(sweep, store, job)
    except BaseException as error:
        _leave(sweep, store, error)
        cause = of_database(error)
        if cause is None:
            raise
        said = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0][:200]
        raise InputError(
            f"the study's database {sweep.storage.shown_url} does not answer as it should ({said}). What was done is kept: "
            "the same command goes on"
        ) from None
    return result


def _leave(sweep: Sweep, store: Store, error: BaseException) -> None:
    """Say on the study's run that nobody works on it, when this was the last worker; what cannot be said now is left unsaid."""
    if isinstance(error, Unreachable):
        return  # it would be said when the server is back, to a study that others have gone on with
    sweep.leases.hurried = lambda: True
    why = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else f"its last worker ended: {failure_reason(error)}"
    with suppress(Exception):
        if stored_result(sweep) is None:  # a study that has its result stays FINISHED
            pause_parent(sweep, store, why)


def _next_job(sweep: Sweep, worker: str) -> Job | None:
    """Claim the next job; None when others hold what must come first."""
    numbers = range(sweep.total)
    open_for_trials = not _time_is_up(sweep)
    if open_for_trials and (job := sweep.leases.claim("trial", worker, numbers)) is not None:
        return job
    trials = [job for job in sweep.leases.jobs("trial") if job.number < sweep.total]
    if any(job.status == "leased" or (job.status == "free" and open_for_trials) for job in trials):
        return None
    reserve_confirmations(sweep, trials)
    if (job := sweep.leases.claim("confirm", worker)) is not None:
        return job
    if any(job.status in {"leased", "free"} for job in sweep.leases.jobs("confirm")):
        return None
    sweep.leases.reserve("finish", {sweep.total: {}})
    return sweep.leases.claim("finish", worker, [sweep.total])


def _time_is_up(sweep: Sweep) -> bool:
    hours = sweep.config.sweep.max_hours
    row = sweep.leases.study_row()
    return hours is not None and row is not None and time.time() - row["created"] > hours * 3600


class Progress:
    """Lines on stderr: what was reached, how far the study is, how long the rest may take."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._last = time.monotonic()
        self._epoch_s: float | None = None

    def __call__(self, job: Job, epoch: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if epoch > 0:  # the first epoch of a job holds its start
            took = now - self._last
            self._epoch_s = took if self._epoch_s is None else 0.8 * self._epoch_s + 0.2 * took
        self._last = now
        config = self._sweep.config
        metric = config.sweep.metric
        jobs = [j for j in self._sweep.leases.jobs() if j.kind in {"trial", "confirm"}]
        trials = [j for j in jobs if j.kind == "trial" and j.number < self._sweep.total]
        ended = sum(j.status in {"complete", "pruned", "failed"} for j in trials)
        line = f"{job.key} epoch {epoch + 1}/{config.train.epochs}  {metric} {metrics.get(metric, float('nan')):.4f}"
        line += f"  | {ended}/{len(trials)} trials"
        if self._epoch_s is not None:
            line += f", about {self._left_s(jobs, trials) / 60:.0f} min left"
        note(line)

    def _left_s(self, jobs: list[Job], trials: list[Job]) -> float:
        assert self._epoch_s is not None
        config = self._sweep.config
        confirm = config.sweep.confirm
        confirmations = [j for j in jobs if j.kind == "confirm"]
        epochs = 0
        for j in (*trials, *confirmations):
            if j.status in {"free", "leased"}:
                epochs += config.train.epochs - (0 if j.epoch is None or j.status == "free" else j.epoch + 1)
        if not confirmations:
            epochs += confirm.top * confirm.seeds * config.train.epochs
        live = max(1, sum(j.status == "leased" for j in jobs))
        return epochs * self._epoch_s / live
