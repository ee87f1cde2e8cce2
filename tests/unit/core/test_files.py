"""A file is the old one or the new one, whatever happens in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from fer_lab.core.files import is_staged, replacing, write_whole


def full(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new bytes are staged beside the target; when they cannot be flushed, nothing changes."""
    target = tmp_path / "weights.safetensors"
    write_whole(target, b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    """A reader meets the old content until the block has ended."""
    target = write_whole(tmp_path / "faces.npz", "old")

    def half() -> None:
        with replacing(target) as file:
            file.write(b"new")
            file.flush()
            assert target.read_bytes() == b"old"
            assert [is_staged(path) for path in sorted(tmp_path.iterdir())] == [True, False]
            raise KeyError

    with pytest.raises(KeyError):
        half()
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["faces.npz"]


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    """UTF-8 and the same line ends on every system: digests are of these bytes."""
    assert write_whole(tmp_path / "a.txt", "ä\n").read_bytes() == "ä\n".encode()
