"""What a gate is: a name, the schema of its parameters, and a pure function of the record of a comparison.

A new gate is one new file of this package with a constant `GATE` (or a tuple of them):

    class Params(Section):
        limit_mb: PositiveFloat = 64

    def check(comparison: Comparison, row: Row, params: Params) -> GateVerdict: ...

    GATE = Gate("size", "the artifact fits the target's storage", Params, check)

A gate sees nothing but the record: it cannot measure again, log or change anything. Evidence that is missing, not a
number, or from elsewhere refuses; it never passes for want of a figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from fer_lab.core.config import Section
from fer_lab.core.types import GateVerdict, Verdict

if TYPE_CHECKING:
    from fer_lab.measure.comparison import Comparison, Row


@dataclass(frozen=True)
class Gate:
    """One rule of a policy. `check(comparison, row, params)` is deterministic and changes nothing."""

    name: str
    what: str  # one sentence for a person
    params: type[Section]  # every parameter has a default, or the policy must give it
    check: Callable[[Comparison, Row, Any], GateVerdict]


def verdict_of(comparison: Comparison, row: Row, aspect: str) -> Verdict | None:
    """Return what the comparison said about one aspect of this row against the reference, or None."""
    return next((v for v in comparison.verdicts if v.aspect == aspect and _is_about(v, row)), None)


def verdicts_under(comparison: Comparison, row: Row, prefix: str) -> list[Verdict]:
    """Return the verdicts about this row whose aspect starts with `prefix` (`class:`, `slice:`), in order of aspect."""
    return sorted((v for v in comparison.verdicts if v.aspect.startswith(prefix) and _is_about(v, row)), key=lambda v: v.aspect)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a figure of the record is there and finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def percent(value: float) -> str:
    """A fraction as a person reads it: 0.8432 → `84.32 %`."""
    return f"{100 * value:.2f} %"


def points(value: float) -> str:
    """A change of a fraction in percentage points, with its sign: −0.0123 → `-1.23 points`."""
    return f"{round(100 * value, 2) + 0.0:+.2f} points"  # + 0.0: no minus before zero


def _is_about(verdict: Verdict, row: Row) -> bool:
    return verdict.model == row.model and verdict.runtime == row.runtime
