"""The four words, by the rules of DESIGN decision 6; and how often they are wrong."""

from __future__ import annotations

import numpy as np
import pytest

from fer_lab.core.errors import InputError
from fer_lab.core.types import Evaluation
from fer_lab.measure import stats, verdicts

K = 3


def evaluation(right: np.ndarray, targets: np.ndarray, **changes) -> Evaluation:
    """An evaluation that is right on the marked faces, with 80 % on its answer."""
    answer = np.where(right, targets, (targets + 1) % K)
    probs = np.full((len(targets), K), 0.1, np.float32)
    probs[np.arange(len(targets)), answer] = 0.8
    votes = np.zeros((len(targets), 10), np.uint8)
    votes[np.arange(len(targets)), targets] = 10
    fields = {
        "model": "candidate", "runtime": "torch", "dataset": "d", "fingerprint": "f", "label_source": "s", "protocol": "ferplus8",
        "split": "test", "labels": ("a", "b", "c"), "names": tuple(map(str, range(len(targets)))), "targets": targets,
        "votes": votes, "probs": probs,
    }  # fmt: skip
    return Evaluation(**{**fields, **changes})


def pair(n, gained, lost, both_wrong=0):
    """Reference and candidate with these discordant faces."""
    targets = np.arange(n) % K
    before, now = np.ones(n, bool), np.ones(n, bool)
    before[:gained] = False
    now[gained : gained + lost] = False
    if both_wrong:
        before[-both_wrong:] = now[-both_wrong:] = False
    return evaluation(before, targets, model="reference"), evaluation(now, targets)


@pytest.mark.parametrize(
    ("gained", "lost", "word"),
    [
        (60, 20, "better"),
        (20, 60, "worse"),
        (30, 28, "non-inferior"),  # within the margin of 1.5 points
        (40, 70, "worse"),  # worse wins over anything the interval says
        (130, 160, "undecided"),
    ],
)
def test_accuracy_is_primary(gained, lost, word):
    """McNemar decides; else the interval against the margin; else undecided, with the faces that are missing."""
    primary = verdicts.judge_accuracy("m", "r", stats.Paired(3137, gained, lost))
    assert (primary.aspect, primary.verdict) == ("accuracy", word)
    assert (primary.faces_needed is not None) == (word == "undecided")


def test_the_margin_is_the_callers():
    """The same faces: undecided within 1.5 points, non-inferior within five."""
    words = [verdicts.judge(*pair(1000, 20, 24), {}, margin=margin)[0].verdict for margin in (0.015, 0.05)]
    assert words == ["undecided", "non-inferior"]


def test_better_wins_over_non_inferior():
    """A clear gain is better, although its interval lies above the margin too."""
    assert verdicts.judge_accuracy("m", "r", stats.Paired(1000, 60, 20)).verdict == "better"


def test_a_model_against_itself_changes_nothing():
    """Every aspect of an identical evaluation is non-inferior or undecided, with change 0."""
    same, again = pair(300, 0, 0, 40)
    found = verdicts.judge(same, again, verdicts.masks(same, {}))
    assert {v.verdict for v in found} <= {"non-inferior", "undecided"}
    assert {v.change for v in found} == {0.0}


def test_classes_and_slices_are_corrected_together():
    """A loss in one class is found under Holm; p-values are corrected, intervals widened."""
    targets = np.arange(600) % K
    before = np.ones(600, bool)
    now = ~((targets == 1) & (np.arange(600) < 120))  # forty faces of class b lost
    reference, candidate = evaluation(before, targets, model="reference"), evaluation(now, targets)
    found = {v.aspect: v for v in verdicts.judge(reference, candidate, {"half": np.arange(600) < 300})}
    assert found["class:b"].verdict == "worse"
    assert found["class:a"].verdict != "worse"
    assert found["slice:half"].verdict == "worse"
    assert found["brier"].verdict == "worse"
    assert found["accuracy"].verdict == "worse"
    assert found["class:b"].high < 0
    assert found["class:b"].low < stats.paired_interval(stats.Paired(200, 0, 40)).low
    assert found["class:b"].p_value > stats.mcnemar(0, 40)


def test_rare_classes_are_flagged_never_ranked():
    """Twenty faces, all lost: flagged, no p-value, no word but undecided."""
    targets = np.r_[np.zeros(100, int), np.ones(100, int), np.full(20, 2)]
    reference, candidate = evaluation(np.ones(220, bool), targets), evaluation(targets != 2, targets)
    rare = {v.aspect: v for v in verdicts.judge(reference, candidate, {})}["class:c"]
    assert (rare.verdict, rare.p_value) == ("undecided", None)
    assert "rare" in rare.reason


def test_clear_and_ambiguous_faces_are_slices():
    """At least nine equal votes are clear; named slices count only faces that are there."""
    reference, _ = pair(6, 0, 0)
    reference.votes[0] = [5, 5, 0, 0, 0, 0, 0, 0, 0, 0]
    found = verdicts.masks(reference, {"pose": ("2", "nobody"), "absent": ("x",)})
    assert found["ambiguous"].tolist() == [True] + [False] * 5
    assert found["pose"].tolist() == [False, False, True, False, False, False]
    assert "absent" not in found


@pytest.mark.parametrize("change", [{"label_source": "t"}, {"protocol": "ferplus5"}, {"names": ("9",) * 6}, {"labels": ("x",) * 3}])
def test_different_faces_are_never_compared_as_one(change):
    """Another label source, protocol, label set or list of faces is refused."""
    targets = np.arange(6) % K
    with pytest.raises(InputError, match="cannot be compared"):
        verdicts.judge(evaluation(targets >= 0, targets), evaluation(targets >= 0, targets, **change), {})


@pytest.mark.parametrize(
    ("ratio", "floor", "word"),
    [
        ((0.90, 0.88, 0.92), 0.01, "better"),
        ((1.10, 1.08, 1.12), 0.01, "worse"),
        ((0.985, 0.98, 0.99), 0.001, "non-inferior"),  # excludes 1, but below 2 %
        ((0.96, 0.95, 0.97), 0.045, "non-inferior"),  # below the floor
        ((0.50, 0.40, 0.60), 0.06, "undecided"),  # noisy
        ((1.05, 0.95, 1.15), 0.01, "undecided"),
        ((0.50, 0.40, 0.60), None, "undecided"),
    ],
)
def test_latency_needs_an_interval_and_a_ratio_beyond_the_floor(ratio, floor, word):
    """Faster or slower only beyond max(2 %, floor); above a floor of 5 % nothing is said."""
    got, reason = verdicts.latency_word(stats.Interval(*ratio), floor)
    assert got == word
    assert ("noisy" in reason) == (floor == 0.06)


def test_latency_joins_the_secondary_aspects():
    """A model half as slow is called faster, Holm-corrected like the rest."""
    rng = np.random.default_rng(0)
    rounds = [list(rng.normal(5, 0.05, 30)) for _ in range(20)]
    fast = [[ms / 2 for ms in one] for one in rounds]
    reference, candidate = pair(300, 2, 2)
    found = verdicts.judge(reference, candidate, {}, latency=verdicts.LatencyEvidence(rounds, fast, 0.01))
    latency = next(v for v in found if v.aspect == "latency")
    assert (latency.verdict, round(latency.change, 2)) == ("better", 0.5)


def test_twins_are_rarely_called_different():
    """One network, perturbed twice to equal accuracy: false better or worse in at most 5 % (the long run is in experiments)."""
    rng = np.random.default_rng(5)
    draws = rng.multinomial(3137, [0.05, 0.05, 0.9], 400)
    words = [verdicts.judge_accuracy("m", "r", stats.Paired(3137, int(g), int(w))).verdict for g, w, _ in draws]
    assert np.mean([word in ("better", "worse") for word in words]) <= 0.07
