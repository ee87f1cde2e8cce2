"""A policy: which gates, with which limits, a challenger must pass, as YAML.

    schema: 1
    runtime: openvino            # what is shipped when promote is not told otherwise
    gates:                       # when there is a champion
      not_worse: {margin: 0.015}
      size: {max_mb: 64}
    first_promotion:             # when there is none yet: nothing to compare against
      min_accuracy: {at_least: 0.8}

Strict: an unknown gate or parameter is an error that names the nearest, and a gate that is listed always runs. The hash
of a policy is over its meaning (defaults filled in), so comments and order do not change it and an edited limit does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from fer_lab.core.config import Section, read_yaml, validate
from fer_lab.core.errors import InputError, nearest
from fer_lab.core.plugins import discover
from fer_lab.core.types import GateVerdict
from fer_lab.gates.gate import Gate

if TYPE_CHECKING:
    from fer_lab.measure.comparison import Comparison, Row

Step = tuple[Gate, Section]


class PolicyFile(Section):
    """The keys of a policy file; the parameters of each gate are checked by the gate's own schema."""

    schema_version: Literal[1] = Field(1, alias="schema")
    runtime: str = Field("openvino", description="the runtime that is shipped")
    gates: dict[str, Any]
    first_promotion: dict[str, Any]


@dataclass(frozen=True)
class Policy:
    """A checked policy. `hash` is the sha256 over its meaning."""

    where: str
    runtime: str
    gates: tuple[Step, ...]
    first_promotion: tuple[Step, ...]
    hash: str


def known() -> dict[str, Gate]:
    """All gates by name."""
    return discover("fer_lab.gates", "GATE")


def load(path: str | Path) -> Policy:
    """Read and check a policy. Raises NotFound without the file, InputError that names section, gate and parameter."""
    return parse(read_yaml(path), str(path))


def parse(tree: Mapping[str, Any], where: str = "policy") -> Policy:
    """Check a parsed policy."""
    file = validate(PolicyFile, dict(tree), where)
    gates = _steps(file.gates, f"{where}: gates")
    first = _steps(file.first_promotion, f"{where}: first_promotion")
    meaning = {
        "schema": 1,
        "runtime": file.runtime,
        "gates": {gate.name: params.model_dump(mode="json") for gate, params in gates},
        "first_promotion": {gate.name: params.model_dump(mode="json") for gate, params in first},
    }
    digest = hashlib.sha256(json.dumps(meaning, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    return Policy(where, file.runtime, gates, first, digest)


def run(policy: Policy, comparison: Comparison, row: Row, *, first: bool = False) -> list[GateVerdict]:
    """Return what each gate of the policy says about one row; `first` when there is no champion yet."""
    steps = policy.first_promotion if first else policy.gates
    return [gate.check(comparison, row, params) for gate, params in steps]


def sentence(verdict: GateVerdict) -> str:
    """One sentence about one gate, for a person."""
    word = "passed" if verdict.passed else "failed"
    return f"{verdict.gate} {word}: {verdict.observed}; required: {verdict.required}"


def failed(verdicts: Sequence[GateVerdict]) -> list[GateVerdict]:
    """Return the verdicts that refuse."""
    return [verdict for verdict in verdicts if not verdict.passed]


def _steps(section: Mapping[str, Any], where: str) -> tuple[Step, ...]:
    gates = known()
    if not section:
        raise InputError(f"{where}: empty; a policy without gates would promote anything. Known gates: {', '.join(gates)}")
    steps = []
    for name, params in section.items():
        if name not in gates:
            raise InputError(f"{where}: unknown gate {name!r}{nearest(str(name), gates)}; known: {', '.join(gates)}")
        if not isinstance(params, dict):
            raise InputError(f"{where}.{name}: expected a mapping of parameters ({{}} for the defaults), got {params!r}")
        steps.append((gates[name], validate(gates[name].params, params, f"{where}.{name}")))
    return tuple(steps)
