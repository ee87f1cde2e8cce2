"""Sheets of faces to look at: with their votes, and as training changes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from fer_lab.core.labels import DROPPED, VOTE_COLUMNS, Protocol
from fer_lab.core.types import SPLITS
from fer_lab.data.faces import FaceDataset

_SIDE = 96  # pixels of a drawn face, twice its own
_TEXT = 40


def votes_sheet(dataset: FaceDataset, protocol: Protocol, path: Path, *, per_label: int = 8, seed: int = 0) -> Path:
    """Write a PNG: a row of faces per label, and one of faces that the protocol drops, each with its votes below."""
    labels = protocol.labels(dataset.votes)
    rng = np.random.default_rng(seed)
    rows = []
    for label in (*range(len(protocol.label_set.labels)), DROPPED):
        chosen = rng.permutation(np.flatnonzero(labels == label))[:per_label].tolist()
        cells = [_cell(dataset, row) for row in chosen]
        cells += [np.full((_SIDE + _TEXT, _SIDE), 255, np.uint8)] * (per_label - len(cells))
        title = "dropped" if label == DROPPED else protocol.label_set.labels[label]
        rows.append(np.concatenate([_title(title, _SIDE + _TEXT), *cells], axis=1))
    return _write(np.concatenate(rows), path)


def changed_sheet(originals: npt.NDArray[np.uint8], changed: npt.NDArray[np.uint8], path: Path) -> Path:
    """Write a PNG: each row one face, then what augmentation makes of it.

    originals: uint8 [N, 48, 48]. changed: uint8 [N, M, S, S].
    """
    rows = []
    for face, versions in zip(originals, changed, strict=True):
        cells = [_enlarged(face), np.full((_SIDE, 6), 255, np.uint8), *(_enlarged(version) for version in versions)]
        rows.append(np.concatenate(cells, axis=1))
    return _write(np.concatenate(rows), path)


def _cell(dataset: FaceDataset, row: int) -> npt.NDArray[np.uint8]:
    import cv2

    text = np.full((_TEXT, _SIDE), 255, np.uint8)
    votes = sorted(zip(dataset.votes[row].tolist(), VOTE_COLUMNS, strict=True), key=lambda pair: -pair[0])
    for line, (count, column) in enumerate((vote for vote in votes[:3] if vote[0]), start=1):
        cv2.putText(text, f"{count} {column}", (2, 11 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.33, 0, 1, cv2.LINE_AA)
    tag = _enlarged(dataset.pixels[row])
    for tone, width in ((0, 3), (255, 1)):  # white on a dark rim reads on any face
        cv2.putText(tag, SPLITS[dataset.split[row]], (2, 92), cv2.FONT_HERSHEY_SIMPLEX, 0.3, tone, width, cv2.LINE_AA)
    return np.concatenate([tag, text])


def _title(label: str, height: int) -> npt.NDArray[np.uint8]:
    import cv2

    cell = np.full((height, 80), 255, np.uint8)
    cv2.putText(cell, label, (4, height // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.42, 0, 1, cv2.LINE_AA)
    return cell


def _enlarged(face: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    import cv2

    return np.asarray(cv2.resize(face, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR), np.uint8)


def _write(sheet: npt.NDArray[np.uint8], path: Path) -> Path:
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    done, encoded = cv2.imencode(".png", sheet)
    assert done
    path.write_bytes(encoded.tobytes())
    return path
