"""Runs one leased job, a trial or a confirmation, and closes it: complete, pruned or failed.

Only the holder of the newest fence closes a job; the lease table decides first, then Optuna and MLflow are told. What a
kill leaves between the two is put right by `search.reaper`.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fer_lab.core.config import RunConfig, run_config_of
from fer_lab.core.console import note
from fer_lab.core.errors import FerLabError, InputError, Interrupted, Unreachable
from fer_lab.core.signals import Stop
from fer_lab.search.leases import ENDED, Job, Keeper, LeaseLost, of_database, patiently
from fer_lab.search.space import finite, starting_point
from fer_lab.search.study import Sweep, ask, optuna_study, study_curve, tell

if TYPE_CHECKING:
    import optuna

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Trained:
    """What a job's training came to."""

    run_id: str
    metrics: Mapping[str, float]  # of the selected checkpoint, slash names
    facts: Mapping[str, Any]  # parameters, image_size, epochs_run, best_epoch, wall_s …


class Train(Protocol):
    """Trains one configuration as a child run and uploads its bundle; calls `guard` before each write to the store."""

    def __call__(
        self, config: RunConfig, folder: Path, *, name: str, tags: Mapping[str, str], resume: bool,
        on_run: Callable[[str], None], on_epoch: Callable[[int, dict[str, float]], None],
        should_stop: Callable[[], int | None], guard: Callable[[], None], extra: Mapping[str, float],
    ) -> Trained: ...  # fmt: skip


class Pruned(FerLabError):
    """The pruner ended a trial, or its network is beyond the budget."""


def run_trial(sweep: Sweep, job: Job, train: Train, stop: Stop, progress: Callable[[Job, int, Mapping[str, float]], None]) -> None:
    """Run a claimed trial slot to its end. Raises Interrupted, LeaseLost or Unreachable; a failing trial fails alone."""
    with Keeper(sweep.leases, job) as keeper:
        study = optuna_study(sweep, _seed(sweep, job))
        keeper.guard()
        first = starting_point(sweep.config) if job.number == 0 else None
        trial, values = patiently(lambda: ask(sweep, study, job, first), sweep.leases)
        try:
            sweep.leases.note(job, trial=trial.number, payload={**job.payload, "values": values})
        except LeaseLost:  # nobody else knows this trial
            tell(study, trial.number, "FAIL")
            raise
        reported = set(study_curve(study, trial.number))

        def objective() -> tuple[Trained, list[float]]:
            config = run_config_of(sweep.config, values)

            def on_epoch(epoch: int, metrics: dict[str, float]) -> None:
                keeper.check(epoch)
                progress(job, epoch, metrics)
                value = finite(metrics, sweep.config.sweep.metric)
                if sweep.two_objectives or epoch in reported:
                    return
                patiently(lambda: trial.report(value, epoch), sweep.leases)
                reported.add(epoch)
                if epoch + 1 < config.train.epochs and patiently(trial.should_prune, sweep.leases):
                    raise Pruned(f"{sweep.config.sweep.metric} {value:.4f} after epoch {epoch + 1} is behind the other trials")

            measured = _within_budget(sweep, config, trial)
            trained = _train(sweep, job, config, train, keeper, stop, on_epoch, measured)
            score = finite(trained.metrics, sweep.config.sweep.metric)
            return trained, [score, measured["p50_ms"]] if sweep.two_objectives else [score]

        _close(sweep, job, study, trial.number, objective)


def run_confirmation(
    sweep: Sweep, job: Job, train: Train, stop: Stop, progress: Callable[[Job, int, Mapping[str, float]], None]
) -> None:
    """Train one of the best configurations with a fresh seed. Nothing is pruned, Optuna is not involved."""
    with Keeper(sweep.leases, job) as keeper:

        def on_epoch(epoch: int, metrics: dict[str, float]) -> None:
            keeper.check(epoch)
            progress(job, epoch, metrics)
            finite(metrics, sweep.config.sweep.metric)

        def objective() -> tuple[Trained, list[float]]:
            config = run_config_of(sweep.config, {**job.payload["values"], "seed": job.payload["seed"]})
            trained = _train(sweep, job, config, train, keeper, stop, on_epoch, {})
            return trained, [finite(trained.metrics, sweep.config.sweep.metric)]

        _close(sweep, job, None, None, objective)


def job_folder(sweep: Sweep, job: Job, fence: int) -> Path:
    """The folder of one attempt. Each has its own, so that a paused worker cannot write into its successor's."""
    return sweep.work / job.key / str(fence)


def run_tags(sweep: Sweep, job: Job) -> dict[str, str]:
    """The tags by which a run is known to belong to one attempt at one job."""
    tags = {"fer.study": sweep.name, "fer.kind": job.kind, "fer.job": job.key, "fer.fence": str(job.fence)}
    previous = job.payload.get("previous") or {}
    if previous.get("run_id"):
        tags["fer.resume_of"] = previous["run_id"]
    return tags


def _train(
    sweep: Sweep, job: Job, config: RunConfig, train: Train, keeper: Keeper, stop: Stop,
    on_epoch: Callable[[int, dict[str, float]], None], measured: Mapping[str, float],
) -> Trained:  # fmt: skip
    folder = job_folder(sweep, job, job.fence)
    resume = _inherit_checkpoint(job, folder)

    def should_stop() -> int | None:
        keeper.step()
        return stop.number

    begun = time.monotonic()
    trained = train(
        config, folder, name=job.key, tags=run_tags(sweep, job), resume=resume,
        on_run=lambda run_id: sweep.leases.note(job, run_id=run_id),
        on_epoch=on_epoch, should_stop=should_stop, guard=keeper.guard, extra=measured,
    )  # fmt: skip
    return Trained(trained.run_id, trained.metrics, {"wall_s": time.monotonic() - begun, **measured, **trained.facts})


def _inherit_checkpoint(job: Job, folder: Path) -> bool:
    """Copy the checkpoint of the newest attempt that left a folder here; whether there was one (elsewhere there is none).

    It appears by rename: an attempt that is killed while it copies has no folder, and the next one looks further back.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    earlier = [int(path.name) for path in folder.parent.iterdir() if path.name.isdigit() and int(path.name) < job.fence]
    if not earlier:
        folder.mkdir(exist_ok=True)
        return False
    staged = folder.with_name(f".{folder.name}")
    staged.mkdir(exist_ok=True)
    for path in (folder.parent / str(max(earlier))).iterdir():
        if path.is_file() and not path.name.startswith("."):  # staged by the process that was killed
            shutil.copy2(path, staged / path.name)
    staged.replace(folder)
    return any(folder.iterdir())


def _within_budget(sweep: Sweep, config: RunConfig, trial: optuna.Trial) -> dict[str, float]:
    """Measure what the budget limits before training; a network beyond it is pruned untrained."""
    from fer_lab.search.budget import measure_network

    budget = sweep.config.sweep.budget
    limits = {"parameters_m": budget.max_parameters_m, "p50_ms": budget.max_p50_ms}
    if not sweep.two_objectives and not any(limits.values()):
        return {}
    measured = measure_network(config, sweep.dataset, latency=sweep.two_objectives or budget.max_p50_ms is not None)
    over = []
    for key, limit in limits.items():
        if limit is not None:
            trial.set_constraint(key, measured[key] - limit)
            if measured[key] > limit:
                over.append(f"{key} {measured[key]:.2f} > {limit:g}")
    if over:
        raise Pruned(f"over the budget: {', '.join(over)}")
    return measured


def _close(
    sweep: Sweep, job: Job, study: optuna.Study | None, number: int | None, objective: Callable[[], tuple[Trained, list[float]]]
) -> None:
    from fer_lab.training.fit import Pruned as FitPruned

    def end(status: str, optuna_state: str, values: list[float] | None = None, **closing: Any) -> None:
        sweep.leases.end(job, status, **closing)  # type: ignore[arg-type]  # a plain str for the three callers below
        if study is not None and number is not None:
            patiently(lambda: tell(study, number, optuna_state, values), sweep.leases)
        shutil.rmtree(sweep.work / job.key, ignore_errors=True)

    def give_back() -> None:
        try:
            sweep.leases.release(job)
            if study is not None and number is not None:
                tell(study, number, "FAIL")
        except Exception as error:  # then its lease runs out
            if not of_database(error):
                raise

    try:
        trained, values = objective()
    except (Interrupted, KeyboardInterrupt, Unreachable):  # the job is not at fault
        give_back()
        raise
    except LeaseLost:
        if any(now.key == job.key and now.status in ENDED for now in sweep.leases.jobs(job.kind)):
            shutil.rmtree(sweep.work / job.key, ignore_errors=True)  # its successor cleared it before this one woke up
        raise
    except (Pruned, FitPruned) as error:
        end("pruned", "PRUNED", reason=str(error))
        note(f"{job.key} pruned: {error}")
    except OSError as error:
        give_back()
        if error.errno in FULL_DISK:
            raise InputError(
                f"the disk is full ({error.filename or sweep.work}); {job.key} waits. Free space, start again"
            ) from None
        raise
    except Exception as error:
        if of_database(error):  # the job is not at fault
            give_back()
            raise
        reason = failure_reason(error)
        end("failed", "FAIL", reason=reason)
        note(f"{job.key} failed: {reason}")
    else:
        result = {"run_id": trained.run_id, "values": values, "metrics": dict(trained.metrics), **trained.facts}
        end("complete", "COMPLETE", values, result=result)


def failure_reason(error: BaseException) -> str:
    """One line; `oom:` and `nonfinite:` first where that is what happened."""
    text = " ".join(str(error).split())[:500] or type(error).__name__
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "allocate memory" in text or "not enough memory" in text:
        return f"oom: {text}"
    if name == "NonFinite" and not text.startswith("nonfinite"):
        return f"nonfinite: {text}"
    return text if isinstance(error, FerLabError) else f"{name}: {text}"


def _seed(sweep: Sweep, job: Job) -> int:
    """A sampler seed for each slot and attempt: no two workers ask with the same one, and one worker repeats exactly."""
    text = f"{sweep.config.sweep.sampler_seed} {sweep.spec['fingerprint']} {job.number} {job.payload.get('fence', 1)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
