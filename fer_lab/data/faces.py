"""FaceDataset: the one record in which faces travel, whatever they were read from."""

from __future__ import annotations

import hashlib
import io
import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fer_lab.core.errors import InputError, NotFound, refuse_newer
from fer_lab.core.files import replacing
from fer_lab.core.types import SPLITS, Split

SCHEMA = 1
FILE = "faces.npz"
DAMAGED_NPZ = (ValueError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)
"""What NumPy raises for an npz file with altered bytes."""


@dataclass(frozen=True)
class FaceDataset:
    """Faces with their crowd votes. Votes, not labels, are the data; a protocol turns them into targets.

    pixels: uint8 [N, 48, 48], gray. votes: uint8 [N, 10], columns of `core.labels.VOTE_COLUMNS`. split: uint8 [N],
    index into `SPLITS`. names: N image names, unique. slices: named lists of image names.
    """

    name: str  # ferplus-2016, ferplus-2017, synthetic
    label_source: str  # ferplus-2016, ferplus-2017, synthetic
    pixels: npt.NDArray[np.uint8]
    votes: npt.NDArray[np.uint8]
    split: npt.NDArray[np.uint8]
    names: tuple[str, ...]
    slices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.names)
        shapes = (self.pixels.shape, self.votes.shape, self.split.shape)
        if shapes != ((n, 48, 48), (n, 10), (n,)) or any(a.dtype != np.uint8 for a in (self.pixels, self.votes, self.split)):
            raise InputError(f"dataset {self.name}: {n} names do not fit pixels, votes, split of {shapes}")

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over pixels, votes, splits and names in a canonical order (by split, then name): the data's identity."""
        order = sorted(range(len(self)), key=lambda i: (int(self.split[i]), self.names[i]))
        digest = hashlib.sha256(f"{self.label_source}\n".encode())
        for part in (self.pixels[order], self.votes[order], self.split[order]):
            digest.update(np.ascontiguousarray(part).tobytes())
        digest.update("\n".join(self.names[i] for i in order).encode())
        return digest.hexdigest()

    def indices(self, split: Split) -> npt.NDArray[np.int64]:
        """Row numbers of a split, int64 [n]."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def take(self, rows: npt.NDArray[np.int64]) -> FaceDataset:
        """Return the dataset of these rows only; slices keep their names."""
        return FaceDataset(
            self.name, self.label_source, self.pixels[rows], self.votes[rows], self.split[rows],
            tuple(self.names[i] for i in rows), self.slices,
        )  # fmt: skip

    def save(self, folder: Path) -> Path:
        """Write `folder/faces.npz` atomically and return its path. Raises OSError when the disk is full."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            "schema": np.array(SCHEMA), "name": np.array(self.name), "label_source": np.array(self.label_source),
            "pixels": self.pixels, "votes": self.votes, "split": self.split, "names": np.array(self.names),
            "slice_names": np.array(list(self.slices), dtype=np.str_),
        }  # fmt: skip
        arrays |= {f"slice_{i}": np.array(names, dtype=np.str_) for i, names in enumerate(self.slices.values())}
        with replacing(folder / FILE) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        return folder / FILE


def load(folder: Path) -> FaceDataset:
    """Read `folder/faces.npz`. Raises NotFound when absent, InputError when it is not a dataset of a known schema."""
    path = folder / FILE
    if not path.is_file():
        raise NotFound(f"no prepared dataset at {path}. Run: python -m fer_lab.prepare {folder.name.split('-')[0]}")
    raw = path.read_bytes()
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
            refuse_newer(path, int(arrays["schema"]), SCHEMA)
            slices = {str(name): tuple(map(str, arrays[f"slice_{i}"])) for i, name in enumerate(arrays["slice_names"].tolist())}
            return FaceDataset(
                str(arrays["name"]), str(arrays["label_source"]), arrays["pixels"], arrays["votes"], arrays["split"],
                tuple(map(str, arrays["names"].tolist())), slices,
            )  # fmt: skip
    except (KeyError, *DAMAGED_NPZ) as error:
        raise InputError(f"{path}: not a dataset of fer_lab ({error}). Run fer_lab.prepare again") from None


def home() -> Path:
    """The store root: FER_LAB_HOME, or the current directory, absolute."""
    return Path(os.environ.get("FER_LAB_HOME") or ".").absolute()
