"""Label sets and vote protocols: pure, named, versioned functions from crowd votes to targets.

FER+ (Barsoum et al., "Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label Distribution",
ICMI 2016, arXiv:1608.01041) gives each face ten votes over eight expressions, `unknown` and `not_a_face`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fer_lab.core.errors import InputError, nearest

VOTE_COLUMNS = (
    "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "not_a_face",
)  # fmt: skip
"""The ten columns of a vote row, in the order of `fer2013new.csv`."""

DROPPED = -1
"""The label of a face that a protocol does not keep."""


@dataclass(frozen=True)
class LabelSet:
    """An ordered set of expressions; the order is the order of a model's outputs."""

    name: str
    labels: tuple[str, ...]

    @property
    def columns(self) -> tuple[int, ...]:
        """Index of each label in `VOTE_COLUMNS`."""
        return tuple(VOTE_COLUMNS.index(label) for label in self.labels)

    def among(self, probs: npt.NDArray[np.float32], labels: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return what probabilities over more labels say of these: their columns in this order, rows renormalised.

        probs: float32 [N, L] over `labels`, which hold all of `self.labels`. Returns float32 [N, K].

        >>> import numpy as np
        >>> FIVE.among(np.array([[.125, .375, 0, 0, 0, .5, 0, 0]], np.float32), EIGHT.labels).tolist()
        [[0.25, 0.75, 0.0, 0.0, 0.0]]
        """
        chosen = probs[:, [labels.index(label) for label in self.labels]]
        total = chosen.sum(axis=1, keepdims=True)
        shares: npt.NDArray[np.float32] = chosen / np.maximum(total, np.finfo(np.float32).tiny)
        return shares


EIGHT = LabelSet("eight", VOTE_COLUMNS[:8])
FIVE = LabelSet("five", VOTE_COLUMNS[:5])


@dataclass(frozen=True)
class Protocol:
    """A rule that turns votes into one label per face, or drops the face.

    Single votes are noise and become 0 over all ten columns; a face is kept when its largest column holds more than
    half of what is left and that column belongs to the label set (the rule of the seed and of FER+, section 3).
    """

    name: str
    version: int
    label_set: LabelSet

    def labels(self, votes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Return one label per face, `DROPPED` (-1) where the face is not kept.

        votes: uint8 [N, 10] in the order of `VOTE_COLUMNS`. Returns int64 [N] in 0..K-1 or -1.

        >>> import numpy as np
        >>> votes = np.array([[9, 1, 0, 0, 0, 0, 0, 0, 0, 0], [5, 5, 0, 0, 0, 0, 0, 0, 0, 0]], np.uint8)
        >>> PROTOCOLS["ferplus8"].labels(votes).tolist()
        [0, -1]
        """
        cleaned = without_single_votes(votes)
        winner = cleaned.argmax(axis=1)
        has_majority = cleaned.max(axis=1, initial=0) * 2 > cleaned.sum(axis=1)
        label_of_column = np.full(len(VOTE_COLUMNS), DROPPED, np.int64)
        label_of_column[list(self.label_set.columns)] = np.arange(len(self.label_set.labels))
        return np.where(has_majority, label_of_column[winner], DROPPED)

    def distribution(self, votes: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Return the vote distribution over the label set and which faces are usable as soft targets.

        The label set's raw votes, renormalised; a face is usable when they sum to more than zero after single votes
        are zeroed. votes: uint8 [N, 10]. Returns float32 [N, K] (rows sum to 1, or are all 0 where there is no vote
        for the label set) and bool [N].
        """
        columns = list(self.label_set.columns)
        usable = without_single_votes(votes)[:, columns].sum(axis=1) > 0
        raw = votes[:, columns].astype(np.float32)
        total = raw.sum(axis=1, keepdims=True)
        return raw / np.maximum(total, 1), usable


def without_single_votes(votes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the votes as int64 [N, 10] with every 1 set to 0."""
    cleaned = votes.astype(np.int64)
    cleaned[cleaned == 1] = 0
    return cleaned


PROTOCOLS = {
    "ferplus8": Protocol("ferplus8", 1, EIGHT),
    "ferplus5": Protocol("ferplus5", 1, FIVE),
}


def protocol(name: str) -> Protocol:
    """Return the protocol of that name; raises InputError naming the known ones."""
    if name not in PROTOCOLS:
        raise InputError(f"unknown protocol {name!r}; known: {', '.join(PROTOCOLS)}{nearest(name, PROTOCOLS)}")
    return PROTOCOLS[name]
