"""Joins the faces of FER2013 with the crowd votes of FER+, read from what people have.

Two layouts (the CSV pair, Microsoft's PNG folders) and two label sources that disagree on 1 601 faces: the folders'
`label.csv` (2016) and `fer2013new.csv` (2017). Whatever was read, the result is one face per image name, sorted by split
and name, so that the same faces and votes have the same fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fer_lab.core.errors import InputError, NotFound
from fer_lab.core.types import SPLITS
from fer_lab.data.faces import FaceDataset
from fer_lab.data.ferplus import fer2013, pictures, textfile, votefile
from fer_lab.data.ferplus.pictures import FOLDERS
from fer_lab.data.ferplus.votefile import VoteRows

ROWS = 35887
FACES = 35710  # distinct image names
SOURCE_2016, SOURCE_2017 = "ferplus-2016", "ferplus-2017"
NEW_LABELS = "fer2013new.csv"
KEPT = {SOURCE_2016: (25045, 3191, 3137), SOURCE_2017: (25057, 3199, 3153)}
"""Faces that protocol `ferplus8` keeps in train, valid, test of the complete FERPlus."""

# fer2013.csv has no image names. In these of its 35 887 rows fer2013new.csv has none either (173 rows), or one that stands
# at its place in the order of names too (the last four); what remains are the names of label.csv, in its order.
_UNNAMED_ROWS = frozenset(int(row) for row in """
17 23 59 170 501 633 639 1303 1648 2059 2171 2658 2671 2809 3177 3185 3262 3336 3385 3403 3549 3931 4069 4275 4327 4521 5051 5082
5439 5478 5509 5722 5881 5935 6102 6202 6369 6458 6478 6541 6646 6699 6708 7015 7172 7496 7527 7629 7965 8030 8567 8627 8737 8856
9026 9121 9256 9264 9474 9500 9673 9679 9693 9797 10023 10423 10713 10792 10930 11031 11244 11286 11295 11626 11846 12289 12352
12465 12840 13011 13148 13402 13697 13988 14148 14279 14702 15013 15144 15553 15668 15838 15894 15966 15975 16024 16180 16540
16622 16885 17081 17251 17620 17947 18012 18337 18492 18625 18912 19238 19422 19632 19638 19997 20222 20712 20817 21320 21792
21817 21937 22063 22198 22314 22407 22550 22638 22813 22927 23047 23320 23561 23596 23894 24053 24191 24441 24593 24891 24971
25168 25219 25603 25909 26383 26860 26897 28601 29447 29557 30002 30705 30981 31127 31734 31825 32032 32257 32299 32603 32662
32683 33195 33422 33750 33928 34691 35121 35469 35632 35743 35825 35883
5274 5348 15835 34334""".split())  # noqa: SIM905  # fmt: skip
_FIRST_ROW_ELSEWHERE = {"fer0006953.png": 5274, "fer0011785.png": 5348}


@dataclass(frozen=True)
class Joined:
    """A dataset and what was noticed while reading it."""

    dataset: FaceDataset
    rows: int  # of the label file, before nameless and repeated ones are dropped
    nameless: int
    repeated_names: tuple[str, ...]
    remarks: tuple[str, ...]
    disagreements: tuple[str, ...] | None = None  # names on which the two label sources differ; None with one source


@dataclass
class _Labels:
    """The label files at hand."""

    new: VoteRows | None = None
    folders: VoteRows | None = None
    remarks: list[str] = field(default_factory=list)

    def chosen(self, prefer_folders: bool) -> tuple[str, VoteRows]:
        if self.folders is not None and (prefer_folders or self.new is None):
            return SOURCE_2016, self.folders
        assert self.new is not None
        return SOURCE_2017, self.new


def read_csv(pictures_csv: Path, labels: Sequence[Path]) -> Joined:
    """Join `fer2013.csv` (or icml_face_data.csv) with votes, by row order.

    labels: fer2013new.csv, or the folder with Microsoft's three label.csv, or both (then the folder's votes count).
    Raises InputError when the files disagree.
    """
    with ExitStack() as stack:
        given = _read_labels(labels, stack)
        if given.new is None and given.folders is None:
            raise InputError(f"--fer2013 needs --labels: {NEW_LABELS} of FER+ or the folder with the three label.csv")
        faces = fer2013.read(pictures_csv)
        remarks = [*given.remarks, *faces.oddities]
        if faces.original:
            remarks.append(f"{pictures_csv.name} is the published file (MD5 agrees)")
        if given.new is not None:
            _check_rows_agree(faces, given.new)
            row_of = given.new.first_rows()
        else:
            assert given.folders is not None
            row_of = _rows_by_order(faces, given.folders)
        source, votes = given.chosen(prefer_folders=True)
        vote_row = votes.first_rows()
        absent = [name for name in vote_row if name not in row_of]
        if absent:
            raise InputError(f"{votes.shown} names {len(absent)} faces that {given_name(given)} lacks ({_first(absent)})")
        names = sorted(vote_row)
        chosen = np.array([row_of[name] for name in names], np.int64)
        picked = np.array([vote_row[name] for name in names], np.int64)
        return _joined(source, names, faces.pixels[chosen], votes, picked, given, remarks)


def read_images(images: Path, labels: Sequence[Path] = (), *, strict: bool = False) -> Joined:
    """Read PNG faces in Microsoft's layout; votes from the folders' label.csv, or from `labels`, joined by name.

    strict: refuse pictures that no label file names, instead of a remark. Raises InputError.
    """
    with ExitStack() as stack:
        given = _read_labels(labels, stack)
        shelf = stack.enter_context(pictures.open_shelf(images))
        prefer_folders = given.folders is not None or not labels
        if given.folders is None:
            own = {split: shelf.labels(split) for split in SPLITS}
            there = {split: file for split, file in own.items() if file is not None}
            if len(there) == len(own):
                given.folders = votefile.read_folders(there)
            elif prefer_folders:
                lacking = ", ".join(f"{FOLDERS[split]}/label.csv" for split in own if split not in there)
                raise InputError(f"{images} lacks {lacking}; give the votes with --labels {NEW_LABELS}")
        beside = images.resolve().parent / NEW_LABELS
        if given.new is None and beside.is_file():
            given.new = votefile.read_new(textfile.on_disk(beside))
        source, votes = given.chosen(prefer_folders)
        vote_row = votes.first_rows()
        names = sorted(vote_row)
        picked = np.array([vote_row[name] for name in names], np.int64)
        split_of: dict[str, str] = {name: SPLITS[votes.usage[row]] for name, row in vote_row.items()}
        remarks = [*given.remarks, *_check_files(shelf, split_of, votes.shown, strict)]
        pixels = np.empty((len(names), 48, 48), np.uint8)
        for i, name in enumerate(names):
            split = split_of[name]
            pixels[i] = pictures.decode(shelf.read(split, name), f"{shelf.shown}/{FOLDERS[split]}/{name}")
        return _joined(source, names, pixels, votes, picked, given, remarks)


def read_slices(folder: Path, names: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Read `folder/*.txt`: each a named list of image names, one a line. Returns the slices and remarks.

    Names that the dataset lacks are left out and counted in a remark.
    """
    known, slices, remarks = set(names), {}, []
    for path in sorted(folder.glob("*.txt")):
        file = textfile.on_disk(path)
        listed = []
        for line, fields in file.rows():
            try:
                listed.append(votefile.checked_name(fields[0]))
            except InputError as error:
                raise InputError(f"{path}, line {line}: {error}") from None
        inside = tuple(dict.fromkeys(name for name in listed if name in known))
        slices[path.stem] = inside
        if len(inside) < len(set(listed)):
            remarks.append(
                f"slice {path.stem}: {len(set(listed)) - len(inside)} of {len(set(listed))} names are not in the dataset"
            )
    return slices, remarks


def given_name(given: _Labels) -> str:
    """The file that names the rows."""
    return given.new.shown if given.new is not None else "fer2013.csv"


def _read_labels(labels: Sequence[Path], stack: ExitStack) -> _Labels:
    given = _Labels()
    for path in labels:
        if not path.exists():
            raise NotFound(f"{path} does not exist; --labels takes {NEW_LABELS} or the folder with Microsoft's three label.csv")
        if path.is_dir() or path.suffix.lower() == ".zip":
            shelf = stack.enter_context(pictures.open_shelf(path))
            files = {split: shelf.labels(split) for split in SPLITS}
            lacking = [f"{FOLDERS[split]}/label.csv" for split, file in files.items() if file is None]
            if lacking:
                raise InputError(f"{path} lacks {', '.join(lacking)}")
            given.folders = votefile.read_folders({split: file for split, file in files.items() if file is not None})
        else:
            given.new = votefile.read_new(textfile.on_disk(path))
    return given


def _joined(
    source: str,
    names: Sequence[str],
    pixels: npt.NDArray[np.uint8],
    votes: VoteRows,
    picked: npt.NDArray[np.int64],
    given: _Labels,
    remarks: Sequence[str],
) -> Joined:
    split = votes.usage[picked]
    order = np.lexsort((np.arange(len(names)), split))  # names are sorted already
    dataset = FaceDataset(
        source, source, pixels[order], votes.votes[picked][order], split[order], tuple(names[i] for i in order.tolist())
    )  # fmt: skip
    every = [label for label in (given.new, given.folders) if label is not None]
    notes = list(dict.fromkeys([*remarks, *(oddity for label in every for oddity in label.oddities)]))
    missing = [s for i, s in enumerate(SPLITS) if not (split == i).any()]
    if missing:
        notes.append(f"no faces in {', '.join(missing)}: nothing can be trained or compared on this dataset")
    return Joined(
        dataset, len(votes.names), votes.names.count(""), tuple(votes.repeated()), tuple(notes), _disagreements(given)
    )  # fmt: skip


def _disagreements(given: _Labels) -> tuple[str, ...] | None:
    if given.new is None or given.folders is None:
        return None
    new, old = given.new.first_rows(), given.folders.first_rows()
    both = sorted(new.keys() & old.keys())
    differ = (given.new.votes[[new[n] for n in both]] != given.folders.votes[[old[n] for n in both]]).any(axis=1)
    return tuple(both[i] for i in np.flatnonzero(differ).tolist())


def _check_rows_agree(faces: fer2013.Pictures, votes: VoteRows) -> None:
    """The join is by row order alone: one missing row would shift every later label."""
    n = min(len(faces.usage), len(votes.usage))
    differs = np.flatnonzero(faces.usage[:n] != votes.usage[:n])
    where = ""
    if len(differs):
        k = int(differs[0])
        rows = range(max(0, k - 1), min(n, k + 2))
        shown = "; ".join(
            f"row {i + 1}: {fer2013.USAGES[faces.usage[i]]} / {fer2013.USAGES[votes.usage[i]]}" for i in rows
        )  # fmt: skip
        where = f"Usage first differs at row {k + 1} ({shown})"
    if len(faces.usage) != len(votes.usage):
        raise InputError(
            f"{faces.shown} has {len(faces.usage)} rows, {votes.shown} has {len(votes.usage)}; "
            f"{where or 'Usage agrees as far as both go'}. They are joined by row order, so both must be complete"
        )
    if where:
        raise InputError(f"{faces.shown} and {votes.shown} are not one pair: {where}. They are joined by row order; get both again")


def _rows_by_order(faces: fer2013.Pictures, folders: VoteRows) -> dict[str, int]:
    """Row of each name of label.csv in a complete fer2013.csv."""
    if len(faces.usage) != ROWS or len(folders.names) != FACES:
        raise InputError(
            f"{faces.shown} has no image names, and {len(faces.usage)} rows with {len(folders.names)} labels are not the "
            f"complete FERPlus ({ROWS}, {FACES}): add --labels {NEW_LABELS}, which names the rows"
        )
    rows = [row for row in range(ROWS) if row not in _UNNAMED_ROWS]
    if (faces.usage[rows] != folders.usage).any() or list(folders.names) != sorted(folders.names):
        raise InputError(f"{faces.shown} and {folders.shown} do not agree on the splits; add --labels {NEW_LABELS}")
    return dict(zip(folders.names, rows, strict=True)) | _FIRST_ROW_ELSEWHERE


def _check_files(shelf: pictures.Shelf, split_of: Mapping[str, str], labels: str, strict: bool) -> list[str]:
    files: dict[str, set[str]] = {split: set(shelf.files(split)) for split in SPLITS}
    absent = [f"{FOLDERS[split]}/{name}" for name, split in split_of.items() if name not in files[split]]
    if absent:
        raise InputError(f"{shelf.shown} lacks {len(absent)} pictures that {labels} names ({_first(absent)})")
    unnamed = [f"{FOLDERS[split]}/{name}" for split in SPLITS for name in sorted(files[split]) if split_of.get(name) != split]
    if unnamed and strict:
        raise InputError(f"{shelf.shown} holds {len(unnamed)} pictures without votes ({_first(unnamed)}), refused by --strict")
    return [f"{len(unnamed)} pictures stand in no label file and are left out ({_first(unnamed)})"] if unnamed else []


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
