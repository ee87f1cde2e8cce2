"""The two label files of FER+: `fer2013new.csv` (2017) and the `label.csv` of Microsoft's three folders (2016)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fer_lab.core.errors import InputError
from fer_lab.core.labels import VOTE_COLUMNS
from fer_lab.core.types import Split
from fer_lab.data.ferplus import fer2013, textfile
from fer_lab.data.ferplus.textfile import TextFile

NEW_COLUMNS = ("Usage", "Image name", *VOTE_COLUMNS[:9], "NF")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}\.png")
_COUNT_OF = {str(count): count for count in range(11)}
_VOTES_PER_FACE = (9, 10)  # ten, but fer0010406 has nine


@dataclass(frozen=True)
class VoteRows:
    """Rows of a label file in its order. names: "" where a row has none. votes: uint8 [N, 10]. usage: uint8 [N]."""

    shown: str
    names: tuple[str, ...]
    votes: npt.NDArray[np.uint8]
    usage: npt.NDArray[np.uint8]
    oddities: tuple[str, ...]

    def first_rows(self) -> dict[str, int]:
        """Row of each name; a name that stands twice is one face, by its first row."""
        rows: dict[str, int] = {}
        for row, name in enumerate(self.names):
            if name:
                rows.setdefault(name, row)
        return rows

    def repeated(self) -> list[str]:
        """Names that stand more than once, sorted."""
        seen: set[str] = set()
        return sorted({name for name in self.names if name and (name in seen or seen.add(name))})  # type: ignore[func-returns-value]


def read_new(file: TextFile) -> VoteRows:
    """Read `fer2013new.csv`; raises InputError naming the line."""
    positions: list[int] = []
    names, votes, usage = [], [], []
    for line, fields in file.rows():
        if not positions:
            hint = "; expected fer2013new.csv of FER+"
            positions = textfile.columns(file, fields, NEW_COLUMNS, hint)
            width = len(fields)
            continue
        try:
            if len(fields) != width:
                raise InputError(f"{len(fields)} fields, {width} are needed")
            picked = [fields[i] for i in positions]
            usage.append(fer2013.usage_index(picked[0]))
            names.append(checked_name(picked[1]) if picked[1] else "")
            votes.append(_votes(picked[2:]))
        except InputError as error:
            raise InputError(f"{file.shown}, line {line}: {error}") from None
    if not names:
        raise InputError(f"{file.shown} has no rows")
    return VoteRows(file.shown, tuple(names), np.array(votes, np.uint8), np.array(usage, np.uint8), tuple(file.oddities))


def read_folders(files: Mapping[Split, TextFile]) -> VoteRows:
    """Read the `label.csv` of the folders train, valid, test (keys are splits in that order): name, box, ten votes."""
    names: list[str] = []
    votes: list[list[int]] = []
    usage: list[int] = []
    oddities: list[str] = []
    for index, file in enumerate(files.values()):
        before = len(names)
        for line, fields in file.rows():
            try:
                if len(fields) != 12:
                    raise InputError(f"{len(fields)} fields, 12 are needed (name, box, ten votes)")
                names.append(checked_name(fields[0]))
                votes.append(_votes(fields[2:]))
            except InputError as error:
                raise InputError(f"{file.shown}, line {line}: {error}") from None
            usage.append(index)
        if len(names) == before:
            raise InputError(f"{file.shown} has no rows")
        oddities += file.oddities
    shown = ", ".join(file.shown for file in files.values())
    return VoteRows(shown, tuple(names), np.array(votes, np.uint8), np.array(usage, np.uint8), tuple(oddities))


def checked_name(name: str) -> str:
    """Return the image name; raises InputError when it is a path, too long, or no PNG name."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise InputError(f"image name {name[:60]!r} is not a plain file name such as fer0000000.png")
    return name


def _votes(fields: Sequence[str]) -> list[int]:
    try:
        votes = [_COUNT_OF[text] for text in fields]
    except KeyError as error:
        column = VOTE_COLUMNS[list(fields).index(error.args[0])]
        raise InputError(f"{column} has {error.args[0][:20]!r} votes; whole numbers 0–10 are needed") from None
    if sum(votes) not in _VOTES_PER_FACE:
        raise InputError(f"the votes sum to {sum(votes)}; a face of FER+ has ten")
    return votes
