"""The Comparison record: everything a comparison measured, and all that a gate may read. Written as comparison.json.

One Row per model × runtime; `verdicts` are the words against the reference; `profiles` are latency specifications with
raw samples, each with the host it was taken on. Shares are 0..1, times milliseconds, sizes MB (10⁶ bytes).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fer_lab.core.errors import InputError, NotFound, refuse_newer
from fer_lab.core.files import write_whole
from fer_lab.core.types import Host, LatencyProfile, LatencySpec, Verdict
from fer_lab.measure.names import short_names

SCHEMA = 1
FILE = "comparison.json"
RARE = 30
"""Classes with fewer faces are flagged, never ranked (DESIGN, decision 6)."""
UNNAMED = "run"
"""What `core.config.RunConfig` calls a run that was given no name."""


@dataclass(frozen=True)
class ClassFigures:
    """One class of one row."""

    n: int
    precision: float
    recall: float
    f1: float

    @property
    def rare(self) -> bool:
        """Too few faces to be ranked."""
        return self.n < RARE


@dataclass(frozen=True)
class Share:
    """An accuracy on a part of the faces with its Wilson 95 % interval."""

    n: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """Accuracy under one corruption at rising strength; `area` is the mean accuracy under the curve, by trapezoids."""

    levels: tuple[float, ...]
    unit: str
    accuracy: tuple[float, ...]
    area: float
    n: int


@dataclass(frozen=True)
class Seeds:
    """Several runs of one configuration as one row: spread between seeds, next to the spread between faces."""

    runs: tuple[str, ...]
    accuracies: tuple[float, ...]
    mean: float
    sd: float
    low: float  # Student-t 95 % interval of the mean over seeds
    high: float


@dataclass(frozen=True)
class Audit:
    """What was checked about one model × runtime before its numbers may be believed."""

    batch_invariant: bool | None = None  # same labels alone and in shuffled batches of 64; None: not checked
    batch_faces: int = 0
    batch_flips: int = 0
    batch_max_dp: float = 0.0
    same_data: bool | None = None  # its run saw the very pictures and splits it is tested on; None: unknown
    test_faces_in_training: int | None = None  # test faces with an exact pixel twin in what it trained on; None: unknown
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One model in one runtime."""

    model: str  # as it is named: models:/NAME/3, runs:/ID, a path
    runtime: str
    digest: str  # of the runtime's artifact (Bundle.runtime_digest)
    bundle_digest: str
    n: int
    accuracy: float
    accuracy_low: float  # Wilson 95 %
    accuracy_high: float
    macro_recall: float
    balanced_accuracy: float
    macro_precision: float
    macro_f1: float
    f1_of_macro_pr: float
    weighted_f1: float
    nll: float
    brier: float
    ece: float
    kl_to_votes: float
    js_to_votes: float
    annotator_agreement: float  # chance that one random annotator gave the predicted label
    human_agreement: float  # the same for the majority label: the human line
    per_class: Mapping[str, ClassFigures]
    confusion: tuple[tuple[int, ...], ...]  # rows true, columns predicted
    slices: Mapping[str, Share]  # clear, ambiguous, and the dataset's own
    clean_n: int  # faces with no exact twin in train or valid
    clean_accuracy: float | None
    clean_low: float | None
    clean_high: float | None
    precision: str  # the effective inference precision: f32, bf16, int8 …
    size_mb: float
    name: str | None = None  # registered model and version, where there is one
    version: int | None = None
    run_id: str | None = None
    robustness: Mapping[str, Curve] = field(default_factory=dict)
    audit: Audit = Audit()
    batch_invariant: bool | None = None
    host: str | None = None  # of the latency figures below; None: latency was not measured
    threads: int | None = None
    batch: int | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None  # only from 1 000 samples
    max_ms: float | None = None
    samples: int = 0
    faces_per_s: float | None = None
    load_ms: float | None = None
    first_call_ms: float | None = None
    peak_memory_mb: float | None = None
    end_to_end_p50_ms: float | None = None  # crop to label
    end_to_end_p95_ms: float | None = None
    parity: Mapping[str, Any] | None = None  # this runtime's entry of the bundle's parity.json
    card: Mapping[str, Any] = field(default_factory=dict)  # provenance: backbone, licence, commit, label_source, config …
    macro_recall_low: float | None = None  # 95 %, `stats.macro_interval`; None: written before there was one
    macro_recall_high: float | None = None
    ece_floor: float | None = None  # `metrics.ece_floor`: what a perfectly calibrated model would show on as many faces
    signed_by: str | None = None  # the public key whose signature of the bundle was verified
    seeds: Seeds | None = None
    foreign: bool = False
    on_front: bool = False  # Pareto front of accuracy × latency × size
    dominated_by: str | None = None  # "model · runtime" that is better with confidence on every axis

    @property
    def sound(self) -> bool:
        """Whether its answers are its own: they were not seen to depend on the batch, so that it can be recommended at all."""
        return self.batch_invariant is not False


def _run_name(row: Row) -> str:
    """What the tracking calls the row's run: its configuration's name and seed, of several seeds the name; "" if unnamed."""
    config = row.card.get("config", {})
    name, seed = config.get("name", UNNAMED), config.get("seed")
    if name == UNNAMED or seed is None:
        return ""
    return str(name) if row.seeds else f"{name}-s{seed}"


@dataclass(frozen=True)
class Profile:
    """A latency profile, the host it was taken on, and the noise floor of that measurement."""

    host: Host
    runtime: str
    noise_floor: float | None  # |ratio − 1| bound of one model against itself; None: no control was run
    latency: LatencyProfile

    @property
    def spec(self) -> LatencySpec:
        """How it was measured."""
        return self.latency.spec

    def percentile_ms(self, q: float) -> float | None:
        """The q-th percentile in milliseconds; above 95 only from 1 000 samples, else None."""
        if not len(self.latency.samples_ms) or (q > 95 and len(self.latency.samples_ms) < 1000):
            return None
        return self.latency.percentile_ms(q)


@dataclass(frozen=True)
class Comparison:
    """One comparison, complete."""

    id: str
    created: str  # UTC, ISO 8601
    host: Host
    dataset: str
    fingerprint: str
    label_source: str
    protocol: str
    split: str
    n: int
    labels: tuple[str, ...]
    margin: float  # non-inferiority margin, a share
    reference_model: str
    reference_runtime: str
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    profiles: tuple[Profile, ...] = ()
    unavailable: Mapping[str, str] = field(default_factory=dict)  # "model · runtime" → why this host could not run it
    looks: int | None = None  # how often this registry's model family has looked at the test split, this look included
    noise_floor: float | None = None  # A/A control of the model-only latency; above 0.05 every latency verdict is undecided
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA

    @cached_property
    def names(self) -> Mapping[str, str]:
        """A short name of each model for tables and charts, no two alike."""
        return short_names({row.model: _run_name(row) for row in self.rows})

    def row(self, model: str, runtime: str) -> Row:
        """The row of a model (as named, or its bundle digest) in a runtime. Raises NotFound naming what is there."""
        for row in self.rows:
            if runtime == row.runtime and model in (row.model, row.bundle_digest, row.digest):
                return row
        there = ", ".join(f"{row.model} · {row.runtime}" for row in self.rows)
        raise NotFound(f"comparison {self.id} has no row {model} · {runtime}; it has: {there}")

    @property
    def reference(self) -> Row:
        """The row that the verdicts are against."""
        return self.row(self.reference_model, self.reference_runtime)

    def verdicts_of(self, row: Row, aspect: str | None = None) -> tuple[Verdict, ...]:
        """The verdicts about a row, all or those of one aspect (`accuracy`, `brier`, `class:…`, `slice:…`, `latency`)."""
        own = (v for v in self.verdicts if v.model == row.model and v.runtime == row.runtime)
        return tuple(v for v in own if aspect is None or v.aspect == aspect)

    def profiles_of(self, row: Row) -> tuple[Profile, ...]:
        """Latency profiles of exactly this artifact, taken on whatever host."""
        return tuple(p for p in self.profiles if p.latency.digest == row.digest and p.runtime == row.runtime)

    def timing_of(self, row: Row) -> Profile | None:
        """The profile that the latency figures of a row come from; None when its latency was not measured."""
        told = (row.host, row.threads, row.batch)
        model_only = (p for p in self.profiles_of(row) if not p.spec.end_to_end)
        return next((p for p in model_only if (p.host.name, p.spec.threads, p.spec.batch) == told), None)

    def to_json(self) -> str:
        """Return the text of comparison.json. Raises ValueError on NaN or infinity: a figure is a number or absent."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"

    def write(self, folder: Path) -> Path:
        """Write `folder/comparison.json` atomically and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        return write_whole(folder / FILE, self.to_json())


def read(path: str | Path) -> Comparison:
    """Read a comparison from comparison.json or the folder that holds it.

    Raises NotFound when there is none, InputError naming the key that does not fit the schema.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE
    if not path.is_file():
        raise NotFound(f"no comparison at {path}. Run: python -m fer_lab.compare MODEL…")
    return parse(path.read_bytes(), str(path))


def parse(raw: bytes | str, where: str) -> Comparison:
    """Return the comparison in the text of a comparison.json; `where` names it in errors."""
    from pydantic import TypeAdapter, ValidationError

    try:
        refuse_newer(where, json.loads(raw)["schema"], SCHEMA)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{where}: not a comparison of fer_lab. Run fer_lab.compare again") from None
    try:
        return TypeAdapter(Comparison).validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of comparison.json."""
    from pydantic import TypeAdapter

    return TypeAdapter(Comparison).json_schema()


def _plain(value: object) -> object:
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.floating):
        return float(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} does not belong into a comparison")
