"""The rules of the quality gates at their edges."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from gate_records import good_comparison, verdict

from fer_lab.core.errors import InputError
from fer_lab.gates.policy import parse, run
from fer_lab.measure.comparison import Comparison, Share

POLICY = {"gates": {"not_worse": {}, "classes": {}, "slices": {}}, "first_promotion": {"min_accuracy": {"at_least": 0.8}}}


def gates_of(comparison: Comparison) -> dict[str, bool]:
    return {v.gate: v.passed for v in run(parse(POLICY), comparison, comparison.rows[1])}


def with_verdict(aspect: str, low: float, high: float, n: int, word: str = "undecided") -> Comparison:
    base = good_comparison()
    others = tuple(v for v in base.verdicts if v.aspect != aspect)
    return replace(base, verdicts=(*others, verdict(aspect, low, high, n, word)))


@pytest.mark.parametrize(
    ("low", "high", "n", "word", "passed"),
    [
        (-0.30, 0.001, 60, "undecided", True),  # a large loss that may be chance
        (-0.30, -0.001, 49, "worse", True),  # confirmed, but a class too small to be judged
        (-0.30, -0.001, 50, "worse", False),
        (-0.07, -0.002, 300, "undecided", True),  # the interval excludes 0, McNemar's test by Holm does not confirm it
        (0.01, 0.05, 300, "better", True),
    ],
)
def test_a_class_refuses_only_when_confirmed_worse_on_enough_faces(
    low: float, high: float, n: int, word: str, passed: bool
) -> None:
    """The comparison's word and the upper bound decide, not the point."""
    assert gates_of(with_verdict("class:neutral", low, high, n, word))["classes"] is passed


def test_a_drop_that_the_policy_allows_does_not_refuse() -> None:
    """max_drop moves the limit."""
    comparison = with_verdict("class:neutral", -0.05, -0.01, 300, "worse")
    assert not gates_of(comparison)["classes"]
    policy = parse({"gates": {"classes": {"max_drop": 0.02}}, "first_promotion": {"size": {}}})
    assert run(policy, comparison, comparison.rows[1])[0].passed


def test_a_coin_toss_does_not_block_a_release() -> None:
    """Among 400 challengers without a true change in any of eight classes, at most 5 % are refused for a class."""
    rng = np.random.default_rng(0)
    half_width = NormalDist().inv_cdf(1 - 0.05 / 8 / 2) * 0.02  # Holm's first level for eight classes, standard error 2 points
    classes = parse({"gates": {"classes": {}}, "first_promotion": {"size": {}}})
    base = good_comparison()
    refused = 0
    for changes in rng.normal(0, 0.02, (400, 8)):
        verdicts = tuple(
            verdict(f"class:{i}", c - half_width, c + half_width, 100, "worse" if c + half_width < 0 else "undecided")
            for i, c in enumerate(changes)
        )
        comparison = replace(base, verdicts=verdicts)
        refused += not run(classes, comparison, comparison.rows[1])[0].passed
    assert refused / 400 <= 0.05


def test_a_dataset_without_slices_is_not_refused_for_it() -> None:
    """Nothing to judge is not missing evidence; a slice that was measured and not judged is."""
    base = good_comparison()
    no_verdicts = tuple(v for v in base.verdicts if not v.aspect.startswith("slice:"))
    for slices, passed in (
        ({}, True),
        ({"pose45": Share(20, 0.8, 0.6, 0.9)}, True),
        ({"pose45": Share(200, 0.8, 0.74, 0.85)}, False),
    ):
        row = replace(base.rows[1], slices=slices)
        comparison = replace(base, verdicts=no_verdicts, rows=(base.rows[0], row))
        assert {v.gate: v.passed for v in run(parse(POLICY), comparison, row)}["slices"] is passed


def test_better_passes_though_the_interval_is_wide() -> None:
    """Better and worse win over the margin."""
    assert gates_of(with_verdict("accuracy", -0.016, 0.05, 300, "better"))["not_worse"]
    assert not gates_of(with_verdict("accuracy", -0.016, 0.05, 300))["not_worse"]


def test_a_rare_class_cannot_refuse() -> None:
    """Below 30 faces no bound is corrected: a policy that would judge there is refused."""
    with pytest.raises(InputError, match="greater than or equal to 30"):
        parse({"gates": {"classes": {"min_faces": 10}}, "first_promotion": {"size": {}}})


def test_a_refused_measurement_says_what_about_it() -> None:
    """What was seen in words, then what the policy does not accept."""
    wanted = {"split": "test", "min_faces": 1, "protocols": ["ferplus5"]}
    comparison = good_comparison()
    (said,) = run(parse({"gates": {"evidence": wanted}, "first_promotion": {"size": {}}}), comparison, comparison.rows[1])
    assert not said.passed
    assert said.observed == "1000 test faces of synthetic, protocol ferplus8, labels synthetic; not accepted: protocol ferplus8"


@pytest.mark.parametrize(
    ("label_sources", "label_source", "fingerprint", "fault"),
    [
        ([], "synthetic", "f", None),
        ([], "other", "g", "labels other"),
        ([], "other", "f", "labels other"),
        ([], "synthetic", "g", "other faces than the model's own data (fingerprint g)"),
        (["synthetic", "other"], "other", "g", None),  # other labels of the same pictures, which the policy names
        (["synthetic", "other"], "synthetic", "g", "other faces than the model's own data (fingerprint g)"),
        (["other"], "synthetic", "f", "labels synthetic"),
    ],
)
def test_only_the_models_own_data_counts_unless_the_policy_names_another(
    label_sources: list[str], label_source: str, fingerprint: str, fault: str | None
) -> None:
    """An accuracy on another data set says nothing about the faces that the model was made for."""
    comparison = good_comparison(label_source=label_source, fingerprint=fingerprint)
    policy = parse({"gates": {"evidence": {"label_sources": label_sources}}, "first_promotion": {"size": {}}})
    (said,) = run(policy, comparison, comparison.rows[1])
    assert said.passed is (fault is None)
    assert fault is None or said.observed.endswith(f"; not accepted: {fault}")
    assert said.required.endswith(f", labels {' or '.join(label_sources or ['synthetic'])}")
