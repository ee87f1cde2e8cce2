"""The worker's loop on a real store and a real database; the training itself is replaced by a formula."""

from __future__ import annotations

import csv
import errno
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from fer_lab.backends.bundle import Card, write_manifest
from fer_lab.core.config import Dimension, RunConfig, SweepConfig, with_values
from fer_lab.core.errors import Conflict, InputError, Interrupted, Unreachable
from fer_lab.core.labels import protocol
from fer_lab.core.signals import Stop
from fer_lab.data.faces import FaceDataset
from fer_lab.search.confirm import confirmed, pareto
from fer_lab.search.leases import Job, LeaseLost
from fer_lab.search.storage import StudyStorage, open_storage
from fer_lab.search.study import Sweep, open_sweep, optuna_study
from fer_lab.search.trial import Trained, failure_reason
from fer_lab.search.worker import stored_result, work
from fer_lab.tracking import registry
from fer_lab.tracking.store import Store, open_store

CONFIG = SweepConfig.model_validate(
    {
        "name": "formula", "data": {"dataset": "synthetic"}, "train": {"epochs": 3, "lr": 1e-3},
        "space": {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "data.targets": {"choices": ["soft", "majority"]}},
        "sweep": {"trials": 6, "lease_s": 3, "pruner": {"startup_trials": 2, "warmup_epochs": 0},
                  "confirm": {"top": 2, "seeds": 3}},
    }
)  # fmt: skip


class Formula:
    """A trainer whose accuracy is a formula of lr and seed; runs and bundles are real."""

    def __init__(
        self, sweep: Sweep, store: Store, parent: str, at_epoch: Callable[[str, int], None] = lambda key, epoch: None
    ) -> None:
        self.sweep, self.store, self.parent, self.at_epoch = sweep, store, parent, at_epoch
        self.started: list[tuple[str, bool]] = []

    def __call__(
        self, config: RunConfig, folder: Path, *, name: str, tags: Mapping[str, str], resume: bool,
        on_run: Callable[[str], None], on_epoch: Callable[[int, dict[str, float]], None],
        should_stop: Callable[[], int | None], guard: Callable[[], None], extra: Mapping[str, float],
    ) -> Trained:  # fmt: skip
        self.started.append((name, resume))
        run = self.store.start_run(self.sweep.experiment, name, parent=self.parent, tags=tags)
        on_run(run.id)
        accuracy = 0.5
        first = int((folder / "epoch").read_text()) + 1 if resume else 0
        try:
            for epoch in range(first, config.train.epochs):
                stop = should_stop()
                if stop is not None:
                    raise Interrupted(stop, "stop")
                accuracy = 0.9 - abs(config.train.lr - 0.01) + config.seed % 7 / 1000 + epoch / 100
                (folder / "epoch").write_text(str(epoch))
                run.log_metrics(epoch, {"val/accuracy": accuracy})
                self.at_epoch(name, epoch)
                on_epoch(epoch, {"val/accuracy": accuracy})
        except BaseException:
            run.end("KILLED")
            raise
        self.store.log_bundle(run, _bundle(folder / "bundle", config, self.sweep.dataset, run.id))
        run.end("FINISHED")
        return Trained(run.id, {"val/accuracy": accuracy}, {"parameters": 10})


def _bundle(folder: Path, config: RunConfig, dataset: FaceDataset, run_id: str) -> Path:
    from fer_lab.core.labels import EIGHT

    folder.mkdir(parents=True)
    card = Card(
        name="fer-synthetic-8", labels=EIGHT.labels, protocol="ferplus8", label_source="synthetic", dataset="synthetic",
        fingerprint=dataset.fingerprint, backbone=config.model.backbone, image_size=48, mean=0.5, std=0.5, run_id=run_id,
    )  # fmt: skip
    (folder / "card.json").write_text(card.to_json())
    (folder / "weights.safetensors").write_bytes(b"formula")
    write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store root for the whole file: creating MLflow's database takes longer than these studies."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def home(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FER_LAB_HOME", str(shared))
    monkeypatch.chdir(shared)
    return shared


@pytest.fixture
def storage(home: Path) -> Iterator[StudyStorage]:
    opened = open_storage(home)
    yield opened
    opened.close()


def _sweep(storage: StudyStorage, home: Path, drawn: FaceDataset, **changes: Any) -> Sweep:
    """A study of its own for every set of changes: they share the store."""
    return open_sweep(with_values(CONFIG, changes), drawn, home, storage, "local")


def _states(sweep: Sweep) -> Counter[str]:
    return Counter(trial.state.name for trial in optuna_study(sweep, 0).get_trials())


def test_a_study_ends_with_a_challenger_and_a_second_start_changes_nothing(
    home: Path, drawn: FaceDataset, storage: StudyStorage
) -> None:
    """Six slots, pruning, two configurations over three seeds, registered once; extending trains only what is new."""
    store = open_store(home)
    sweep = _sweep(storage, home, drawn)
    trainers: list[Formula] = []

    def below(parent: str) -> Formula:
        trainers.append(Formula(sweep, store, parent))
        return trainers[-1]

    result = work(sweep, store, below, Stop())
    assert sum(result["trials"].values()) == 6
    assert result["trials"]["failed"] == 0
    first, second = result["confirmed"]
    assert first["mean"] >= second["mean"]
    assert len(first["seeds"]) == 3
    assert all(seed >= 1000 for seed in first["seeds"])
    assert sorted(first["scores"])[1] == result["best"]["val_accuracy"]
    name = result["registered"]["name"]
    assert registry.aliases(store, name) == {"challenger": result["registered"]["version"]}
    assert len(registry.versions(store, name)) == 2 == 1 + len(result["also_registered"])
    assert _states(sweep) == Counter(COMPLETE=result["trials"]["complete"], PRUNED=result["trials"]["pruned"])
    parent = store.run_info(result["parent_run_id"])
    assert parent["status"] == "FINISHED"
    children = store.children(result["parent_run_id"])
    counts = Counter(c["status"] for c in children)
    assert (counts["FINISHED"], counts["KILLED"]) == (result["trials"]["complete"] + 6, result["trials"]["pruned"])
    assert counts.total() == len(children) == 12
    folder = store.download_run_folder(result["parent_run_id"], "", home / "page")
    assert {"leaderboard.csv", "summary.json", "history.png", "parallel_coordinates.png"} <= {p.name for p in folder.iterdir()}
    with (folder / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows[:2]] == [c["trial"] for c in result["confirmed"]]

    assert work(sweep, store, below, Stop()) == result
    assert trainers[-1].started == []
    more = _sweep(storage, home, drawn, **{"sweep.trials": 8})
    assert more.name == sweep.name
    assert stored_result(more) is None
    extended = work(more, store, below, Stop())
    assert sum(extended["trials"].values()) == 8
    assert {key for key, _ in trainers[-1].started if key.startswith("trial")} == {"trial-006", "trial-007"}
    assert work(sweep, store, below, Stop()) == extended


def test_a_failing_trial_fails_alone_and_a_study_without_one_complete_registers_nothing(
    home: Path, drawn: FaceDataset, storage: StudyStorage
) -> None:
    """Trial 1 runs out of memory, the others go on; when all fail there is no winner."""
    store = open_store(home)
    sweep = _sweep(storage, home, drawn, **{"name": "alone", "sweep.trials": 3, "sweep.confirm.seeds": 1, "sweep.confirm.top": 1})

    def burst(key: str, epoch: int) -> None:
        if key == "trial-001":
            raise MemoryError("8 GB")

    result = work(sweep, store, lambda parent: Formula(sweep, store, parent, burst), Stop())
    assert result["trials"]["failed"] == 1
    assert sweep.leases.jobs("trial")[1].reason == "oom: 8 GB"
    assert result["best"]["sd"] is None
    assert "confirm/sd" not in store.run_info(result["parent_run_id"])["metrics"]  # one seed has no spread
    hopeless = _sweep(storage, home, drawn, **{"sweep.trials": 2, "train.lr": 2e-3})

    def always(key: str, epoch: int) -> None:
        raise FloatingPointError("loss is NaN")

    nothing = work(hopeless, store, lambda parent: Formula(hopeless, store, parent, always), Stop())
    assert (nothing["registered"], nothing["best"], nothing["trials"]["failed"]) == (None, None, 2)
    assert store.run_info(nothing["parent_run_id"])["status"] == "FAILED"
    assert _states(hopeless) == {"FAIL": 2}


def test_any_error_of_a_trial_is_its_own(home: Path, drawn: FaceDataset, storage: StudyStorage) -> None:
    """One of ours, say: a worker that ended at it would hand it to the next, and so on."""
    store = open_store(home)
    sweep = _sweep(storage, home, drawn, **{"name": "own", "sweep.trials": 2, "sweep.confirm.seeds": 1, "sweep.confirm.top": 1})

    def slip(key: str, epoch: int) -> None:
        if key == "trial-001":
            raise KeyError("oops")

    result = work(sweep, store, lambda parent: Formula(sweep, store, parent, slip), Stop())
    assert result["trials"] == {"complete": 1, "pruned": 0, "failed": 1}
    assert sweep.leases.jobs("trial")[1].reason == "KeyError: 'oops'"


def test_a_short_break_of_the_database_costs_nothing(
    home: Path, drawn: FaceDataset, storage: StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third question fails; no trial counts a death, and none is given back."""
    store = open_store(home)
    sweep = _sweep(storage, home, drawn, **{"name": "break", "sweep.trials": 2, "sweep.confirm.seeds": 1, "sweep.confirm.top": 1})
    optuna_study(sweep, 0)  # made before the break
    broken: Counter[str] = Counter()
    connect = Engine.connect

    def flaky(engine: Engine) -> Any:
        if engine is storage.engine:  # not Optuna's, which has patience where it is asked, nor MLflow's
            broken["asked"] += 1
            if broken["asked"] % 3 == 2:
                broken["refused"] += 1
                raise OperationalError("SELECT 1", {}, Exception("server closed the connection unexpectedly"))
        return connect(engine)

    monkeypatch.setattr(Engine, "connect", flaky)
    trainers: list[Formula] = []

    def below(parent: str) -> Formula:
        trainers.append(Formula(sweep, store, parent))
        return trainers[-1]

    result = work(sweep, store, below, Stop())
    assert result["trials"]["complete"] + result["trials"]["pruned"] == 2
    assert broken["refused"] > 20
    monkeypatch.undo()
    assert {job.deaths for job in sweep.leases.jobs()} == {0}
    assert len(trainers[0].started) == 3


def test_a_database_that_stays_away_ends_the_worker_in_one_sentence(
    home: Path, drawn: FaceDataset, storage: StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a password, with exit code 2; the same command completes the study."""
    store = open_store(home)
    sweep = _sweep(storage, home, drawn, **{"name": "away", "sweep.trials": 1, "sweep.confirm.seeds": 1, "sweep.lease_s": 3})

    connect = Engine.connect

    def away(engine: Engine) -> Any:
        if engine.url == storage.engine.url and time.monotonic() - refused.setdefault("since", time.monotonic()) < 6:
            raise OperationalError("SELECT secret", {}, Exception("the database system is shutting down"))
        return connect(engine)

    refused: dict[str, float] = {}

    def cut_off(key: str, epoch: int) -> None:
        monkeypatch.setattr(Engine, "connect", away)

    with pytest.raises(InputError, match=r"does not answer as it should \(the database system is shutting down\)"):
        work(sweep, store, lambda parent: Formula(sweep, store, parent, cut_off), Stop())
    monkeypatch.undo()
    [job] = sweep.leases.jobs("trial")
    assert (job.status, job.deaths) == ("leased", 0)  # it could not be given back: its lease runs out
    parent = str(sweep.leases.study_row()["parent_run_id"])  # type: ignore[index]  # the study is there
    assert work(sweep, store, lambda parent: Formula(sweep, store, parent), Stop())["registered"] is not None
    assert store.run_info(parent)["status"] == "FINISHED"


def test_a_study_whose_last_worker_failed_says_so(home: Path, drawn: FaceDataset, storage: StudyStorage) -> None:
    """A full disk: nobody works on it; the same command completes it, and then nothing is said of that any more."""
    store = open_store(home)
    sweep = _sweep(storage, home, drawn, **{"name": "full", "sweep.trials": 1, "sweep.confirm.seeds": 1})

    def full(key: str, epoch: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match="the disk is full"):
        work(sweep, store, lambda parent: Formula(sweep, store, parent, full), Stop())
    parent = str(sweep.leases.study_row()["parent_run_id"])  # type: ignore[index]  # the study is there
    info = store.run_info(parent)
    assert (info["status"], "its last worker ended: the disk is full" in info["tags"]["end_reason"]) == ("KILLED", True)
    work(sweep, store, lambda parent: Formula(sweep, store, parent), Stop())
    info = store.run_info(parent)
    assert (info["status"], "end_reason" in info["tags"]) == ("FINISHED", False)


def test_values_that_the_schema_refuses_fail_their_trial_and_not_the_worker(
    home: Path, drawn: FaceDataset, storage: StudyStorage
) -> None:
    """A worker that ended at each claim would take every slot with it."""
    store = open_store(home)
    space = {"train.batch_size": Dimension(low=8, high=64).model_dump()}
    sweep = _sweep(storage, home, drawn, **{"name": "fractions", "sweep.trials": 2, "space": space})
    result = work(sweep, store, lambda parent: Formula(sweep, store, parent), Stop())
    assert result["trials"] == {"complete": 0, "pruned": 0, "failed": 2}
    assert all("train.batch_size" in str(job.reason) for job in sweep.leases.jobs("trial"))
    assert _states(sweep) == {"FAIL": 2}


@pytest.mark.parametrize("key", ["trial-000", "confirm-000"])
@pytest.mark.parametrize("error", [Unreachable("it does not answer"), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_a_job_that_is_not_at_fault_is_given_back(
    home: Path, drawn: FaceDataset, storage: StudyStorage, key: str, error: BaseException
) -> None:
    """An outage of the tracking server, a second Ctrl-C: the worker ends, its job is free, the same command completes the study."""
    store = open_store(home)
    name = f"{key}-{type(error).__name__}"
    sweep = _sweep(storage, home, drawn, **{"name": name, "sweep.trials": 1, "sweep.confirm.seeds": 1})

    def cut_off(at: str, epoch: int) -> None:
        if at == key:
            raise error

    with pytest.raises(type(error)):
        work(sweep, store, lambda parent: Formula(sweep, store, parent, cut_off), Stop())
    [job] = [job for job in sweep.leases.jobs() if job.key == key]
    assert (job.status, job.deaths) == ("free", 0)
    result = work(sweep, store, lambda parent: Formula(sweep, store, parent), Stop())
    assert result["trials"] == {"complete": 1, "pruned": 0, "failed": 0}
    assert result["registered"] is not None
    assert "RUNNING" not in _states(sweep)


def test_an_interrupted_trial_goes_back_to_the_queue_and_continues(home: Path, drawn: FaceDataset, storage: StudyStorage) -> None:
    """After the signal nothing is RUNNING; the next start continues from the checkpoint with the same values."""
    store = open_store(home)
    sweep = _sweep(storage, home, drawn, **{"name": "signal", "sweep.trials": 1, "sweep.confirm.seeds": 1})
    stop = Stop()

    def signalled(key: str, epoch: int) -> None:
        if epoch == 1:
            stop.number = 15

    with pytest.raises(Interrupted) as caught:
        work(sweep, store, lambda parent: Formula(sweep, store, parent, signalled), stop)
    assert caught.value.exit_code == 143
    [job] = sweep.leases.jobs("trial")
    assert (job.status, job.deaths) == ("free", 0)
    parent = sweep.leases.study_row()["parent_run_id"]  # type: ignore[index]  # the study is there
    assert [store.run_info(parent)["status"]] + [c["status"] for c in store.children(parent)] == ["KILLED", "KILLED"]
    trainers: list[Formula] = []

    def below(parent_id: str) -> Formula:
        trainers.append(Formula(sweep, store, parent_id))
        return trainers[-1]

    result = work(sweep, store, below, Stop())
    assert result["parent_run_id"] == parent
    assert trainers[0].started[0] == ("trial-000", True)
    assert _states(sweep) == {"FAIL": 1, "COMPLETE": 1}
    values = [t.params for t in optuna_study(sweep, 0).get_trials()]
    assert values[0] == values[1]
    resumed = [c for c in store.children(parent) if "fer.resume_of" in c["tags"]]
    assert len(resumed) == 1
    assert store.run_info(parent)["status"] == "FINISHED"


def test_a_signal_while_the_study_finishes_leaves_it_finished(
    home: Path, drawn: FaceDataset, storage: StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its result is stored, so that no later start would ever look at its run again; the version says of how many faces."""
    store = open_store(home)
    sweep = _sweep(storage, home, drawn, **{"name": "late", "sweep.trials": 1, "sweep.confirm.seeds": 1})
    stop = Stop()
    register = registry.register

    def signalled(*given: Any, **named: Any) -> registry.Version:
        stop.number = 15
        return register(*given, **named)

    monkeypatch.setattr(registry, "register", signalled)
    result = work(sweep, store, lambda parent: Formula(sweep, store, parent), stop)
    assert store.run_info(result["parent_run_id"])["status"] == "FINISHED"
    kept = protocol("ferplus8").labels(drawn.votes[drawn.indices("valid")]) >= 0
    assert 0 < kept.sum() < len(kept)  # not all of them count
    tags = registry.version_tags(store, result["registered"]["name"], result["registered"]["version"])
    assert tags["n_valid"] == str(kept.sum())


def test_a_worker_that_was_paused_past_its_lease_writes_nothing(home: Path, drawn: FaceDataset, storage: StudyStorage) -> None:
    """Its successor's result stands; there is one COMPLETE trial and one FINISHED run for the slot."""
    store = open_store(home)
    sweep = _sweep(storage, home, drawn, **{"name": "paused", "sweep.trials": 1, "sweep.confirm.seeds": 1})

    def paused(key: str, epoch: int) -> None:
        if epoch == 1:  # what a pause looks like from outside: the lease ran out and a successor finished everything
            with storage.engine.begin() as connection:
                connection.exec_driver_sql("UPDATE fer_jobs SET expires = 0 WHERE kind = 'trial'")
            result.update(work(sweep, store, lambda parent: Formula(sweep, store, parent), Stop()))

    result: dict[str, Any] = {}
    with pytest.raises(LeaseLost):
        work(sweep, store, lambda parent: Formula(sweep, store, parent, paused), Stop())
    assert result["trials"]["complete"] == 1
    assert stored_result(sweep) == result
    assert _states(sweep) == {"FAIL": 1, "COMPLETE": 1}
    children = store.children(result["parent_run_id"])
    assert Counter((c["name"], c["status"]) for c in children) == {
        ("trial-000", "KILLED"): 1, ("trial-000", "FINISHED"): 1, ("confirm-000", "FINISHED"): 1
    }  # fmt: skip


def test_a_study_of_that_name_with_another_space_is_refused(home: Path, drawn: FaceDataset, storage: StudyStorage) -> None:
    """Exit 5, and the message names what differs."""
    _sweep(storage, home, drawn, **{"sweep.study": "mine"})
    space = {"train.lr": Dimension(low=0.1, high=1).model_dump()}
    with pytest.raises(Conflict, match=r"another space, train\.epochs"):
        _sweep(storage, home, drawn, **{"sweep.study": "mine", "train.epochs": 9, "space": space})


def test_two_objectives_keep_the_pareto_set() -> None:
    """Neither of two survivors is beaten in both."""
    assert pareto([(0.9, 5.0), (0.8, 2.0), (0.7, 3.0), (0.9, 6.0)]) == [0, 1]


def test_reasons_name_memory_and_non_finite_numbers_first() -> None:
    """A reason is one line that a person can act on."""
    assert failure_reason(RuntimeError("DefaultCPUAllocator: can't allocate memory")).startswith("oom: ")
    assert failure_reason(ValueError("bad\nthing")) == "ValueError: bad thing"


def test_hyperband_and_patience_are_real_pruners() -> None:
    """Each configured name gives its Optuna pruner; two objectives are never pruned."""
    from fer_lab.search.study import pruner

    def kind(**changes: Any) -> str:
        return type(pruner(with_values(CONFIG, changes))).__name__

    assert kind() == "MedianPruner"
    assert kind(**{"sweep.pruner.patience": 2}) == "PatientPruner"
    assert kind(**{"sweep.pruner.name": "hyperband"}) == "HyperbandPruner"
    assert kind(**{"sweep.pruner.name": "none"}) == "NopPruner"
    assert kind(**{"sweep.objectives": ["accuracy", "latency"]}) == "NopPruner"
    assert optuna.__version__


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    """Neither torch, mlflow nor optuna is imported by --help."""
    code = """
import sys, fer_lab.sweep
try:
    fer_lab.sweep.main(["--help"])
except SystemExit:
    print(sorted({"torch", "mlflow", "optuna", "sqlalchemy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_study_that_goes_on_with_fewer_trials_passes_over_what_they_confirmed() -> None:
    """Trial 27 was confirmed before the study was cut to twelve."""

    def job(kind: Any, number: int, **payload: Any) -> Job:
        result = {"values": [0.5], "run_id": f"r{number}"}
        return Job("s", kind, number, "complete", None, 1, 0, None, None, None, None, None, payload, result)

    trials = [job("trial", number) for number in range(12)]
    confirmations = [job("confirm", i, trial=trial, values={}, seed=i) for i, trial in enumerate((27, 3))]
    assert [(one.trial, one.seeds) for one in confirmed(trials, confirmations)] == [(3, (1,))]
