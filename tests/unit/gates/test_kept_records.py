"""The records under experiments/results are evidence as they are: the gates that tie them to their bundles let them through."""

from __future__ import annotations

from pathlib import Path

import pytest

from fer_lab.gates import policy
from fer_lab.measure import comparison
from fer_lab.measure.comparison import Comparison, Row

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
RECORDS = sorted((EXPERIMENTS / "results").glob("*/comparison.json"))
UNVERIFIED = {("ferplus_biases", 6, "openvino-bf16")}
"""Measured because it runs the files of another runtime; `export` had not been asked to verify it."""


def passes(gate: str, kept: Comparison, row: Row, rules: str) -> bool:
    loaded = policy.load(EXPERIMENTS / "policies" / f"{rules}.yaml")
    return next(step.check(kept, row, params).passed for step, params in loaded.gates if step.name == gate)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.parent.name)
def test_a_kept_record_is_about_its_own_artifacts_and_data(path: Path) -> None:
    """Parity by digest for every exported artifact; other labels of the same pictures only where the policy names them.

    The one row of `UNVERIFIED` is refused.
    """
    kept = comparison.read(path)
    tested = kept.split == "test"  # the ablation is about validation faces: no evidence for a promotion
    for row in kept.rows:
        unverified = (path.parent.name, row.version, row.runtime) in UNVERIFIED
        assert passes("parity", kept, row, "default") is not unverified, row.runtime
        assert passes("evidence", kept, row, "default") is (tested and kept.label_source == row.card["label_source"])
        assert passes("evidence", kept, row, "ferplus") is (tested and kept.protocol == "ferplus8")
