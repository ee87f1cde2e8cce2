"""What a dataset holds and what is wrong with it: counts, repeated pictures across splits, the honest test list."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lab.core.files import replacing
from fer_lab.core.labels import DROPPED, PROTOCOLS, VOTE_COLUMNS, without_single_votes
from fer_lab.core.types import SPLITS
from fer_lab.data.faces import FaceDataset

SCHEMA = 1
FILE = "audit.json"

NEAR_BITS = 2
"""Hamming distance of two 64-bit difference hashes up to which faces count as near duplicates …"""
NEAR_CORRELATION = 0.9
"""… when their gray values correlate at least so much; below, pairs of FERPlus with equal hashes show other people."""

_TRAIN, _VALID, _TEST = 0, 1, 2


@dataclass(frozen=True)
class Twins:
    """Faces whose picture stands more than once, by exact pixels."""

    clean_test: tuple[str, ...]  # names of test faces without a twin in train or valid
    train_twin_rows: npt.NDArray[np.int64]  # rows of training faces with a twin in valid or test
    groups: tuple[tuple[int, ...], ...]  # rows of each picture that stands more than once


@dataclass(frozen=True)
class NearPair:
    """Two different pictures that look the same to a perceptual hash."""

    a: int  # row
    b: int
    distance: int  # Hamming, of 64 bits
    correlation: float  # of gray values


def pixel_hashes(pixels: npt.NDArray[np.uint8]) -> list[str]:
    """sha256 of each face's pixels. pixels: uint8 [N, 48, 48]."""
    return [hashlib.sha256(face.tobytes()).hexdigest() for face in np.ascontiguousarray(pixels)]


def twins(dataset: FaceDataset) -> Twins:
    """Find the faces that stand more than once, by exact pixels."""
    rows_of: dict[str, list[int]] = {}
    for row, digest in enumerate(pixel_hashes(dataset.pixels)):
        rows_of.setdefault(digest, []).append(row)
    groups = tuple(tuple(rows) for rows in rows_of.values() if len(rows) > 1)
    leaked_train: list[int] = []
    leaked_test: set[int] = set()
    for rows in groups:
        splits = {int(dataset.split[row]) for row in rows}
        leaked_train += [row for row in rows if dataset.split[row] == _TRAIN and splits - {_TRAIN}]
        leaked_test |= {row for row in rows if dataset.split[row] == _TEST and splits - {_TEST}}
    clean = tuple(dataset.names[row] for row in dataset.indices("test").tolist() if row not in leaked_test)
    return Twins(clean, np.array(sorted(leaked_train), np.int64), groups)


def difference_hashes(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """64-bit difference hash of each face: is each of 8×8 areas brighter than its left neighbour? uint64 [N].

    N. Krawetz, "Kind of Like That" (2013): dHash.
    """
    import cv2

    if not len(pixels):
        return np.zeros(0, np.uint64)
    small = np.stack([cv2.resize(face, (9, 8), interpolation=cv2.INTER_AREA) for face in pixels])
    brighter = small[:, :, 1:] > small[:, :, :-1]
    return np.packbits(brighter.reshape(len(pixels), 64), axis=1).view(np.uint64)[:, 0]


def near_pairs(dataset: FaceDataset) -> list[NearPair]:
    """Pairs of different pictures within `NEAR_BITS` and `NEAR_CORRELATION`, by rows; exact twins are left out."""
    hashes = difference_hashes(dataset.pixels)
    # Of three parts of the hash at least one is equal when at most two bits differ.
    found = np.unique(
        np.concatenate([_equal_keys(hashes >> np.uint64(at) & np.uint64(2**bits - 1)) for at, bits in _PARTS]), axis=0
    )
    distance = np.bitwise_count(hashes[found[:, 0]] ^ hashes[found[:, 1]])
    found, distance = found[distance <= NEAR_BITS], distance[distance <= NEAR_BITS]
    pairs = []
    for (a, b), bits in zip(found.tolist(), distance.tolist(), strict=True):
        first, second = dataset.pixels[a].astype(np.float32), dataset.pixels[b].astype(np.float32)
        if np.array_equal(first, second):
            continue
        correlation = _correlation(first, second)
        if correlation >= NEAR_CORRELATION:
            pairs.append(NearPair(a, b, bits, correlation))
    return pairs


_PARTS = ((0, 22), (22, 21), (43, 21))  # (first bit, bits)


def _equal_keys(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """All pairs of rows with equal keys, int64 [P, 2], the smaller row first."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    pairs = [np.zeros((0, 2), np.int64)]
    for step in range(1, len(keys)):
        same = np.flatnonzero(ordered[step:] == ordered[:-step])
        if not len(same):
            break
        pairs.append(np.stack([order[same], order[same + step]], axis=1))
    return np.sort(np.concatenate(pairs), axis=1)


def _correlation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def protocol_counts(dataset: FaceDataset) -> dict[str, dict[str, dict[str, int]]]:
    """Faces per protocol, split and label."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for name, protocol in PROTOCOLS.items():
        labels = protocol.labels(dataset.votes)
        counts[name] = {}
        for index, split in enumerate(SPLITS):
            kept = labels[(dataset.split == index) & (labels != DROPPED)]
            per_label = np.bincount(kept, minlength=len(protocol.label_set.labels)).tolist()
            counts[name][split] = dict(zip(protocol.label_set.labels, per_label, strict=True))
    return counts


def audit(
    dataset: FaceDataset, *, repeated_names: Sequence[str] = (), disagreements: Sequence[str] | None = None
) -> dict[str, Any]:
    """Everything worth knowing about a dataset before a number is believed; plain JSON.

    repeated_names: names that stood twice in the label file. disagreements: names on which two label sources differ, None
    when only one was at hand.
    """
    found, near = twins(dataset), near_pairs(dataset)
    exact = _exact_counts(dataset, found.groups)
    cleaned = without_single_votes(dataset.votes)
    names = dataset.names
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "dataset": dataset.name,
        "label_source": dataset.label_source,
        "fingerprint": dataset.fingerprint,
        "faces": {split: len(dataset.indices(split)) for split in SPLITS},
        "votes": dict(zip(VOTE_COLUMNS, dataset.votes.sum(axis=0, dtype=np.int64).tolist(), strict=True)),
        "without_emotion_vote": int((dataset.votes[:, :8].sum(axis=1) == 0).sum()),
        "without_majority": int((cleaned.max(axis=1, initial=0) * 2 <= cleaned.sum(axis=1)).sum()),
        "protocols": protocol_counts(dataset),
        "duplicates": {"exact": exact, "near": _near_counts(dataset, near)},
        "clean_test": list(found.clean_test),
        "exact_groups": [[f"{SPLITS[dataset.split[row]]}/{names[row]}" for row in rows] for rows in found.groups],
        "near_pairs": [
            [f"{SPLITS[dataset.split[p.a]]}/{names[p.a]}", f"{SPLITS[dataset.split[p.b]]}/{names[p.b]}", p.distance,
             round(p.correlation, 4)]
            for p in near
        ],
        "slices": {name: len(listed) for name, listed in dataset.slices.items()},
        "repeated_names": list(repeated_names),
    }  # fmt: skip
    if disagreements is not None:
        in_twins = {names[row] for rows in found.groups for row in rows}
        report["label_sources_disagree"] = {
            "faces": len(disagreements),
            "with_exact_twin": sum(name in in_twins for name in disagreements),
            "names": list(disagreements),
        }
    return report


def save_audited(
    dataset: FaceDataset,
    folder: Path,
    *,
    repeated_names: Sequence[str] = (),
    disagreements: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Write `faces.npz` and `audit.json` into the folder, both or (a full disk) none; returns the audit. Raises OSError."""
    report = audit(dataset, repeated_names=repeated_names, disagreements=disagreements)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / FILE) as file:
        file.write(json.dumps(report, indent=1).encode())
        file.flush()  # a full disk is met before the faces are replaced
        dataset.save(folder)
    return report


def _exact_counts(dataset: FaceDataset, groups: Sequence[Sequence[int]]) -> dict[str, Any]:
    split = dataset.split
    repeated = [0, 0, 0]
    in_train, in_train_or_valid = [0, 0, 0], 0
    for rows in groups:
        for index in range(3):
            count = sum(split[row] == index for row in rows)
            repeated[index] += max(0, count - 1)
            if any(split[row] == _TRAIN for row in rows):
                in_train[index] += count
        if any(split[row] != _TEST for row in rows):
            in_train_or_valid += sum(split[row] == _TEST for row in rows)
    return {
        "by": "sha256 of the pixels",
        "pictures": len(groups),
        "repeated_inside": dict(zip(SPLITS, map(int, repeated), strict=True)),
        "valid_in_train": int(in_train[_VALID]),
        "test_in_train": int(in_train[_TEST]),
        "test_in_train_or_valid": int(in_train_or_valid),
        "kept": {name: _kept_counts(dataset, groups, name) for name in PROTOCOLS},
    }


def _kept_counts(dataset: FaceDataset, groups: Sequence[Sequence[int]], name: str) -> dict[str, int]:
    """The same among the faces that a protocol keeps; a twin has another label when every kept twin in train has."""
    labels, split = PROTOCOLS[name].labels(dataset.votes), dataset.split
    counts = dict.fromkeys(
        ("valid_in_train", "valid_twin_kept", "valid_other_label", "test_in_train", "test_twin_kept", "test_other_label",
         "test_in_train_or_valid"), 0,
    )  # fmt: skip
    for rows in groups:
        for row in rows:
            if labels[row] == DROPPED or split[row] == _TRAIN:
                continue
            where = SPLITS[split[row]]
            train = [other for other in rows if split[other] == _TRAIN]
            twin_labels = {int(labels[other]) for other in train} - {DROPPED}
            counts[f"{where}_in_train"] += bool(train)
            counts[f"{where}_twin_kept"] += bool(twin_labels)
            counts[f"{where}_other_label"] += bool(twin_labels) and int(labels[row]) not in twin_labels
            counts["test_in_train_or_valid"] += where == "test" and any(split[other] != _TEST for other in rows)
    return counts


def _near_counts(dataset: FaceDataset, pairs: Sequence[NearPair]) -> dict[str, Any]:
    split = dataset.split
    between: dict[str, int] = {}
    for i, a in enumerate(SPLITS):
        for j, b in enumerate(SPLITS[i:], start=i):
            count = sum({int(split[p.a]), int(split[p.b])} == {i, j} for p in pairs)
            between[a if i == j else f"{a}-{b}"] = count
    return {
        "by": f"64-bit difference hash, Hamming distance at most {NEAR_BITS}, correlation at least {NEAR_CORRELATION}",
        "distance": NEAR_BITS,
        "correlation": NEAR_CORRELATION,
        "pairs": between,
        "test_faces": len({row for p in pairs for row, other in ((p.a, p.b), (p.b, p.a)) if split[row] == _TEST != split[other]}),
    }
