"""Which faces are trained on, towards what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fer_lab.core.errors import InputError
from fer_lab.training.targets import check_faces, class_weights, training_faces, validation_faces


def test_soft_targets_are_distributions_and_majority_targets_one_hot(settings: Any, few: Any) -> None:
    """Soft targets also use faces without a majority."""
    soft = training_faces(settings("data.targets=soft"), few)
    hard = training_faces(settings("data.targets=majority"), few)
    np.testing.assert_allclose(soft.targets.sum(axis=1), 1, rtol=1e-5)
    assert set(np.unique(hard.targets)) == {0.0, 1.0}
    assert (hard.labels >= 0).all()
    assert set(hard.rows) <= set(soft.rows)
    assert set(soft.rows) <= set(few.indices("train"))


def test_a_training_face_that_stands_in_valid_or_test_is_dropped(settings: Any, few: Any) -> None:
    """By exact pixels, when data.drop_twins."""
    pixels = few.pixels.copy()
    pixels[few.indices("train")[3]] = pixels[few.indices("test")[0]]
    pixels[few.indices("train")[4]] = pixels[few.indices("valid")[0]]
    twinned = replace(few, pixels=pixels)
    rows = {drop: set(training_faces(settings(f"data.drop_twins={drop}"), twinned).rows) for drop in ("true", "false")}
    planted = set(few.indices("train")[[3, 4]])
    assert planted <= rows["false"]
    assert planted <= rows["false"] - rows["true"]
    assert rows["true"] < rows["false"]


def test_a_subset_is_drawn_by_seed(settings: Any, few: Any) -> None:
    """The same seed gives the same faces."""
    a = training_faces(settings("data.subset=120"), few).rows
    assert len(a) == 120
    np.testing.assert_array_equal(a, training_faces(settings("data.subset=120"), few).rows)
    assert not np.array_equal(a, training_faces(settings("data.subset=120", "seed=1"), few).rows)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_class_that_a_split_lacks_is_named(settings: Any, few: Any, split: str) -> None:
    """It could not be learnt, or would be missing from every mean over the classes."""
    votes = few.votes.copy()
    rows = few.indices(split)
    votes[rows[votes[rows].argmax(axis=1) == 3]] = 0
    votes[rows, 3] = 0
    votes[rows, 0] += 1  # somebody voted
    with pytest.raises(InputError, match=f"no sadness face in the {split} split under ferplus8"):
        check_faces(settings("data.targets=majority"), replace(few, votes=votes))


def test_balance_gives_each_class_as_many_faces(settings: Any, few: Any) -> None:
    """Sampled down or repeated."""
    faces = training_faces(settings("data.balance=9", "data.targets=majority"), few)
    assert np.bincount(faces.labels, minlength=8).tolist() == [9] * 8


def test_balanced_weights_are_scikit_learns(settings: Any, few: Any) -> None:
    """n / (K · n_class)."""
    from sklearn.utils.class_weight import compute_class_weight

    faces = training_faces(settings("data.targets=majority"), few)
    labels = tuple("abcdefgh")
    wanted = compute_class_weight("balanced", classes=np.arange(8), y=faces.labels)
    np.testing.assert_allclose(class_weights("balanced", faces, labels), wanted, rtol=1e-6)
    assert class_weights({"b": 5.0}, faces, labels).tolist() == [1, 5, 1, 1, 1, 1, 1, 1]
    assert class_weights(None, faces, labels).tolist() == [1] * 8
    with pytest.raises(InputError, match="no label joy"):
        class_weights({"joy": 2.0}, faces, labels)


def test_teacher_probabilities_are_mixed_in(settings: Any, few: Any) -> None:
    """One row for each training face of the dataset, in its order."""
    teacher = np.random.default_rng(0).dirichlet(np.ones(8), len(few.indices("train"))).astype(np.float32)
    mixed = training_faces(settings("train.teacher_weight=0.25"), few, teacher)
    own = few.votes[mixed.rows, :8] / few.votes[mixed.rows, :8].sum(axis=1, keepdims=True)
    theirs = teacher[np.searchsorted(few.indices("train"), mixed.rows)]
    np.testing.assert_allclose(mixed.targets, 0.75 * own + 0.25 * theirs, rtol=1e-4)
    with pytest.raises(InputError, match="expected"):
        training_faces(settings(), few, teacher[:-1])


def test_a_class_without_a_training_face_is_refused(settings: Any, few: Any) -> None:
    """The sentence names class and split."""
    votes = few.votes.copy()
    votes[:, 7], votes[:, 0] = 0, votes[:, 0] + votes[:, 7]
    with pytest.raises(InputError, match="no contempt face in the train split"):
        training_faces(settings(), replace(few, votes=votes))


def test_validation_uses_the_majority_rule(settings: Any, few: Any) -> None:
    """Whatever the training targets are."""
    valid = validation_faces(settings(), few)
    assert (valid.labels >= 0).all()
    assert set(valid.rows) <= set(few.indices("valid"))
    empty = few.take(few.indices("train"))
    with pytest.raises(InputError, match="no validation face"):
        validation_faces(settings(), empty)
