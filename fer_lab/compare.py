"""Compares models × runtimes: same faces, same metrics, same clock. Says better, non-inferior, worse or undecided, and why.

    python -m fer_lab.compare models:/fer-ferplus-8/3 models:/fer-ferplus-8@champion
    python -m fer_lab.compare models:/fer-ferplus-8@challenger --against champion --runtimes onnx,openvino,openvino-int8
    python -m fer_lab.compare runs:/PARENT                      # all seeds of one configuration as one row
    python -m fer_lab.compare BUNDLE net.onnx                   # a foreign model, with net.card.json beside it
    python -m fer_lab.compare --init-card net.onnx              # writes that card, to be filled in
    python -m fer_lab.compare BUNDLE… --latency-only --out edge.json    # on the target: core install, no registry, no dataset
    python -m fer_lab.compare models:/fer-ferplus-8/4 --profiles edge.json
    python -m fer_lab.compare --replay comparisons/ID           # every figure again from the stored answers, no model is run
    python -m fer_lab.compare --replay comparisons/ID --dataset ferplus-2017    # the same look on another label source, beside it

    on a tiny machine: --runtimes openvino --batches 1 --no-robustness --no-cold-start

Only this verb, and `promote` where nothing was compared yet, opens the test split; each look is counted in the ledger of every
registered model that takes part (models given by path are not counted). The first model is the reference unless
--against names another (`champion` is that of the first model's registered name). An interrupted comparison goes on where
it stopped, per model × runtime, when the same command is given again.

Leaves comparisons/ID (or --out DIR, new or empty): comparison.json, report.html (opens offline), leaderboard.csv, .md and .tex,
methods.md, and the per-face answers (never pixels); all but the answers are logged as an MLflow run. Prints the table, the
verdicts and a recommendation; the last line of stdout is
`{"id", "rows": [{"model", "runtime", "n", "accuracy", "accuracy_low", "accuracy_high", "macro_recall", "ece", "p50_ms", …}],
"verdicts": [{"model", "runtime", "aspect", "verdict", "reason", …}], "report", …}`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.core import console
from fer_lab.core.errors import FerLabError, InputError, NotFound

if TYPE_CHECKING:
    from fer_lab.data.faces import FaceDataset
    from fer_lab.measure.candidates import Candidate
    from fer_lab.measure.comparison import Comparison, Row
    from fer_lab.tracking.store import Store


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fer_lab.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID, or a path")
    parser.add_argument(
        "--against", metavar="MODEL", help="the reference: a model, or an alias such as champion (default: the first)"
    )
    parser.add_argument(
        "--against-runtime", metavar="R", help="the reference's runtime (default: the one a champion ships in; openvino)"
    )
    parser.add_argument(
        "--runtimes", metavar="R,…", help="e.g. onnx,openvino-int8,openvino:GPU (default: all that each model holds)"
    )
    parser.add_argument(
        "--dataset",
        help="a prepared dataset (default: the one the first model was trained on); with --replay, the label source to derive "
        "another comparison for, in --out or beside DIR",
    )
    parser.add_argument("--split", choices=("test", "valid"), default="test")
    parser.add_argument("--out", type=Path, help="folder for the results; with --latency-only, a file")
    parser.add_argument("--threads", default="1", metavar="N,…", help="thread counts for latency (default: 1)")
    parser.add_argument("--batches", default="1,8,64", metavar="N,…", help="batch sizes for latency (default: 1,8,64)")
    parser.add_argument("--margin", type=float, default=1.5, metavar="POINTS", help="non-inferiority margin (default: 1.5)")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="latency: at most this long per row (default: 5)")
    parser.add_argument("--no-robustness", action="store_true", help="leave out the corruption curves")
    parser.add_argument("--no-latency", action="store_true", help="leave out latency")
    parser.add_argument("--no-cold-start", action="store_true", help="leave out the fresh process per row (load time, memory)")
    parser.add_argument("--no-faces", action="store_true", help="no pictures of faces in the report, nor in one derived again")
    parser.add_argument("--no-log", action="store_true", help="log no MLflow run (looks at the test split are still counted)")
    parser.add_argument("--latency-only", action="store_true", help="time bundles on this machine and write --out FILE")
    parser.add_argument(
        "--profiles", type=Path, action="append", default=[], metavar="FILE",
        help="latency measured elsewhere; the rows show that of the first FILE, the report all",
    )  # fmt: skip
    parser.add_argument("--replay", type=Path, metavar="DIR", help="derive everything again from a stored comparison")
    parser.add_argument("--init-card", type=Path, metavar="FILE", help="write a card beside a foreign model")
    return console.run(parser, _body, argv)


def _body(args: argparse.Namespace) -> dict[str, Any]:
    if args.init_card:
        return _init_card(args)
    if args.replay:
        return _replay(args)
    if not 0 < args.seconds <= 3600:
        raise InputError(f"--seconds is more than 0 and at most 3600, got {args.seconds:g}")
    if not args.models:
        raise InputError("name at least one model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID or a path")
    return _latency_only(args) if args.latency_only else _compare(args)


def _init_card(args: argparse.Namespace) -> dict[str, Any]:
    from fer_lab.backends.foreign import write_card

    card = write_card(args.init_card)
    console.say(f"wrote {card}; fill in what it asks for")
    console.next_command(f"python -m fer_lab.compare {console.quoted(args.init_card)}")
    return {"card": str(card)}


def _latency_only(args: argparse.Namespace) -> dict[str, Any]:
    """Core install only: paths, no registry, no dataset."""
    from fer_lab.measure import profiles
    from fer_lab.measure.candidates import from_path
    from fer_lab.measure.latency import Budget

    if args.out is None or args.out.is_dir():
        raise InputError(
            "--latency-only needs --out FILE, e.g. --out edge.json" + ("" if args.out is None else f"; {args.out} is a folder")
        )
    for model in args.models:
        if model.startswith(("models:/", "runs:/")):
            raise InputError(f"--latency-only takes paths, not {model}: copy the bundle to this machine")
    entrants = []
    for model in args.models:
        candidate = from_path(model, "ferplus8")
        for runtime in _words(args.runtimes) or candidate.runtimes:
            reason = candidate.unavailable(runtime)
            if reason:
                console.note(f"left out: {model} · {runtime}: {reason}")
            else:
                entrants.append(profiles.Entrant(candidate, runtime))
    if not entrants:
        raise FerLabError("this host can run none of them")
    taken = profiles.take(
        entrants, threads=_numbers(args.threads, "threads"), batches=_numbers(args.batches, "batches"), created=_now(),
        budget=Budget(seconds=args.seconds), progress=console.note,
        cold=None if args.no_cold_start else _cold,
    )  # fmt: skip
    taken.write(args.out)
    rows = [
        {
            "model": p.latency.model, "runtime": p.runtime, "digest": p.latency.digest, "threads": p.spec.threads,
            "batch": p.spec.batch, "end_to_end": p.spec.end_to_end, "precision": p.spec.precision,
            "samples": len(p.latency.samples_ms), "p50_ms": p.percentile_ms(50), "p90_ms": p.percentile_ms(90),
            "p95_ms": p.percentile_ms(95), "p99_ms": p.percentile_ms(99), "noise_floor": p.noise_floor,
        }
        for p in taken.flat()
    ]  # fmt: skip
    console.table(
        f"Latency on {taken.host.name}",
        ("model", "runtime", "threads", "batch", "from", "samples", "p50 ms", "p95 ms", "A/A floor"),
        [
            (
                r["model"], r["runtime"], r["threads"], r["batch"], "crop" if r["end_to_end"] else "face", r["samples"],
                f"{r['p50_ms']:.2f}", f"{r['p95_ms']:.2f}", f"{r['noise_floor']:.1%}",
            )
            for r in rows
        ],
    )  # fmt: skip
    console.next_command(f"python -m fer_lab.compare MODEL… --profiles {console.quoted(args.out)}   # where the dataset is")
    return {"profiles": str(args.out), "host": taken.host.name, "rows": rows}


def _cold(entrant: Any, threads: int) -> tuple[float, float, float | None]:
    from fer_lab.measure.coldstart import cold_start

    foreign = entrant.candidate.foreign
    return cold_start(str(foreign.path if foreign else entrant.candidate.bundle.folder), entrant.runtime, threads, "ferplus8")


def _replay(args: argparse.Namespace) -> dict[str, Any]:
    from fer_lab.measure import derive, profiles, record

    extra = {str(path): profiles.read(path) for path in args.profiles}
    folder = _relabelled(args) if args.dataset else args.replay
    plan = record.read_plan(folder)
    profiles.check(extra, {(row.digest, row.runtime) for row in plan.rows})
    pictures = plan.pictures and not args.no_faces
    with record.held(folder):
        profiles.keep(extra.values(), folder / record.PROFILES)
        comparison = derive.derive(folder)
        _publish(comparison, folder, _dataset_of(comparison) if pictures else None)
        comparison.write(folder)
    return _finish(comparison, folder, store=None)


def _relabelled(args: argparse.Namespace) -> Path:
    """Write the parts of the stored comparison anew on the labels of --dataset; return their folder."""
    from fer_lab.data import datasets, faces
    from fer_lab.measure import record
    from fer_lab.measure.relabel import relabel

    measured = datasets.resolve(record.read_plan(args.replay).dataset, faces.home())
    other = datasets.resolve(args.dataset, faces.home())
    stored: Path = args.replay.resolve() if args.replay.name in ("", "..") else args.replay
    out: Path = args.out or stored.with_name(f"{stored.name}-{other.label_source}")
    relabel(args.replay, measured, other, out, pictures=not args.no_faces)
    return out


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    from fer_lab.core.labels import protocol as rule_of
    from fer_lab.data import datasets, faces
    from fer_lab.measure import profiles
    from fer_lab.measure.conduct import Request, conduct
    from fer_lab.measure.latency import Budget
    from fer_lab.tracking.entrants import Entrants

    home = faces.home()
    extra = {str(path): profiles.read(path) for path in args.profiles}
    entrants = Entrants()
    candidates = [entrants.candidate(model) for model in args.models]
    reference = 0
    if args.against:
        named = entrants.candidate(_reference_name(args.against, candidates[0]))
        same = [i for i, candidate in enumerate(candidates) if candidate.identity == named.identity]
        reference = same[0] if same else len(candidates)
        candidates = candidates if same else [*candidates, named]
    wanted = _words(args.runtimes)
    runtimes = [entrants.shipped_runtime(candidate) for candidate in candidates]
    in_office = [(candidate.shown, runtime) for candidate, runtime in zip(candidates, runtimes, strict=True)]
    shipped = runtimes[reference]
    offered = wanted or candidates[reference].runtimes
    if shipped is not None and (shipped not in offered or candidates[reference].unavailable(shipped)):
        shipped = None  # it is not measured here: then as for any other reference
    cards = [candidate.bundle.card for candidate in candidates if candidate.foreign is None]
    dataset_name = args.dataset or (cards[0].dataset if cards else "ferplus")
    dataset = datasets.resolve(dataset_name, home)
    protocol = cards[0].protocol if cards else "ferplus8"
    rule_of(protocol)
    if not 0 < args.margin < 100:
        raise InputError(f"--margin is in points between 0 and 100, got {args.margin}")
    request = Request(
        protocol=protocol, split=args.split, runtimes=wanted or None, threads=_numbers(args.threads, "threads"),
        batches=_numbers(args.batches, "batches"), margin=args.margin / 100, robustness=not args.no_robustness,
        timed=not args.no_latency and not extra, cold_start=not args.no_cold_start,
        reference_runtime=args.against_runtime or shipped,
        budget=Budget(seconds=args.seconds), pictures=not args.no_faces,
    )  # fmt: skip

    def count_look(identity: str) -> int | None:
        return entrants.count_look(candidates, dataset, identity)

    def publish(comparison: Comparison, folder: Path) -> None:
        _publish(comparison, folder, None if args.no_faces else dataset)

    comparison, folder = conduct(
        candidates, dataset, request, home=home, out=args.out, reference=reference, count_look=count_look, extra=extra,
        publish=publish, progress=console.note,
    )  # fmt: skip
    return _finish(comparison, folder, store=None if args.no_log else entrants.store, in_office=in_office)


def _publish(comparison: Comparison, folder: Path, dataset: FaceDataset | None) -> None:
    """Write the tables and the report; `dataset` gives the report its pictures of faces, None gives it none."""
    from fer_lab.measure import paper, report

    paper.write(comparison, folder)
    report.write(comparison, folder, dataset)


def _finish(
    comparison: Comparison, folder: Path, store: Store | None, in_office: Collection[tuple[str, str | None]] = ()
) -> dict[str, Any]:
    """Log and show a comparison whose files lie in `folder`; `in_office`: champions and their runtimes."""
    from fer_lab.measure import paper, report

    run_id = None
    if store is not None:
        from fer_lab.tracking import comparisons

        try:
            run_id = comparisons.log(store, comparison, folder)
        except BaseException:
            console.note(f"not logged, but nothing is lost: python -m fer_lab.compare --replay {folder}")
            raise
    page = folder / report.FILE
    advice = report.recommend(comparison)
    _show(comparison, advice.headline)
    console.say(f"report: {page}")
    console.next_command(_next(comparison, advice.row, folder, logged=run_id is not None, in_office=in_office))
    return {
        "id": comparison.id, "dataset": comparison.dataset, "label_source": comparison.label_source,
        "protocol": comparison.protocol, "split": comparison.split, "n": comparison.n,
        "reference": {"model": comparison.reference_model, "runtime": comparison.reference_runtime},
        "rows": [_row_result(row) for row in paper.ranked(comparison)],
        "verdicts": [
            {
                "model": v.model, "runtime": v.runtime, "aspect": v.aspect, "verdict": v.verdict, "reason": v.reason, "n": v.n,
                "change": v.change, "low": v.low, "high": v.high, "p_value": v.p_value, "faces_needed": v.faces_needed,
            }
            for v in comparison.verdicts
        ],
        "recommended": {"model": advice.row.model, "runtime": advice.row.runtime} if advice.row.sound else None,
        "noise_floor": comparison.noise_floor,
        "unavailable": dict(comparison.unavailable), "looks": comparison.looks, "folder": str(folder), "report": str(page),
        "run_id": run_id,
    }  # fmt: skip


def _row_result(row: Row) -> dict[str, Any]:
    return {
        "model": row.model, "runtime": row.runtime, "name": row.name, "version": row.version, "digest": row.digest, "n": row.n,
        "accuracy": row.accuracy, "accuracy_low": row.accuracy_low, "accuracy_high": row.accuracy_high,
        "macro_recall": row.macro_recall, "macro_recall_low": row.macro_recall_low, "macro_recall_high": row.macro_recall_high,
        "macro_f1": row.macro_f1, "f1_of_macro_pr": row.f1_of_macro_pr, "brier": row.brier,
        "ece": row.ece, "ece_floor": row.ece_floor, "clean_accuracy": row.clean_accuracy, "clean_n": row.clean_n,
        "p50_ms": row.p50_ms, "p95_ms": row.p95_ms, "size_mb": row.size_mb, "host": row.host, "threads": row.threads,
        "precision": row.precision, "batch_invariant": row.batch_invariant, "on_front": row.on_front,
        "dominated_by": row.dominated_by, "seeds": len(row.seeds.runs) if row.seeds else 1,
        "seed_sd": row.seeds.sd if row.seeds else None,
    }  # fmt: skip


def _show(comparison: Comparison, headline: str) -> None:
    from fer_lab.measure.paper import calibration_floor, ranked

    cells = []
    for row in ranked(comparison):
        said = {v.aspect: v.verdict for v in comparison.verdicts_of(row)}
        cells.append(
            (
                comparison.names[row.model], row.runtime, f"{row.accuracy * 100:.2f}",
                f"{row.accuracy_low * 100:.1f}–{row.accuracy_high * 100:.1f}", said.get("accuracy", "reference"),
                _recall(row), f"{row.ece:.3f}", _or_dash(row.clean_accuracy, 100), _or_dash(row.p50_ms),
                _or_dash(row.p95_ms), said.get("latency", "–"), f"{row.size_mb:.1f}",
            )
        )  # fmt: skip
    console.table(
        f"{comparison.n} {comparison.split} faces of {comparison.dataset}, {comparison.protocol}, labels {comparison.label_source}",
        ("model", "runtime", "acc %", "95 %", "verdict", "recall %", "ECE", "clean %", "p50 ms", "p95 ms", "speed", "MB"),
        cells,
    )
    for runtime, why in dict.fromkeys((who.rpartition(" · ")[2], why) for who, why in comparison.unavailable.items()):
        console.say(f"unavailable here: {runtime}: {why}")
    floor = calibration_floor(comparison)
    if floor:
        console.say(f"a perfectly calibrated model would show an ECE of about {floor} on so many faces")
    if comparison.noise_floor is not None:
        console.say(f"A/A noise floor of the latency: {comparison.noise_floor:.1%}")
    if comparison.split == "test":
        counted = "not counted: no registered model took part" if comparison.looks is None else str(comparison.looks)
        console.say(f"looks at the test split: {counted}")
    for note in comparison.notes:
        console.say(f"note: {note}")
    console.say(headline)


def _recall(row: Row) -> str:
    shown = f"{row.macro_recall * 100:.1f}"
    if row.macro_recall_low is None or row.macro_recall_high is None:
        return shown
    return f"{shown} ({row.macro_recall_low * 100:.0f}–{row.macro_recall_high * 100:.0f})"


def _next(
    comparison: Comparison, row: Row, folder: Path, *, logged: bool, in_office: Collection[tuple[str, str | None]] = ()
) -> str:
    """Promote the recommended row where its gates can pass: one bundle on the test split, not champion yet; else the report."""
    from fer_lab.data import faces
    from fer_lab.gates import evidence
    from fer_lab.measure import report

    if row.foreign or row.seeds or not row.sound or comparison.split != "test" or (row.model, row.runtime) in in_office:
        return f"python -m webbrowser {(folder / report.FILE).absolute().as_uri()}"
    known = logged or folder.resolve().parent == evidence.folder_of(faces.home()).resolve()  # else promote finds it by path only
    where = comparison.id if known else console.quoted(folder)
    return f"python -m fer_lab.promote {console.quoted(row.model)} --runtime {row.runtime} --comparison {where}"


def _reference_name(against: str, first: Candidate) -> str:
    if against.startswith(("models:/", "runs:/")) or "/" in against or Path(against).exists():
        return against
    from fer_lab.tracking.registry import model_name

    if first.foreign is not None and first.name is None:
        raise InputError(f"--against {against}: an alias belongs to a registered model; name it as models:/NAME@{against}")
    return f"models:/{first.name or model_name(first.bundle.card)}@{against}"


def _dataset_of(comparison: Comparison) -> FaceDataset | None:
    """The dataset of a stored comparison, if it is prepared here: only its pictures are missing otherwise."""
    from fer_lab.data import datasets, faces

    try:
        dataset = datasets.resolve(comparison.dataset, faces.home())
    except NotFound:
        return None
    return dataset if dataset.fingerprint == comparison.fingerprint else None


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in (text or "").replace(",", " ").split() if word))


def _numbers(text: str, what: str) -> tuple[int, ...]:
    try:
        numbers = tuple(dict.fromkeys(int(word) for word in _words(text)))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise InputError(f"--{what} takes whole numbers of at least 1, separated by commas; got {text!r}")
    return numbers


def _or_dash(value: float | None, factor: float = 1) -> str:
    return "–" if value is None else f"{value * factor:.2f}"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


if __name__ == "__main__":
    sys.exit(main())
