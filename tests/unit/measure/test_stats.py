"""Every statistic against scipy, statsmodels, or a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as sp
from statsmodels.stats.contingency_tables import mcnemar as sm_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from fer_lab.measure import stats

CLOSE = 1e-9


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (1, 3), (2667, 3137), (15, 16)])
def test_wilson_equals_statsmodels(hits, n):
    """The interval of a share, at its edges too."""
    assert proportion_confint(hits, n, method="wilson") == pytest.approx(stats.wilson(hits, n), abs=CLOSE)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 5), (8, 2), (0, 7), (180, 133), (1700, 1400)])
def test_mcnemar_equals_scipy_and_statsmodels(gained, lost):
    """The exact test on the discordant faces."""
    n = gained + lost
    expected = sp.binomtest(gained, n, 0.5).pvalue if n else 1.0
    assert expected == pytest.approx(stats.mcnemar(gained, lost), abs=CLOSE, rel=1e-7)
    if n:
        table = sm_mcnemar([[10, lost], [gained, 10]], exact=True)
        assert table.pvalue == pytest.approx(stats.mcnemar(gained, lost), abs=CLOSE, rel=1e-7)


@pytest.mark.parametrize(("n", "gained", "lost"), [(50, 12, 2), (30, 3, 1), (3137, 180, 133), (40, 0, 4), (100, 1, 0), (60, 5, 0)])
def test_the_paired_interval_inverts_the_score_test(n, gained, lost):
    """At each end the score statistic, its nuisance share maximised numerically, equals the normal quantile squared."""
    interval = stats.paired_interval(stats.Paired(n, gained, lost))
    for delta in (interval.low, interval.high):
        if abs(delta) == 1:
            continue

        def negative(q, delta=delta):
            likelihood = 0.0
            for count, share in ((gained, q + delta), (lost, q), (n - gained - lost, 1 - 2 * q - delta)):
                if count:
                    likelihood += count * math.log(max(share, 1e-300))
            return -likelihood

        bounds = (max(0.0, -delta), (1 - delta) / 2)
        q = optimize.minimize_scalar(negative, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x
        z2 = (gained - lost - n * delta) ** 2 / (n * (2 * q + delta - delta**2))
        assert sp.norm.ppf(0.975) ** 2 == pytest.approx(z2, rel=2e-4)


def test_the_paired_interval_keeps_its_width_without_discordant_faces():
    """No discordant face of thirty does not prove equality."""
    interval = stats.paired_interval(stats.Paired(30, 0, 0))
    assert interval.low < -0.1
    assert interval.high > 0.1


def test_the_paired_interval_covers():
    """About 95 % of 2 000 simulated pairs hold the true change."""
    rng = np.random.default_rng(0)
    draws = rng.multinomial(400, [0.06, 0.04, 0.9], 2000)
    held = sum(i.low <= 0.02 <= i.high for i in (stats.paired_interval(stats.Paired(400, int(g), int(w))) for g, w, _ in draws))
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_paired_bootstrap_equals_scipy():
    """The same distribution as scipy's percentile bootstrap of paired samples."""
    rng = np.random.default_rng(1)
    a, b = rng.random(300), rng.random(300) + 0.05
    interval, p = stats.paired_bootstrap(b - a)
    oracle = sp.bootstrap(
        (b, a), lambda x, y, axis: (x - y).mean(axis=axis), paired=True, vectorized=True, n_resamples=10_000,
        method="percentile", rng=2,
    ).confidence_interval  # fmt: skip
    assert (oracle.low, oracle.high) == pytest.approx((interval.low, interval.high), abs=2e-3)
    assert sp.ttest_rel(b, a).pvalue == pytest.approx(p, abs=0.01)


def test_holm_equals_statsmodels():
    """Adjusted p-values, ties included; the levels agree with the decisions."""
    rng = np.random.default_rng(2)
    for _ in range(50):
        p = np.round(rng.random(8) ** 4, 3).tolist()
        reject, adjusted, *_ = multipletests(p, method="holm")
        assert adjusted == pytest.approx(stats.holm(p), abs=CLOSE)
        assert [bool(r) for r in reject] == [value <= level for value, level in zip(p, stats.holm_levels(p), strict=True)]


def test_latency_ratio_resamples_rounds():
    """A 10 % slower model is found; a round that was disturbed for both does not matter."""
    rng = np.random.default_rng(3)
    reference = [list(5 * rng.lognormal(0, 0.02, 50) * (3 if i == 4 else 1)) for i in range(20)]
    candidate = [list(5.5 * rng.lognormal(0, 0.02, 50) * (3 if i == 4 else 1)) for i in range(20)]
    interval, p = stats.latency_ratio(reference, candidate)
    assert interval.value == pytest.approx(1.1, abs=0.02)
    assert interval.low > 1
    assert p < 0.001
    same, _ = stats.latency_ratio(reference, reference)
    assert stats.noise_floor(same) == 0.0


def test_faces_needed_reach_their_power():
    """At the number of faces named, 80 % of simulated comparisons decide."""
    n = stats.faces_for_difference(0.02, 0.10)
    rng = np.random.default_rng(4)
    draws = rng.multinomial(n, [0.06, 0.04, 0.9], 1000)
    found = np.mean([stats.mcnemar(int(g), int(w)) < 0.05 for g, w, _ in draws])
    assert found == pytest.approx(0.8, abs=0.05)
    m = stats.faces_for_non_inferiority(0.0, 0.10, 0.015)
    draws = rng.multinomial(m, [0.05, 0.05, 0.9], 1000)
    found = np.mean([stats.paired_interval(stats.Paired(m, int(g), int(w))).low > -0.015 for g, w, _ in draws])
    assert found == pytest.approx(0.8, abs=0.05)


def test_no_number_of_faces_decides_a_difference_of_zero_below_the_margin():
    """Without a change there is nothing to find, without discordant faces nothing to count."""
    assert stats.faces_for_difference(0.0, 0.1) is None
    assert stats.faces_for_non_inferiority(-0.02, 0.1, 0.015) is None
    assert stats.more_faces(stats.Paired(100, 0, 0), 0.015) is None
    assert stats.more_faces(stats.Paired(300, 12, 11), 0.015) > 0


def test_interval_over_seeds_equals_scipy():
    """Student's t over the seeds."""
    values = [0.81, 0.83, 0.82, 0.80]
    mean, sd, low, high = stats.mean_interval(values)
    expected = sp.t.interval(0.95, 3, np.mean(values), sp.sem(values))
    assert (np.mean(values), np.std(values, ddof=1), *expected) == pytest.approx((mean, sd, low, high), abs=CLOSE)
    assert stats.mean_interval([0.5]) == (0.5, 0.0, 0.5, 0.5)


def test_the_interval_of_macro_recall_covers_its_mean():
    """Classes as unequal as FERPlus' test faces: 93 to 97 of 100 intervals hold the true mean, few miss it on either side."""
    n = np.array([1083, 892, 394, 382, 269, 16, 86, 15])
    recall = np.array([0.9, 0.94, 0.89, 0.72, 0.81, 0.35, 0.45, 0.15])
    hits = np.random.default_rng(0).binomial(n, recall, (3000, 8))
    intervals = np.array([stats.macro_interval(row.tolist(), n.tolist()) for row in hits])
    below, above = intervals[:, 0] > recall.mean(), intervals[:, 1] < recall.mean()
    assert 0.93 <= 1 - (below | above).mean() <= 0.97
    assert max(below.mean(), above.mean()) <= 0.05


def test_the_interval_of_one_class_is_wilsons_and_empty_classes_are_left_out():
    assert stats.macro_interval([7, 0], [10, 0]) == pytest.approx(stats.wilson(7, 10))
    assert stats.macro_interval([0], [0]) == (0.0, 1.0)
    low, high = stats.macro_interval([0, 10], [10, 10])
    assert low < 0.5 < high  # none right of ten, and all of ten, are not certain


def test_the_noise_floor_is_how_far_the_control_may_be_from_itself() -> None:
    """The end of its interval that is further from one, not the estimate."""
    assert stats.noise_floor(stats.Interval(1.0, 0.97, 1.01)) == pytest.approx(0.03)


def test_the_faces_that_an_undecided_comparison_lacks() -> None:
    """Those of the word that needs fewer: a difference, or non-inferiority."""
    counts = stats.Paired(3137, 130, 160)
    difference = stats.faces_for_difference(counts.change, counts.disagreement)
    non_inferiority = stats.faces_for_non_inferiority(counts.change, counts.disagreement, 0.015)
    assert difference is not None
    assert non_inferiority is not None
    assert 3137 < difference < non_inferiority
    assert stats.more_faces(counts, 0.015) == difference - 3137
