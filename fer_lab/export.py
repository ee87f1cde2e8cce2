"""Turns one model into ONNX, OpenVINO and INT8, each verified on the whole validation split, and registers the result.

    python -m fer_lab.export                                  # the challenger, every runtime
    python -m fer_lab.export models:/fer-ferplus-8/3 --runtimes onnx,openvino,openvino-int8
    python -m fer_lab.export runs:/RUN_ID --out build/export
    python -m fer_lab.export --check path/to/bundle           # verify a bundle again, anywhere, without a dataset

Each runtime is held against torch float32 on the CPU over every face of the validation split: largest |Δp|, flips,
accuracy of its own artifact; 512 of them also each alone against batches of 64. INT8 is calibrated on training faces; when
accuracy drops by more than --max-drop points, layers are put back to float, for at most --int8-minutes per runtime, and when
that is not enough the runtime is refused (exit 3) and the others are kept. The test split is never opened: `compare` does that.

Prints one line per runtime, then `next:`. A version never changes: exporting version 3 registers a new one, tagged
exported_from=3, and @challenger moves along when version 3 held it. The files lie in OUT/<digest>/, and OUT/CURRENT
names the newest. The last line of stdout is
`{"name", "version", "bundle", "runtimes": {name: {"flips", "max_dp", "accuracy", "size_mb", "refused"}}, …}`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.core import console
from fer_lab.core.errors import InputError, IntegrityError, NotFound, Refused

if TYPE_CHECKING:
    from fer_lab.convert.export import ExportResult
    from fer_lab.tracking.registry import Resolved, Version
    from fer_lab.tracking.store import Store

DEFAULT_MODELS = ("fer-ferplus-8", "fer-ferplus-5", "fer-synthetic-8")
EXPERIMENT = "fer-export"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fer_lab.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID or a bundle folder")
    parser.add_argument("--runtimes", nargs="+", metavar="NAME", help="commas or spaces; all of them when left out")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the bundle folder goes (FER_LAB_HOME/exports/NAME)")
    parser.add_argument("--dataset", help="the prepared dataset that calibrates and verifies (the card's)")
    parser.add_argument("--max-drop", type=float, default=0.5, metavar="POINTS", help="policy on INT8 accuracy (0.5)")
    parser.add_argument("--calibration", type=int, default=300, metavar="N", help="training faces that calibrate INT8 (300)")
    parser.add_argument(
        "--int8-minutes", type=float, default=20, metavar="MIN", help="most minutes of putting layers back, per runtime (20)"
    )
    parser.add_argument("--threads", type=int, help="threads of the verification (all usable cores)")
    parser.add_argument("--slim", action="store_true", help="leave torch's weights out: a bundle to ship, not to export again")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of calibration faces")
    parser.add_argument("--check", metavar="BUNDLE", help="verify this bundle's manifest and runtimes on its stored faces")
    return console.run(parser, _body, argv)


def _body(args: argparse.Namespace) -> Mapping[str, Any]:
    if args.calibration < 1 or (args.threads is not None and args.threads < 1):
        raise InputError("--calibration and --threads are at least 1")
    if args.check is not None:
        if args.model is not None:
            raise InputError("give either a model to export or --check BUNDLE, not both")
        return _check(args.check, args.threads or 1)
    if not 0 <= args.max_drop <= 100:
        raise InputError(f"--max-drop is in points of accuracy, 0 to 100, got {args.max_drop:g}")
    if args.seed < 0:
        raise InputError(f"--seed {args.seed}: a whole number from 0 on is needed")
    if not args.int8_minutes > 0:
        raise InputError(f"--int8-minutes is more than 0, got {args.int8_minutes:g}")
    return _export(args)


def _export(args: argparse.Namespace) -> Mapping[str, Any]:
    from fer_lab.convert import export
    from fer_lab.data import datasets
    from fer_lab.measure.evaluate import kept_counts
    from fer_lab.tracking import registry
    from fer_lab.tracking.store import open_store

    wanted = [name for text in args.runtimes or export.EXPORTED for name in text.replace(",", " ").split()]
    if swallowed := [name for name in wanted if "/" in name]:
        raise InputError(f"--runtimes took {swallowed[0]} for a runtime; put the model before the options")
    runtimes = export.check_runtimes(wanted)
    store = open_store()
    source = registry.resolve(args.model, store) if args.model else _challenger(store)
    run_id = registry.run_of(store, source)  # a run that did not finish is refused before the minutes that an export takes
    card = source.bundle.card
    dataset = datasets.resolve(args.dataset or card.dataset, store.home)
    remark = export.check_dataset(card, dataset)
    if remark:
        console.note(f"note: {remark}")
    name = source.name or registry.model_name(card)
    started = time.perf_counter()
    console.note(f"exporting {source.ref_shown} ({card.backbone}, {card.image_size} px) to {', '.join(runtimes)}")
    out = args.out or store.home / "exports" / name
    try:
        result = export.export_bundle(
            source.bundle, dataset, runtimes, out, max_drop=args.max_drop / 100, seed=args.seed, threads=args.threads,
            exported_from=_origin(source), calibration_faces=args.calibration, int8_minutes=args.int8_minutes,
            keep_weights=not args.slim, progress=lambda text: console.note(f"  {time.perf_counter() - started:6.1f} s  {text}"),
        )  # fmt: skip
    except Refused as error:
        nothing = {"name": name, "version": None, "bundle": None, **(error.result or {})}
        raise Refused(str(error), result=nothing) from None
    n = kept_counts(dataset, card.protocol)["valid"]
    _print(result, card.name, f"{n} validation faces of {dataset.name}, {card.protocol}")
    version, moved = _register(store, source, result, name, run_id)
    wall_s = round(time.perf_counter() - started, 1)
    answer = {
        "name": version.name, "version": version.version, "bundle": str(result.folder), "digest": result.digest,
        "exported_from": _origin(source), "challenger_moved": moved, "wall_s": wall_s, "dataset": dataset.name,
        "label_source": dataset.label_source, "protocol": card.protocol, "n_valid": n, "runtimes": export.summary(result.runtimes),
    }  # fmt: skip
    console.say(f"registered {version.name} version {version.version}" + (", now @challenger" if moved else "") + f" ({wall_s} s)")
    if result.refused:
        reasons = "; ".join(f"{runtime}: {reason}" for runtime, reason in result.refused.items())
        raise Refused(f"refused {reasons}. The other runtimes are in version {version.version}", result=answer)
    console.next_command(f"python -m fer_lab.compare models:/{version.name}/{version.version}")
    return answer


def _challenger(store: Store) -> Resolved:
    from fer_lab.tracking import registry

    for name in DEFAULT_MODELS:
        try:
            held = registry.aliases(store, name)
        except NotFound:
            continue
        if "challenger" in held:
            return registry.resolve(f"models:/{name}/{held['challenger']}", store)
    raise NotFound(
        f"no @challenger in {store.shown_uri} (looked for {', '.join(DEFAULT_MODELS)}). "
        "Run python -m fer_lab.sweep, or name a model"
    )


def _origin(source: Resolved) -> str:
    """How the card names the source: never a path, which would differ from machine to machine."""
    return source.ref_shown if source.ref_shown.startswith(("models:/", "runs:/")) else f"bundle {source.bundle.digest[:16]}"


def _register(store: Store, source: Resolved, result: ExportResult, name: str, run_id: str | None) -> tuple[Version, bool]:
    """Register the new bundle, log the parity record, move @challenger when the source held it."""
    from fer_lab.tracking import registry

    origin = str(source.version) if source.version is not None else _origin(source)
    version = registry.register(store, result.folder, run_id=run_id, name=name, tags={"exported_from": origin})
    _log(store, source, result, version)
    moved = False
    if source.version is not None and registry.aliases(store, name).get("challenger") == source.version:
        registry.set_alias(store, name, "challenger", version.version)
        moved = True
    return version, moved


def _log(store: Store, source: Resolved, result: ExportResult, version: Version) -> None:
    from fer_lab.backends.bundle import open_bundle
    from fer_lab.convert import picture, record

    content = record.read(open_bundle(result.folder))
    run = store.start_run(
        EXPERIMENT, f"{version.name} version {version.version}", parent=None,
        tags={"model": version.uri, "digest": result.digest, "exported_from": _origin(source)},
        params={"runtimes": ",".join(result.runtimes), "threads": str(content["threads"])},
    )  # fmt: skip
    try:
        for runtime, entry in content["runtimes"].items():
            if "max_dp" in entry:
                figures = {"accuracy": entry["accuracy"], "max_dp": entry["max_dp"], "flips": float(len(entry["flips"]))}
                run.log_metrics(0, {f"{runtime}/{key}": value for key, value in figures.items()})
        run.log_file(result.folder / record.FILE)
        run.log_text(record.as_markdown(content), "parity.md")
        with tempfile.TemporaryDirectory() as folder:
            run.log_file(picture.draw(content, Path(folder) / "parity.png"))
    except BaseException as error:
        run.end_by(error, "the parity record could not be logged")
        raise
    run.end("FINISHED")


def _print(result: ExportResult, title: str, faces: str) -> None:
    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    rows = [
        (
            name, report.state, cell(report.flips, "d"), cell(report.max_dp, ".1e"),
            "–" if report.accuracy is None else f"{100 * report.accuracy:.2f}", cell(report.size_mb, ".1f"),
            report.refused or report.unavailable or (report.method or ""),
        )
        for name, report in result.runtimes.items()
    ]  # fmt: skip
    columns = ("runtime", "state", "flips", "max |Δp|", "accuracy %", "MB", "note")
    console.table(f"{title}: every runtime against torch float32 on {faces}", columns, rows)


def _check(text: str, threads: int) -> Mapping[str, Any]:
    from fer_lab.convert import record
    from fer_lab.tracking import registry

    bundle = registry.resolve(text).bundle
    found = record.check(bundle, threads=threads)
    rows = [
        (name, row["state"], "–" if row["max_dp"] is None else f"{row['max_dp']:.1e}", row["reason"] or "")
        for name, row in found.items()
    ]
    console.table(f"{bundle.card.name}: stored faces again on this machine", ("runtime", "state", "max |Δp|", "note"), rows)
    answer = {"bundle": str(bundle.folder), "digest": bundle.digest, "runtimes": found}
    refused = [f"{name}: {row['reason']}" for name, row in found.items() if row["state"] == "refused"]
    if refused:
        raise Refused(f"{text}: {'; '.join(refused)}", result=answer)
    if not found:
        raise IntegrityError(f"{text}: the bundle holds no runtime")
    return answer


if __name__ == "__main__":
    sys.exit(main())
