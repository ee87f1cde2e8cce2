"""Sizes and figures of the fault tests: a quick variant in every run, the long one with FER_LAB_FAULTS=long.

    FER_LAB_FAULTS=long python -m pytest -m "faults or not faults" tests/faults

A long run writes each figure into `experiments/results/faults/NAME.json`; a quick one writes nothing.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fer_lab.measure import host

LONG = os.environ.get("FER_LAB_FAULTS") == "long"
RESULTS = Path(__file__).parents[1] / "experiments" / "results" / "faults"


def count(quick: int, long: int) -> int:
    """Return how often to inject the fault in this run."""
    return long if LONG else quick


def publish(name: str, **figures: Any) -> None:
    """Print the figures; in a long run write them, with host and time, to `experiments/results/faults/NAME.json`."""
    print(f"{name}: {figures}")
    if not LONG:
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    this = host.this_host()
    record = {"name": name, "measured": datetime.now(UTC).isoformat(timespec="seconds"), "cpu": this.cpu, "versions": this.versions}
    (RESULTS / f"{name}.json").write_text(json.dumps(record | figures, indent=2) + "\n", encoding="utf-8")
