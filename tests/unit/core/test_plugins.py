"""Plug-ins: one new file adds one; the listing of a package is the listing of its plug-ins."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fer_lab.core.plugins import discover


def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> str:
    """Write a package with these files below a path that Python searches; returns its name."""
    name = f"plugins_{abs(hash(tuple(files.items())))}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").touch()
    for stem, text in files.items():
        (folder / f"{stem}.py").write_text(f"from types import SimpleNamespace as P\n{text}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return name


def test_a_file_is_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One constant, or a tuple of them, in each file that has it; other files do not count."""
    name = package(tmp_path, monkeypatch, a="GATE = P(name='one')", b="GATE = (P(name='two'), P(name='three'))", c="X = 1")
    assert list(discover(name, "GATE")) == ["one", "two", "three"]


def test_two_plugins_of_one_name_are_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second would silently win."""
    name = package(tmp_path, monkeypatch, a="GATE = P(name='one')", b="GATE = P(name='one')")
    with pytest.raises(RuntimeError, match="called 'one'"):
        discover(name, "GATE")
