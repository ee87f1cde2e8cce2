"""Which faces are trained on, and towards what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fer_lab.core.config import RunConfig
from fer_lab.core.errors import InputError
from fer_lab.core.labels import DROPPED, Protocol, protocol
from fer_lab.measure.evaluate import refuse_absent

if TYPE_CHECKING:
    from fer_lab.data.faces import FaceDataset


@dataclass(frozen=True)
class TrainingFaces:
    """The rows of one split with what the network should say about them."""

    rows: npt.NDArray[np.int64]  # into the dataset; repeated rows are repeated faces (`data.balance`)
    targets: npt.NDArray[np.float32]  # [N, K], each row sums to 1
    labels: npt.NDArray[np.int64]  # [N] majority label, -1 where there is no majority (soft targets only)


@dataclass(frozen=True)
class ValidationFaces:
    """The kept faces of the validation split."""

    rows: npt.NDArray[np.int64]  # into the dataset
    labels: npt.NDArray[np.int64]  # [N]
    distribution: npt.NDArray[np.float32]  # [N, K] of the votes


def training_faces(config: RunConfig, dataset: FaceDataset, teacher_probs: npt.NDArray[np.float32] | None = None) -> TrainingFaces:
    """Return the training split's faces under `config.data`, after twins, subset and balance.

    teacher_probs: float32 [n, K] for the n rows of `dataset.indices("train")`, in that order; mixed into the targets
    with `train.teacher_weight` (the gradient of a weighted sum of two cross-entropies; Hinton et al., 2015, at
    temperature 1). Raises InputError when a class has no face, and for teacher_probs of another shape.
    """
    rule = protocol(config.data.protocol)
    rows = dataset.indices("train")
    votes = dataset.votes[rows]
    labels = rule.labels(votes)
    if config.data.targets == "soft":
        targets, kept = rule.distribution(votes)
    else:
        targets, kept = _one_hot(labels, len(rule.label_set.labels)), labels != DROPPED
    if teacher_probs is not None:
        if teacher_probs.shape != targets.shape:
            raise InputError(f"teacher probabilities of shape {list(teacher_probs.shape)}, expected {list(targets.shape)}")
        weight = config.train.teacher_weight
        targets = ((1 - weight) * targets + weight * teacher_probs).astype(np.float32)
    if config.data.drop_twins:
        from fer_lab.data.audit import twins

        kept &= ~np.isin(rows, twins(dataset).train_twin_rows)
    chosen = np.flatnonzero(kept)
    _refuse_missing_class(targets[chosen], labels[chosen], rule, "train", config.data.targets)
    draw = np.random.default_rng([config.seed, 1])  # 1: this draw's own stream, apart from augmentation (fit)
    if config.data.subset is not None and config.data.subset < len(chosen):
        chosen = np.sort(draw.choice(chosen, config.data.subset, replace=False))
        _refuse_missing_class(targets[chosen], labels[chosen], rule, f"subset of {len(chosen)} train", config.data.targets)
    if config.data.balance is not None:
        chosen = _balanced(chosen, labels, len(rule.label_set.labels), config.data.balance, draw)
    if len(chosen) < 2:
        raise InputError(f"{dataset.name} has {len(chosen)} usable training faces under {rule.name}; at least 2 are needed")
    return TrainingFaces(rows[chosen], targets[chosen], labels[chosen])


def validation_faces(config: RunConfig, dataset: FaceDataset) -> ValidationFaces:
    """Return the faces of the validation split that the protocol keeps. Raises InputError when one of its classes has none."""
    rule = protocol(config.data.protocol)
    rows = dataset.indices("valid")
    labels = rule.labels(dataset.votes[rows])
    kept = np.flatnonzero(labels != DROPPED)
    if len(kept) == 0:
        raise InputError(f"{dataset.name} has no validation face that {rule.name} keeps; prepare a dataset with a valid split")
    distribution, _ = rule.distribution(dataset.votes[rows[kept]])
    refuse_absent(np.bincount(labels[kept], minlength=distribution.shape[1]) > 0, rule, "valid")
    return ValidationFaces(rows[kept], labels[kept], distribution)


def check_faces(config: RunConfig, dataset: FaceDataset) -> None:
    """Raise InputError when the configuration cannot be trained on these faces: a class or a split without a face, …"""
    faces = training_faces(config, dataset)
    class_weights(config.train.class_weights, faces, protocol(config.data.protocol).label_set.labels)
    validation_faces(config, dataset)


def class_weights(setting: str | dict[str, float] | None, faces: TrainingFaces, names: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """Return one weight per class, float32 [K]; all 1 when off.

    `balanced` is n / (K · n_class) over the summed targets, as scikit-learn defines it. A dict gives the weights of
    the classes it names. Raises InputError for a name that is not a label.
    """
    weights = np.ones(len(names), np.float32)
    if setting == "balanced":
        counts = faces.targets.sum(axis=0)
        weights = (len(faces.rows) / (len(names) * np.maximum(counts, 1e-6))).astype(np.float32)
    if isinstance(setting, dict):
        unknown = sorted(set(setting) - set(names))
        if unknown:
            raise InputError(f"train.class_weights: no label {', '.join(unknown)} in this protocol; it has {', '.join(names)}")
        for name, weight in setting.items():
            weights[names.index(name)] = weight
    return weights


def _one_hot(labels: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float32]:
    """Return float32 [N, K]; all 0 where the label is `DROPPED`."""
    hot = np.zeros((len(labels), classes), np.float32)
    kept = np.flatnonzero(labels != DROPPED)
    hot[kept, labels[kept]] = 1
    return hot


def _refuse_missing_class(
    targets: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], rule: Protocol, split: str, kind: str
) -> None:
    present = targets.sum(axis=0) > 0 if kind == "soft" else np.bincount(labels[labels >= 0], minlength=targets.shape[1]) > 0
    refuse_absent(present, rule, split)


def _balanced(
    chosen: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], classes: int, n: int, draw: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Sample each class down to n faces, or repeat its faces up to n (the seed's `balance`); faces without a majority go."""
    parts = []
    for k in range(classes):
        members = chosen[labels[chosen] == k]
        if len(members) >= n:
            parts.append(draw.choice(members, n, replace=False))
        elif len(members):
            repeats, rest = divmod(n, len(members))
            parts.append(np.concatenate([np.tile(members, repeats), draw.choice(members, rest, replace=False)]))
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)
