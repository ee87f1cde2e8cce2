"""All data sets by name: a file or package of this folder each, with a constant `DATASET`.

A reader makes a FaceDataset of what people have on disk, or draws one. `prepare` has a subcommand for each that is found here.

>>> readers()["ferplus"].leaves
('ferplus-2016', 'ferplus-2017')
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from fer_lab.core.console import note
from fer_lab.core.errors import NotFound, nearest
from fer_lab.core.plugins import discover
from fer_lab.data import faces
from fer_lab.data.faces import FaceDataset


@dataclass(frozen=True)
class Reading:
    """A dataset and what was noticed while reading it."""

    dataset: FaceDataset
    remarks: tuple[str, ...] = ()  # sentences for people
    repeated_names: tuple[str, ...] = ()  # names that stand twice in the files and count once
    disagreements: tuple[str, ...] | None = None  # names on which two label sources differ; None with one source


class Reader(Protocol):
    """How one data set becomes a FaceDataset: a plug-in."""

    name: str  # as `prepare NAME` and `data.dataset=NAME` say it
    help: str  # what it is, in a few words
    leaves: tuple[str, ...]  # names of the FaceDatasets that it makes; `data.dataset=NAME` takes the first that is prepared
    drawn: bool  # needs nothing from disk: `train` and `sweep` prepare it on first use
    then: str  # the command to type when it is prepared

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of its subcommand; each has a default."""

    def read(self, args: argparse.Namespace) -> Reading:
        """Read and check everything, write nothing. Raises InputError, or NotFound naming what is missing and its source."""


def readers() -> dict[str, Reader]:
    """Return the readers by name."""
    return discover("fer_lab.data", "DATASET")


def prepared(name: str, home: Path) -> list[str]:
    """Names of the prepared datasets that `name` may mean, the preferred one first: `ferplus` is either label source."""
    reader = readers().get(name)
    return [found for found in (reader.leaves if reader else (name,)) if (home / "data" / found / faces.FILE).is_file()]


def resolve(name: str, home: Path) -> FaceDataset:
    """Load `home/data/<name>`; a reader's name is whichever of its datasets is prepared. Raises NotFound when none is."""
    found = prepared(name, home)
    if len(found) > 1:
        _say_which(name, *found)
    if found:
        return faces.load(home / "data" / found[0])
    known = sorted(path.parent.name for path in (home / "data").glob(f"*/{faces.FILE}"))
    by_reader = {made: reader.name for reader in readers().values() for made in (reader.name, *reader.leaves)}
    if name in by_reader:
        advice = f"Run: python -m fer_lab.prepare {by_reader[name]}"
    else:
        advice = f"python -m fer_lab.prepare reads {', '.join(readers())}{nearest(name, [*by_reader, *known])}"
    raise NotFound(f"dataset {name!r} is not prepared in {home / 'data'} (prepared: {', '.join(known) or 'none'}). {advice}")


def ready(name: str, home: Path) -> FaceDataset:
    """Like `resolve`, but one that is drawn is drawn and audited on first use."""
    reader = readers().get(name)
    if reader is not None and reader.drawn and not prepared(name, home):
        from fer_lab.data.audit import save_audited

        parser = argparse.ArgumentParser()
        reader.arguments(parser)
        dataset = reader.read(parser.parse_args([])).dataset
        save_audited(dataset, home / "data" / dataset.name)
        return dataset
    return resolve(name, home)


@cache
def _say_which(name: str, taken: str, *others: str) -> None:
    """Once per process."""
    note(f"{name}: {taken} and {', '.join(others)} are prepared; {taken} is taken. Name {others[0]} to take the other")
