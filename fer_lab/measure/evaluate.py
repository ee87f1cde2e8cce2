"""Runs a predictor over the kept faces of one split and checks what comes back.

The test split is sealed: `evaluate` refuses it unless `allow_test=True`, which only `fer_lab.compare` passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fer_lab.core import labels
from fer_lab.core.errors import FerLabError, InputError
from fer_lab.core.types import Evaluation, Split
from fer_lab.data.faces import FaceDataset

ROW_SUM_TOLERANCE = 1e-3  # float32 softmax stays within 1e-6; bf16 and int8 graphs end in float32 but may lose digits


class Predicts(Protocol):
    """What `evaluate` needs of a Predictor."""

    @property
    def runtime(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    def predict(self, faces: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]: ...


def evaluate(
    predictor: Predicts,
    dataset: FaceDataset,
    protocol: str,
    split: Split,
    *,
    model: str,
    batch: int = 256,
    allow_test: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Return what `predictor` says about the faces of `split` that `protocol` keeps, in the dataset's order.

    Raises InputError when the test split is asked for without `allow_test`, when the model's labels are not the
    protocol's, or when no face is kept; FerLabError when the model returns NaN, a wrong shape, or rows that do not sum
    to one.
    """
    rule = labels.protocol(protocol)
    if split == "test" and not allow_test:
        raise InputError("the test split is sealed: only fer_lab.compare opens it, and each look is counted. Use split=valid")
    if predictor.labels != rule.label_set.labels:
        raise InputError(
            f"{model} answers {list(predictor.labels)}, but protocol {protocol} has the labels {list(rule.label_set.labels)}. "
            "Compare it under its own protocol"
        )
    rows, targets = kept_faces(dataset, protocol, split)
    probs = predict_all(predictor, dataset.pixels[rows], model=model, batch=batch, progress=progress)
    return Evaluation(
        model=model, runtime=predictor.runtime, dataset=dataset.name, fingerprint=dataset.fingerprint,
        label_source=dataset.label_source, protocol=protocol, split=split, labels=rule.label_set.labels,
        names=tuple(dataset.names[i] for i in rows), targets=targets, votes=dataset.votes[rows], probs=probs,
    )  # fmt: skip


def kept_faces(dataset: FaceDataset, protocol: str, split: Split) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return row numbers and labels, int64 [n] each, of the faces of `split` that `protocol` keeps."""
    rows = dataset.indices(split)
    targets = labels.protocol(protocol).labels(dataset.votes[rows])
    kept = targets != labels.DROPPED
    if not kept.any():
        raise InputError(f"protocol {protocol} keeps none of the {len(rows)} {split} faces of {dataset.name}")
    return rows[kept], targets[kept]


def refuse_absent(present: npt.NDArray[np.bool_], protocol: labels.Protocol, split: str) -> None:
    """Raise InputError, with their names, unless each class has a face in the split; present: bool [K].

    A class that nobody shows cannot be learnt, and a mean over the classes would leave it out in silence.
    """
    missing = [name for name, there in zip(protocol.label_set.labels, present, strict=True) if not there]
    if missing:
        raise InputError(
            f"no {', '.join(missing)} face in the {split} split under {protocol.name}; use another protocol or more faces"
        )


def kept_counts(dataset: FaceDataset, protocol: str) -> dict[str, int]:
    """Return how many training and validation faces `protocol` keeps; the test split stays sealed."""
    kept = labels.protocol(protocol).labels(dataset.votes) != labels.DROPPED
    return {split: int(kept[dataset.indices(split)].sum()) for split in ("train", "valid")}


def predict_all(
    predictor: Predicts,
    pixels: npt.NDArray[np.uint8],
    *,
    model: str,
    batch: int = 256,
    progress: Callable[[int], None] | None = None,
    check: bool = True,
) -> npt.NDArray[np.float32]:
    """uint8 [N, 48, 48] → float32 [N, K] in batches; every batch is checked by `check_probabilities` unless `check` is False."""
    parts = [np.zeros((0, len(predictor.labels)), np.float32)]
    for start in range(0, len(pixels), batch):
        faces = pixels[start : start + batch]
        probs = predictor.predict(faces)
        if check:
            check_probabilities(probs, len(faces), len(predictor.labels), f"{model} ({predictor.runtime})", start)
        parts.append(probs)
        if progress is not None:
            progress(len(faces))
    return np.concatenate(parts)


def check_probabilities(probs: npt.NDArray[np.float32], n: int, k: int, who: str, first: int = 0) -> None:
    """Raise FerLabError unless `probs` is [n, k], finite, non-negative, with rows that sum to one."""
    if probs.shape != (n, k):
        raise FerLabError(
            f"{who} returned {list(probs.shape)} for {n} faces, expected [{n}, {k}]: wrong number of classes or faces"
        )
    bad = ~np.isfinite(probs).all(axis=1)
    if bad.any():
        raise FerLabError(
            f"{who} returned NaN or infinity for {int(bad.sum())} of {n} faces, first for face {first + int(bad.argmax())}"
        )
    off = np.abs(probs.sum(axis=1) - 1)
    if (off > ROW_SUM_TOLERANCE).any() or probs.min(initial=0) < -ROW_SUM_TOLERANCE:
        worst = int(off.argmax())
        raise FerLabError(
            f"{who} returned rows that are not probabilities: face {first + worst} sums to {float(probs[worst].sum()):.4f}, not 1. "
            "If the model outputs logits, say so in its card (output: logits)"
        )
