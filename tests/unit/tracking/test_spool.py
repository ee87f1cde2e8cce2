"""What waits for a server that is away."""

from __future__ import annotations

from pathlib import Path

import pytest

from fer_lab.tracking.spool import Spool, waiting


def test_operations_wait_in_order_and_are_forgotten_once_sent(tmp_path: Path) -> None:
    spool, sent = Spool(tmp_path, "r"), []
    assert not spool.pending
    for i in range(3):
        spool.append({"op": "tags", "i": i})
    assert [s.run_id for s in waiting(tmp_path)] == ["r"]
    assert spool.replay(lambda operation: sent.append(operation["i"])) == 3
    assert sent == [0, 1, 2]
    assert waiting(tmp_path) == []


def test_files_are_copied_with_their_names(tmp_path: Path) -> None:
    spool, seen = Spool(tmp_path / "spool", "r"), []
    for content in ("first", "second"):
        (tmp_path / "curve.png").write_text(content)
        spool.append({"op": "file", "path": str(tmp_path / "curve.png"), "folder": "plots"})
    spool.replay(lambda operation: seen.append((Path(operation["path"]).name, Path(operation["path"]).read_text())))
    assert seen == [("curve.png", "first"), ("curve.png", "second")]
    assert not (tmp_path / "spool" / "r").exists()


@pytest.mark.parametrize("torn", ['{"op": "ta', '{"op": "tags", "i": 9}'])
def test_a_torn_last_line_is_ignored(torn: str, tmp_path: Path) -> None:
    """Also one that happens to read as a whole: without its newline it was not written to the end."""
    spool = Spool(tmp_path, "r")
    spool.append({"op": "tags", "i": 0})
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write(torn)
    assert [operation["i"] for operation in spool.operations()] == [0]


def test_appending_after_a_torn_line_loses_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "r")
    spool.append({"op": "tags", "i": 0})
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write('{"op": "ta')
    spool.append({"op": "tags", "i": 1})
    assert [operation["i"] for operation in spool.operations()] == [0, 1]
