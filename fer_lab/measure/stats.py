"""The statistics of a comparison: intervals, paired tests, corrections, and how many faces a decision would need.

Pure functions of counts and arrays, each tested against scipy or statsmodels. Every random one takes a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lab.core.errors import MissingPart

ALPHA = 0.05
RESAMPLES = 10_000
POWER = 0.8

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Interval:
    """A point estimate with its two-sided interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """How two models differ on the same faces: who alone was right, how often."""

    n: int
    gained: int  # only the candidate right
    lost: int  # only the reference right

    @property
    def change(self) -> float:
        """Accuracy of the candidate minus that of the reference."""
        return (self.gained - self.lost) / self.n if self.n else 0.0

    @property
    def disagreement(self) -> float:
        """Share of faces on which exactly one of the two is right."""
        return (self.gained + self.lost) / self.n if self.n else 0.0


def paired(reference_right: npt.NDArray[np.bool_], candidate_right: npt.NDArray[np.bool_]) -> Paired:
    """Count the faces on which only one of the two is right. bool [N] each, the same faces in the same order."""
    gained = int((candidate_right & ~reference_right).sum())
    return Paired(len(reference_right), gained, int((reference_right & ~candidate_right).sum()))


def wilson(hits: int, n: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson, JASA 1927). (0, 1) when n is 0.

    >>> [round(x, 3) for x in wilson(85, 100)]
    [0.767, 0.907]
    """
    if n == 0:
        return 0.0, 1.0
    z2 = _z(alpha) ** 2
    share = hits / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2) / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half) if hits else 0.0, min(1.0, centre + half) if hits < n else 1.0


def macro_interval(hits: Sequence[int], n: Sequence[int], alpha: float = ALPHA) -> tuple[float, float]:
    """Interval of the unweighted mean of independent shares, such as the recalls of classes; shares of n = 0 are left out.

    Each share's distance to its Wilson limit counts as its standard error in that direction, and squares add up (MOVER:
    Zou & Donner, Statistics in Medicine 2008). Unlike a bootstrap it does not take a class with none right as certain.
    (0, 1) when there is none.

    >>> [round(x, 3) for x in macro_interval([85, 3], [100, 10])]
    [0.47, 0.729]
    """
    present = [(h, m, *wilson(h, m, alpha)) for h, m in zip(hits, n, strict=True) if m > 0]
    if not present:
        return 0.0, 1.0
    mean = math.fsum(h / m for h, m, _, _ in present) / len(present)
    below = math.sqrt(math.fsum((h / m - low) ** 2 for h, m, low, _ in present)) / len(present)
    above = math.sqrt(math.fsum((high - h / m) ** 2 for h, m, _, high in present)) / len(present)
    return mean - below, mean + above


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of McNemar's exact test: the binomial test of the discordant faces against one half.

    >>> mcnemar(0, 0), round(mcnemar(8, 2), 4)
    (1.0, 0.1094)
    """
    n, smaller = gained + lost, min(gained, lost)
    if n == 0 or 2 * smaller == n:
        return 1.0
    term = tail = 1  # integers: exact at any n
    for i in range(1, smaller + 1):
        term = term * (n - i + 1) // i
        tail += term
    return min(1.0, float(2 * tail / 2**n)) if n < 1000 else min(1.0, math.exp(math.log(2 * tail) - n * math.log(2)))


def paired_interval(counts: Paired, alpha: float = ALPHA) -> Interval:
    """Score interval of the change in accuracy of two models on the same faces (Tango, Statistics in Medicine 1998).

    Unlike the bootstrap it keeps its width when no or nearly no face is discordant.
    """
    n, z2 = counts.n, _z(alpha) ** 2
    if n == 0:
        return Interval(0.0, -1.0, 1.0)

    def statistic(delta: float) -> float:
        """Squared score statistic of H: change = delta, with the nuisance share at its restricted maximum likelihood."""
        b = (2 * n - counts.gained + counts.lost) * delta - counts.gained - counts.lost
        c = -counts.lost * delta * (1 - delta)
        lost = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)  # restricted estimate of P(only the reference right)
        variance = n * (2 * lost + delta * (1 - delta))
        difference = counts.gained - counts.lost - n * delta
        if variance <= 0:
            return 0.0 if abs(difference) < 1e-12 else math.inf
        return difference * difference / variance

    change = counts.change
    return Interval(change, _boundary(statistic, z2, change, -1.0), _boundary(statistic, z2, change, 1.0))


def paired_bootstrap(
    differences: Floats, alpha: float = ALPHA, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Interval, float]:
    """Percentile interval of the mean of per-face differences, float [N], resampling faces; and a two-sided p-value.

    The p-value is twice the smaller share of resampled means on the other side of zero, plus one (Davison & Hinkley 1997).
    """
    values = np.asarray(differences, np.float64)
    means = _resampled(lambda rows: values[rows].mean(axis=1), len(values), resamples, seed)
    return _percentile_interval(float(values.mean()), means, alpha), _two_sided(means)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values in the order given (Holm, Scand. J. Statistics 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    m = len(p_values)
    adjusted, running = [0.0] * m, 0.0
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def holm_levels(p_values: Sequence[float], alpha: float = ALPHA) -> list[float]:
    """Return the level at which each hypothesis was judged: α/(m−rank) while Holm rejects, then the level where it stopped.

    An interval at that level agrees with Holm's decision.
    """
    m = len(p_values)
    levels, stopped = [0.0] * m, None
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        level = alpha / (m - rank) if stopped is None else stopped
        if p_values[index] > level and stopped is None:
            stopped = level
        levels[index] = level
    return levels


def latency_ratio(
    reference_rounds: Sequence[Sequence[float]],
    candidate_rounds: Sequence[Sequence[float]],
    alpha: float = ALPHA,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Interval, float]:
    """Ratio candidate / reference of latency with a block-bootstrap interval over rounds, and a two-sided p-value.

    Each round gives one ratio of medians; the estimate is the median over rounds, and rounds (not samples, which are
    not independent) are resampled. Milliseconds, the same number of rounds in both.
    """
    logs = np.array(
        [math.log(np.median(c) / np.median(r)) for r, c in zip(reference_rounds, candidate_rounds, strict=True)], np.float64
    )
    medians = _resampled(lambda rows: np.median(logs[rows], axis=1), len(logs), resamples, seed)
    inside = _percentile_interval(float(np.median(logs)), medians, alpha)
    return Interval(math.exp(inside.value), math.exp(inside.low), math.exp(inside.high)), _two_sided(medians)


def median_interval(rounds: Sequence[Sequence[float]], alpha: float = ALPHA, resamples: int = 2000, seed: int = 0) -> Interval:
    """Median latency over rounds (ms) with its block-bootstrap interval: rounds are resampled, their medians pooled."""
    medians = np.array([np.median(one) for one in rounds], np.float64)
    drawn = _resampled(lambda rows: np.median(medians[rows], axis=1), len(medians), resamples, seed)
    return _percentile_interval(float(np.median(medians)), drawn, alpha)


def noise_floor(control: Interval) -> float:
    """How far from 1 the ratio of one model to itself may lie: the farther end of its interval."""
    return max(abs(control.low - 1), abs(control.high - 1))


def faces_for_difference(change: float, disagreement: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """Faces at which McNemar's test finds this change with this power (Connor, Biometrics 1987). None when there is none."""
    if change == 0 or disagreement <= 0:
        return None
    z = _z(alpha) * math.sqrt(disagreement) + NormalDist().inv_cdf(power) * math.sqrt(max(disagreement - change**2, 0.0))
    return math.ceil((z / change) ** 2)


def faces_for_non_inferiority(
    change: float, disagreement: float, margin: float, alpha: float = ALPHA, power: float = POWER
) -> int | None:
    """Faces at which the interval's lower end lies above −margin with this power. None when the change is below −margin."""
    if change + margin <= 0 or disagreement <= 0:
        return None
    z = _z(alpha) + NormalDist().inv_cdf(power)
    return math.ceil(z * z * max(disagreement - change**2, 0.0) / (change + margin) ** 2)


def more_faces(counts: Paired, margin: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """How many faces beyond `counts.n` would decide, one way or the other, if the change seen is the true one."""
    needed = [
        faces_for_difference(counts.change, counts.disagreement, alpha, power),
        faces_for_non_inferiority(counts.change, counts.disagreement, margin, alpha, power),
    ]
    known = [faces for faces in needed if faces is not None]
    return max(1, min(known) - counts.n) if known else None


def mean_interval(values: Sequence[float], alpha: float = ALPHA) -> tuple[float, float, float, float]:
    """Mean, standard deviation (n − 1) and Student-t interval of a few independent values (one per seed)."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return mean, 0.0, mean, mean
    try:
        from scipy.stats import t
    except ImportError:
        raise MissingPart("scipy", "lab", "an interval over seeds") from None
    sd = float(np.std(values, ddof=1))
    half = float(t.ppf(1 - alpha / 2, n - 1)) * sd / math.sqrt(n)
    return mean, sd, mean - half, mean + half


def _z(alpha: float) -> float:
    return NormalDist().inv_cdf(1 - alpha / 2)


def _boundary(statistic: Callable[[float], float], limit: float, inside: float, outside: float) -> float:
    """Bisect for the point between `inside` and `outside` where the statistic passes the limit."""
    if statistic(outside) <= limit:
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        if statistic(middle) <= limit:
            inside = middle
        else:
            outside = middle
    return (inside + outside) / 2


def _resampled(
    statistic: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]], n: int, resamples: int, seed: int
) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    chunk = max(1, 2_000_000 // max(n, 1))  # bounds the memory of one draw to 16 MB
    parts = [statistic(rng.integers(0, n, (min(chunk, resamples - done), n))) for done in range(0, resamples, chunk)]
    return np.concatenate(parts)


def _percentile_interval(value: float, resampled: npt.NDArray[np.float64], alpha: float) -> Interval:
    low, high = np.percentile(resampled, [100 * alpha / 2, 100 * (1 - alpha / 2)])
    return Interval(value, float(low), float(high))


def _two_sided(resampled: npt.NDArray[np.float64]) -> float:
    below, above = int((resampled <= 0).sum()), int((resampled >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(resampled) + 1))
