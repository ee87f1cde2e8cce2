"""The synthetic sample is deterministic, has every class in every split, and looks like faces to a face detector."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_lab.core.errors import InputError
from fer_lab.core.labels import EIGHT, PROTOCOLS
from fer_lab.core.types import SPLITS
from fer_lab.data import synthetic
from fer_lab.data.audit import protocol_counts, twins
from fer_lab.data.faces import FaceDataset


def test_one_seed_gives_one_dataset() -> None:
    """The same seed draws the same faces; another one does not."""
    assert synthetic.draw(120, seed=3).fingerprint == synthetic.draw(120, seed=3).fingerprint
    assert synthetic.draw(120, seed=3).fingerprint != synthetic.draw(120, seed=4).fingerprint


def test_every_class_stands_in_every_split(drawn: FaceDataset) -> None:
    """Training and every comparison can meet each expression."""
    counts = protocol_counts(drawn)["ferplus8"]
    assert min(count for split in SPLITS for count in counts[split].values()) > 0
    shares = [len(drawn.indices(split)) / len(drawn) for split in SPLITS]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.005)


def test_votes_are_ten_and_disagree_as_people_do(drawn: FaceDataset) -> None:
    """Ten votes a face; most faces have a majority, some do not."""
    assert set(drawn.votes.sum(axis=1).tolist()) == {10}
    kept = (PROTOCOLS["ferplus8"].labels(drawn.votes) >= 0).mean()
    assert 0.8 < kept < 0.99


def test_some_pictures_stand_twice(drawn: FaceDataset) -> None:
    """A hundredth of the faces repeats another picture, as FERPlus does, also across splits."""
    assert len(twins(drawn).groups) == len(drawn) // 100
    assert len(twins(drawn).train_twin_rows) > 0


def test_slices_name_faces(drawn: FaceDataset) -> None:
    """Occluded and turned faces are listed by name."""
    assert {"occlusion", "pose30"} == set(drawn.slices)
    assert all(listed and set(listed) <= set(drawn.names) for listed in drawn.slices.values())


@pytest.mark.parametrize("expression", EIGHT.labels)
def test_a_large_face_is_found_by_the_bundled_detector(expression: str) -> None:
    """The demo's sample clip shows drawn faces, which the embedded detector must see."""
    face = synthetic.draw_large(expression, 320, np.random.default_rng(3))
    assert (face.shape, face.dtype) == ((320, 320), np.uint8)
    cascade = cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml"))
    boxes = cascade.detectMultiScale(face, 1.1, 4)
    assert len(boxes) == 1
    x, y, width, height = boxes[0].tolist()
    assert x + width // 2 == pytest.approx(160, abs=40)
    assert y + height // 2 == pytest.approx(170, abs=45)


def test_an_unknown_expression_is_refused() -> None:
    """The message knows the right word."""
    with pytest.raises(InputError, match="did you mean 'happiness'"):
        synthetic.draw_large("happyness", 64, np.random.default_rng(0))
