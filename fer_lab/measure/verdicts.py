"""From two evaluations of the same faces to words: better, non-inferior, worse, undecided (DESIGN, decision 6).

Accuracy is the one primary aspect: McNemar's exact test decides better or worse; else, when the 95 % paired interval lies
above −margin, non-inferior; else undecided. Better and worse win over non-inferior. Everything else (Brier score, classes
with at least 30 faces, slices, latency) is secondary and corrected together by Holm, per candidate; intervals of secondary
aspects are at the level at which Holm judged them. Rare classes are flagged, never ranked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fer_lab.core.errors import InputError
from fer_lab.core.types import Evaluation, Verdict, Word
from fer_lab.measure import metrics, stats
from fer_lab.measure.comparison import RARE

MARGIN = 0.015
NOISY = 0.05
"""An A/A floor above this makes every latency verdict undecided."""
SMALLEST_RATIO = 0.02
"""A latency change below this share is nothing, however certain."""

CLEAR_VOTES = 9
"""A face is clear when at least so many of its annotators agree, else ambiguous."""


@dataclass(frozen=True)
class LatencyEvidence:
    """Samples of reference and candidate from the same interleaved rounds, ms, and the noise floor of those rounds."""

    reference_rounds: Sequence[Sequence[float]]
    candidate_rounds: Sequence[Sequence[float]]
    floor: float | None


@dataclass(frozen=True)
class _Finding:
    """A secondary aspect before Holm's correction."""

    aspect: str
    p_value: float
    n: int
    counts: stats.Paired | None = None
    differences: npt.NDArray[np.float64] | None = None
    latency: LatencyEvidence | None = None
    ratio: stats.Interval | None = None


def judge(
    reference: Evaluation,
    candidate: Evaluation,
    slices: Mapping[str, npt.NDArray[np.bool_]],
    *,
    margin: float = MARGIN,
    latency: LatencyEvidence | None = None,
    seed: int = 0,
) -> tuple[Verdict, ...]:
    """Return the verdicts about `candidate`, accuracy first.

    slices: name → bool [N] mask over the faces. Raises InputError when the two did not see the same faces in the same
    order under the same protocol and label source.
    """
    check_same_faces(reference, candidate)
    right_before = reference.probs.argmax(axis=1) == reference.targets
    right_now = candidate.probs.argmax(axis=1) == candidate.targets
    primary = judge_accuracy(candidate.model, candidate.runtime, stats.paired(right_before, right_now), margin)
    findings, flagged = [], []
    brier = metrics.brier_per_face(candidate.probs, candidate.targets) - metrics.brier_per_face(reference.probs, reference.targets)
    _, p = stats.paired_bootstrap(brier, seed=seed)
    findings.append(_Finding("brier", 1.0 if not brier.any() else p, len(brier), differences=brier))
    parts = {f"class:{label}": candidate.targets == i for i, label in enumerate(candidate.labels)}
    parts |= {f"slice:{name}": mask for name, mask in slices.items()}
    for aspect, mask in parts.items():
        counts = stats.paired(right_before[mask], right_now[mask])
        if counts.n < RARE:
            flagged.append(_rare(candidate, aspect, counts))
        else:
            findings.append(_Finding(aspect, stats.mcnemar(counts.gained, counts.lost), counts.n, counts))
    if latency is not None:
        ratio, p = stats.latency_ratio(latency.reference_rounds, latency.candidate_rounds, seed=seed)
        findings.append(_Finding("latency", p, sum(map(len, latency.candidate_rounds)), latency=latency, ratio=ratio))
    p_values = [finding.p_value for finding in findings]
    judged = [
        _judge_secondary(candidate, finding, adjusted, level, margin, seed)
        for finding, adjusted, level in zip(findings, stats.holm(p_values), stats.holm_levels(p_values), strict=True)
    ]
    return (primary, *judged, *flagged)


def judge_accuracy(model: str, runtime: str, counts: stats.Paired, margin: float = MARGIN) -> Verdict:
    """The verdict on the primary aspect from the discordant faces."""
    p = stats.mcnemar(counts.gained, counts.lost)
    interval = stats.paired_interval(counts)
    word = _primary_word(p, interval, margin)
    evidence = (
        f"{_points(interval.value)} points ({_points(interval.low)} to {_points(interval.high)}): alone right on {counts.gained} "
        f"faces, alone wrong on {counts.lost} of {counts.n}, McNemar p = {_p(p)}"
    )
    if word == "non-inferior":
        evidence += f"; the interval lies above −{margin * 100:g} points"
    needed = stats.more_faces(counts, margin) if word == "undecided" else None
    if needed is not None:
        grouped = f"{needed:,}".replace(",", " ")
        evidence += f"; about {grouped} more faces would decide, if this change is the true one"
    return Verdict(model, runtime, "accuracy", word, evidence, counts.n, interval.value, interval.low, interval.high, p, needed)


def masks(evaluation: Evaluation, slices: Mapping[str, Sequence[str]]) -> dict[str, npt.NDArray[np.bool_]]:
    """Masks over the faces, bool [N]: `clear` (at least nine equal votes), `ambiguous` (the others), the named slices."""
    clear = evaluation.votes.max(axis=1) >= CLEAR_VOTES
    found = {"clear": clear, "ambiguous": ~clear}
    for name, members in slices.items():
        inside = set(members)
        mask = np.array([face in inside for face in evaluation.names], np.bool_)
        if mask.any():
            found[name] = mask
    return found


def check_same_faces(reference: Evaluation, candidate: Evaluation) -> None:
    """Raise InputError unless both evaluations are of the same faces under the same rules."""
    for what in ("label_source", "protocol", "split", "labels", "fingerprint", "names"):
        before, now = getattr(reference, what), getattr(candidate, what)
        if before != now:
            shown = f"{before} and {now}" if what not in ("names", "labels") else "different lists"
            raise InputError(
                f"{candidate.model} and {reference.model} cannot be compared: their {what.replace('_', ' ')}s differ ({shown}). "
                "Different label sources, protocols and faces are never compared as one"
            )


def _primary_word(p: float, interval: stats.Interval, margin: float) -> Word:
    if p <= stats.ALPHA and interval.value != 0:
        return "better" if interval.value > 0 else "worse"
    return "non-inferior" if interval.low > -margin else "undecided"


def _judge_secondary(candidate: Evaluation, finding: _Finding, adjusted: float, level: float, margin: float, seed: int) -> Verdict:
    if finding.latency is not None and finding.ratio is not None:
        return _judge_latency(candidate, finding, finding.latency, finding.ratio, adjusted, level, seed)
    blank = Verdict(candidate.model, candidate.runtime, finding.aspect, "undecided", "", finding.n, p_value=adjusted)
    if finding.counts is not None:
        interval = stats.paired_interval(finding.counts, level)
        word: Word = _primary_word(adjusted, interval, margin)
        reason = (
            f"{_points(interval.value)} points ({_points(interval.low)} to {_points(interval.high)}), n = {finding.n}, "
            f"Holm-corrected p = {_p(adjusted)}"
        )
        needed = stats.more_faces(finding.counts, margin, level) if word == "undecided" else None
        return replace(
            blank, verdict=word, reason=reason, change=interval.value, low=interval.low, high=interval.high, faces_needed=needed
        )
    assert finding.differences is not None
    interval, _ = stats.paired_bootstrap(finding.differences, level, seed=seed)
    word = ("better" if interval.value < 0 else "worse") if adjusted <= stats.ALPHA and interval.value else "undecided"
    reason = (
        f"Brier score {interval.value:+.4f} ({interval.low:+.4f} to {interval.high:+.4f}; lower is better), "
        f"Holm-corrected p = {_p(adjusted)}"
    )
    return replace(blank, verdict=word, reason=reason, change=interval.value, low=interval.low, high=interval.high)


def _judge_latency(
    candidate: Evaluation,
    finding: _Finding,
    evidence: LatencyEvidence,
    ratio: stats.Interval,
    adjusted: float,
    level: float,
    seed: int,
) -> Verdict:
    interval, _ = stats.latency_ratio(evidence.reference_rounds, evidence.candidate_rounds, level, seed=seed)
    word, reason = latency_word(interval, evidence.floor, adjusted)
    return Verdict(
        candidate.model, candidate.runtime, "latency", word, reason, finding.n, ratio.value, interval.low, interval.high, adjusted
    )


def latency_word(ratio: stats.Interval, floor: float | None, p_value: float = 0.0) -> tuple[Word, str]:
    """Word and reason for a latency ratio candidate / reference (below 1 is faster) above a noise floor.

    Faster or slower needs an interval that excludes 1 and a ratio beyond max(2 %, floor); a floor above 5 %, or none
    measured, is undecided.
    """
    shown = f"{ratio.value:.2f}× the reference's time ({ratio.low:.2f} to {ratio.high:.2f})"
    if floor is None:
        return "undecided", f"{shown}; no A/A control was measured"
    if floor > NOISY:
        return "undecided", f"noisy: one model against itself differs by up to {floor:.1%}; {shown}. Measure on a quiet machine"
    bar = max(SMALLEST_RATIO, floor)
    if ratio.high < 1 and ratio.value < 1 - bar and p_value <= stats.ALPHA:
        return "better", f"faster: {shown}, beyond the floor of {bar:.1%}"
    if ratio.low > 1 and ratio.value > 1 + bar and p_value <= stats.ALPHA:
        return "worse", f"slower: {shown}, beyond the floor of {bar:.1%}"
    if ratio.high < 1 + bar:
        return "non-inferior", f"not slower by more than {bar:.1%}: {shown}"
    return "undecided", f"{shown}; neither beyond nor within the floor of {bar:.1%}"


def _rare(candidate: Evaluation, aspect: str, counts: stats.Paired) -> Verdict:
    interval = stats.paired_interval(counts)
    reason = f"rare: n = {counts.n} is below {RARE}; flagged, never ranked"
    return Verdict(
        candidate.model, candidate.runtime, aspect, "undecided", reason, counts.n, interval.value, interval.low, interval.high
    )


def _points(share: float) -> str:
    return f"{share * 100:+.2f}".replace("-", "−")


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
