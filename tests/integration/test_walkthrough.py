"""README's walk-through, executed: sweep → export → compare → promote → history → demo, on a cut-down configuration."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# What the walk-through leaves to the defaults, cut down so that the whole of it takes a minute or two.
CUT_DOWN = {
    "sweep": [
        "data.subset=160", "train.epochs=1", "train.image_size=32", "train.batch_size=32",
        "sweep.trials=2", "sweep.confirm.top=1", "sweep.confirm.seeds=1", "train.device=cpu",
    ],
    "export": [],
    "compare": ["--no-robustness", "--batches", "1", "--runtimes", "openvino"],
    "promote": ["--runtime", "openvino"],
    "demo": [],
}  # fmt: skip
POLICY = ["--policy", "experiments/policies/drawings.yaml"]


def commands() -> list[list[str]]:
    """The commands of the walk-through block, without `uv run python -m`."""
    block = re.search(r"<!-- walk-through.*?```sh\n(.*?)```", README, re.DOTALL)
    assert block is not None
    return [line.removeprefix("uv run python -m ").split() for line in block.group(1).strip().splitlines()]


class Walk:
    """One store root and what each command of the walk-through said."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "FER_LAB_HOME": str(home)}

    def run(self, module: str, *arguments: str, code: int | None = 0) -> dict[str, Any]:
        """Run one verb in a process of its own; returns the last line of its stdout."""
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        if code is not None:
            assert done.returncode == code, f"{module} {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """A store root in which the sweep of the walk-through has run."""
    walk = Walk(tmp_path_factory.mktemp("walk"))
    module, *arguments = commands()[0]
    result = walk.run(module, *arguments, *CUT_DOWN["sweep"])
    registered = result["registered"]
    assert (registered["name"], registered["version"], registered["alias"]) == ("fer-synthetic-8", 1, "challenger")
    assert result["trials"]["complete"] + result["trials"]["pruned"] == 2
    return walk


def step(walk: Walk, index: int, *extra: str, code: int = 0) -> dict[str, Any]:
    """Run the command of that index with its cut-down arguments."""
    module, *arguments = commands()[index]
    cut_down = [] if "--history" in arguments else CUT_DOWN[module.rsplit(".", 1)[1]]
    return walk.run(module, *arguments, *cut_down, *extra, code=code)


@pytest.mark.slow
def test_the_walk_through_runs_from_a_sweep_to_a_running_champion_and_back(walk: Walk) -> None:
    """Each command of README's walk-through does what it says, in its order."""
    assert [c[0].rsplit(".", 1)[1] for c in commands()] == ["sweep", "export", "compare", "promote", "promote", "demo"]
    exported = step(walk, 1)
    assert (exported["name"], exported["version"]) == ("fer-synthetic-8", 2)
    compared = step(walk, 2)
    assert Path(compared["report"]).is_file()
    assert {row["runtime"] for row in compared["rows"]} == {"openvino"}
    # One epoch on 160 drawings does not deserve a release, and the policy of the house says so, as README does.
    refused = walk.run("fer_lab.promote", "models:/fer-synthetic-8@challenger", *CUT_DOWN["promote"], code=3)
    assert refused["promoted"] is False
    assert "min_accuracy" in {gate["gate"] for gate in refused["gates"] if not gate["passed"]}
    promoted = step(walk, 3)
    assert (promoted["promoted"], promoted["version"], promoted["previous"]) == (True, 2, None)
    step(walk, 4)
    shown = step(walk, 5)
    assert shown["frames"] > 0
    assert shown["runtime"] == "openvino"

    # A second champion, and back.
    second = walk.run("fer_lab.export", "models:/fer-synthetic-8/1", "--runtimes", "openvino")
    assert second["version"] == 3
    walk.run(
        "fer_lab.compare", "models:/fer-synthetic-8/3", "--against", "champion", "--dataset", "synthetic", *CUT_DOWN["compare"]
    )  # fmt: skip
    promoted = walk.run("fer_lab.promote", "models:/fer-synthetic-8/3", *POLICY, *CUT_DOWN["promote"])
    assert (promoted["version"], promoted["previous"]) == (3, 2)
    assert walk.run("fer_lab.promote", "models:/fer-synthetic-8@champion", "--rollback")["version"] == 2
