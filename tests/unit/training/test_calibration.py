"""A few numbers that make probabilities honest."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from fer_lab.training.calibration import cross_fitted, fit_bias, fit_temperature, softmax


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


ALIKE = np.ones(4, np.float32)


def biased(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are twice too large and lack what each class has for itself, with labels drawn from the right ones."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=(n, 4)) * 2
    targets = np.array([rng.choice(4, p=p / p.sum()) for p in softmax((honest + MISSING).astype(np.float32)).astype(np.float64)])
    return (honest * 2).astype(np.float32), targets


MISSING = np.array([1.0, -0.5, 0.0, -1.0])


def test_biases_are_found_that_the_labels_were_drawn_with() -> None:
    """And the temperature; a common shift of all biases changes nothing."""
    logits, targets = biased(20000)
    biases, temperature = fit_bias(logits, targets, ALIKE)
    assert temperature == pytest.approx(2, rel=0.05)
    np.testing.assert_allclose((biases - biases.mean()) / temperature, MISSING - MISSING.mean(), atol=0.06)


def test_a_class_that_training_favours_stays_favoured() -> None:
    """Its weight moves its bias by the logarithm of it."""
    logits, targets = biased(20000)
    plain, temperature = fit_bias(logits, targets, ALIKE)
    favoured, _ = fit_bias(logits, targets, np.array([1, 1, 1, 2.5], np.float32))
    moved = (favoured - plain) / temperature
    assert moved[3] - moved[:3].mean() == pytest.approx(np.log(2.5), abs=0.1)


def test_a_class_without_a_face_is_not_forbidden() -> None:
    """The prior keeps its bias where the network still can say it."""
    logits, targets = biased(500)
    seen = targets != 3
    biases, temperature = fit_bias(logits[seen], targets[seen], ALIKE)
    assert -5 < biases[3] / temperature < 0


def test_no_face_is_calibrated_by_its_own_label() -> None:
    """Another label changes others' probabilities, not its own."""
    logits, targets = biased(300)
    before = cross_fitted(logits, targets, ALIKE)
    targets[7] = (targets[7] + 1) % 4
    after = cross_fitted(logits, targets, ALIKE)
    np.testing.assert_array_equal(after[7], before[7])
    assert (after != before).any()


def test_a_handful_of_faces_is_enough_to_go_on() -> None:
    """Fewer faces than folds: whole rows of probabilities, no error."""
    logits, targets = biased(3)
    np.testing.assert_allclose(cross_fitted(logits, targets, ALIKE).sum(axis=1), 1, rtol=1e-5)


def test_softmax_survives_large_logits() -> None:
    """No overflow."""
    assert softmax(np.array([[1e4, 0.0]], np.float32)).tolist() == [[1.0, 0.0]]
