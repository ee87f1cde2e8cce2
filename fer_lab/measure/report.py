"""report.html: one self-contained page that opens offline. Its first screen is for whoever must decide, the rest is evidence."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lab.core.errors import MissingPart
from fer_lab.core.files import write_whole
from fer_lab.core.types import Evaluation, Verdict
from fer_lab.data.faces import FaceDataset
from fer_lab.measure import charts, metrics, paper, plots, record, stats, verdicts
from fer_lab.measure.comparison import RARE, Comparison, Row

FILE = "report.html"
TEMPLATE = "report.html.j2"
WORST = 24
MOST_DIAGRAMS = 6


@dataclass(frozen=True)
class Advice:
    """What to ship, why, and what is not known."""

    row: Row
    headline: str
    reasons: tuple[str, ...]
    undecided: tuple[str, ...]


def write(comparison: Comparison, folder: Path, dataset: FaceDataset | None) -> Path:
    """Write `folder/report.html`; without a dataset no picture of a face is in it. Returns its path."""
    try:
        import jinja2
    except ImportError:
        raise MissingPart("jinja2", "lab", "the report") from None
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": paper.percent, "points": _points, "ms": _ms, "short": comparison.names.__getitem__}
    source = resources.files("fer_lab.measure").joinpath(TEMPLATE).read_text(encoding="utf-8")
    page = environment.from_string(source).render(_context(comparison, folder, dataset))
    return write_whole(folder / FILE, page)


def recommend(comparison: Comparison) -> Advice:
    """Choose a row by the rules of the house.

    Out: rows that are worse, rows that failed the batch audit, and runtimes that `export` never verified against torch, which
    no gate would take. If some are better than the reference, they are the pool, else the reference and what is
    non-inferior to it. Within the pool a difference in accuracy that is not beyond the interval is a tie. A tie goes to the
    quickest (where the latency of all of them could be measured), else to the one with the higher accuracy on the validation
    split, for the faces that measure must not choose; where a row of the tie has none, to the more accurate. Among equals to
    the one that looked quicker.
    """
    c = comparison
    accuracy = {id(row): next(iter(c.verdicts_of(row, "accuracy")), None) for row in c.rows}
    sound = [row for row in c.rows if row.sound] or list(c.rows)
    sound = [row for row in sound if _unverified(row) is None] or sound
    better = [row for row in sound if (v := accuracy[id(row)]) is not None and v.verdict == "better"]
    level = [row for row in sound if (v := accuracy[id(row)]) is None or v.verdict == "non-inferior"]
    pool = better or level or sound
    best = max(pool, key=lambda row: row.accuracy)
    tied = [row for row in pool if row.accuracy >= best.accuracy_low]
    quiet = c.noise_floor is not None and c.noise_floor <= verdicts.NOISY
    chosen, rule = _break_tie(tied, quiet, c.split)
    said = accuracy[id(chosen)]
    speed = (
        f", {_ms(chosen.p50_ms)} ms {paper.per_call(chosen.batch)} (median) on {chosen.host}" if chosen.p50_ms is not None else ""
    )
    known = "Recommended" if chosen.sound else "No row can be recommended (see below). The nearest to it"
    headline = (
        f"{known}: {c.names[chosen.model]} in {chosen.runtime}: {chosen.accuracy:.2%} "
        f"({chosen.accuracy_low:.1%}–{chosen.accuracy_high:.1%}) of {chosen.n} faces{speed}"
    )
    return Advice(chosen, headline, tuple(_reasons(c, chosen, said, len(tied), rule, quiet)), tuple(_undecided(c, quiet)))


def _unverified(row: Row) -> str | None:
    """Return why the row does not stand for torch's answers, None where it does or where no torch is known (a foreign model).

    The gate `parity` asks for more, never for less.
    """
    if row.foreign or row.runtime.partition(":")[0] == "torch":
        return None
    state = (row.parity or {}).get("state")
    if state == "verified":
        return None
    if ":" in row.runtime and not state:
        return "export verifies on the CPU alone"
    return f"{state}: {(row.parity or {}).get('reason', 'nobody says why')}" if state else "export it with that runtime"


def _break_tie(tied: Sequence[Row], quiet: bool, split: str) -> tuple[Row, str]:
    """Return the row to take of those that do not differ, and the rule that took it, in words."""
    if quiet and all(row.p50_ms is not None for row in tied):
        return min(tied, key=lambda row: row.p50_ms or 0.0), "the quickest of them is taken"
    # Faces of the validation split that were measured here have said what they know.
    known = {id(row): share for row in tied if split != "valid" and (share := _validated(row)) is not None}
    if len(known) < len(tied) or len({row.card.get("fingerprint") for row in tied}) > 1:  # other faces are another figure
        known = {}
    chosen = max(tied, key=lambda row: (known.get(id(row), row.accuracy), -math.inf if row.p50_ms is None else -row.p50_ms))
    if not known:
        return chosen, "latency could not decide, so the most accurate is taken"
    validated = paper.percent(known[id(chosen)])
    return chosen, f"latency could not decide, so the highest accuracy on validation is taken ({validated} %)"


def _validated(row: Row) -> float | None:
    """Accuracy on the validation split: the checkpoint's, with what `export` saw this runtime change. None: unknown.

    Not the accuracy that `export` saw: faces that fitted a bias per class flatter it, and the card's figure is cross-fitted.
    """
    checkpoint, parity = (row.card.get("validation") or {}).get("accuracy"), row.parity or {}
    return parity.get("accuracy") if checkpoint is None else checkpoint + parity.get("change", 0.0)


def _reasons(c: Comparison, row: Row, said: Verdict | None, tied: int, rule: str, quiet: bool) -> list[str]:
    reasons = []
    reference = _label(c, c.reference)
    if said is None:
        others = [v.verdict for v in c.verdicts if v.aspect == "accuracy"]
        reasons.append(
            "It is the reference, and no other row is better on accuracy." if "better" not in others else "It is the reference."
        )
    else:
        reasons.append(f"Accuracy is {said.verdict} against {reference}: {said.reason}.")
    if tied > 1:
        reasons.append(f"{tied} rows are level with the best within its interval; {rule}.")
    speed = next(iter(c.verdicts_of(row, "latency")), None)
    if speed is not None:
        reasons.append(f"Latency against the reference: {speed.reason}.")
    if row.clean_accuracy is not None and row.clean_n < row.n:
        reasons.append(f"On the {row.clean_n} faces without a twin in {paper.splits_before(c.split)}: {row.clean_accuracy:.2%}.")
    losses = [v for v in c.verdicts_of(row) if v.verdict == "worse" and v.aspect not in ("accuracy", "latency")]
    if losses:
        reasons.append("Confirmed losses: " + "; ".join(f"{_aspect(v.aspect)} {v.reason}" for v in losses) + ".")
    if row.dominated_by is None and row.on_front and len(c.rows) > 1:
        if quiet and all(other.p50_ms is not None for other in c.rows):
            reasons.append("It lies on the Pareto front of accuracy, latency and size.")
        elif all(other.p50_ms is None for other in c.rows):
            reasons.append("It lies on the Pareto front of accuracy and size.")
    return reasons


def _undecided(c: Comparison, quiet: bool) -> list[str]:
    open_questions = []
    for v in c.verdicts:
        if v.aspect == "accuracy" and v.verdict == "undecided":
            open_questions.append(f"{_label(c, v)} against the reference on accuracy: {v.reason}.")
    if c.noise_floor is None:
        open_questions.append("Latency was not measured; nothing is known about speed.")
    elif not quiet:
        open_questions.append(
            f"Latency: one model against itself differed by up to {c.noise_floor:.1%} where it was measured; no row is called "
            "faster or slower. Measure again when that machine is idle."
        )
    rare = [label for label, figures in c.rows[0].per_class.items() if figures.n < RARE]
    if rare:
        counts = ", ".join(f"{label} (n = {c.rows[0].per_class[label].n})" for label in rare)
        open_questions.append(f"Rare classes are flagged, never ranked: {counts}.")
    if all(row.seeds is None for row in c.rows):
        open_questions.append("Each row is one training run; how much another seed would change is not in these intervals.")
    unknown = [c.names[row.model] for row in c.rows if row.audit.test_faces_in_training is None]
    if unknown:
        names = ", ".join(dict.fromkeys(unknown))
        open_questions.append(f"Whether {names} saw these faces in training cannot be told: other or unrecorded training data.")
    for row in c.rows:
        if not row.sound:
            open_questions.append(
                f"{_label(c, row)} is not to be shipped: {row.audit.batch_flips} of {row.audit.batch_faces} faces get another "
                "label in another batch, so its figures are of these batches only."
            )
        if (why := _unverified(row)) is not None:
            open_questions.append(f"{_label(c, row)} was never verified against torch, and no gate takes it ({why}).")
    for runtime, why in dict.fromkeys((who.rpartition(" · ")[2], why) for who, why in c.unavailable.items()):
        open_questions.append(f"{runtime} could not run on this host: {why}.")
    return open_questions


def _context(c: Comparison, folder: Path, dataset: FaceDataset | None) -> dict[str, Any]:
    advice = recommend(c)
    timed = paper.timing(c)
    per = paper.per_call(timed.spec.batch if timed else None)
    ranked = paper.ranked(c)
    number = {(row.model, row.runtime): i for i, row in enumerate(ranked)}
    evaluations = _evaluations(c, folder)
    chosen = evaluations.get((advice.row.model, advice.row.runtime))
    table = []
    for row in ranked:
        said = {v.aspect: v for v in c.verdicts_of(row)}
        table.append(
            {
                "row": row, "series": number[row.model, row.runtime], "accuracy": said.get("accuracy"),
                "speed": said.get("latency"), "dominator": _dominator(c, row),
            }
        )  # fmt: skip
    low = min(row.accuracy_low for row in ranked)
    high = max(row.accuracy_high for row in ranked)
    pad = (high - low) * 0.08 or 0.01
    return {
        "c": c, "advice": advice, "table": table, "scale": (low - pad, high + pad), "rare": RARE,
        "best": max(ranked, key=lambda row: row.accuracy),
        "pareto": _pareto(ranked, c, per), "forest": _forest(c), "ecdf": _ecdf(c, number), "robust": _robust(c, ranked, number),
        "diagrams": _diagrams(c, ranked, evaluations, number), "latency": _latency_rows(c), "classes": _classes(c, ranked),
        "slices": _slices(c, ranked), "confusion": _confusion(advice.row, c.labels),
        "worst": _worst(chosen, dataset) if chosen is not None and dataset is not None else [],
        "with_faces": dataset is not None,
        "secondary": [v for v in c.verdicts if v.aspect != "accuracy" and v.verdict in ("better", "worse")],
        "aspect": _aspect, "methods": paper.methods(c).split("\n\n"), "bins": metrics.ECE_BINS,
        "calibration_floor": paper.calibration_floor(c), "per_call": per,
        "control": paper.control(c, timed) if timed else None,
    }  # fmt: skip


def _evaluations(c: Comparison, folder: Path) -> dict[tuple[str, str], Evaluation]:
    plan, faces = record.read_plan(folder), record.read_faces(folder)
    found = {}
    for i, row in enumerate(plan.rows):
        answers = record.read_answers(folder, plan, i)
        order = np.argsort([(p.argmax(axis=1) == faces.targets).mean() for p in answers.probs], kind="stable")
        found[row.model, row.runtime] = record.evaluation(plan, row, faces, answers.probs[int(order[(len(order) - 1) // 2])])
    return found


def _label(c: Comparison, of: Row | Verdict) -> str:
    return f"{c.names[of.model]} · {of.runtime}"


def _dominator(c: Comparison, row: Row) -> str | None:
    if row.dominated_by is None:
        return None
    model, _, runtime = row.dominated_by.rpartition(" · ")
    return f"{c.names[model]} · {runtime}"


def _pareto(rows: Sequence[Row], c: Comparison, per: str) -> str | None:
    boxes = []
    for i, row in enumerate(rows):
        timed = c.timing_of(row)
        if timed is None:
            continue
        interval = stats.median_interval(timed.latency.rounds)
        boxes.append(
            charts.Box(
                _label(c, row), interval.value, interval.low, interval.high, row.accuracy, row.accuracy_low, row.accuracy_high,
                row.size_mb, i, row.on_front, _dominator(c, row),
            )
        )  # fmt: skip
    return charts.pareto(boxes, per) if boxes else None


def _forest(c: Comparison) -> str | None:
    said = [v for v in c.verdicts if v.aspect == "accuracy"]
    changes = [
        charts.Change(_label(c, v), v.change * 100, v.low * 100, v.high * 100, v.verdict)
        for v in said
        if v.change is not None and v.low is not None and v.high is not None
    ]
    return charts.forest(changes, c.margin * 100) if changes else None


def _ecdf(c: Comparison, number: dict[tuple[str, str], int]) -> str | None:
    series = []
    for row in c.rows:
        timed = c.timing_of(row)
        if timed is not None:
            samples = np.sort(timed.latency.samples_ms)
            at = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), 160)).round().astype(int))
            series.append(
                charts.Line(
                    _label(c, row), samples[at].tolist(), ((at + 1) / len(samples)).tolist(), number[row.model, row.runtime]
                )
            )
    if not series:
        return None
    return charts.lines(
        series, "ms per call (log)", "share of calls", log_x=True, steps=True, y_range=(0.0, 1.0), title="Latency distribution"
    )


def _robust(c: Comparison, rows: Sequence[Row], number: dict[tuple[str, str], int]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for row in rows for name in row.robustness))
    charts_of = []
    for name in names:
        measured = [(row, row.robustness[name]) for row in rows if name in row.robustness]
        series = [
            charts.Line(_label(c, row), curve.levels, curve.accuracy, number[row.model, row.runtime]) for row, curve in measured
        ]
        unit, n = measured[0][1].unit, measured[0][1].n
        low, high = min(min(line.ys) for line in series), max(max(line.ys) for line in series)
        svg = charts.lines(
            series, unit, "accuracy", width=420, height=230, y_range=(max(0.0, low - 0.05), min(1.0, high + 0.05)), title=name,
            x_ticks=measured[0][1].levels,
        )  # fmt: skip
        areas = [{"label": _label(c, row), "series": number[row.model, row.runtime], "area": curve.area} for row, curve in measured]
        charts_of.append({"name": name, "svg": svg, "areas": areas, "n": n})
    return charts_of


def _diagrams(
    c: Comparison,
    rows: Sequence[Row],
    evaluations: dict[tuple[str, str], Evaluation],
    number: dict[tuple[str, str], int],
) -> list[dict[str, str]]:
    found = []
    for row in rows[:MOST_DIAGRAMS]:
        e = evaluations[row.model, row.runtime]
        _, share, confidence, accuracy = metrics.reliability_bins(e.probs, e.targets)
        svg = charts.reliability(
            _label(c, row), share.tolist(), confidence.tolist(), accuracy.tolist(), row.ece, number[row.model, row.runtime]
        )
        found.append({"label": _label(c, row), "svg": svg, "ece": f"{row.ece:.3f}"})
    return found


def _latency_rows(c: Comparison) -> list[dict[str, Any]]:
    found = []
    for p in c.profiles:
        samples = p.latency.samples_ms
        found.append(
            {
                "label": paper.timed_name(c, p), "host": p.host.name, "p": p,
                "n": len(samples), "p50": p.percentile_ms(50), "p90": p.percentile_ms(90), "p95": p.percentile_ms(95),
                "p99": p.percentile_ms(99), "max": float(samples.max()), "rate": 1000 * p.spec.batch / float(samples.mean()),
            }
        )  # fmt: skip
    return found


def _classes(c: Comparison, rows: Sequence[Row]) -> list[dict[str, Any]]:
    first = rows[0].per_class
    return [
        {
            "label": label, "n": first[label].n, "rare": first[label].rare,
            "cells": [
                {"figures": row.per_class[label], "said": next(iter(c.verdicts_of(row, f"class:{label}")), None)} for row in rows
            ],
        }
        for label in c.labels
    ]  # fmt: skip


def _slices(c: Comparison, rows: Sequence[Row]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in rows[0].slices:
        cells: list[dict[str, Any]] = [
            {"share": row.slices[name], "said": next(iter(c.verdicts_of(row, f"slice:{name}")), None)} for row in rows
        ]
        found.append({"name": name, "n": rows[0].slices[name].n, "cells": cells})
    if rows[0].clean_accuracy is not None:
        cells = [
            {"share": {"accuracy": row.clean_accuracy, "low": row.clean_low, "high": row.clean_high}, "said": None} for row in rows
        ]
        found.insert(0, {"name": f"clean (no twin in {paper.splits_before(c.split)})", "n": rows[0].clean_n, "cells": cells})
    return found


def _confusion(row: Row, labels: Sequence[str]) -> list[dict[str, Any]]:
    lines = []
    for label, counts in zip(labels, row.confusion, strict=True):
        n = sum(counts)
        lines.append({"label": label, "n": n, "cells": [{"count": k, "share": k / n if n else 0.0} for k in counts]})
    return lines


def _worst(evaluation: Evaluation, dataset: FaceDataset) -> list[dict[str, Any]]:
    row_of = {name: i for i, name in enumerate(dataset.names)}
    found = []
    for i in plots.worst_rows(evaluation.targets, evaluation.probs, WORST).tolist():
        guess, truth = int(evaluation.probs[i].argmax()), int(evaluation.targets[i])
        found.append(
            {
                "picture": _png(dataset.pixels[row_of[evaluation.names[i]]]), "name": evaluation.names[i],
                "said": evaluation.labels[guess], "said_p": float(evaluation.probs[i, guess]),
                "is": evaluation.labels[truth], "is_p": float(evaluation.probs[i, truth]),
                "votes": int(evaluation.votes[i].max()),
            }
        )  # fmt: skip
    return found


def _png(face: npt.NDArray[np.uint8]) -> str:
    import cv2

    return "data:image/png;base64," + base64.b64encode(cv2.imencode(".png", face)[1].tobytes()).decode()


def _aspect(name: str) -> str:
    kind, _, what = name.partition(":")
    return f"{kind} {what}" if what else {"brier": "calibration (Brier)"}.get(kind, kind)


def _points(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:+.2f}".replace("-", "−")


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"
