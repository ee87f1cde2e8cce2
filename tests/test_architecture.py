"""The house as a test: who may import whom, what start-up may cost, what the listing must show."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fer_lab.__main__ import VERBS

PACKAGE = Path(__file__).parents[1] / "fer_lab"

# Each package may import what stands on a lower number; equal numbers do not know each other.
LAYER = {
    "core": 0, "data": 1, "models": 1, "backends": 2, "measure": 3, "convert": 4, "gates": 4,
    "training": 5, "tracking": 5, "search": 6, "live": 6,
}  # fmt: skip
VERB_LAYER = 7
HEAVY = {"torch", "timm", "mlflow", "optuna", "pandas", "scipy", "matplotlib", "cv2", "openvino", "onnx", "onnxruntime", "nncf"}


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def owner(module: str) -> str | None:
    """The package (or verb) of fer_lab that a dotted name lies in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "fer_lab" else None


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)
VERB_FILES = sorted(path for path in PACKAGE.glob("*.py") if path.stem in VERBS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_package_imports_only_what_lies_below_it(path: Path) -> None:
    """core < data | models < backends < measure < convert | gates < training | tracking < search | live < verbs."""
    mine = path.relative_to(PACKAGE).parts[0]
    for module in imports_of(path):
        other = owner(module)
        if other is None or other == mine or other in {"__version__", "py"}:
            continue
        assert other in LAYER, f"{path.name} imports the verb {other}"
        assert LAYER[other] < LAYER[mine], f"{mine}/{path.name} imports {other}, which is not below it"


@pytest.mark.parametrize("path", VERB_FILES, ids=lambda p: p.stem)
def test_verbs_do_not_import_each_other(path: Path) -> None:
    """Where one verb needs what another does, both call the package that does it."""
    assert not {owner(module) for module in imports_of(path)} & (set(VERBS) - {path.stem})


def test_only_tracking_imports_mlflow_and_only_search_imports_optuna() -> None:
    """One door to each server."""
    for path in PACKAGE.rglob("*.py"):
        roots = {module.split(".")[0] for module in imports_of(path)}
        inside = path.relative_to(PACKAGE).parts[0]
        assert "mlflow" not in roots or inside == "tracking", path
        assert "optuna" not in roots or inside == "search", path


def test_every_verb_has_its_file() -> None:
    """The listing of runnable modules is the pipeline."""
    assert {path.stem for path in VERB_FILES} == set(VERBS)


def loaded_by(code: str) -> set[str]:
    """The top-level modules in sys.modules after running code in a fresh interpreter."""
    script = f"import sys\n{code}\nprint('=====', *{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.rsplit("=====", 1)[1].split())


def test_importing_fer_lab_imports_nothing_heavy() -> None:
    """`import fer_lab` costs nothing."""
    assert not loaded_by("import fer_lab") & (HEAVY | {"numpy", "pydantic"})


def processor_seconds(*words: str) -> float:
    """Processor time that Python takes for this: what a busy machine does not stretch."""
    before = os.times()
    subprocess.run([sys.executable, *words], capture_output=True, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_quick_and_light(verb: str) -> None:
    """`--help` of every verb imports neither torch nor mlflow and takes less than twice what numpy alone takes."""
    code = f"import fer_lab.{verb} as verb\ntry: verb.main(['--help'])\nexcept SystemExit as done: assert not done.code"
    assert not loaded_by(code) & HEAVY
    assert processor_seconds("-m", f"fer_lab.{verb}", "--help") < 2 * processor_seconds("-c", "import numpy")


def test_the_demo_leaves_the_training_libraries_alone() -> None:
    """The demo runs where torch, timm and optuna are not installed."""
    code = "import fer_lab.demo, pkgutil, importlib, fer_lab.live as live\n"
    code += "for m in pkgutil.walk_packages(live.__path__, 'fer_lab.live.'): importlib.import_module(m.name)"
    assert not loaded_by(code) & {"torch", "timm", "optuna", "mlflow"}
