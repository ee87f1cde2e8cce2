"""Corruptions keep the contract, are reproducible, and grow with their level."""

from __future__ import annotations

import numpy as np
import pytest

from fer_lab.measure import corruptions
from fer_lab.measure.latency import drawn_faces


@pytest.mark.parametrize("corruption", corruptions.CORRUPTIONS, ids=lambda c: c.name)
def test_a_corruption_is_reproducible_and_grows(corruption):
    """Same seed, same pixels; a higher level is farther from the clean face; level 0 is the clean face."""
    faces = drawn_faces(20)
    before = faces.copy()
    distances = []
    for level in (0.0, *corruption.levels):
        out = corruptions.corrupt(corruption, faces, level)
        assert (out.shape, out.dtype) == (faces.shape, np.uint8)
        assert (out == corruptions.corrupt(corruption, faces, level)).all()
        distances.append(float(np.abs(out.astype(float) - faces).mean()))
    assert distances[0] == 0
    assert distances == sorted(distances)
    assert distances[-1] > distances[1] > 0
    assert (faces == before).all()


def test_half_occlusion_covers_half():
    """Exactly 24 of 48 rows or columns turn gray."""
    occlusion = next(c for c in corruptions.CORRUPTIONS if c.name == "occlusion")
    out = corruptions.corrupt(occlusion, np.zeros((9, 48, 48), np.uint8), 0.5)
    assert ((out == 127).mean(axis=(1, 2)) == 0.5).all()


def test_area_is_the_mean_accuracy_over_strengths():
    """Uneven steps are weighted by their width; numpy's trapezoid rule is the oracle."""
    levels, accuracy = (0.0, 1.0, 3.0), (0.9, 0.7, 0.1)
    assert np.trapezoid(accuracy, levels) / 3 == pytest.approx(corruptions.area(levels, accuracy), abs=1e-12)
