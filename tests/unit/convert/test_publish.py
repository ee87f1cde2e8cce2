"""A failed export leaves the previous bundle as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny_bundle

from fer_lab.backends.bundle import open_bundle
from fer_lab.convert import publish
from fer_lab.core.errors import InputError, NotFound


def export(out: Path, **changes: object) -> Path:
    with publish.building(out) as root:
        stage = tiny_bundle.write(root / "bundle", ["onnx"], **changes)
        return publish.publish(stage, out, open_bundle(stage).digest)


def test_the_pointer_names_the_newest_and_the_older_one_stays(tmp_path: Path) -> None:
    """Two exports, two folders, one line."""
    first = export(tmp_path, name="one")
    second = export(tmp_path, name="two")
    assert second == publish.current(tmp_path)
    assert [open_bundle(folder).card.name for folder in (first, second)] == ["one", "two"]
    assert {"CURRENT", first.name, second.name} == {path.name for path in tmp_path.iterdir()}


def test_the_same_content_is_published_once(tmp_path: Path) -> None:
    """And a damaged copy of it is replaced."""
    first = export(tmp_path)
    (first / "card.json").write_text("{}", encoding="utf-8")
    assert first == export(tmp_path)
    open_bundle(first)


def test_a_failure_changes_nothing(tmp_path: Path) -> None:
    """No half folder, no moved pointer."""
    first = export(tmp_path)
    with pytest.raises(OSError, match="full"), publish.building(tmp_path) as root:  # noqa: PT012  # the body is what fails
        (root / "part").write_bytes(b"x")
        raise OSError("disk full")
    assert first == publish.current(tmp_path)
    assert {"CURRENT", first.name} == {path.name for path in tmp_path.iterdir()}


def test_what_a_killed_export_left_is_swept_after_a_day(tmp_path: Path) -> None:
    """A younger one may still be at work."""
    for name, age_s in ((".building-old", 2 * 86400), (".building-young", 60)):
        (tmp_path / name).mkdir()
        stamp = (tmp_path / name).stat().st_mtime - age_s
        os.utime(tmp_path / name, (stamp, stamp))
    export(tmp_path)
    assert [path.name for path in tmp_path.glob(".building-*")] == [".building-young"]


@pytest.mark.parametrize("text", ["", "../elsewhere", "gone"])
def test_a_broken_pointer_says_so(tmp_path: Path, text: str) -> None:
    """It never leads out of its folder."""
    with pytest.raises(NotFound, match=r"fer_lab\.export"):
        publish.current(tmp_path)
    (tmp_path / "CURRENT").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="no folder beside it"):
        publish.current(tmp_path)
