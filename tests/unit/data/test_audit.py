"""Repeated pictures are found, counted and named; the clean test list holds what has no twin."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fer_lab.data import audit
from fer_lab.data.faces import FaceDataset


def dataset(split: list[int], pictures: list[int], winners: list[int]) -> FaceDataset:
    """Faces with random pictures (equal numbers, equal pixels) and ten votes for one column each."""
    rng = np.random.default_rng(0)
    of = {number: rng.integers(0, 256, (48, 48), np.uint8) for number in sorted(set(pictures))}
    votes = np.zeros((len(split), 10), np.uint8)
    votes[np.arange(len(split)), winners] = 10
    names = tuple(f"fer{i:07d}.png" for i in range(len(split)))
    return FaceDataset("mini", "mini", np.stack([of[p] for p in pictures]), votes, np.array(split, np.uint8), names)


@pytest.fixture
def mini() -> FaceDataset:
    """train 0 1 2 3, valid 4 5, test 6 7 8: picture 7 in train twice and in test; 8 in valid and test; 9 in train and valid."""
    return dataset([0, 0, 0, 0, 1, 1, 2, 2, 2], [7, 7, 9, 1, 8, 9, 7, 8, 2], [0, 0, 1, 2, 3, 2, 4, 3, 9])


def test_twins_are_named(mini: FaceDataset) -> None:
    """A test face is clean without a twin in train or valid; a training face leaks with one in valid or test."""
    found = audit.twins(mini)
    assert found.groups == ((0, 1, 6), (2, 5), (4, 7))
    assert found.clean_test == ("fer0000008.png",)
    assert found.train_twin_rows.tolist() == [0, 1, 2]


def test_counts_agree_with_a_count_by_hand(mini: FaceDataset) -> None:
    """Inside and across splits, over all faces and over those a protocol keeps."""
    exact = audit.audit(mini)["duplicates"]["exact"]
    assert exact["repeated_inside"] == {"train": 1, "valid": 0, "test": 0}
    assert (exact["valid_in_train"], exact["test_in_train"], exact["test_in_train_or_valid"]) == (1, 1, 2)
    assert exact["kept"]["ferplus8"] == {
        "valid_in_train": 1, "valid_twin_kept": 1, "valid_other_label": 1,
        "test_in_train": 1, "test_twin_kept": 1, "test_other_label": 1, "test_in_train_or_valid": 2,
    }  # fmt: skip


def test_twins_are_counted_among_the_faces_that_a_protocol_keeps() -> None:
    """A twin that the protocol drops (not a face, unknown) is in train all the same, but not kept; it has no other label."""
    faces = dataset([0, 1, 0, 2, 0, 2], [1, 1, 2, 2, 3, 3], [0, 0, 1, 8, 9, 1])
    assert audit.audit(faces)["duplicates"]["exact"]["kept"]["ferplus8"] == {
        "valid_in_train": 1, "valid_twin_kept": 1, "valid_other_label": 0,
        "test_in_train": 1, "test_twin_kept": 0, "test_other_label": 0, "test_in_train_or_valid": 1,
    }  # fmt: skip


def test_near_duplicates_agree_with_comparing_everything(drawn: FaceDataset) -> None:
    """The banded search finds exactly the pairs that comparing all hashes finds."""
    rng = np.random.default_rng(5)
    some = drawn.take(np.arange(300))
    pixels = some.pixels.copy()
    for row in range(0, 60, 2):  # a copy with a little noise
        pixels[row + 1] = np.clip(pixels[row].astype(np.int16) + rng.integers(-3, 4, (48, 48)), 0, 255).astype(np.uint8)
    changed = FaceDataset(some.name, some.label_source, pixels, some.votes, some.split, some.names)
    hashes = audit.difference_hashes(pixels)
    expected = set()
    for a in range(300):
        for b in range(a + 1, 300):
            close = (int(hashes[a]) ^ int(hashes[b])).bit_count() <= audit.NEAR_BITS
            if close and not np.array_equal(pixels[a], pixels[b]):
                correlation = np.corrcoef(pixels[a].ravel(), pixels[b].ravel())[0, 1]
                if correlation >= audit.NEAR_CORRELATION:
                    expected.add((a, b))
    assert expected
    assert expected == {(pair.a, pair.b) for pair in audit.near_pairs(changed)}
    assert sum(audit.audit(changed)["duplicates"]["near"]["pairs"].values()) == len(expected)


def test_flat_pictures_are_no_trouble() -> None:
    """Black faces have equal hashes and no correlation."""
    faces = dataset([0, 1, 2], [1, 2, 3], [0, 1, 2])
    flat = np.stack([np.full((48, 48), level, np.uint8) for level in (0, 1, 2)])
    assert audit.near_pairs(FaceDataset("m", "m", flat, faces.votes, faces.split, faces.names)) == []


def test_the_audit_is_written_beside_the_faces(mini: FaceDataset, tmp_path: Path) -> None:
    """What is returned is what stands in audit.json; nothing else is left in the folder."""
    report = audit.save_audited(mini, tmp_path / "mini", disagreements=["fer0000000.png", "fer0000003.png"])
    assert json.loads((tmp_path / "mini" / "audit.json").read_text()) == report
    assert sorted(p.name for p in (tmp_path / "mini").iterdir()) == ["audit.json", "faces.npz"]
    assert report["label_sources_disagree"] == {"faces": 2, "with_exact_twin": 1, "names": ["fer0000000.png", "fer0000003.png"]}
    assert report["exact_groups"][0] == ["train/fer0000000.png", "train/fer0000001.png", "test/fer0000006.png"]


def test_a_failed_write_leaves_the_old_dataset(mini: FaceDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle keeps faces and audit as they were."""
    audit.save_audited(mini, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        audit.save_audited(dataset([0], [1], [1]), tmp_path)
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}
