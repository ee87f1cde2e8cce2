"""The main job: search a configuration, confirm the best over fresh seeds, register a challenger.

    python -m fer_lab.sweep                                    # FERPlus when it is prepared, else the synthetic sample
    python -m fer_lab.sweep experiments/quickstart.yaml        # minutes on two CPU cores, no download
    python -m fer_lab.sweep experiments/sweeps/ferplus8.yaml sweep.trials=40 train.epochs=12 --workers 2
    python -m fer_lab.sweep --status                           # how far the study is; trains nothing

A study is an MLflow run, each trial a child run of it. The best configurations are trained again over fresh seeds and the
mean decides; each that survives is registered with the weights of its median seed, the winner alone is @challenger. The
test split stays sealed.

The same command started again joins the study, here or (with FER_LAB_STORAGE=postgresql+psycopg://USER@HOST/DB) on
another machine; killed workers lose at most one epoch where they share FER_LAB_HOME, elsewhere their trial. A finished
study trains nothing and prints its result; `sweep.trials=40` extends it. An edited configuration, space or dataset is a
new study.

Prints a table, the line that points MLflow's own commands at the store, the command to type next, and one line of JSON:
{"study": …, "parent_run_id": …, "trials": {"complete": 5, "pruned": 1, "failed": 0}, "best": {"run_id": …,
"val_accuracy": …}, "registered": {"name": …, "version": 1, "alias": "challenger"}, "also_registered": […], "dataset": …,
"label_source": …, "protocol": …, "n_valid": …}
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.core import console

if TYPE_CHECKING:
    from fer_lab.core.config import SweepConfig
    from fer_lab.core.signals import Stop
    from fer_lab.data.faces import FaceDataset
    from fer_lab.search.study import Sweep

QUICKSTART = Path("experiments/quickstart.yaml")
FERPLUS = Path("experiments/sweeps/ferplus8.yaml")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fer_lab.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", help="a YAML file; FERPlus or the quickstart when left out")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. sweep.trials=40 train.epochs=12")
    parser.add_argument("--workers", type=int, help="processes on this machine (sweep.workers)")
    parser.add_argument("--max-hours", type=float, metavar="H", help="start no trial later than this (sweep.max_hours)")
    parser.add_argument("--study", help="the study's name, instead of one from its configuration")
    parser.add_argument("--storage", metavar="URL", help="the study database, without a password (FER_LAB_STORAGE)")
    parser.add_argument("--status", action="store_true", help="say how far the study is; train nothing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return console.run(parser, _body, argv)


def _body(args: argparse.Namespace) -> Mapping[str, Any]:
    from fer_lab.core.config import load_sweep_config, with_values
    from fer_lab.core.errors import InputError
    from fer_lab.data.faces import home

    root = home()
    path, overrides, chosen = _choose(args, root)
    if chosen:
        console.say(chosen)
    config = load_sweep_config(path, overrides)
    given = {"sweep.study": args.study, "sweep.workers": args.workers, "sweep.max_hours": args.max_hours}
    config = with_values(config, {key: value for key, value in given.items() if value is not None}, where="arguments")
    if args.storage:
        from fer_lab.search.storage import VARIABLE, has_password

        if has_password(args.storage):
            raise InputError(f"--storage would show its password to every user of this machine; put the URL into {VARIABLE}")
        os.environ[VARIABLE] = args.storage
    dataset = _dataset(config, root)
    if config.train.teachers:
        from fer_lab.search.teachers import pinned_teachers

        teachers = pinned_teachers(config)
        overrides = [*overrides, f"train.teachers={json.dumps(teachers)}"]
        config = with_values(config, {"train.teachers": teachers})

    from fer_lab.core.signals import Stop
    from fer_lab.search.storage import open_storage

    storage = open_storage(root)
    try:
        with Stop() as stop:
            return _run(args, path, overrides, config, dataset, root, storage, stop)
    finally:
        storage.close()


def _run(
    args: argparse.Namespace, path: Path, overrides: Sequence[str], config: SweepConfig, dataset: FaceDataset, root: Path,
    storage: Any, stop: Stop,
) -> Mapping[str, Any]:  # fmt: skip
    from fer_lab.search.study import open_sweep
    from fer_lab.search.worker import stored_result
    from fer_lab.tracking.address import redact, sqlite_uri, store_uri
    from fer_lab.tracking.store import open_store

    if args.status:
        return _status(config, dataset, storage)
    local = sqlite_uri(root / "mlruns" / "mlflow.db")
    uri = store_uri(root)
    sweep = open_sweep(config, dataset, root, storage, "local" if uri == local else redact(uri))
    _check_tracking(sweep, "local" if uri == local else redact(uri))
    result = stored_result(sweep)
    finished_before = result is not None
    if result is None:
        from fer_lab.search.teachers import resolve_teachers

        _check_trials(config, dataset)
        store = open_store(root)  # once, before the workers: an unreachable server is said now
        resolve_teachers(config, store)
        if config.sweep.workers > 1 and not args.worker:
            _fleet(args, path, overrides, config, sweep, stop)
        else:
            from fer_lab.search.trainer import trainer
            from fer_lab.search.worker import work
            from fer_lab.training.allocator import keep_freed_memory

            keep_freed_memory()
            work(sweep, store, lambda parent: trainer(sweep, store, parent), stop)
        result = stored_result(sweep)
    if result is None:
        from fer_lab.core.errors import FerLabError

        raise FerLabError(f"study {sweep.name} is not finished: its workers ended early (see above). The same command goes on")
    more = _extended(args, path, overrides, 2 * int(result["total"]))
    return _report(sweep, result, redact(uri), more if finished_before else None)


def _choose(args: argparse.Namespace, root: Path) -> tuple[Path, list[str], str]:
    """Return the configuration's path, the overrides, and the line that says what was chosen."""
    from fer_lab.core.errors import NotFound
    from fer_lab.data.datasets import prepared

    overrides = list(args.overrides)
    if args.config is not None and "=" in args.config and not Path(args.config).is_file():
        overrides.insert(0, args.config)
    elif args.config is not None:
        path = _find(Path(args.config))
        if path is None:
            raise NotFound(f"no such configuration: {args.config}. Try: python -m fer_lab.sweep {QUICKSTART}")
        return path, overrides, ""
    real = prepared("ferplus", root)
    path = _find(FERPLUS if real else QUICKSTART)
    if path is None:
        raise NotFound(f"{FERPLUS if real else QUICKSTART} is neither here nor beside the package; give a configuration")
    if real:
        line = f"{FERPLUS} on FERPlus: hours on a CPU, minutes on a GPU. The quick one: python -m fer_lab.sweep {QUICKSTART}"
    else:
        line = (
            f"{QUICKSTART} on the synthetic sample: minutes on two CPU cores. "
            "On real faces: python -m fer_lab.prepare ferplus, then this command again"
        )
    return path, overrides, line


def _find(path: Path) -> Path | None:
    """Find a configuration from the current directory, or from the repository root beside the package."""
    for candidate in (path, Path(__file__).resolve().parent.parent / path):
        if candidate.is_file():
            return candidate
    return None


def _dataset(config: SweepConfig, root: Path) -> FaceDataset:
    from fer_lab.core.labels import protocol
    from fer_lab.data.datasets import ready

    protocol(config.data.protocol)
    return ready(config.data.dataset, root)


def _check_tracking(sweep: Sweep, tracking: str) -> None:
    """A study's runs are in one store; another one, or a store that is gone, is said before anything trains."""
    from fer_lab.core.errors import Conflict

    row = sweep.leases.study_row()
    assert row is not None
    if row["tracking"] != tracking:
        raise Conflict(
            f"study {sweep.name} keeps its runs in the {row['tracking']} store, and MLFLOW_TRACKING_URI says {tracking}. "
            "Use that store, or start another study with --study NAME"
        )
    if tracking == "local" and row["parent_run_id"] and not (sweep.home / "mlruns" / "mlflow.db").is_file():
        raise Conflict(
            f"the runs of study {sweep.name} are gone (no {sweep.home / 'mlruns' / 'mlflow.db'}). "
            "Restore that file, remove mlruns/optuna.db beside it, or start another study with --study NAME"
        )


def _check_trials(config: SweepConfig, dataset: FaceDataset) -> None:
    """Check what would fail trial after trial on this host, a wrong word or no GPU, before one is claimed."""
    from fer_lab.core.errors import InputError
    from fer_lab.search.space import corners
    from fer_lab.training.recipe import check_config, check_metric
    from fer_lab.training.targets import check_faces

    check_metric(config.sweep.metric, "sweep.metric")
    by_data = {}  # choosing faces takes a while, and only `data` says how
    for run in corners(config):
        if run.train.epochs == 0:
            raise InputError("train.epochs=0 trains nothing, so there is nothing to search; give train.epochs")
        check_config(run)
        by_data[run.data] = run
    for run in by_data.values():
        check_faces(run, dataset)


def _fleet(
    args: argparse.Namespace, path: Path, overrides: Sequence[str], config: SweepConfig, sweep: Sweep, stop: Stop
) -> None:  # fmt: skip
    from fer_lab.search.fleet import run_fleet, threads_each
    from fer_lab.search.worker import stored_result

    workers = config.sweep.workers
    command = ["-m", "fer_lab.sweep", str(path), *overrides, "--worker", "--workers", "1", "--study", sweep.name]
    if config.sweep.study is None:
        command = command[:-2]
    if args.max_hours is not None:
        command += ["--max-hours", str(args.max_hours)]
    if config.train.threads is None:
        command.insert(3, f"train.threads={threads_each(workers)}")
    run_fleet(command, workers, stop, lambda: stored_result(sweep) is not None)


def _status(config: SweepConfig, dataset: FaceDataset, storage: Any) -> Mapping[str, Any]:
    from fer_lab.core.errors import NotFound
    from fer_lab.search.leases import Leases
    from fer_lab.search.space import study_name, study_spec

    name = study_name(config, study_spec(config, dataset.fingerprint))
    leases = Leases(storage.engine, name, config.sweep.lease_s)
    row = leases.study_row()
    if row is None:
        raise NotFound(f"no study {name} in {storage.shown_url}. Start it with the same command without --status")
    jobs = [job for job in leases.jobs() if job.kind in {"trial", "confirm"}]
    rows = [
        (j.key, j.status, "–" if j.epoch is None else j.epoch + 1, j.worker if j.status == "leased" else "–", j.reason or "–")
        for j in jobs
    ]
    console.table(f"study {name}", ("job", "status", "epoch", "worker", "reason"), rows)
    states = ("free", "leased", "complete", "pruned", "failed")
    counts = {kind: Counter(str(job.status) for job in jobs if job.kind == kind) for kind in ("trial", "confirm")}
    return {
        "study": name,
        "parent_run_id": row["parent_run_id"],
        "trials": {state: counts["trial"][state] for state in states},
        "confirm": {state: counts["confirm"][state] for state in states},
        "finished": row["result"] is not None and row["result"]["total"] >= config.sweep.trials,
    }


def _extended(args: argparse.Namespace, path: Path, overrides: Sequence[str], trials: int) -> str:
    """The command that goes on with this study up to so many trials."""
    words = [str(path), *(text for text in overrides if not text.startswith("sweep.trials=")), f"sweep.trials={trials}"]
    for option in ("study", "storage"):
        if (given := getattr(args, option)) is not None:
            words += [f"--{option}", given]
    return shlex.join(["python", "-m", "fer_lab.sweep", *words])


def _report(sweep: Sweep, result: Mapping[str, Any], uri: str, more: str | None) -> Mapping[str, Any]:
    """Print the result; `more` is the command for more trials of a study that was finished before."""
    from fer_lab.core.errors import FerLabError

    counts = result["trials"]
    if more is not None:
        console.say(f"study {sweep.name} is finished; nothing was trained. More trials: {more}")
    if result["registered"] is None:
        reasons = "; ".join(result.get("reasons", [])) or "no reason recorded"
        raise FerLabError(f"study {sweep.name}: nothing was registered, no configuration completed ({reasons})", result=result)
    versions = [result["registered"], *result["also_registered"]]
    keys = list(sweep.config.space)
    rows = [
        (
            f"{version['name']}/{version['version']}", f"{found['mean']:.4f}",
            "–" if found["sd"] is None else f"{found['sd']:.4f}", len(found["seeds"]), found["trial"],
            *(_short(found["values"][key]) for key in keys),
        )
        for found, version in zip(result["confirmed"], versions, strict=True)
    ]  # fmt: skip
    n_valid = sweep.n_valid
    title = (
        f"{sweep.name}: {counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed; "
        f"{result['metric']} on {n_valid} validation faces of {sweep.dataset.name}, {sweep.config.data.protocol}, mean over "
        "fresh seeds (the first row is @challenger)"
    )
    console.table(title, ("version", "mean", "sd", "seeds", "trial", *(key.split(".")[-1] for key in keys)), rows)
    winner = result["registered"]
    console.say(f"for MLflow's own commands:  export MLFLOW_TRACKING_URI={shlex.quote(uri)}     look at it: python -m fer_lab.ui")
    console.next_command(f"python -m fer_lab.export models:/{winner['name']}@{winner['alias']}")
    return {
        **result, "dataset": sweep.dataset.name, "label_source": sweep.dataset.label_source,
        "protocol": sweep.config.data.protocol, "n_valid": n_valid,
    }  # fmt: skip


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
