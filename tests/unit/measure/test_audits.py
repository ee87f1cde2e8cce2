"""Leaks and batch audits: what is not known is not called clean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny_bundle import write

from fer_lab.backends.bundle import open_bundle
from fer_lab.data.audit import twins
from fer_lab.data.faces import FaceDataset
from fer_lab.measure import audits
from fer_lab.measure.candidates import Candidate


class Answers:
    """A model that gives these probabilities for a face alone and those in a batch."""

    def __init__(self, alone: list[float], together: list[float]) -> None:
        self.alone, self.together = alone, together

    def predict(self, faces: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.array([self.alone if len(faces) == 1 else self.together] * len(faces), np.float32)


@pytest.mark.parametrize(
    ("config", "count", "says"),
    [
        ({}, None, "not recorded"),
        ({"data": {}}, None, "not recorded"),
        ({"data": {"drop_twins": True}}, 0, "without the twins"),
        ({"data": {"drop_twins": True}, "model": {"weights_file": "sha256:abc"}}, 0, "weights that it began from had seen is not"),
        ({"data": {"drop_twins": False}}, 3, "3 of 20 faces stand in its training data"),
    ],
)
def test_a_leak_is_counted_where_it_can_be(config: dict[str, object], count: int | None, says: str, drawn: FaceDataset) -> None:
    """Nothing recorded is not nothing leaked, and a start from other weights is told."""
    rows = drawn.indices("test")[:20]
    pixels = drawn.pixels.copy()
    pixels[rows[:3]] = pixels[drawn.indices("train")[:3]]
    dataset = replace(drawn, pixels=pixels)
    before = audits.leakage({"fingerprint": dataset.fingerprint, "config": {"data": {"drop_twins": False}}}, dataset, rows[3:])
    assert before[1] == 0
    same, leaked, note = audits.leakage({"fingerprint": dataset.fingerprint, "config": config}, dataset, rows)
    assert (same, leaked) == (True, count)
    assert says in note


def test_answers_that_are_no_numbers_fail_the_batch_audit(drawn: FaceDataset) -> None:
    """And what is stored of them is a number: no record may hold another."""
    faces = drawn.pixels[:70]
    audit = audits.batch_invariance(Answers([float("nan"), 0.5], [0.5, 0.5]), faces)
    assert (audit.batch_invariant, audit.batch_flips, audit.batch_max_dp) == (False, 70, 1.0)
    audit = audits.batch_invariance(Answers([0.3, 0.7], [0.3, 0.7]), faces)
    assert (audit.batch_invariant, audit.batch_flips, audit.batch_max_dp) == (True, 0, 0.0)


def test_what_export_saw_on_one_device_is_not_said_of_another(tmp_path: Path) -> None:
    """parity.json of the miniature is of the CPU."""
    bundle = open_bundle(write(tmp_path / "bundle", ["openvino"]))
    candidate = Candidate("bundle", bundle)
    assert candidate.parity("openvino") == candidate.parity("openvino:CPU")
    assert candidate.parity("openvino:GPU") is None


def test_a_clean_face_has_no_twin_in_the_splits_before_it(drawn: FaceDataset) -> None:
    """As the audit of the dataset says, which groups twins in another way; a twin in valid alone counts too."""
    pixels, rows = drawn.pixels.copy(), drawn.indices("test")
    pixels[rows[0]] = pixels[drawn.indices("valid")[0]]
    planted = replace(drawn, pixels=pixels)
    clean = {planted.names[row] for row in rows[audits.clean_mask(planted, rows, "test")]}
    assert clean == set(twins(planted).clean_test)
    assert planted.names[rows[0]] not in clean
    assert clean
