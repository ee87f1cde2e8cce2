"""One number that makes probabilities honest: temperature scaling (Guo et al., ICML 2017)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

LOG_RANGE = (math.log(0.05), math.log(20.0))  # a network outside is broken, not miscalibrated
GOLDEN = (math.sqrt(5) - 1) / 2


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


def softmax(logits: npt.NDArray[np.float32], temperature: float = 1.0) -> npt.NDArray[np.float32]:
    """Return softmax(logits / temperature) as float32 [N, K]."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    exponentials = np.exp(scaled)
    probs: npt.NDArray[np.float32] = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    return probs


def _nll(logits: npt.NDArray[np.float64], targets: npt.NDArray[np.int64], log_temperature: float) -> float:
    scaled = logits * math.exp(-log_temperature)
    peak = scaled.max(axis=1)
    log_sum = peak + np.log(np.exp(scaled - peak[:, None]).sum(axis=1))
    return float((log_sum - scaled[np.arange(len(targets)), targets]).mean())
