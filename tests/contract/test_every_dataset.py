"""What every data set must keep, whichever file reads it.

One that is read from disk is tested on a miniature of its files, written by the function that `FILES` has for it; a new
one without such a function is held to the rest.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ferplus_files import write as write_ferplus

from fer_lab import prepare
from fer_lab.core.errors import NotFound
from fer_lab.core.labels import PROTOCOLS, VOTE_COLUMNS
from fer_lab.core.types import SPLITS
from fer_lab.data import datasets, faces
from fer_lab.data.datasets import Reader, Reading
from fer_lab.data.faces import FaceDataset

READERS = datasets.readers()
FILES: dict[str, Callable[[FaceDataset, Path], object]] = {"ferplus": write_ferplus}
"""Writes a data set's own files, in miniature, where its reader looks for them when no option names any."""


@pytest.fixture(params=sorted(READERS))
def reader(request: pytest.FixtureRequest) -> Reader:
    return READERS[request.param]


def arguments(reader: Reader) -> argparse.Namespace:
    """Its options at their defaults."""
    parser = argparse.ArgumentParser()
    reader.arguments(parser)
    return parser.parse_args([])


@pytest.fixture
def reading(reader: Reader, home: Path, drawn: FaceDataset) -> Reading:
    """What it reads without options; skips where there is nothing to read."""
    if not reader.drawn:
        if reader.name not in FILES:
            pytest.skip(f"FILES has no miniature of the files of {reader.name}")
        FILES[reader.name](drawn, home / "data")
    return reader.read(arguments(reader))


def test_its_names_are_its_own(reader: Reader) -> None:
    """It is found under its name, and no other makes a dataset of the same one."""
    assert READERS[reader.name] is reader
    mine = {reader.name, *reader.leaves}
    others = {name for other in READERS.values() if other is not reader for name in (other.name, *other.leaves)}
    assert not mine & others
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) for name in mine)
    assert reader.then.startswith("python -m fer_lab.")


def test_prepare_shows_it(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    """Its name and what it is stand in the help, its options in its own."""
    for words in (["--help"], [reader.name, "--help"]):
        with pytest.raises(SystemExit, match="0"):
            prepare.main(words)
    said = " ".join(capsys.readouterr().out.split())
    assert f"{reader.name} {reader.help}" in said
    assert all(f"--{option.replace('_', '-')}" in said for option in vars(arguments(reader)))


def test_without_its_files_it_says_what_is_missing_and_writes_nothing(reader: Reader, home: Path) -> None:
    """One that is drawn needs none."""
    if reader.drawn:
        pytest.skip(f"{reader.name} needs no file")
    with pytest.raises(NotFound):
        reader.read(arguments(reader))
    assert not any(path.is_file() for path in home.rglob("*"))


def test_what_it_reads_can_be_trained_and_judged(reader: Reader, reading: Reading) -> None:
    """Its name and label source are its own, each face has votes, each split faces that a protocol keeps."""
    dataset = reading.dataset
    assert dataset.name in reader.leaves
    assert dataset.label_source in reader.leaves
    assert len(set(dataset.names)) == len(dataset) > 0
    assert dataset.votes.shape == (len(dataset), len(VOTE_COLUMNS))
    assert (dataset.votes.sum(axis=1) > 0).all()
    assert set(dataset.split.tolist()) == set(range(len(SPLITS)))
    assert dataset.pixels.std() > 0
    for split in SPLITS:
        rows = dataset.indices(split)
        assert any((protocol.labels(dataset.votes[rows]) >= 0).any() for protocol in PROTOCOLS.values())
    assert all(set(listed) <= set(dataset.names) for listed in dataset.slices.values())


def test_reading_again_is_the_same_dataset(reader: Reader, reading: Reading) -> None:
    """The same files have the same fingerprint."""
    assert reader.read(arguments(reader)).dataset.fingerprint == reading.dataset.fingerprint


def test_prepare_leaves_it_and_its_audit(reader: Reader, reading: Reading, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was read is what is loaded by name, and the last line says so."""
    capsys.readouterr()
    assert prepare.main([reader.name]) == 0
    said = capsys.readouterr().out
    result = json.loads(said.splitlines()[-1])
    assert f"next: {reader.then}" in said
    loaded = datasets.resolve(reader.name, home)
    assert result["fingerprint"] == loaded.fingerprint == reading.dataset.fingerprint
    folder = home / "data" / loaded.name
    assert {path.name for path in folder.iterdir()} == {faces.FILE, "audit.json"}
    np.testing.assert_array_equal(loaded.votes, reading.dataset.votes)
