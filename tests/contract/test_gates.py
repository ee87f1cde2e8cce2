"""What every gate must keep, whichever file it lives in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from gate_records import HOST, SIGNER, good_comparison, good_row, parity, profile, verdict

from fer_lab.core.config import validate
from fer_lab.core.errors import InputError
from fer_lab.core.types import GateVerdict
from fer_lab.gates.gate import Gate
from fer_lab.gates.policy import known
from fer_lab.measure.comparison import Audit, Comparison, Row, parse

Spoiler = Callable[[Comparison, Row], tuple[Comparison, Row]]

PARAMS: dict[str, dict[str, object]] = {
    "min_accuracy": {"at_least": 0.8},
    "clean_accuracy": {"at_least": 0.8},
    "latency": {"budget_ms": 20.0},
    "signed_by": {"keys": [SIGNER]},
}
"""For gates whose parameters have no default."""


def in_row(**changes: object) -> Spoiler:
    """Change figures of the challenger's row."""

    def spoil(comparison: Comparison, row: Row) -> tuple[Comparison, Row]:
        worse = replace(row, **changes)  # type: ignore[arg-type]
        return replace(comparison, rows=(comparison.rows[0], worse)), worse

    return spoil


def in_record(**changes: object) -> Spoiler:
    """Change the comparison around the row."""
    return lambda comparison, row: (replace(comparison, **changes), row)  # type: ignore[arg-type]


def said(aspect: str, low: float, high: float, n: int = 300, word: str = "undecided") -> Spoiler:
    """Replace what the comparison said about one aspect."""

    def spoil(comparison: Comparison, row: Row) -> tuple[Comparison, Row]:
        others = tuple(v for v in comparison.verdicts if v.aspect != aspect)
        return replace(comparison, verdicts=(*others, verdict(aspect, low, high, n, word))), row

    return spoil


def without(aspect: str) -> Spoiler:
    """Take away what the comparison said about an aspect."""
    return lambda c, row: (replace(c, verdicts=tuple(v for v in c.verdicts if not v.aspect.startswith(aspect))), row)


CARD = dict(good_row().card)
SPOILT: dict[str, dict[str, Spoiler]] = {
    "evidence": {
        "another split": in_record(split="valid"),
        "few faces": lambda c, r: (replace(c, n=50), replace(r, n=50)),
        "part of the faces": in_row(n=900),
        "another data set": in_record(dataset="other", label_source="other", fingerprint="g"),
        "other faces": in_record(fingerprint="g"),
        "no card": in_row(card={}),
    },
    "not_worse": {
        "beyond the margin": said("accuracy", -0.02, 0.01, 1000),
        "confirmed worse within the margin": said("accuracy", -0.012, -0.001, 1000, "worse"),
        "no verdict": without("accuracy"),
        "not a number": said("accuracy", math.nan, 0.01, 1000),
    },
    "min_accuracy": {
        "the point passes, the interval does not": in_row(accuracy=0.81, accuracy_low=0.785),
        "not a number": in_row(accuracy_low=math.nan),
    },
    "clean_accuracy": {
        "below the floor": in_row(clean_accuracy=0.81, clean_low=0.78),
        "not measured": in_row(clean_n=0, clean_accuracy=None, clean_low=None, clean_high=None),
    },
    "classes": {
        "confirmed worse": said("class:neutral", -0.10, -0.02, word="worse"),
        "no bound": said("class:neutral", -0.10, math.nan),
        "not judged": without("class:"),
    },
    "slices": {
        "confirmed worse": said("slice:occlusion", -0.10, -0.02, 200, "worse"),
        "not judged": without("slice:"),
    },
    "calibration": {
        "ECE": in_row(ece=0.2),
        "Brier score": in_row(brier=0.9),
        "not a number": in_row(ece=math.nan),
    },
    "brier_not_worse": {
        "confirmed rise": said("brier", 0.01, 0.05, 1000),
        "no verdict": without("brier"),
    },
    "parity": {
        "flips": in_row(parity=parity(60, 0.0)),
        "accuracy": in_row(parity=parity(9, -0.02)),
        "refused by export": in_row(parity=parity(0, 0.0, "refused")),
        "not a number": in_row(parity=parity(0, math.nan)),
        "no faces": in_row(parity=parity(0, 0.0) | {"n": 0}),
        "never verified": in_row(parity=None),
        "verified on another device": in_row(runtime="openvino:GPU"),
        "half a record": in_row(parity={"state": "verified", "digest": "d2", "max_dp": 0.0}),
        "of another artifact": in_row(parity=parity(0, 0.0, digest="d1")),
        "of no named artifact": in_row(parity={key: value for key, value in parity(0, 0.0).items() if key != "digest"}),
    },
    "latency": {
        "too slow": in_record(profiles=(profile(ms=30.0),)),
        "another host": in_record(profiles=(profile(host=replace(HOST, name="laptop")),)),
        "another artifact": in_record(profiles=(profile("d1"),)),
        "another thread count": in_record(profiles=(profile(threads=2),)),
        "the slower of two": in_record(profiles=(profile(), profile(ms=30.0))),
        "with the crop only": in_record(profiles=(profile(end_to_end=True),)),
        "not measured": in_record(profiles=()),
        "not a number": in_record(profiles=(profile(ms=math.nan),)),
    },
    "size": {
        "too large": in_row(size_mb=300.0),
        "not measured": in_row(size_mb=0.0),
        "not a number": in_row(size_mb=math.nan),
    },
    "batch_invariance": {
        "looks at its neighbours": in_row(batch_invariant=False, audit=Audit(False, 512, 9)),
        "not checked": in_row(batch_invariant=None, audit=Audit()),
    },
    "provenance": {
        "no fingerprint": in_row(card=CARD | {"fingerprint": ""}),
        "an unknown fingerprint": in_row(card=CARD | {"fingerprint": "unknown"}),
        "no card": in_row(card={}),
    },
    "licence": {
        "not allowed": in_row(card=CARD | {"licence": "AGPL-3.0"}),
        "none": in_row(card={}),
    },
    "signed_by": {
        "another key": in_row(signed_by="A" * 43 + "="),
        "not signed": in_row(signed_by=None),
    },
    "leakage": {
        "test faces in training": in_row(audit=Audit(True, 512, 0, 0.0, True, 244)),
        "unknown": in_row(audit=Audit(True, 512)),
    },
}
"""For each gate, the changes of a good record that it has to refuse."""


def judge(gate: Gate, comparison: Comparison, row: Row) -> GateVerdict:
    return gate.check(comparison, row, validate(gate.params, PARAMS.get(gate.name, {}), gate.name))


gates = pytest.mark.parametrize("gate", known().values(), ids=known())


@gates
def test_a_good_challenger_passes_on_its_evidence(gate: Gate) -> None:
    """The record with nothing spoilt passes, and the verdict says what was seen and what was asked."""
    comparison = good_comparison()
    verdict = judge(gate, comparison, comparison.rows[1])
    assert (verdict.gate, verdict.passed) == (gate.name, True), verdict
    assert verdict.observed
    assert verdict.required


@pytest.mark.parametrize(("name", "how"), [(name, how) for name, all_ in SPOILT.items() for how in all_])
def test_a_spoilt_record_is_refused(name: str, how: str) -> None:
    """Each gate refuses the fault it is there for, and evidence that is missing or not a number."""
    comparison = good_comparison()
    verdict = judge(known()[name], *SPOILT[name][how](comparison, comparison.rows[1]))
    assert not verdict.passed, verdict


STRICTER: list[tuple[str, dict[str, object]]] = [
    ("evidence", {"min_faces": 1001}),
    ("not_worse", {"margin": 0.004}),
    ("calibration", {"max_ece": 0.01}),
    ("calibration", {"max_brier": 0.2}),
    ("latency", {"budget_ms": 4.3}),  # the median is 4.25, the 95th percentile 4.47
    ("latency", {"budget_ms": 20, "batch": 8}),
    ("latency", {"budget_ms": 20, "min_samples": 101}),
    ("latency", {"budget_ms": 20, "runtime": "onnx"}),
    ("licence", {"allowed": ["Apache-2.0"]}),
    ("provenance", {"fields": ["name", "site"]}),
    ("size", {"max_mb": 20}),
]
LOOSER: list[tuple[str, str, dict[str, object]]] = [
    ("not_worse", "beyond the margin", {"margin": 0.03}),
    ("brier_not_worse", "confirmed rise", {"max_rise": 0.02}),
    ("parity", "flips", {"max_flip_rate": 0.1}),
    ("parity", "accuracy", {"max_drop": 0.03}),
    ("leakage", "test faces in training", {"max_faces": 300}),
    ("licence", "not allowed", {"allowed": ["AGPL-3.0"]}),
    ("provenance", "no fingerprint", {"fields": ["name"]}),
]
"""Limits of a policy under which the good record fails, and a spoilt one passes."""


@pytest.mark.parametrize(("name", "params"), STRICTER)
def test_a_stricter_limit_refuses_the_good_record(name: str, params: dict[str, object]) -> None:
    """It is the policy's limit that is asked, not the gate's own."""
    comparison, gate = good_comparison(), known()[name]
    assert not gate.check(comparison, comparison.rows[1], validate(gate.params, params, name)).passed


@pytest.mark.parametrize(("name", "how", "params"), LOOSER)
def test_a_looser_limit_lets_a_spoilt_record_through(name: str, how: str, params: dict[str, object]) -> None:
    """So does a policy that allows more."""
    comparison, gate = good_comparison(), known()[name]
    spoilt = SPOILT[name][how](comparison, comparison.rows[1])
    assert gate.check(*spoilt, validate(gate.params, params, name)).passed


@gates
def test_a_gate_changes_nothing_and_says_the_same_twice(gate: Gate) -> None:
    """Pure: the record is as it was, and the verdict depends on nothing else."""
    comparison = good_comparison()
    before = comparison.to_json()
    first = judge(gate, comparison, comparison.rows[1])
    assert judge(gate, comparison, comparison.rows[1]) == first
    assert comparison.to_json() == before


@gates
def test_a_gate_says_the_same_about_the_record_on_disk(gate: Gate) -> None:
    """A promotion can be audited from comparison.json alone."""
    comparison = good_comparison()
    copy = parse(comparison.to_json(), "copy")
    assert judge(gate, copy, copy.rows[1]) == judge(gate, comparison, comparison.rows[1])


@gates
def test_an_unknown_parameter_is_refused(gate: Gate) -> None:
    """A misspelt limit is never silently left at its default."""
    with pytest.raises(InputError, match="unknown key 'no_such_limit'"):
        validate(gate.params, PARAMS.get(gate.name, {}) | {"no_such_limit": 1}, gate.name)


def test_every_gate_has_something_to_refuse() -> None:
    """A new gate comes with a change of the record that it must refuse."""
    assert set(SPOILT) == set(known())
