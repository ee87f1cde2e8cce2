"""One number that makes probabilities honest."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from fer_lab.training.temperature import fit_temperature, softmax


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_it_is_the_minimum_that_scipy_finds(scale: float) -> None:
    """On logits that are too timid, right, and too sure."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(500, 5)) * 2).astype(np.float32)
    targets = np.array([rng.choice(5, p=p / p.sum()) for p in softmax(logits).astype(np.float64)])
    logits *= scale

    def nll(log_t: float) -> float:
        return float(-np.log(softmax(logits, np.exp(log_t))[np.arange(500), targets]).mean())

    wanted = minimize_scalar(nll, bounds=(-3, 3), method="bounded", options={"xatol": 1e-7})
    assert fit_temperature(logits, targets) == pytest.approx(np.exp(wanted.x), rel=2e-3)
    assert fit_temperature(logits, targets) == pytest.approx(scale, rel=0.2)


def test_softmax_survives_large_logits() -> None:
    """No overflow."""
    assert softmax(np.array([[1e4, 0.0]], np.float32)).tolist() == [[1.0, 0.0]]
