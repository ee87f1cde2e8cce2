"""What must be known about data and model before a figure is believed: leaks, and answers that depend on the neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lab.core.types import Split
from fer_lab.data.audit import pixel_hashes
from fer_lab.data.faces import FaceDataset
from fer_lab.measure.comparison import Audit
from fer_lab.measure.evaluate import Predicts

BATCH_FACES = 512
BATCH = 64
TIE = 1e-5
"""Two labels closer than this are a tie; which one wins is rounding."""


def clean_mask(dataset: FaceDataset, rows: npt.NDArray[np.int64], split: Split) -> npt.NDArray[np.bool_]:
    """Which faces (rows of `split`) have no exact pixel twin in the splits before it (train; for test also valid)."""
    before: tuple[Split, ...] = ("train", "valid") if split == "test" else ("train",) if split == "valid" else ()
    seen = {digest for earlier in before for digest in pixel_hashes(dataset.pixels[dataset.indices(earlier)])}
    return np.array([digest not in seen for digest in pixel_hashes(dataset.pixels[rows])], np.bool_)


def leakage(card: Mapping[str, Any], dataset: FaceDataset, rows: npt.NDArray[np.int64]) -> tuple[bool | None, int | None, str]:
    """Return whether the model's run saw this very dataset, how many of these faces have a twin in what it trained on, a note.

    The fingerprint of the run's dataset decides; where it is another or unknown, or whether twins were left out, the count is
    None: nobody can tell. What weights that the run began from had seen is not in its card, and the note says so.
    """
    fingerprint = card.get("fingerprint")
    if fingerprint in (None, "", "unknown"):
        return None, None, "trained on data that nobody recorded; whether it has seen these faces is unknown"
    if fingerprint != dataset.fingerprint:
        return False, None, f"trained on other data ({card.get('dataset')}, {str(fingerprint)[:12]}…); a leak cannot be counted"
    config = card.get("config") or {}
    dropped = (config.get("data") or {}).get("drop_twins")
    if dropped is None:
        return True, None, "its configuration is not recorded; whether it was trained on twins of these faces is unknown"
    if dropped:
        began = (config.get("model") or {}).get("weights_file")
        untraced = "; what the weights that it began from had seen is not recorded" if began else ""
        return True, 0, f"trained without the twins of valid and test faces{untraced}"
    train = set(pixel_hashes(dataset.pixels[dataset.indices("train")]))
    leaked = sum(digest in train for digest in pixel_hashes(dataset.pixels[rows]))
    return True, leaked, f"{leaked} of {len(rows)} faces stand in its training data too (drop_twins was off)"


def batch_invariance(predictor: Predicts, pixels: npt.NDArray[np.uint8], seed: int = 0) -> Audit:
    """Ask for the labels of up to 512 faces alone and in a shuffled batch of 64; a model that looks at its neighbours differs.

    pixels: uint8 [N, 48, 48]. Ties (two labels within 1e-5) do not count as different; answers that are no numbers do.
    """
    order = np.random.default_rng(seed).permutation(len(pixels))[:BATCH_FACES]
    faces = pixels[order]
    together = np.concatenate([predictor.predict(faces[i : i + BATCH]) for i in range(0, len(faces), BATCH)])
    alone = np.concatenate([predictor.predict(faces[i : i + 1]) for i in range(len(faces))])
    top_two = np.sort(alone, axis=1)[:, -2:]
    differs = (together.argmax(axis=1) != alone.argmax(axis=1)) & (top_two[:, 1] - top_two[:, 0] > TIE)
    numbers = np.isfinite(together).all(axis=1) & np.isfinite(alone).all(axis=1)
    flips = int((differs | ~numbers).sum())
    largest = float(np.abs(together - alone).max(initial=0)) if numbers.all() else 1.0
    return Audit(flips == 0, len(faces), flips, largest)
