"""The arithmetic of parity and the rules of refusal."""

from __future__ import annotations

import numpy as np
import pytest

from fer_lab.backends.session import Tolerance
from fer_lab.convert import parity

LABELS = ("a", "b", "c")
TIGHT = Tolerance(max_dp=1e-4, max_flip_rate=1 / 3191, max_drop=0.0005)
INT8 = Tolerance(max_dp=1.0, max_flip_rate=0.1, max_drop=0.005)


def sharp(winners: np.ndarray, p: float = 0.8) -> np.ndarray:
    probs = np.full((len(winners), 3), (1 - p) / 2, np.float32)
    probs[np.arange(len(winners)), winners] = p
    return probs


def report(before: np.ndarray, after: np.ndarray, targets: np.ndarray) -> dict:
    names = tuple(f"face{i}.png" for i in range(len(targets)))
    return parity.measure(sharp(before), sharp(after), targets, names, LABELS)


def test_the_same_probabilities_differ_by_nothing() -> None:
    """No flip, no change, an interval of no width."""
    targets = np.arange(90) % 3
    found = report(targets, targets, targets)
    assert (found["max_dp"], found["flips"], found["change"], found["change_low"], found["change_high"]) == (0.0, [], 0.0, 0.0, 0.0)
    assert parity.refusal(found, TIGHT) is None


def test_a_flip_is_listed_with_name_labels_and_margins() -> None:
    """Somebody can look at that face."""
    targets = np.zeros(4, np.int64)
    after = np.array([0, 0, 1, 0])
    (flip,) = report(targets, after, targets)["flips"]
    assert (flip["name"], flip["target"], flip["reference"], flip["runtime"]) == ("face2.png", "a", "a", "b")
    assert pytest.approx(0.7) == flip["margin_reference"] == flip["margin_runtime"]


def test_the_interval_is_that_of_a_paired_bootstrap() -> None:
    """Held against scipy's, which resamples faces."""
    from scipy.stats import bootstrap

    rng = np.random.default_rng(3)
    gain = rng.choice([-1, 0, 1], size=400, p=[0.06, 0.9, 0.04])
    found = parity.change(gain)
    oracle = bootstrap((gain,), np.mean, n_resamples=5000, method="percentile", rng=1).confidence_interval
    assert gain.mean() == pytest.approx(found["change"])
    assert found["change_low"] == pytest.approx(oracle.low, abs=0.003)
    assert found["change_high"] == pytest.approx(oracle.high, abs=0.003)


def test_one_flip_is_allowed_two_are_not_in_float32() -> None:
    """At any number of faces up to 3 191."""
    assert 1 == parity.allowed_flips(TIGHT, 100) == parity.allowed_flips(TIGHT, 3191)
    targets = np.zeros(3191, np.int64)
    for flips, refused in ((1, False), (2, True)):
        after = targets.copy()
        after[:flips] = 1
        found = report(targets, after, targets) | {"max_dp": 5e-5}
        assert refused == (parity.refusal(found, TIGHT) is not None)


def test_nan_is_refused() -> None:
    """NaN compares false with every limit."""
    targets = np.zeros(10, np.int64)
    found = report(targets, targets, targets) | {"max_dp": float("nan")}
    assert "max |Δp| nan" in (parity.refusal(found, TIGHT) or "")


def test_the_overall_rule_is_on_the_point_value() -> None:
    """0.5 points pass, 0.6 do not."""
    targets = np.zeros(1000, np.int64)
    for wrong, refused in ((5, False), (6, True)):
        after = targets.copy()
        after[:wrong] = 1
        assert refused == ("accuracy drops" in (parity.refusal(report(targets, after, targets), INT8) or ""))


def test_a_class_refuses_only_when_its_upper_bound_is_below_two_points() -> None:
    """A coin toss in a class does not block an export; a certain loss does; a rare class never does."""

    def refused(n: int, lost: int) -> bool:
        targets = np.concatenate([np.zeros(5000, np.int64), np.ones(n, np.int64)])
        after = targets.copy()
        after[5000 : 5000 + lost] = 2
        return "recall of b" in (parity.refusal(report(targets, after, targets), INT8) or "")

    assert not refused(60, 3)  # −5 points, but the interval reaches above −2
    assert refused(60, 10)
    assert not refused(49, 24)


def test_a_batch_that_mixes_its_faces_is_caught() -> None:
    """Each answer depends on the mean of the batch: wrong alone, wrong in another order."""

    class Mixer:
        def predict(self, faces: np.ndarray) -> np.ndarray:
            level = faces.mean(axis=(1, 2))
            return sharp((level > level.mean()).astype(int))

    class Honest:
        def predict(self, faces: np.ndarray) -> np.ndarray:
            return sharp((faces.mean(axis=(1, 2)) > 128).astype(int))

    faces = np.random.default_rng(0).integers(0, 256, (100, 1, 1), dtype=np.uint8) * np.ones((1, 48, 48), np.uint8)
    for model, invariant in ((Mixer(), False), (Honest(), True)):
        found = parity.alone_and_together(model, faces)  # type: ignore[arg-type]
        assert invariant == found["batch_invariant"]
        refused = parity.refusal({"max_dp": 0, "flips": [], "n": 1, "change": 0, "per_class": {}} | found, INT8)
        assert invariant == (refused is None)
