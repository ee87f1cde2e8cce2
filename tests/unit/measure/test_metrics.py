"""Every metric against an independent oracle."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from sklearn import metrics as oracle

from fer_lab.core.errors import InputError
from fer_lab.measure import metrics

CLOSE = 1e-9


@pytest.fixture(params=[0, 1, 2])
def case(request):
    rng = np.random.default_rng(request.param)
    n, k = 500, 8
    probs = rng.dirichlet(np.ones(k), n)
    classes = k if request.param else 6  # seed 0: two classes without a single face
    targets = rng.integers(0, classes, n)
    votes = rng.multinomial(10, rng.dirichlet(np.ones(k)), n) / 10
    return probs, targets, votes


def test_quality_figures_equal_scikit_learn(case):
    """Accuracy, precision, recall, the F1s, log loss and Brier score are scikit-learn's."""
    probs, targets, votes = case
    got = metrics.all_metrics(probs, targets, votes)
    predicted, present, k = probs.argmax(1), np.unique(targets), probs.shape[1]
    precision = oracle.precision_score(targets, predicted, labels=present, average="macro", zero_division=0)
    recall = oracle.recall_score(targets, predicted, labels=present, average="macro", zero_division=0)
    expected = {
        "accuracy": oracle.accuracy_score(targets, predicted),
        "macro_recall": recall,
        "balanced_accuracy": recall,
        "macro_precision": precision,
        "macro_f1": oracle.f1_score(targets, predicted, labels=present, average="macro", zero_division=0),
        "f1_of_macro_pr": 2 * precision * recall / (precision + recall),
        "weighted_f1": oracle.f1_score(targets, predicted, average="weighted", zero_division=0),
        "nll": oracle.log_loss(targets, probs, labels=range(k)),
        "brier": np.mean(((probs - np.eye(k)[targets]) ** 2).sum(1)),
    }
    assert expected == pytest.approx({name: got[name] for name in expected}, abs=CLOSE)


def test_brier_equals_scikit_learn(case):
    """The multi-class Brier score is scikit-learn's unscaled one."""
    probs, targets, _ = case
    expected = oracle.brier_score_loss(targets, probs, labels=list(range(probs.shape[1])), scale_by_half=False)
    assert expected == pytest.approx(metrics.brier_per_face(probs, targets).mean(), abs=CLOSE)


def test_distances_to_votes_equal_scipy(case):
    """KL and Jensen–Shannon divergence are scipy's, averaged over faces with votes."""
    probs, targets, votes = case
    votes = votes.copy()
    votes[0] = 0
    got = metrics.all_metrics(probs, targets, votes)
    assert np.mean(entropy(votes[1:], probs[1:], axis=1)) == pytest.approx(got["kl_to_votes"], abs=CLOSE)
    assert np.mean(jensenshannon(votes[1:], probs[1:], axis=1) ** 2) == pytest.approx(got["js_to_votes"], abs=CLOSE)


def test_confusion_equals_scikit_learn(case):
    """Rows are the truth, columns the prediction."""
    probs, targets, _ = case
    expected = oracle.confusion_matrix(targets, probs.argmax(1), labels=range(8))
    assert expected.tolist() == metrics.confusion(targets, probs.argmax(1), 8).tolist()


def test_calibration_error_equals_its_definition(case):
    """ECE by an explicit loop over the fifteen bins."""
    probs, targets, _ = case
    top, hit = probs.max(1), probs.argmax(1) == targets
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (top > low) & (top <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(hit[inside].mean() - top[inside].mean())
    assert expected == pytest.approx(metrics.ece(probs, targets), abs=CLOSE)


def test_agreement_with_one_annotator():
    """The share of votes that the predicted label got, averaged."""
    votes = np.array([[0.7, 0.3], [0.2, 0.8], [0.0, 0.0]])
    assert metrics.annotator_agreement(np.array([0, 0, 1]), votes) == pytest.approx(0.45)


def test_a_certain_wrong_answer_stays_finite():
    """Probability zero on the true label costs −log(epsilon), not infinity."""
    assert np.isfinite(metrics.nll(np.array([[1.0, 0.0]]), np.array([1])))


@pytest.mark.parametrize(
    ("probs", "targets"),
    [(np.ones((2, 3)) / 3, np.array([0])), (np.zeros((0, 3)), np.zeros(0, int)), (np.ones((1, 3)) / 3, np.array([3]))],
)
def test_bad_shapes_are_refused(probs, targets):
    """A wrong count, no face at all and a label out of range each name the fault."""
    with pytest.raises(InputError):
        metrics.all_metrics(probs, targets, None)


def test_the_floor_of_the_calibration_error_is_what_a_perfect_model_shows():
    """Labels drawn from the probabilities themselves: the mean error over 300 draws is the floor, within a tenth of it."""
    draw = np.random.default_rng(0)
    probs = draw.dirichlet([0.3] * 8, 3137)
    shown = []
    for _ in range(300):
        targets = (draw.random((len(probs), 1)) > probs.cumsum(axis=1)).sum(axis=1).clip(0, 7)
        shown.append(metrics.ece(probs, targets))
    assert metrics.ece_floor(probs) == pytest.approx(np.mean(shown), rel=0.1)
