"""Train one configuration, or the same one over several seeds.

    python -m fer_lab.train experiments/ferplus8_b0.yaml                       # FERPlus, hours on a CPU
    python -m fer_lab.train experiments/ferplus8_b0.yaml train.epochs=3 seed=1 # any key of the file can be changed
    python -m fer_lab.train experiments/ferplus8_b0.yaml --seeds 0..4          # a parent run, one child per seed, mean ± sd
    python -m fer_lab.train data.dataset=synthetic train.epochs=3 train.image_size=48    # a tiny machine: a minute
    python -m fer_lab.train --resume RUN_ID                                    # go on after Ctrl-C, a kill, a crash

The run is logged to the store (`python -m fer_lab.ui` shows it): configuration, metrics per epoch, curves, confusion
matrix, worst mistakes, and the bundle. The best epoch is chosen on the validation split and calibrated there, by a
temperature or (train.calibration=bias) by a bias per class as well; the test split is not read. Checkpoints stay in
mlruns/work/RUN_ID until the run is finished; Ctrl-C and SIGTERM stop at the next step, and a resumed run ends (on a
CPU) with the weights of an uninterrupted one. With train.epochs=0, model.weights_file is calibrated and logged as it is.

Prints a table, the command to type next, and one line of JSON: {"run_id": …, "val": {"accuracy": …, "macro_recall": …,
…}, …}; with --seeds `val` holds means, `sd` their standard deviations (null for a single seed), `runs` the children.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.core import console

if TYPE_CHECKING:
    from fer_lab.core.config import RunConfig
    from fer_lab.core.signals import Stop
    from fer_lab.data.faces import FaceDataset
    from fer_lab.search.tracked import Tracked
    from fer_lab.tracking.run import Run
    from fer_lab.tracking.store import Store

SHOWN = ("accuracy", "macro_recall", "macro_f1", "f1_of_macro_pr", "nll", "ece", "kl_to_votes")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fer_lab.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", help="a YAML file; the schema's defaults when left out")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.epochs=3 seed=1")
    parser.add_argument("--seeds", help="0..4 or 0,3,7: one child run per seed below a parent run")
    parser.add_argument("--resume", metavar="RUN_ID", help="continue this run (or parent run) from its last checkpoint")
    return console.run(parser, _body, argv)


def _body(args: argparse.Namespace) -> Mapping[str, Any]:
    from fer_lab.core.errors import InputError
    from fer_lab.core.signals import Stop

    if args.resume and args.seeds:
        raise InputError("--resume continues a run with its own seeds; leave --seeds out")
    with Stop() as stop:
        return _resume(args, stop) if args.resume else _start(args, stop)


def _start(args: argparse.Namespace, stop: Stop) -> Mapping[str, Any]:
    from fer_lab.core.config import load_run_config
    from fer_lab.core.errors import InputError
    from fer_lab.search.teachers import resolve_teachers
    from fer_lab.search.tracked import end_abandoned
    from fer_lab.tracking.store import open_store

    path, overrides = _split(args)
    config = load_run_config(path, overrides)
    seeds = _seeds(args.seeds) if args.seeds else None
    if seeds and config.train.epochs == 0:
        raise InputError("train.epochs=0 draws nothing: every seed would be the same run; leave --seeds out")
    dataset = _checked(config)
    store = open_store()  # an unreachable server is said before anything trains
    end_abandoned(store)
    resolve_teachers(config, store)  # so is a teacher that is not there or cannot teach this
    words = [str(path)] if path is not None else []
    words += [text for text in overrides if not (seeds and text.startswith("seed="))]
    if seeds is None:
        return _one(config, dataset, store, stop, command=_command(words))
    from fer_lab.core.config import dump_yaml, flatten, with_values
    from fer_lab.search.teachers import pinned_teachers
    from fer_lab.search.tracked import CONFIG, held, keep_config, work_folder

    config = with_values(config, {"train.teachers": pinned_teachers(config)})

    tags = {"fer.seeds": ",".join(map(str, seeds)), "fer.command": _command([*words, "--seeds", args.seeds])}
    tags |= {"fer.fingerprint": dataset.fingerprint, "fer.label_source": dataset.label_source}
    tags["mlflow.note.content"] = f"Reproduce:\n\n    {tags['fer.command']}\n"
    parent = store.start_run(dataset.name, config.name, tags=tags, params=flatten(config))
    parent.log_text(dump_yaml(config), CONFIG)
    with held(store, parent.id):
        keep_config(config, work_folder(store, parent.id))
        return _many(config, seeds, words, dataset, store, stop, parent)


def _one(
    config: RunConfig, dataset: FaceDataset, store: Store, stop: Stop, *, command: str, run: Run | None = None
) -> Mapping[str, Any]:
    tracked = _tracked(config, dataset, store, stop, command=command, run=run)
    figures = {name.removeprefix("val/"): value for name, value in tracked.result.validation.items()}
    result = tracked.result
    faces = f"{len(result.valid_targets)} validation faces of {dataset.name}, {config.data.protocol}"
    console.table(
        f"{config.name}: {config.model.backbone}, {faces}",
        ["metric", "value"],
        [[name, f"{figures[name]:.4f}"] for name in SHOWN if name in figures],
    )
    before = "" if "accuracy_raw" not in figures else f"accuracy {figures['accuracy_raw']:.4f} before the biases; "
    chosen = f"epoch {result.best_epoch + 1} of {result.epochs_run}" if result.epochs_run else "the weights as they were given"
    console.say(
        f"{chosen}; {before}temperature {result.temperature:.3f} "
        f"(KL to votes {figures['kl_to_votes_raw']:.4f} before, {figures['kl_to_votes']:.4f} after)"
    )
    console.next_command(f"python -m fer_lab.register runs:/{tracked.run_id}")
    return {
        "run_id": tracked.run_id, "val": figures, "temperature": result.temperature, "best_epoch": result.best_epoch,
        "epochs_run": result.epochs_run, "parameters": result.parameters, "bundle_digest": tracked.bundle.digest,
    }  # fmt: skip


def _many(
    config: RunConfig, seeds: Sequence[int], words: Sequence[str], dataset: FaceDataset, store: Store, stop: Stop, parent: Run
) -> Mapping[str, Any]:
    """Train one child per seed, leaving out those that are finished, and log mean and standard deviation on the parent."""
    import statistics

    from fer_lab.core.config import with_values
    from fer_lab.core.errors import Interrupted
    from fer_lab.measure.evaluate import kept_counts
    from fer_lab.search.tracked import work_folder

    children = {child["tags"].get("fer.seed"): child for child in store.children(parent.id)}
    figures: dict[int, dict[str, float]] = {}
    run_ids: dict[int, str] = {}
    try:
        for seed in seeds:
            if stop.number is not None:
                raise Interrupted(stop.number, f"stopped before seed {seed}. {_go_on(parent.id)}")
            child = children.get(str(seed))
            if child is not None and child["status"] == "FINISHED":
                run_ids[seed] = str(child["run_id"])
                best = {name: value for name, value in child["metrics"].items() if name.startswith("best/")}
                figures[seed] = {name.removeprefix("best/"): value for name, value in best.items()}
                continue
            seeded, again = with_values(config, {"seed": seed}), _command([*words, f"seed={seed}"])
            with _resumed(store, str(child["run_id"])) if child is not None else nullcontext() as run:
                tracked = _tracked(seeded, dataset, store, stop, command=again, run=run, parent=parent.id)
            run_ids[seed] = tracked.run_id
            figures[seed] = {name.removeprefix("val/"): value for name, value in tracked.result.validation.items()}
    except BaseException as error:
        parent.end_by(error)
        raise
    names = [name for name in figures[seeds[0]] if all(name in figures[seed] for seed in seeds) and name not in ("epoch",)]
    mean = {name: statistics.fmean(figures[seed][name] for seed in seeds) for name in names}
    sd = {name: statistics.stdev(figures[seed][name] for seed in seeds) for name in names} if len(seeds) > 1 else None
    parent.log_metrics(0, {f"mean/{n}": v for n, v in mean.items()} | {f"sd/{n}": v for n, v in (sd or {}).items()})
    parent.end("FINISHED")
    shutil.rmtree(work_folder(store, parent.id), ignore_errors=True)
    rows = [
        [name, f"{mean[name]:.4f} ± {'–' if sd is None else f'{sd[name]:.4f}'}", *(f"{figures[s][name]:.4f}" for s in seeds)]
        for name in SHOWN if name in mean
    ]  # fmt: skip
    n = kept_counts(dataset, config.data.protocol)["valid"]
    console.table(
        f"{config.name}: {config.model.backbone}, {n} validation faces of {dataset.name}, {config.data.protocol}",
        ["metric", f"mean ± sd of {len(seeds)}", *(f"seed {seed}" for seed in seeds)],
        rows,
    )
    ranked = sorted(seeds, key=lambda seed: figures[seed]["accuracy"])
    console.next_command(f"python -m fer_lab.register runs:/{run_ids[ranked[(len(ranked) - 1) // 2]]}   # the median seed")
    return {"run_id": parent.id, "val": mean, "sd": sd, "seeds": list(seeds), "runs": [run_ids[seed] for seed in seeds]}


def _tracked(
    config: RunConfig, dataset: FaceDataset, store: Store, stop: Stop, *, command: str, run: Run | None, parent: str | None = None
) -> Tracked:
    from fer_lab.core.errors import FerLabError, Interrupted
    from fer_lab.search.tracked import held, tracked_fit, work_folder
    from fer_lab.training.allocator import keep_freed_memory
    from fer_lab.training.progress import Progress

    keep_freed_memory()
    known = [run.id] if run is not None else []
    at_work = ExitStack()  # keeps others out of a new run

    def on_run(run_id: str) -> None:
        known.append(run_id)
        if run is None:  # one that goes on is held already, see _resumed
            at_work.enter_context(held(store, run_id))

    sizes = [config.train.size_at(epoch) for epoch in range(config.train.epochs)]
    progress = Progress(sizes, config.train.batch_size, label=f"{config.name}-s{config.seed}", metric=config.train.select)
    try:
        with at_work, progress:
            tracked = tracked_fit(
                config, dataset, store, parent=parent, run=run, resume=run is not None, command=command,
                on_run=on_run, on_step=progress.on_step, on_epoch=progress.on_epoch, should_stop=lambda: stop.number,
            )  # fmt: skip
    except Interrupted as error:
        raise Interrupted(error.exit_code - 128, f"{error}. {_go_on(parent or known[-1])}") from None
    except FerLabError as error:
        if error.result is None and known:
            error.result = {"run_id": known[-1], "status": "FAILED"}
        raise
    shutil.rmtree(work_folder(store, tracked.run_id), ignore_errors=True)  # the store has the bundle
    return tracked


def _go_on(run_id: str) -> str:
    return f"Go on with: python -m fer_lab.train --resume {run_id}"


def _resume(args: argparse.Namespace, stop: Stop) -> Mapping[str, Any]:
    from fer_lab.core.config import load_run_config
    from fer_lab.core.errors import InputError
    from fer_lab.tracking.store import open_store
    from fer_lab.training.fit import refuse_another_run

    overrides = [text for text in (args.config, *args.overrides) if text]
    if any("=" not in text for text in overrides):
        raise InputError("--resume takes the configuration of the run; give no file")
    store = open_store()
    info = store.run_info(args.resume)
    if info["status"] == "FINISHED":
        raise InputError(f"run {args.resume} is finished; there is nothing to resume")
    command = str(info["tags"].get("fer.command", ""))
    path = _config_of(store, args.resume, command)
    config = load_run_config(path, overrides)
    refuse_another_run(load_run_config(path), config)  # before the run is touched; a parent's finished seeds are not checked later
    dataset = _checked(config, begun_on=info["tags"].get("fer.label_source"))
    _refuse_other_data(args.resume, [info, *store.children(args.resume)], dataset)
    with _resumed(store, args.resume) as run:
        if seeds := info["tags"].get("fer.seeds"):
            words = shlex.split(command.removeprefix("python -m fer_lab.train "))
            words = words[: words.index("--seeds")] if "--seeds" in words else []
            return _many(config, [int(seed) for seed in str(seeds).split(",")], words, dataset, store, stop, run)
        return _one(config, dataset, store, stop, command=command, run=run)


@contextmanager
def _resumed(store: Store, run_id: str) -> Iterator[Run]:
    """An earlier run that goes on, kept from other processes meanwhile. Raises Conflict when one trains it."""
    from fer_lab.core.errors import InputError
    from fer_lab.search.tracked import held

    with held(store, run_id):
        if store.run_info(run_id)["status"] == "FINISHED":
            raise InputError(f"run {run_id} has just been finished by another process")
        yield store.resume_run(run_id)


def _config_of(store: Store, run_id: str, command: str) -> Path:
    """Return the configuration file that an unfinished run left beside its checkpoints."""
    from fer_lab.core.errors import NotFound
    from fer_lab.search.tracked import CONFIG, work_folder

    folder = work_folder(store, run_id)
    if not (folder / CONFIG).is_file():
        raise NotFound(f"run {run_id} has no checkpoints at {folder}; resume it where it ran, or start it again: {command}")
    return folder / CONFIG


def _refuse_other_data(run_id: str, infos: Sequence[Mapping[str, Any]], dataset: FaceDataset) -> None:
    """Raise InputError when the run, or a seed of it, was begun on other faces or votes: before anything of it is touched."""
    from fer_lab.core.errors import InputError

    for info in infos:
        begun = info["tags"].get("fer.fingerprint", dataset.fingerprint)
        if begun != dataset.fingerprint:
            source = info["tags"].get("fer.label_source", "another dataset")
            raise InputError(
                f"run {run_id} was begun on {source} ({begun[:12]}…), prepared here is {dataset.name} "
                f"({dataset.fingerprint[:12]}…): other data are never one result. Prepare the first again, or start anew"
            )


def _checked(config: RunConfig, begun_on: str | None = None) -> FaceDataset:
    """Return the dataset after checking everything that can be wrong before a run exists.

    begun_on: of several prepared datasets that the configuration may mean, the one that a resumed run began on.
    """
    from fer_lab.core.labels import protocol
    from fer_lab.data.datasets import prepared, ready
    from fer_lab.data.faces import home
    from fer_lab.training.recipe import check_config
    from fer_lab.training.targets import check_faces

    protocol(config.data.protocol)
    check_config(config)
    name = config.data.dataset
    dataset = ready(begun_on if begun_on in prepared(name, home()) else name, home())
    check_faces(config, dataset)
    return dataset


def _split(args: argparse.Namespace) -> tuple[Path | None, list[str]]:
    """The first argument may be an override already."""
    if args.config is not None and "=" in args.config and not Path(args.config).is_file():
        return None, [args.config, *args.overrides]
    return (Path(args.config) if args.config is not None else None), list(args.overrides)


def _seeds(text: str) -> list[int]:
    """`0..4` or `0,3,7` → seeds, each once."""
    from fer_lab.core.errors import InputError

    try:
        if ".." in text:
            first, last = (int(part) for part in text.split("..", 1))
            seeds = list(range(first, last + 1))
        else:
            seeds = [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise InputError(f"--seeds {text!r} is neither a range such as 0..4 nor a list of different seeds such as 0,3,7")
    return seeds


def _command(words: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "fer_lab.train", *words])


if __name__ == "__main__":
    sys.exit(main())
