"""What a dataset holds and what is wrong with it: counts, repeated pictures across splits, the honest test list."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lab.core.labels import PROTOCOLS, VOTE_COLUMNS
from fer_lab.core.types import SPLITS
from fer_lab.data.faces import FaceDataset

SCHEMA = 1
FILE = "audit.json"


@dataclass(frozen=True)
class Twins:
    """Faces whose picture stands more than once, by exact pixels."""

    clean_test: tuple[str, ...]  # names of test faces without a twin in train or valid
    train_twin_rows: npt.NDArray[np.int64]  # rows of training faces with a twin in valid or test
    groups: tuple[tuple[int, ...], ...]  # rows of each picture that stands more than once


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
        leaked_train += [row for row in rows if dataset.split[row] == 0 and splits - {0}]
        leaked_test |= {row for row in rows if dataset.split[row] == 2 and splits - {2}}
    clean = tuple(dataset.names[row] for row in dataset.indices("test").tolist() if row not in leaked_test)
    return Twins(clean, np.array(sorted(leaked_train), np.int64), groups)


def protocol_counts(dataset: FaceDataset) -> dict[str, dict[str, dict[str, int]]]:
    """Faces per protocol, split and label."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for name, protocol in PROTOCOLS.items():
        labels = protocol.labels(dataset.votes)
        counts[name] = {}
        for index, split in enumerate(SPLITS):
            kept = labels[(dataset.split == index) & (labels >= 0)]
            per_label = np.bincount(kept, minlength=len(protocol.label_set.labels)).tolist()
            counts[name][split] = dict(zip(protocol.label_set.labels, per_label, strict=True))
    return counts


def audit(dataset: FaceDataset) -> dict[str, Any]:
    """Everything worth knowing about a dataset before a number is believed; plain JSON."""
    found = twins(dataset)
    return {
        "schema": SCHEMA,
        "dataset": dataset.name,
        "label_source": dataset.label_source,
        "fingerprint": dataset.fingerprint,
        "faces": {split: len(dataset.indices(split)) for split in SPLITS},
        "votes": dict(zip(VOTE_COLUMNS, dataset.votes.sum(axis=0, dtype=np.int64).tolist(), strict=True)),
        "protocols": protocol_counts(dataset),
        "clean_test": list(found.clean_test),
    }


def save_audited(dataset: FaceDataset, folder: Path) -> dict[str, Any]:
    """Write `faces.npz` and `audit.json` into the folder; returns the audit."""
    report = audit(dataset)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{FILE}.{os.getpid()}.tmp"
    try:
        temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")
        dataset.save(folder)
        temporary.replace(folder / FILE)
    finally:
        temporary.unlink(missing_ok=True)
    return report
