"""Every figure of a comparison from what it stored: no model is run. `compare --replay DIR` is this function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lab.core import labels
from fer_lab.core.errors import InputError, NotFound
from fer_lab.core.types import Evaluation, LatencyProfile, Verdict
from fer_lab.measure import corruptions, metrics, profiles, record, stats, verdicts
from fer_lab.measure.comparison import ClassFigures, Comparison, Curve, Row, Seeds, Share

LEVELS = {corruption.name: (0.0, *corruption.levels) for corruption in corruptions.CORRUPTIONS}
UNITS = {corruption.name: corruption.unit for corruption in corruptions.CORRUPTIONS}


def derive(folder: Path) -> Comparison:
    """Return the comparison whose parts lie in `folder`, with the latency profiles that other hosts gave it (`profiles.keep`).

    Raises NotFound when a part is missing (the comparison was not finished), InputError when one does not fit.
    """
    plan = record.read_plan(folder)
    faces = record.read_faces(folder)
    answers = [record.read_answers(folder, plan, i) for i in range(len(plan.rows))]
    for row, answer in zip(plan.rows, answers, strict=True):
        for probs in answer.probs:
            if probs.shape != (len(faces.names), len(plan.labels)):
                raise InputError(
                    f"{folder}: {row.model} · {row.runtime} has probabilities {list(probs.shape)}, the plan says otherwise"
                )
    timed = _timed(folder, plan)
    artifacts = {(row.digest, row.runtime) for row in plan.rows}
    # The figures of a row come from the target machine when there is one, else from this one.
    sources = [*profiles.kept(folder / record.PROFILES), *([timed] if timed else [])]
    shown = next((source for source in sources if source.artifacts & artifacts), None)
    evaluations = [_median_run(plan, row, faces, answer) for row, answer in zip(plan.rows, answers, strict=True)]
    masks = verdicts.masks(evaluations[0], faces.slices)
    rows = [
        _with_latency(_row(plan, planned, faces, answer, evaluation, masks), shown)
        for planned, answer, evaluation in zip(plan.rows, answers, evaluations, strict=True)
    ]
    said: list[Verdict] = []
    for index, evaluation in enumerate(evaluations):
        if index != plan.reference:
            evidence = _evidence(plan.rows[plan.reference], plan.rows[index], shown)
            said += verdicts.judge(evaluations[plan.reference], evaluation, masks, margin=plan.margin, latency=evidence)
    rows = _front(rows, evaluations, plan, shown)
    evidence_of_noise = _floor(shown.group() if shown else None)
    return Comparison(
        id=plan.id, created=plan.created, host=plan.host, dataset=plan.dataset, fingerprint=plan.fingerprint,
        label_source=plan.label_source, protocol=plan.protocol, split=plan.split, n=len(faces.names), labels=plan.labels,
        margin=plan.margin, reference_model=plan.rows[plan.reference].model, reference_runtime=plan.rows[plan.reference].runtime,
        rows=tuple(rows), verdicts=tuple(said),
        profiles=tuple(p for source in sources for p in source.flat()),
        unavailable=plan.unavailable, looks=plan.looks, noise_floor=evidence_of_noise, notes=_notes(plan, shown),
    )  # fmt: skip


def _timed(folder: Path, plan: record.Plan) -> profiles.Profiles | None:
    """What was timed on the comparing host, None when nothing was to be. Raises NotFound when the timing stopped before its end."""
    path = folder / record.LATENCY
    timed = profiles.read(path) if path.is_file() else None
    there = len(timed.groups) if timed else 0
    if plan.groups is not None and there < plan.groups:
        raise NotFound(
            f"{folder} was not finished: {there} of {plan.groups} groups of latency are there. The compare command that began it "
            "goes on from here"
        )
    return timed


def _row(
    plan: record.Plan,
    planned: record.PlannedRow,
    faces: record.Faces,
    answer: record.Answers,
    evaluation: Evaluation,
    masks: Mapping[str, npt.NDArray[np.bool_]],
) -> Row:
    rule = labels.protocol(plan.protocol)
    distribution, _ = rule.distribution(faces.votes)
    figures = _mean([metrics.all_metrics(probs, faces.targets, distribution) for probs in answer.probs])
    predicted = evaluation.probs.argmax(axis=1)
    right = predicted == faces.targets
    n = len(right)
    matrix = metrics.confusion(faces.targets, predicted, len(plan.labels))
    table = metrics.per_class(matrix)
    clean = _share(right[faces.clean])
    low, high = stats.wilson(round(figures["accuracy"] * n), n)
    hits = np.mean([_hits(probs, faces.targets, len(plan.labels)) for probs in answer.probs], axis=0)
    recall_low, recall_high = stats.macro_interval([round(h) for h in hits], [int(m) for m in table["n"]])
    return Row(
        model=planned.model, runtime=planned.runtime, digest=planned.digest, bundle_digest=planned.bundle_digest, n=n,
        accuracy_low=low, accuracy_high=high, **figures, macro_recall_low=recall_low, macro_recall_high=recall_high,
        ece_floor=float(np.mean([metrics.ece_floor(probs) for probs in answer.probs])),
        annotator_agreement=metrics.annotator_agreement(predicted, distribution),
        human_agreement=metrics.annotator_agreement(faces.targets, distribution),
        per_class={
            label: ClassFigures(int(table["n"][i]), *(float(table[key][i]) for key in ("precision", "recall", "f1")))
            for i, label in enumerate(plan.labels)
        },
        confusion=tuple(tuple(int(cell) for cell in line) for line in matrix),
        slices={name: _share(right[mask]) for name, mask in masks.items() if mask.any()},
        clean_n=clean.n, clean_accuracy=clean.accuracy if clean.n else None, clean_low=clean.low if clean.n else None,
        clean_high=clean.high if clean.n else None,
        precision=answer.precision, size_mb=planned.size_mb, name=planned.name, version=planned.version, run_id=planned.run_id,
        robustness=_curves(answer, faces.targets),
        audit=replace(
            answer.audit, same_data=planned.same_data, test_faces_in_training=planned.test_faces_in_training, note=planned.leak_note
        ),
        batch_invariant=answer.audit.batch_invariant, parity=planned.parity, card=planned.card, foreign=planned.foreign,
        signed_by=planned.signed_by,
        seeds=_seeds(planned, answer, faces.targets),
    )  # fmt: skip


def _median_run(plan: record.Plan, row: record.PlannedRow, faces: record.Faces, answer: record.Answers) -> Evaluation:
    """The run whose accuracy is the median of the row's seeds (the lower one of an even number): it stands for the row."""
    order = np.argsort([(probs.argmax(axis=1) == faces.targets).mean() for probs in answer.probs], kind="stable")
    return record.evaluation(plan, row, faces, answer.probs[int(order[(len(order) - 1) // 2])])


def _hits(probs: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.int64]:
    return np.diag(metrics.confusion(targets, probs.argmax(axis=1), k))


def _mean(figures: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {name: float(np.mean([one[name] for one in figures])) for name in figures[0]}


def _seeds(planned: record.PlannedRow, answer: record.Answers, targets: npt.NDArray[np.int64]) -> Seeds | None:
    if not planned.seeds:
        return None
    accuracies = tuple(float((probs.argmax(axis=1) == targets).mean()) for probs in answer.probs)
    mean, sd, low, high = stats.mean_interval(accuracies)
    return Seeds(planned.seeds, accuracies, mean, sd, low, high)


def _share(right: npt.NDArray[np.bool_]) -> Share:
    n, hits = len(right), int(right.sum())
    low, high = stats.wilson(hits, n)
    return Share(n, hits / n if n else 0.0, low, high)


def _curves(answer: record.Answers, targets: npt.NDArray[np.int64]) -> dict[str, Curve]:
    if answer.corrupted_rows is None:
        return {}
    truth = targets[answer.corrupted_rows]
    curves = {}
    for name, predicted in answer.corrupted.items():
        accuracy = tuple(float((line == truth).mean()) for line in predicted)
        curves[name] = Curve(LEVELS[name], UNITS[name], accuracy, corruptions.area(LEVELS[name], accuracy), len(truth))
    return curves


def _profile(planned: record.PlannedRow | Row, group: profiles.Group | None) -> LatencyProfile | None:
    if group is None:
        return None
    return next((p for p in group.profiles if p.digest == planned.digest and p.spec.runtime == planned.runtime), None)


def _with_latency(row: Row, source: profiles.Profiles | None) -> Row:
    group = source.group() if source else None
    found = _profile(row, group)
    if source is None or group is None or found is None:
        return row
    samples = found.samples_ms
    whole = _profile(row, source.group(end_to_end=True))
    return replace(
        row, host=source.host.name, threads=group.threads, batch=group.batch, samples=len(samples),
        p50_ms=found.percentile_ms(50), p90_ms=found.percentile_ms(90), p95_ms=found.percentile_ms(95),
        p99_ms=found.percentile_ms(99) if len(samples) >= 1000 else None, max_ms=float(samples.max()),
        faces_per_s=float(1000 * group.batch / samples.mean()), load_ms=found.load_ms, first_call_ms=found.first_call_ms,
        peak_memory_mb=found.peak_memory_mb, end_to_end_p50_ms=whole.percentile_ms(50) if whole else None,
        end_to_end_p95_ms=whole.percentile_ms(95) if whole else None,
    )  # fmt: skip


def _evidence(
    reference: record.PlannedRow, candidate: record.PlannedRow, source: profiles.Profiles | None
) -> verdicts.LatencyEvidence | None:
    group = source.group() if source else None
    before, now = _profile(reference, group), _profile(candidate, group)
    if group is None or before is None or now is None:
        return None
    return verdicts.LatencyEvidence(before.rounds, now.rounds, _floor(group))


def _floor(group: profiles.Group | None) -> float | None:
    """The noise floor of a group, from the samples of its first profile and of that one's second session."""
    return stats.noise_floor(stats.latency_ratio(group.profiles[0].rounds, group.control_rounds)[0]) if group else None


def _front(
    rows: Sequence[Row], evaluations: Sequence[Evaluation], plan: record.Plan, source: profiles.Profiles | None
) -> list[Row]:
    """Mark the Pareto front of accuracy × latency × size, and who is dominated with confidence.

    With confidence: no worse on any axis, and on accuracy (McNemar) or latency (block bootstrap beyond the floor) better.
    """
    marked = []
    for i, row in enumerate(rows):
        above = [j for j in range(len(rows)) if j != i and _no_worse(rows[j], row) and not _no_worse(row, rows[j])]
        sure = next((j for j in above if _surely(evaluations[j], evaluations[i], plan.rows[j], plan.rows[i], source)), None)
        name = f"{rows[sure].model} · {rows[sure].runtime}" if sure is not None else None
        marked.append(replace(row, on_front=not above, dominated_by=name))
    return marked


def _no_worse(a: Row, b: Row) -> bool:
    if (a.p50_ms is None) != (b.p50_ms is None):
        return False  # whether it is slower is not known
    fast = a.p50_ms is None or b.p50_ms is None or a.p50_ms <= b.p50_ms
    return a.accuracy >= b.accuracy and fast and a.size_mb <= b.size_mb


def _surely(
    better: Evaluation,
    worse: Evaluation,
    better_row: record.PlannedRow,
    worse_row: record.PlannedRow,
    source: profiles.Profiles | None,
) -> bool:
    counts = stats.paired(worse.probs.argmax(axis=1) == worse.targets, better.probs.argmax(axis=1) == better.targets)
    if counts.gained > counts.lost and stats.mcnemar(counts.gained, counts.lost) <= stats.ALPHA:
        return True
    evidence = _evidence(worse_row, better_row, source)
    if evidence is None:
        return False
    ratio, p = stats.latency_ratio(evidence.reference_rounds, evidence.candidate_rounds)
    return verdicts.latency_word(ratio, evidence.floor, p)[0] == "better"


def _notes(plan: record.Plan, source: profiles.Profiles | None) -> tuple[str, ...]:
    notes = list(plan.notes)
    challengers = len(plan.rows) - 1
    if challengers > 1:
        notes.append(
            f"{challengers} rows are each judged against one reference at 5 %; by chance alone about one in twenty of them "
            "would be called better or worse"
        )
    timed = sum((row.digest, row.runtime) in source.artifacts for row in plan.rows) if source else 0
    if source and timed < len(plan.rows):
        notes.append(f"{source.host.name} timed {timed} of {len(plan.rows)} rows; nothing is known about the speed of the others")
    for group in source.groups if source else ():
        if group.steal is not None and group.steal > 0.05:
            notes.append(
                f"the hypervisor gave {group.steal:.0%} of the time to others while batch {group.batch} was measured; "
                "measure again on a quiet machine"
            )
    if any(row.seeds for row in plan.rows):
        notes.append(
            "a row of several seeds shows means over its runs; its confusion matrix, classes, slices and verdicts are those of the "
            "run with the median accuracy"
        )
    return tuple(notes)
