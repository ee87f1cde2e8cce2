"""Puts right what dead workers leave: leases that ran out, trials and runs that still say RUNNING."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fer_lab.core.console import note
from fer_lab.search.leases import Job
from fer_lab.search.study import Sweep, optuna_study, tell

if TYPE_CHECKING:
    from fer_lab.tracking.store import Store

TOLD = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}


def reap(sweep: Sweep, store: Store) -> int:
    """Free the jobs of silent workers and settle their trials and runs. Returns how many there were."""
    buried = []
    for job in sweep.leases.expired():
        status = sweep.leases.bury(job)
        if status is not None:
            buried.append(job)
            after = "it goes on from its checkpoint" if status == "free" else "given up"
            note(f"{job.key}: its worker {job.worker} died; {after}")
    if buried:
        settle(sweep, store)
    return len(buried)


def settle(sweep: Sweep, store: Store) -> None:
    """End every RUNNING trial and child run that no live lease holds. Safe to repeat and to do twice at once."""
    jobs = sweep.leases.jobs()
    _settle_trials(sweep, [job for job in jobs if job.kind == "trial"])
    _settle_runs(sweep, store)


def _settle_trials(sweep: Sweep, jobs: list[Job]) -> None:
    import optuna

    if not any(job.fence for job in jobs):
        return
    study = optuna_study(sweep, 0)
    running = [t.number for t in study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.RUNNING]
    if not running:
        return
    jobs = sweep.leases.jobs("trial")  # read after the trials: a trial that was asked for since then is not among `running`
    leased = [job for job in jobs if job.status == "leased"]
    ended = {job.trial: job for job in jobs if job.status in TOLD}
    held = {job.trial for job in leased}
    asking = any(job.trial is None for job in leased)  # between asking Optuna and writing the number down
    for number in running:
        if number in ended:
            job = ended[number]
            tell(study, number, TOLD[job.status], job.result.get("values"))
        elif number not in held and not asking:
            tell(study, number, "FAIL")


def _settle_runs(sweep: Sweep, store: Store) -> None:
    from fer_lab.tracking.run import Run

    row = sweep.leases.study_row()
    parent = row["parent_run_id"] if row else None
    if parent is None:
        return
    children = store.children(parent)
    jobs = {job.key: job for job in sweep.leases.jobs()}
    for child in children:
        job = jobs.get(child["tags"].get("fer.job", ""))
        if job is None:
            continue
        fence = int(child["tags"].get("fer.fence", -1))
        live = job.status == "leased" and fence == job.payload.get("fence")
        result_of = job.status == "complete" and job.result.get("run_id") == child["run_id"]
        run = Run(store, child["run_id"], resumed=True)
        if result_of and child["status"] != "FINISHED":
            run.end("FINISHED")
        elif not live and not result_of and child["status"] in {"RUNNING", "FINISHED"}:
            # FINISHED: it was killed after its run ended and before its job was closed; a successor was or will be run.
            run.set_tags({"fer.ended_by": "reaper"})
            run.end("FAILED" if job.status == "failed" and not job.deaths else "KILLED", "its worker died")
