"""The records that packages hand to each other: frozen, plain, without behaviour that imports anything heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

Word = Literal["better", "non-inferior", "worse", "undecided"]
"""The four words in which a comparison can end."""


@dataclass(frozen=True)
class Evaluation:
    """What one model in one runtime said about the kept faces of one split; every accuracy figure derives from it."""

    model: str  # the name it was asked for by, resolved: models:/NAME/3, a path
    runtime: str
    dataset: str
    fingerprint: str
    label_source: str
    protocol: str
    split: Split
    labels: tuple[str, ...]  # the label set in output order
    names: tuple[str, ...]  # image name of each face, N
    targets: npt.NDArray[np.int64]  # [N] majority label
    votes: npt.NDArray[np.uint8]  # [N, 10]
    probs: npt.NDArray[np.float32]  # [N, K]


@dataclass(frozen=True)
class LatencySpec:
    """How a latency was measured."""

    runtime: str
    threads: int
    batch: int
    end_to_end: bool = False  # crop to label instead of the model alone
    precision: str = "f32"  # the effective inference precision


@dataclass(frozen=True)
class LatencyProfile:
    """A specification plus raw samples; percentiles are derived."""

    model: str
    digest: str  # of the measured artifact folder
    spec: LatencySpec
    rounds: tuple[tuple[float, ...], ...]  # milliseconds per call, one inner tuple per interleaved round
    load_ms: float
    first_call_ms: float
    peak_memory_mb: float | None
    size_mb: float

    @property
    def samples_ms(self) -> npt.NDArray[np.float64]:
        """All samples in milliseconds, in the order they were taken."""
        return np.array([ms for one_round in self.rounds for ms in one_round], np.float64)

    def percentile_ms(self, q: float) -> float:
        """The q-th percentile (0–100) in milliseconds."""
        return float(np.percentile(self.samples_ms, q))


@dataclass(frozen=True)
class Verdict:
    """One word about one aspect of one candidate against the reference, with the evidence."""

    model: str
    runtime: str
    aspect: str  # "accuracy" is primary; brier, class:anger, slice:occlusion, latency … are secondary
    verdict: Word
    reason: str  # one sentence for a person
    n: int = 0
    change: float | None = None  # candidate − reference; a ratio for latency
    low: float | None = None  # 95 % interval of the change (Holm-corrected for secondary aspects)
    high: float | None = None
    p_value: float | None = None
    faces_needed: int | None = None  # how many more faces would decide an "undecided"


@dataclass(frozen=True)
class GateVerdict:
    """What one gate said."""

    gate: str
    passed: bool
    observed: str
    required: str


@dataclass(frozen=True)
class Host:
    """The machine a figure was measured on."""

    name: str
    system: str
    cpu: str
    cores: int
    flags: tuple[str, ...]  # the vector extensions that change speed and precision
    versions: Mapping[str, str] = field(default_factory=dict)
