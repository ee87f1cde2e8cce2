"""Gates on what is shipped: the runtime's parity with torch, its speed on a named machine, its size, its independence
of the batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveFloat, PositiveInt

from fer_lab.core.config import Section
from fer_lab.core.types import GateVerdict
from fer_lab.gates.gate import Gate, is_number, percent, points

if TYPE_CHECKING:
    from fer_lab.measure.comparison import Comparison, Profile, Row


class ParityParams(Section):
    """How far the runtime may be from torch float32 on the whole validation split."""

    max_flip_rate: float = Field(0.02, ge=0, le=1, description="share of faces whose label differs")
    max_drop: float = Field(0.005, ge=0, le=1, description="loss of accuracy, as a fraction")


def _parity(comparison: Comparison, row: Row, params: ParityParams) -> GateVerdict:
    required = f"flips at most {percent(params.max_flip_rate)}, accuracy drop at most {percent(params.max_drop)}, against torch"
    name, _, device = row.runtime.partition(":")
    if name == "torch":
        return GateVerdict("parity", True, "torch is what the others are held against", required)
    record: dict[str, Any] = dict(row.parity or {})
    if device and device.upper() != record.get("device", "CPU"):
        said = f"{row.runtime} was never verified: export verifies on the CPU alone"
        return GateVerdict("parity", False, said, required)
    if not record:
        return GateVerdict("parity", False, f"{row.runtime} was never verified (no entry in parity.json)", required)
    if record.get("state") != "verified":
        reason = record.get("reason") or "nobody says why"
        return GateVerdict("parity", False, f"{row.runtime} is {record.get('state') or 'unmeasured'}: {reason}", required)
    if record.get("digest") != row.digest:
        said = f"parity.json does not name this {row.runtime} artifact (digest {row.digest[:12]}); export the model again"
        return GateVerdict("parity", False, said, required)
    n, change, flips = record.get("n"), record.get("change"), record.get("flips")
    count = len(flips) if isinstance(flips, list | tuple) else flips
    if not is_number(n) or n <= 0 or not is_number(change) or not is_number(count):
        return GateVerdict(
            "parity", False, f"{row.runtime} is unmeasured: parity.json has no faces, flips or change for it", required
        )
    passed = count / n <= params.max_flip_rate and -change <= params.max_drop
    observed = f"{count} flips among {n} validation faces ({percent(count / n)}), accuracy {points(change)}"
    return GateVerdict("parity", passed, observed, required)


class LatencyParams(Section):
    """A budget for one call on a named machine."""

    budget_ms: PositiveFloat = Field(description="for the 95th percentile of the model alone")
    runtime: str | None = Field(None, description="the runtime the budget is for; the row's own when null")
    threads: PositiveInt = 1
    batch: PositiveInt = 1
    host: str | None = Field(None, description="the host profile, as fer_lab.compare prints it; the comparing machine when null")
    min_samples: PositiveInt = Field(30, description="fewer calls give no 95th percentile")


def _latency(comparison: Comparison, row: Row, params: LatencyParams) -> GateVerdict:
    host = params.host or comparison.host.name
    runtime = params.runtime or row.runtime
    required = (
        f"p95 at most {params.budget_ms:g} ms in {runtime}, {_threads(params.threads)}, batch {params.batch}, on {host}, "
        f"from {params.min_samples} calls or more"
    )
    if row.runtime != runtime:
        return GateVerdict("latency", False, f"the runtime to be shipped is {row.runtime}", required)
    profiles = [profile for profile in comparison.profiles_of(row) if not profile.spec.end_to_end]
    there = [profile for profile in profiles if profile.host.name == host]
    fitting = [p for p in there if p.spec.threads == params.threads and p.spec.batch == params.batch]
    if not profiles:
        return GateVerdict("latency", False, f"the latency of this {row.runtime} artifact was not measured", required)
    if not there:
        hosts = ", ".join(sorted({profile.host.name for profile in profiles}))
        return GateVerdict("latency", False, f"measured on another host only: {hosts}", required)
    if not fitting:
        specs = "; ".join(sorted({f"{_threads(p.spec.threads)}, batch {p.spec.batch}" for p in there}))
        return GateVerdict("latency", False, f"measured with {specs} only", required)
    # Several profiles of one artifact under one specification: the slowest counts.
    p95, samples = max(
        (p.latency.percentile_ms(95) if _sampled(p, params) else math.inf, len(p.latency.samples_ms)) for p in fitting
    )
    if not is_number(p95):
        return GateVerdict("latency", False, f"only {samples} calls were measured, or one is not a number", required)
    return GateVerdict("latency", p95 <= params.budget_ms, f"p95 {p95:.2f} ms from {samples} calls on {host}", required)


def _sampled(profile: Profile, params: LatencyParams) -> bool:
    samples = profile.latency.samples_ms
    return len(samples) >= params.min_samples and all(math.isfinite(ms) and ms > 0 for ms in samples)


def _threads(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


class SizeParams(Section):
    """A ceiling for the files that the runtime reads."""

    max_mb: PositiveFloat = 100


def _size(comparison: Comparison, row: Row, params: SizeParams) -> GateVerdict:
    required = f"at most {params.max_mb:g} MB"
    if not is_number(row.size_mb) or row.size_mb <= 0:
        return GateVerdict("size", False, "the size was not measured", required)
    return GateVerdict("size", row.size_mb <= params.max_mb, f"{row.size_mb:.2f} MB", required)


class BatchParams(Section):
    """No parameters: a face's label depends on the face alone, or it does not."""


def _batch_invariance(comparison: Comparison, row: Row, params: BatchParams) -> GateVerdict:
    said = "not checked" if row.batch_invariant is None else f"{row.audit.batch_flips} other labels of {row.audit.batch_faces}"
    return GateVerdict("batch_invariance", row.batch_invariant is True, said, "the same label alone and in a shuffled batch")


GATE = (
    Gate("parity", "the runtime gives torch's answers", ParityParams, _parity),
    Gate("latency", "the 95th percentile fits the budget on the named machine", LatencyParams, _latency),
    Gate("size", "the artifact fits the target", SizeParams, _size),
    Gate("batch_invariance", "a face's label does not depend on its neighbours", BatchParams, _batch_invariance),
)
