"""Pictures are written, also for the corner cases: one epoch, no mistake, an empty class."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fer_lab.measure import metrics, plots

LABELS = ("a", "b", "c")


def test_pictures_are_pngs_of_a_sensible_size(tmp_path):
    """Curves, confusion matrix, worst mistakes and reliability diagram."""
    rng = np.random.default_rng(0)
    probs, targets = rng.dirichlet(np.ones(3), 40), rng.integers(0, 2, 40)
    pixels, names = rng.integers(0, 255, (40, 48, 48), dtype=np.uint8), [f"f{i}.png" for i in range(40)]
    written = [
        plots.curves([{"epoch": 0, "val/accuracy": 0.5, "lr": 1e-3}], tmp_path / "curves.png"),
        plots.confusion_matrix(metrics.confusion(targets, probs.argmax(1), 3), LABELS, tmp_path / "sub" / "confusion.png"),
        plots.worst_mistakes(pixels, names, targets, probs, LABELS, tmp_path / "worst.png", n=7),
        plots.worst_mistakes(pixels, names, targets, np.eye(3)[targets], LABELS, tmp_path / "none.png"),
        plots.reliability(probs, targets, tmp_path / "reliability.png", title="model"),
    ]
    for path in written:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 200


def test_the_worst_mistake_comes_first():
    """Ordered by the probability that the true label got; right answers are left out."""
    probs = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]])
    assert plots.worst_rows(np.array([1, 1, 1]), probs).tolist() == [1, 0]
