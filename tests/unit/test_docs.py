"""The documents name only what exists, and their example works."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from gate_records import good_comparison, good_row

import fer_lab
from fer_lab import prepare
from fer_lab.core.config import Section, validate
from fer_lab.data import datasets
from fer_lab.data.faces import FaceDataset

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / name
    for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "docs/dependencies.md", "docs/team.md", "docker/README.md")
]
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def functions_of(path: Path) -> set[str]:
    """Names of the functions that a file defines."""
    return {node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_every_test_that_a_document_names_exists(document: Path) -> None:
    """File and function."""
    named = NAMED_TEST.findall(document.read_text(encoding="utf-8"))
    absent = [f"{file}::{function}" for file, function in named if not (ROOT / file).is_file()]
    absent += [
        f"{file}::{function}"
        for file, function in named
        if function and (ROOT / file).is_file() and function not in functions_of(ROOT / file)
    ]
    assert absent == []


def test_every_trap_is_guarded() -> None:
    """Each row of the tables in docs/dependencies.md ends with a test, or says that none guards it."""
    rows = [line for line in (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    traps = [row for row in rows if not row.startswith("| trap")]
    assert len(traps) > 15
    assert [row for row in traps if not NAMED_TEST.search(row.split("|")[-2]) and "not tested" not in row.split("|")[-2]] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    """Links to files of the repository."""
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def example(constant: str) -> str:
    """The code in CONTRIBUTING.md that defines this constant."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if f"\n{constant} = " in block)
    return str(code)


def test_the_example_gate_works_as_printed() -> None:
    """CONTRIBUTING.md's gate is a gate."""
    scope: dict[str, Any] = {"__name__": "example"}
    exec(example("GATE"), scope)
    gate = scope["GATE"]
    assert issubclass(gate.params, Section)
    scope["BudgetParams"].model_rebuild(_types_namespace=scope)
    params = validate(gate.params, {}, "example")
    comparison = good_comparison()
    assert gate.check(comparison, comparison.rows[1], params).passed
    assert not gate.check(comparison, good_row(card={}), params).passed
    assert not gate.check(comparison, good_row(card={"parameters": 20_000_000}), params).passed


def test_the_example_dataset_works_as_printed(
    drawn: FaceDataset, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CONTRIBUTING.md's data set is read by `prepare`."""
    scope: dict[str, Any] = {
        "__name__": "example",
        "read_folder": lambda folder: (drawn.pixels, drawn.votes, drawn.split, drawn.names),
    }
    exec(example("DATASET"), scope)
    monkeypatch.setattr(datasets, "discover", lambda *_: {"mine": scope["DATASET"]})
    assert prepare.main(["mine", "--folder", "elsewhere"]) == 0
    assert "next: python -m fer_lab.train data.dataset=mine" in capsys.readouterr().out
    np.testing.assert_array_equal(datasets.resolve("mine", home).votes, drawn.votes)


def test_the_citation_is_of_this_version() -> None:
    """CITATION.cff is YAML and names the version."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["cff-version"], citation["version"], citation["license"]) == ("1.2.0", fer_lab.__version__, "MIT")


def test_the_architecture_shows_every_package() -> None:
    """The house in ARCHITECTURE.md is the house on disk."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    packages = {path.parent.name for path in (ROOT / "fer_lab").glob("*/__init__.py")}
    assert {package for package in packages if f"  {package}/" not in text} == set()


EXAMPLES = sorted(path for path in (ROOT / "fer_lab").rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_the_examples_in_docstrings_hold(path: Path) -> None:
    """What stands behind >>> is what it gives."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted > 0
    assert done.failed == 0
