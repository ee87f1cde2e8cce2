"""One tracked run: trains a configuration and logs what the run's page shows. `train` and `sweep` both call it.

Order: the run exists before training starts, an epoch is logged after its checkpoint is published, the bundle is uploaded
before the run is FINISHED. A run that ends otherwise is KILLED (interrupted, pruned) or FAILED with the reason.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fer_lab.core import lock
from fer_lab.core.config import RunConfig, dump_yaml, flatten
from fer_lab.core.console import note
from fer_lab.core.errors import FerLabError, Interrupted
from fer_lab.core.files import write_whole
from fer_lab.search.leases import LeaseLost
from fer_lab.search.teachers import resolve_teachers, teacher_probs
from fer_lab.search.trial import Pruned, failure_reason

if TYPE_CHECKING:
    from fer_lab.backends.bundle import Bundle
    from fer_lab.data.faces import FaceDataset
    from fer_lab.tracking.run import Run
    from fer_lab.tracking.store import Store
    from fer_lab.training.fit import FitResult

CONFIG = "config.yaml"


class Tracked(NamedTuple):
    """What a tracked run left: the run, the result, the bundle (below the run's work folder)."""

    run_id: str
    result: FitResult
    bundle: Bundle


def work_folder(store: Store, run_id: str) -> Path:
    """Where a run keeps its checkpoints while it is not finished."""
    return store.home / "mlruns" / "work" / run_id


def held(store: Store, run_id: str) -> AbstractContextManager[None]:
    """Keep other processes out of a run's work folder. Raises Conflict when one trains it."""
    return lock.held(
        work_folder(store, run_id),
        f"another process trains run {run_id}; nothing was changed. Wait for its end, or stop it, then: "
        f"python -m fer_lab.train --resume {run_id}",
    )


def end_abandoned(store: Store) -> None:
    """End as KILLED each RUNNING run of this store root whose process is gone: killed, or the machine lost its power.

    What cannot be ended stays as it is: somebody trains it, it is of another store or account, it was deleted.
    """
    from fer_lab.tracking.run import Run

    for config in sorted((store.home / "mlruns" / "work").glob(f"*/{CONFIG}")):
        run_id = config.parent.name
        with suppress(FerLabError, OSError), held(store, run_id):
            info = store.run_info(run_id)
            if info["status"] == "RUNNING":
                Run(store, run_id, resumed=True).end("KILLED", "its process was gone")
                note(
                    f"run {run_id} was left RUNNING by a process that is gone; it can go on: "
                    f"python -m fer_lab.train --resume {info['parent'] or run_id}"
                )


def keep_config(config: RunConfig, folder: Path) -> None:
    """Write the run's configuration where `--resume` finds it; one that is there stays, whatever a resumed run may change."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CONFIG).is_file():
        write_whole(folder / CONFIG, dump_yaml(config))


def tracked_fit(
    config: RunConfig,
    dataset: FaceDataset,
    store: Store,
    *,
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
    run: Run | None = None,
    resume: bool = False,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    on_step: Callable[[int, int, int], None] | None = None,
    should_stop: Callable[[], int | None] | None = None,
    experiment: str | None = None,
    name: str | None = None,
    folder: Path | None = None,
    on_run: Callable[[str], None] | None = None,
    guard: Callable[[], None] | None = None,
    extra: Mapping[str, float] | None = None,
    command: str | None = None,
) -> Tracked:
    """Train `config` as a run of `experiment` (the dataset's name when None) and return run id, result, bundle.

    run: log to this one (a resumed run) instead of a new one. folder: for checkpoints; `work_folder` when None.
    on_run(run_id) is called as soon as the run exists. guard() is called before each write to the store; it may raise
    LeaseLost. extra: further metrics of the run. command: what reproduces the run, shown on its page.
    Raises what `training.fit.fit` raises, after the run was ended: KILLED when interrupted or
    pruned, FAILED otherwise; after LeaseLost the run belongs to somebody else and is left alone.
    """
    from fer_lab.training.bundle import write_run_bundle
    from fer_lab.training.fit import Pruned as FitPruned
    from fer_lab.training.fit import fit
    from fer_lab.training.recipe import check_config

    check_config(config)
    name = name or f"{config.name}-s{config.seed}"
    if guard is not None:
        guard()
    is_new = run is None
    if run is None:
        run = store.start_run(experiment or dataset.name, name, parent=parent, tags=dict(tags or {}))
    if on_run is not None:
        try:
            on_run(run.id)
        except LeaseLost:  # nobody else knows this run
            run.end("KILLED", "another worker holds its job")
            raise
    run.guard = guard
    live = run
    try:
        if is_new:
            run.log_params(flatten(config))
        folder = folder or work_folder(store, run.id)
        keep_config(config, folder)
        _describe(live, config, dataset, command)
        if resume:
            _log_past(live, folder)

        def log_epoch(epoch: int, metrics: dict[str, float]) -> None:
            live.log_metrics(epoch, metrics)
            if on_epoch is not None:
                on_epoch(epoch, metrics)

        teachers = resolve_teachers(config, store)
        result = fit(
            config, dataset, folder, on_epoch=log_epoch, on_step=on_step, should_stop=should_stop, resume=resume,
            teacher_probs=teacher_probs(teachers, config, dataset, should_stop),
            teacher_digests=[one.bundle.digest for one in teachers],
        )  # fmt: skip
        bundle = write_run_bundle(result, config, dataset, folder / "bundle", run_id=run.id, parent_run_id=parent)
        _log_result(live, result, dataset, folder / "shown", extra or {})
        store.log_bundle(live, bundle.folder)
        run.end("FINISHED")
    except LeaseLost:
        raise
    except (Pruned, FitPruned, Interrupted, KeyboardInterrupt) as error:
        run.end("KILLED", reason=str(error) or "interrupted")
        raise
    except BaseException as error:
        run.end("FAILED", reason=failure_reason(error))
        raise
    return Tracked(run.id, result, bundle)


def _describe(run: Run, config: RunConfig, dataset: FaceDataset, command: str | None) -> None:
    """What a reader needs to trust and to repeat the run."""
    from fer_lab.measure.evaluate import kept_counts
    from fer_lab.measure.host import this_host
    from fer_lab.training.bundle import commit, versions

    counts = kept_counts(dataset, config.data.protocol)
    run.log_dataset(dataset.name, dataset.fingerprint, config.data.protocol, dataset.label_source, counts)
    run.log_text(dump_yaml(config), CONFIG)
    host = this_host()
    reproduce = command or f"python -m fer_lab.train {CONFIG}   # {CONFIG} is an artifact of this run"
    run.set_tags(
        {
            "mlflow.note.content": f"Reproduce (commit `{commit()}`, dataset `{dataset.name}` `{dataset.fingerprint[:12]}`):\n\n"
            f"    {reproduce}\n",
            "mlflow.source.git.commit": commit(),
            "fer.commit": commit(),
            "fer.command": reproduce,
            "fer.seed": config.seed,
            "fer.protocol": config.data.protocol,
            "fer.label_source": dataset.label_source,
            "fer.fingerprint": dataset.fingerprint,
            "fer.host": host.name,
            "fer.cpu": host.cpu,
            "fer.versions": " ".join(f"{package}={version}" for package, version in versions().items()),
        }
    )


def _log_past(run: Run, folder: Path) -> None:
    """Log the epochs of the checkpoint that this run does not show yet: a kill may fall between the two."""
    from fer_lab.training import checkpoint

    saved = checkpoint.load(folder)
    for record in saved.state["history"] if saved is not None else []:
        run.log_metrics(int(record["epoch"]), {key: value for key, value in record.items() if key != "epoch"})


def _log_result(run: Run, result: FitResult, dataset: FaceDataset, folder: Path, extra: Mapping[str, float]) -> None:
    """Log the selected checkpoint's figures (`best/…`) and the pictures and tables of the run's page."""
    from fer_lab.measure import plots
    from fer_lab.measure.metrics import confusion, per_class

    final = {name.replace("val/", "best/"): value for name, value in result.validation.items()}
    final |= {"best/epoch": result.best_epoch, "best/temperature": result.temperature, "parameters_m": result.parameters / 1e6}
    run.log_metrics(result.epochs_run, {**final, "wall_s": result.wall_s, **extra})

    folder.mkdir(exist_ok=True)
    predicted = result.valid_probs.argmax(axis=1)
    matrix = confusion(result.valid_targets, predicted, len(result.labels))
    row_of = {image: row for row, image in enumerate(dataset.names)}
    pixels = dataset.pixels[[row_of[image] for image in result.valid_names]]
    if result.history:
        plots.curves(result.history, folder / "curves.png")
    plots.confusion_matrix(matrix, result.labels, folder / "confusion.png")
    plots.reliability(result.valid_probs, result.valid_targets, folder / "reliability.png", title="Validation, calibrated")
    plots.worst_mistakes(
        pixels, result.valid_names, result.valid_targets, result.valid_probs, result.labels, folder / "worst_mistakes.png"
    )
    for path in sorted(folder.glob("*.png")):
        run.log_file(path, "plots")
    table = per_class(matrix)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", *table])
    for index, label in enumerate(result.labels):
        writer.writerow([label, *(f"{table[column][index]:g}" for column in table)])
    run.log_text(text.getvalue(), "per_class.csv")
    for path in result.kept.values():
        run.log_file(path, "checkpoints")
