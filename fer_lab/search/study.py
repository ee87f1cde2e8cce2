"""One study: what it searches, its rows in the database, its parent run, and Optuna's view of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.core.config import SweepConfig
from fer_lab.core.errors import Conflict, InputError
from fer_lab.data.faces import FaceDataset
from fer_lab.measure.evaluate import kept_counts
from fer_lab.search.leases import Job, Leases
from fer_lab.search.space import Space, differences, distribution, maximised, study_name, study_spec, suggest
from fer_lab.search.storage import StudyStorage, initialising

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Sweep:
    """Everything a worker needs; made once per process by `open_sweep`."""

    config: SweepConfig
    name: str
    spec: Mapping[str, Any]
    dataset: FaceDataset
    home: Path
    storage: StudyStorage
    leases: Leases

    @property
    def two_objectives(self) -> bool:
        """Accuracy against latency; nothing is pruned then (Optuna prunes single-objective studies only)."""
        return len(self.config.sweep.objectives) > 1

    @property
    def total(self) -> int:
        """The study's total number of trials."""
        return self.config.sweep.trials

    @property
    def n_valid(self) -> int:
        """The validation faces that the protocol keeps: what every figure of the study is of."""
        return kept_counts(self.dataset, self.config.data.protocol)["valid"]

    @property
    def work(self) -> Path:
        """The folder of running jobs: checkpoints, until their job has ended."""
        return self.home / "mlruns" / "work" / self.name

    @property
    def experiment(self) -> str:
        """The MLflow experiment that holds the study, the one of single runs on this dataset."""
        return self.dataset.name


def open_sweep(config: SweepConfig, dataset: FaceDataset, home: Path, storage: StudyStorage, tracking: str) -> Sweep:
    """Open the study of this configuration and data, made on first use; its trial slots are reserved.

    Raises Conflict when a study of that name searches something else.
    """
    if set(config.sweep.objectives) not in ({"accuracy"}, {"accuracy", "latency"}):
        raise InputError(f"sweep.objectives: expected [accuracy] or [accuracy, latency], got {list(config.sweep.objectives)}")
    if not config.space:
        raise InputError("the sweep has no search space. Give e.g. space: {train.lr: {low: 1.0e-4, high: 1.0e-2, log: true}}")
    spec = study_spec(config, dataset.fingerprint)
    name = study_name(config, spec)
    leases = Leases(storage.engine, name, config.sweep.lease_s)
    row = leases.open_study(spec, tracking)
    changed = differences(row["spec"], spec)
    if changed:
        raise Conflict(
            f"study {name!r} exists with another {', '.join(changed)}; nothing was changed. "
            "Leave --study out for a study of this configuration, or give another name"
        )
    leases.reserve("trial", {number: {} for number in range(config.sweep.trials)})
    return Sweep(config, name, spec, dataset, home, storage, leases)


def optuna_study(sweep: Sweep, seed: int) -> optuna.Study:
    """Return Optuna's study with a sampler of its own seed (equal seeds would make equal suggestions)."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    best = optuna.study.StudyDirection.MAXIMIZE if maximised(sweep.config.sweep.metric) else optuna.study.StudyDirection.MINIMIZE
    directions = [best, optuna.study.StudyDirection.MINIMIZE] if sweep.two_objectives else [best]
    # Half of a small study is random, so that TPE has something to go by; 10 is Optuna's own number.
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(2, sweep.total // 2)), constant_liar=True)
    found: dict[str, Any] = {
        "storage": sweep.storage.optuna(),
        "study_name": sweep.name,
        "sampler": sampler,
        "pruner": pruner(sweep.config),
    }
    try:
        return optuna.load_study(**found)
    except KeyError:  # nobody made it yet; the lock is for its makers only
        with initialising(sweep.storage.engine, sweep.home / "mlruns" / ".optuna.lock"):
            return optuna.create_study(**found, directions=directions, load_if_exists=True)


def pruner(config: SweepConfig) -> optuna.pruners.BasePruner:
    """Return the configured pruner; steps are epochs."""
    import optuna

    chosen = config.sweep.pruner
    if chosen.name == "none" or len(config.sweep.objectives) > 1:
        return optuna.pruners.NopPruner()
    if chosen.name == "hyperband":
        # max_resource="auto" would wait for the first complete trial.
        return optuna.pruners.HyperbandPruner(min_resource=chosen.warmup_epochs + 1, max_resource=config.train.epochs)
    median = optuna.pruners.MedianPruner(n_startup_trials=chosen.startup_trials, n_warmup_steps=chosen.warmup_epochs)
    if not chosen.patience:
        return median
    with quiet():  # PatientPruner is marked experimental
        return optuna.pruners.PatientPruner(median, patience=chosen.patience)


def ask(sweep: Sweep, study: optuna.Study, job: Job, start: Mapping[str, Any] | None) -> tuple[optuna.Trial, dict[str, Any]]:
    """Return a RUNNING trial for this slot and its values.

    A slot that was run before continues with the same values and curve; `start` are given values; else Optuna suggests.
    """
    values = job.payload.get("values") or start
    if values is None:
        trial = study.ask()
        return trial, suggest(trial, sweep.config.space)
    previous = job.payload.get("previous") or {}
    curve = study_curve(study, previous.get("trial"))
    # A queued trial could be popped by any worker, so this one is created already RUNNING.
    return running_trial(study, values, sweep.config.space, curve), dict(values)


def running_trial(study: optuna.Study, values: Mapping[str, Any], space: Space, curve: Mapping[int, float]) -> optuna.Trial:
    """Create a trial that is RUNNING with these values and intermediate values."""
    import optuna

    storage = study._storage
    template = optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING, params=dict(values),
        distributions={key: distribution(dimension) for key, dimension in space.items()},
        intermediate_values=dict(curve),
    )  # fmt: skip
    trial_id = storage.create_new_trial(storage.get_study_id_from_name(study.study_name), template)
    return optuna.Trial(study, trial_id)


def study_curve(study: optuna.Study, number: int | None) -> dict[int, float]:
    """Return the intermediate values of a trial, by epoch; empty when there is none."""
    if number is None:
        return {}
    for trial in study.get_trials(deepcopy=False):
        if trial.number == number:
            return dict(trial.intermediate_values)
    return {}


def tell(study: optuna.Study, number: int, state: str, values: list[float] | None = None) -> None:
    """Finish a trial (COMPLETE, PRUNED or FAIL); a trial that is finished already stays as it is."""
    import optuna

    settled_meanwhile = optuna.exceptions.UpdateFinishedTrialError
    with quiet(), suppress(settled_meanwhile):
        study.tell(number, values=values, state=optuna.trial.TrialState[state], skip_if_finished=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's notes about experimental parts from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
