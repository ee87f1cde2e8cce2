"""Gates on what the model says: accuracy, calibration, classes, slices.

Floors are held against the lower end of the 95 % interval, never against the point. Changes against the reference are
held against the interval's end that speaks for the challenger: only a confirmed loss refuses, a coin toss does not.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from fer_lab.core.config import Section
from fer_lab.core.types import GateVerdict, Verdict
from fer_lab.gates.gate import Gate, is_number, percent, points, verdict_of, verdicts_under
from fer_lab.measure.comparison import RARE, Comparison, Row


class EvidenceParams(Section):
    """Which measurement counts at all."""

    split: Literal["test", "valid"] = "test"
    min_faces: PositiveInt = Field(100, description="faces of the split that the row was measured on")
    protocols: tuple[str, ...] = Field((), description="accepted protocols, any when empty")
    label_sources: tuple[str, ...] = Field((), description="accepted label sources, only the model's own when empty")


def _evidence(comparison: Comparison, row: Row, params: EvidenceParams) -> GateVerdict:
    own_source = row.card.get("label_source")
    sources = params.label_sources or (own_source,)
    faults = []
    if comparison.split != params.split:
        faults.append(f"split {comparison.split}")
    if row.n != comparison.n:
        faults.append(f"{row.n} of {comparison.n} faces measured")
    if row.n < params.min_faces:
        faults.append(f"only {row.n} faces")
    if params.protocols and comparison.protocol not in params.protocols:
        faults.append(f"protocol {comparison.protocol}")
    if comparison.label_source not in sources:
        faults.append(f"labels {comparison.label_source}")
    elif comparison.label_source == own_source and comparison.fingerprint != row.card.get("fingerprint"):
        faults.append(f"other faces than the model's own data (fingerprint {comparison.fingerprint[:12]})")
    measured = f"{row.n} {comparison.split} faces of {comparison.dataset}"
    seen = f"{measured}, protocol {comparison.protocol}, labels {comparison.label_source}"
    wanted = f"at least {params.min_faces} faces of the {params.split} split, all of them measured"
    if params.protocols:
        wanted += f", protocol {' or '.join(params.protocols)}"
    wanted += f", labels {' or '.join(map(str, sources))}"
    return GateVerdict("evidence", not faults, seen + (f"; not accepted: {', '.join(faults)}" if faults else ""), wanted)


class NotWorseParams(Section):
    """The non-inferiority margin on accuracy."""

    margin: float = Field(0.015, ge=0, lt=1, description="as a fraction: 0.015 is 1.5 points")


def _not_worse(comparison: Comparison, row: Row, params: NotWorseParams) -> GateVerdict:
    verdict = verdict_of(comparison, row, "accuracy")
    required = f"not called worse, and the lower end of the 95 % interval of the change in accuracy above {points(-params.margin)}"
    if verdict is None or not is_number(verdict.low) or not is_number(verdict.high):
        return GateVerdict("not_worse", False, "no paired interval against the reference in this comparison", required)
    passed = verdict.verdict == "better" or (verdict.verdict != "worse" and verdict.low > -params.margin)
    observed = f"{verdict.verdict}, change between {points(verdict.low)} and {points(verdict.high)} on {verdict.n} faces"
    return GateVerdict("not_worse", passed, observed, required)


class MinAccuracyParams(Section):
    """A floor under accuracy."""

    at_least: float = Field(ge=0, le=1, description="for the lower end of the 95 % interval, as a fraction")


def _floor(gate: str, what: str, n: int | None, point: float | None, low: float | None, at_least: float) -> GateVerdict:
    required = f"lower end of the 95 % interval of {what} at least {percent(at_least)}"
    if not n or not is_number(low) or not is_number(point):
        return GateVerdict(gate, False, f"{what} was not measured", required)
    return GateVerdict(gate, low >= at_least, f"{percent(point)}, lower end {percent(low)}, {n} faces", required)


def _min_accuracy(comparison: Comparison, row: Row, params: MinAccuracyParams) -> GateVerdict:
    return _floor("min_accuracy", "accuracy", row.n, row.accuracy, row.accuracy_low, params.at_least)


def _clean_accuracy(comparison: Comparison, row: Row, params: MinAccuracyParams) -> GateVerdict:
    what = "accuracy on test faces without a twin in train or valid"
    return _floor("clean_accuracy", what, row.clean_n, row.clean_accuracy, row.clean_low, params.at_least)


class ConfirmedParams(Section):
    """How much a part of the faces may lose before a confirmed loss refuses."""

    max_drop: float = Field(0.0, ge=0, lt=1, description="as a fraction; refused when worse, with an upper bound below −max_drop")
    min_faces: int = Field(50, ge=RARE, description="smaller parts are never judged; rare ones have no corrected bound")


def _confirmed(gate: str, kind: str, verdicts: list[Verdict], expected: bool, params: ConfirmedParams) -> GateVerdict:
    required = f"no {kind} of {params.min_faces} faces or more with a change confirmed below {points(-params.max_drop)}"
    if not verdicts:
        said = f"the comparison judged no {kind}" if expected else f"this dataset has no {kind}"
        return GateVerdict(gate, not expected, said, required)
    judged = [v for v in verdicts if v.n >= params.min_faces]
    unbounded = [_part(v) for v in judged if not is_number(v.high)]
    if unbounded:
        return GateVerdict(gate, False, f"no corrected bound for {', '.join(unbounded)}", required)
    worse = [v for v in judged if v.verdict == "worse" and is_number(v.high) and v.high < -params.max_drop]
    if worse:
        named = ", ".join(f"{_part(v)} at best {points(v.high or 0.0)} (n = {v.n})" for v in worse)
        return GateVerdict(gate, False, f"confirmed worse: {named}", required)
    return GateVerdict(gate, True, f"{len(judged)} judged, none confirmed worse", required)


def _part(verdict: Verdict) -> str:
    return verdict.aspect.partition(":")[2]


def _classes(comparison: Comparison, row: Row, params: ConfirmedParams) -> GateVerdict:
    return _confirmed("classes", "class", verdicts_under(comparison, row, "class:"), True, params)


def _slices(comparison: Comparison, row: Row, params: ConfirmedParams) -> GateVerdict:
    return _confirmed(
        "slices",
        "slice",
        verdicts_under(comparison, row, "slice:"),
        any(share.n >= params.min_faces for share in row.slices.values()),
        params,
    )


class CalibrationParams(Section):
    """Ceilings for how far the probabilities are from what happens."""

    max_ece: float = Field(0.1, gt=0, le=1, description="expected calibration error, 15 equal-width bins")
    max_brier: float = Field(0.6, gt=0, le=2, description="multi-class Brier score, 0 to 2")


def _calibration(comparison: Comparison, row: Row, params: CalibrationParams) -> GateVerdict:
    required = f"ECE at most {params.max_ece:g} and Brier score at most {params.max_brier:g}"
    if not is_number(row.ece) or not is_number(row.brier):
        return GateVerdict("calibration", False, "calibration was not measured", required)
    passed = row.ece <= params.max_ece and row.brier <= params.max_brier
    return GateVerdict("calibration", passed, f"ECE {row.ece:.4f}, Brier score {row.brier:.4f}", required)


class BrierParams(Section):
    """How much the Brier score may rise before a confirmed rise refuses."""

    max_rise: float = Field(0.0, ge=0, le=2)


def _brier_not_worse(comparison: Comparison, row: Row, params: BrierParams) -> GateVerdict:
    required = f"no confirmed rise of the Brier score above {params.max_rise:g}"
    verdict = verdict_of(comparison, row, "brier")
    if verdict is None or not is_number(verdict.low) or not is_number(verdict.high):
        return GateVerdict("brier_not_worse", False, "no interval of the change against the reference", required)
    observed = f"change between {verdict.low:+.4f} and {verdict.high:+.4f}"
    return GateVerdict("brier_not_worse", verdict.low <= params.max_rise, observed, required)


GATE = (
    Gate("evidence", "the whole split was measured under the right protocol and labels", EvidenceParams, _evidence),
    Gate("not_worse", "accuracy is not worse than the reference's by more than a margin", NotWorseParams, _not_worse),
    Gate("min_accuracy", "accuracy is above a floor, with its uncertainty", MinAccuracyParams, _min_accuracy),
    Gate("clean_accuracy", "accuracy on faces without a twin is above a floor", MinAccuracyParams, _clean_accuracy),
    Gate("classes", "no class is confirmed worse than the reference", ConfirmedParams, _classes),
    Gate("slices", "no slice is confirmed worse than the reference", ConfirmedParams, _slices),
    Gate("calibration", "the probabilities mean what they say", CalibrationParams, _calibration),
    Gate("brier_not_worse", "the Brier score is not confirmed worse than the reference's", BrierParams, _brier_not_worse),
)
