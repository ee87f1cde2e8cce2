"""A few numbers, fitted on the validation split, that make a trained network's probabilities those of its labels.

`fit_temperature`: one number (temperature scaling; Guo et al., ICML 2017). `fit_bias`: one number per class as well
(bias-corrected temperature scaling; Alexandari et al., ICML 2020). A network that learns shares of votes knows how many
votes a label gets, and not how often it wins: anger wins more often than its share of the votes. Biases put that right.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

LOG_RANGE = (math.log(0.05), math.log(20.0))  # a network outside is broken, not miscalibrated
GOLDEN = (math.sqrt(5) - 1) / 2
FOLDS = 5


def fit_temperature(logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> float:
    """Return the T > 0 that minimises the NLL of softmax(logits / T).

    logits: [N, K]. targets: int64 [N]. The NLL is convex in 1/T and so has one minimum in log T, found by golden
    section to 1e-5.
    """
    values = logits.astype(np.float64)
    low, high = LOG_RANGE
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = _nll(values, targets, left), _nll(values, targets, right)
    while high - low > 1e-5:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = _nll(values, targets, left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = _nll(values, targets, right)
    return math.exp((low + high) / 2)


def fit_bias(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], weights: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float64], float]:
    """Return (b, T), b of shape [K], that minimise Σ_i w_(y_i) · nll_i of softmax((logits + b) / T) + |b / T|² / 2.

    logits: [N, K]. targets: int64 [N]. weights: [K], the class weights that the network was trained with: a recipe that
    favours rare classes goes on doing so. The last term is a standard normal prior of b / T, for classes that have
    hardly a face. Convex in (1 / T, b / T).
    """
    from scipy.optimize import minimize

    values, rows = logits.astype(np.float64), np.arange(len(targets))
    of_face = weights.astype(np.float64)[targets]

    def loss(point: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        logs = _log_softmax(values * point[0] + point[1:])
        slope = np.exp(logs)
        slope[rows, targets] -= 1
        slope *= of_face[:, None]
        gradient = np.concatenate([[(slope * values).sum()], slope.sum(axis=0) + point[1:]])
        return float((point[1:] ** 2).sum() / 2 - of_face @ logs[rows, targets]), gradient

    start = np.concatenate([[1.0], np.zeros(values.shape[1])])
    scales = [(math.exp(-LOG_RANGE[1]), math.exp(-LOG_RANGE[0]))]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=scales + [(None, None)] * values.shape[1])
    temperature = 1 / float(found.x[0])
    biases: npt.NDArray[np.float64] = found.x[1:] * temperature
    return biases, temperature


def cross_fitted(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], weights: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return float32 [N, K]: each fifth of the faces with what `fit_bias` finds on the other four.

    As many numbers as there are classes, fitted and measured on the same faces, would flatter.
    """
    fold = np.random.default_rng(0).permutation(len(targets)) % FOLDS
    probs = np.zeros(logits.shape, np.float32)
    for part in range(FOLDS):
        inside = fold == part
        biases, temperature = fit_bias(logits[~inside], targets[~inside], weights)
        probs[inside] = softmax(logits[inside] + biases.astype(np.float32), temperature)
    return probs


def softmax(logits: npt.NDArray[np.float32], temperature: float = 1.0) -> npt.NDArray[np.float32]:
    """Return softmax(logits / temperature) as float32 [N, K]."""
    probs: npt.NDArray[np.float32] = np.exp(_log_softmax(logits.astype(np.float64) / temperature)).astype(np.float32)
    return probs


def _nll(logits: npt.NDArray[np.float64], targets: npt.NDArray[np.int64], log_temperature: float) -> float:
    return -float(_log_softmax(logits * math.exp(-log_temperature))[np.arange(len(targets)), targets].mean())


def _log_softmax(scaled: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = scaled - scaled.max(axis=1, keepdims=True)
    logs: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs
