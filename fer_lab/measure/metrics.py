"""Metrics of probabilities against labels and votes: pure functions of numpy arrays.

Everything is computed in float64. Macro means run over the classes that have faces in `targets` (a class nobody could
hit is left out, not counted as zero). Tested against scikit-learn and scipy to 1e-9.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lab.core.errors import InputError

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]

ECE_BINS = 15  # Guo et al., "On Calibration of Modern Neural Networks", ICML 2017
_TINY = float(np.finfo(np.float64).eps)  # what scikit-learn's log_loss clips a probability to


def all_metrics(probs: Floats, targets: Integers, votes_distribution: Floats | None) -> dict[str, float]:
    """Return every figure of quality of one set of probabilities.

    probs: [N, K], rows sum to 1. targets: [N] in 0..K-1. votes_distribution: [N, K], rows sum to 1 or are all 0 (left
    out), or None (then `kl_to_votes` and `js_to_votes` are absent). Returns accuracy, macro_recall (= balanced_accuracy),
    macro_precision, macro_f1, f1_of_macro_pr (harmonic mean of macro precision and macro recall, the thesis' F1),
    weighted_f1 in 0..1; nll in nats; brier in 0..2; ece in 0..1 (15 equal-width bins of the top probability); kl_to_votes
    and js_to_votes in nats. Raises InputError when shapes do not fit or there is no face.
    """
    _check(probs, targets)
    table = per_class(confusion(targets, probs.argmax(axis=1), probs.shape[1]))
    present = table["n"] > 0
    recall = float(table["recall"][present].mean())
    precision = float(table["precision"][present].mean())
    figures = {
        "accuracy": float((probs.argmax(axis=1) == targets).mean()),
        "macro_recall": recall,
        "balanced_accuracy": recall,
        "macro_precision": precision,
        "macro_f1": float(table["f1"][present].mean()),
        "f1_of_macro_pr": 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0,
        "weighted_f1": float((table["f1"] * table["n"]).sum() / table["n"].sum()),
        "nll": nll(probs, targets),
        "brier": float(brier_per_face(probs, targets).mean()),
        "ece": ece(probs, targets),
    }
    if votes_distribution is not None:
        figures["kl_to_votes"] = kl_to_votes(probs, votes_distribution)
        figures["js_to_votes"] = js_to_votes(probs, votes_distribution)
    return figures


def confusion(targets: Integers, predicted: Integers, k: int) -> npt.NDArray[np.int64]:
    """Return int64 [K, K]: rows are the true labels, columns the predicted ones.

    >>> confusion(np.array([0, 1, 1]), np.array([0, 1, 0]), 2).tolist()
    [[1, 0], [1, 1]]
    """
    flat = np.asarray(targets, np.int64) * k + np.asarray(predicted, np.int64)
    return np.bincount(flat, minlength=k * k).reshape(k, k)


def per_class(matrix: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
    """Return `n`, `precision`, `recall`, `f1` of each class, float64 [K], from a confusion matrix [K, K].

    A class never predicted has precision 0, a class without faces recall 0 (look at `n` first).
    """
    hit = np.diag(matrix).astype(np.float64)
    n = matrix.sum(axis=1).astype(np.float64)
    predicted = matrix.sum(axis=0).astype(np.float64)
    both = n + predicted
    return {
        "n": n,
        "precision": np.divide(hit, predicted, out=np.zeros_like(hit), where=predicted > 0),
        "recall": np.divide(hit, n, out=np.zeros_like(hit), where=n > 0),
        "f1": np.divide(2 * hit, both, out=np.zeros_like(hit), where=both > 0),
    }


def nll(probs: Floats, targets: Integers) -> float:
    """Mean negative log-likelihood of the true label in nats; probabilities are clipped at the float64 epsilon."""
    own = np.asarray(probs, np.float64)[np.arange(len(targets)), targets]
    return float(-np.log(np.clip(own, _TINY, 1.0)).mean())


def brier_per_face(probs: Floats, targets: Integers) -> npt.NDArray[np.float64]:
    """Squared distance of each row to its one-hot label, summed over classes, float64 [N] in 0..2 (Brier 1950)."""
    wide = np.asarray(probs, np.float64)
    own = wide[np.arange(len(targets)), targets]
    return np.asarray((wide**2).sum(axis=1) - 2 * own + 1.0, np.float64)


def ece(probs: Floats, targets: Integers, bins: int = ECE_BINS) -> float:
    """Expected calibration error: |accuracy − confidence| over equal-width bins (lo, hi] of the top probability, by share."""
    _, share, confidence, accuracy = reliability_bins(probs, targets, bins)
    return float((share * np.abs(accuracy - confidence)).sum())


def ece_floor(probs: Floats, bins: int = ECE_BINS) -> float:
    """The calibration error that these faces would show if every top probability were exactly right, in expectation.

    Even then the share of right ones in a bin varies: by a normal of the bin's binomial variance, whose mean absolute
    value is sqrt(2 / pi) of its standard deviation.
    """
    top = np.asarray(probs, np.float64).max(axis=1)
    variance = np.bincount(_bin_of(top, bins), weights=top * (1 - top), minlength=bins)
    return float(np.sqrt(2 / np.pi) * np.sqrt(np.maximum(variance, 0)).sum() / max(len(top), 1))


def reliability_bins(
    probs: Floats, targets: Integers, bins: int = ECE_BINS
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return bin edges [B+1] and, per bin [B], share of faces, mean top probability, accuracy (0 where a bin is empty)."""
    wide = np.asarray(probs, np.float64)
    top = wide.max(axis=1)
    hit = (wide.argmax(axis=1) == targets).astype(np.float64)
    which = _bin_of(top, bins)
    count = np.bincount(which, minlength=bins).astype(np.float64)
    safe = np.maximum(count, 1)
    confidence = np.bincount(which, weights=top, minlength=bins) / safe
    accuracy = np.bincount(which, weights=hit, minlength=bins) / safe
    return np.linspace(0, 1, bins + 1), count / max(len(top), 1), confidence, accuracy


def kl_to_votes(probs: Floats, votes_distribution: Floats) -> float:
    """Mean KL(votes ‖ probs) in nats over the faces that have votes; 0 when none has."""
    votes, wide = _with_votes(probs, votes_distribution)
    if len(votes) == 0:
        return 0.0
    return float(_relative_entropy(votes, np.clip(wide, _TINY, 1.0)).mean())


def js_to_votes(probs: Floats, votes_distribution: Floats) -> float:
    """Mean Jensen–Shannon divergence of probabilities and votes in nats (0..ln 2); 0 when no face has votes."""
    votes, wide = _with_votes(probs, votes_distribution)
    if len(votes) == 0:
        return 0.0
    middle = (votes + wide) / 2
    return float(((_relative_entropy(votes, middle) + _relative_entropy(wide, middle)) / 2).mean())


def annotator_agreement(predicted: Integers, votes_distribution: Floats) -> float:
    """Chance that one annotator drawn at random among those who named one of the labels named the predicted one.

    predicted: [N] labels; with the majority labels themselves this is the human line (about 0.82 on FERPlus).
    """
    votes = np.asarray(votes_distribution, np.float64)
    usable = votes.sum(axis=1) > 0
    if not usable.any():
        return 0.0
    return float(votes[np.arange(len(votes)), predicted][usable].mean())


def _bin_of(top: npt.NDArray[np.float64], bins: int) -> npt.NDArray[np.int64]:
    return np.clip(np.ceil(top * bins).astype(np.int64) - 1, 0, bins - 1)


def _with_votes(probs: Floats, votes_distribution: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    votes = np.asarray(votes_distribution, np.float64)
    usable = votes.sum(axis=1) > 0
    votes, wide = votes[usable], np.asarray(probs, np.float64)[usable]
    return votes / votes.sum(axis=1, keepdims=True), wide / wide.sum(axis=1, keepdims=True)


def _relative_entropy(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return np.asarray((p * np.log(ratio)).sum(axis=1), np.float64)


def _check(probs: Floats, targets: Integers) -> None:
    if probs.ndim != 2 or targets.shape != (len(probs),):
        raise InputError(f"metrics need probabilities [N, K] and labels [N], got {list(probs.shape)} and {list(targets.shape)}")
    if len(probs) == 0:
        raise InputError("metrics need at least one face, got none")
    if targets.min() < 0 or targets.max() >= probs.shape[1]:
        raise InputError(f"labels must lie in 0..{probs.shape[1] - 1}, got {targets.min()}..{targets.max()}")
