"""Gates on what is shipped: the runtime's parity with torch, its speed on a named machine, its size, its independence
of the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveFloat, PositiveInt

from fer_lab.core.config import Section
from fer_lab.core.types import GateVerdict
from fer_lab.gates.gate import Gate, is_number, percent

if TYPE_CHECKING:
    from fer_lab.measure.comparison import Comparison, Row


class ParityParams(Section):
    """How far the runtime may be from torch float32 on the whole validation split."""

    max_flip_rate: float = Field(0.02, ge=0, le=1, description="share of faces whose label differs")
    max_drop: float = Field(0.005, ge=0, le=1, description="loss of accuracy, as a fraction")


def _parity(comparison: Comparison, row: Row, params: ParityParams) -> GateVerdict:
    required = f"flips at most {percent(params.max_flip_rate)}, accuracy drop at most {percent(params.max_drop)}, against torch"
    if row.runtime.partition(":")[0] == "torch":
        return GateVerdict("parity", True, "torch is what the others are held against", required)
    record: dict[str, Any] = dict(row.parity or {})
    if not record:
        return GateVerdict("parity", False, f"{row.runtime} was never verified (no entry in parity.json)", required)
    if record.get("refused"):
        return GateVerdict("parity", False, f"export refused it: {record['refused']}", required)
    flip_rate, drop = record.get("flip_rate"), record.get("drop")
    if not is_number(flip_rate) or not is_number(drop):
        return GateVerdict("parity", False, f"{row.runtime}: parity.json has no flip rate or no accuracy drop", required)
    passed = bool(flip_rate <= params.max_flip_rate and drop <= params.max_drop)
    return GateVerdict("parity", passed, f"flips {percent(flip_rate)}, accuracy drop {percent(drop)}", required)


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
        f"p95 at most {params.budget_ms:g} ms in {runtime}, {params.threads} thread{'s' * (params.threads > 1)}, "
        f"batch {params.batch}, on {host}"
    )
    if row.runtime != runtime:
        return GateVerdict("latency", False, f"the row is {row.runtime}", required)
    return GateVerdict("latency", False, "no profile", required)


class SizeParams(Section):
    """A ceiling for the files that the runtime reads."""

    max_mb: PositiveFloat = 100


def _size(comparison: Comparison, row: Row, params: SizeParams) -> GateVerdict:
    required = f"at most {params.max_mb:g} MB"
    if not is_number(row.size_mb) or row.size_mb is None or row.size_mb <= 0:
        return GateVerdict("size", False, "the size was not measured", required)
    return GateVerdict("size", row.size_mb <= params.max_mb, f"{row.size_mb:.2f} MB", required)


class BatchParams(Section):
    """No parameters: a face's label depends on the face alone, or it does not."""


def _batch_invariance(comparison: Comparison, row: Row, params: BatchParams) -> GateVerdict:
    said = (
        {True: "the same labels", False: "other labels"}.get(row.batch_invariant, "not checked")
        if row.batch_invariant is not None
        else "not checked"
    )
    return GateVerdict("batch_invariance", row.batch_invariant is True, f"alone and in a shuffled batch: {said}", "the same labels")


GATE = (
    Gate("parity", "the runtime gives torch's answers", ParityParams, _parity),
    Gate("latency", "the 95th percentile fits the budget on the named machine", LatencyParams, _latency),
    Gate("size", "the artifact fits the target", SizeParams, _size),
    Gate("batch_invariance", "a face's label does not depend on its neighbours", BatchParams, _batch_invariance),
)
