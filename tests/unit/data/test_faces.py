"""A dataset survives its file, and its fingerprint is about content, not order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fer_lab.core.errors import InputError
from fer_lab.data import faces
from fer_lab.data.faces import FaceDataset


def test_a_dataset_survives_its_file(drawn: FaceDataset, tmp_path: Path) -> None:
    """What was saved is what is loaded, slices included."""
    small = drawn.take(np.arange(40))
    small.save(tmp_path)
    loaded = faces.load(tmp_path)
    assert small.fingerprint == loaded.fingerprint
    assert dict(small.slices) == dict(loaded.slices)
    assert [p.name for p in tmp_path.iterdir()] == ["faces.npz"]


def test_the_fingerprint_does_not_depend_on_the_order(drawn: FaceDataset) -> None:
    """Shuffled rows are the same data; one changed pixel, vote or name is not."""
    small = drawn.take(np.arange(40))
    assert small.fingerprint == small.take(np.random.default_rng(0).permutation(40)).fingerprint
    pixels = small.pixels.copy()
    pixels[0, 0, 0] ^= 1
    others = [replace(small, pixels=pixels), replace(small, label_source="x"), replace(small, names=("x", *small.names[1:]))]
    assert len({small.fingerprint, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"not a dataset at all"])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    """Half a file says so and names the remedy."""
    (tmp_path / "faces.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"not a dataset of fer_lab .*Run fer_lab.prepare again"):
        faces.load(tmp_path)


def test_a_truncated_file_is_refused(drawn: FaceDataset, tmp_path: Path) -> None:
    """A dataset that lost its end is no dataset."""
    path = drawn.take(np.arange(40)).save(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a dataset of fer_lab"):
        faces.load(tmp_path)


def test_shapes_that_do_not_fit_are_refused(drawn: FaceDataset) -> None:
    """Names, pixels, votes and splits belong together."""
    with pytest.raises(InputError, match="39 names do not fit"):
        replace(drawn.take(np.arange(40)), names=drawn.names[:39])
