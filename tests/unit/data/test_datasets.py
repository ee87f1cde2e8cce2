"""Data sets by name: which one a name means, and when one is drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fer_lab.core.errors import NotFound
from fer_lab.data import datasets, synthetic
from fer_lab.data.faces import FaceDataset


def test_ferplus_is_whichever_is_prepared(drawn: FaceDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2016 when both are there, said once; nothing prepared says what to run."""
    datasets._say_which.cache_clear()
    with pytest.raises(NotFound, match=r"prepared: none.*python -m fer_lab.prepare ferplus$"):
        datasets.resolve("ferplus", tmp_path)
    for name in ("ferplus-2017", "ferplus-2016"):
        replace(drawn.take(np.arange(40)), name=name, label_source=name).save(tmp_path / "data" / name)
        assert datasets.resolve("ferplus", tmp_path).name == name
    datasets.resolve("ferplus", tmp_path)
    said = [line for line in capsys.readouterr().err.splitlines() if "ferplus-2016 is taken" in line]
    assert len(said) == 1


def test_a_name_that_nobody_reads_gets_the_nearest(tmp_path: Path) -> None:
    """One that a reader makes is told how to be prepared."""
    with pytest.raises(NotFound, match=r"prepare reads .*ferplus.*; did you mean 'ferplus-2016'"):
        datasets.resolve("ferplus-2106", tmp_path)
    with pytest.raises(NotFound, match=r"python -m fer_lab.prepare ferplus$"):
        datasets.resolve("ferplus-2017", tmp_path)


def test_the_sample_is_drawn_once(home: Path, monkeypatch: pytest.MonkeyPatch, drawn: FaceDataset) -> None:
    """The first use draws and audits; the second only loads."""
    monkeypatch.setattr(synthetic, "draw", lambda count, seed: drawn)
    first = datasets.ready("synthetic", home)
    monkeypatch.setattr(synthetic, "draw", lambda count, seed: pytest.fail("drawn again"))
    assert datasets.ready("synthetic", home).fingerprint == first.fingerprint
    assert (home / "data" / "synthetic" / "audit.json").is_file()


def test_only_what_is_drawn_appears_by_itself(home: Path) -> None:
    """Looking a dataset up draws nothing, and FERPlus is not made of nothing."""
    with pytest.raises(NotFound, match="prepare synthetic"):
        datasets.resolve("synthetic", home)
    with pytest.raises(NotFound, match="prepare ferplus"):
        datasets.ready("ferplus", home)
    assert not (home / "data").exists()
