"""Who is champion after a history of moves, and what an entry hashes to."""

import pytest

from fer_lab.tracking.address import redact
from fer_lab.tracking.ledger import Entry, Kind, champions


def move(kind: Kind, version: int | None, runtime: str | None = None) -> Entry:
    return Entry(0, kind, "2026-01-01T00:00:00Z", "ann", "0" * 64, "nonce", version, runtime=runtime)


@pytest.mark.parametrize(
    ("moves", "standing"),
    [
        ([], []),
        ([("promote", 1), ("promote", 1)], [1]),
        ([("promote", 1), ("promote", 2), ("refuse", 3), ("look", None)], [1, 2]),
        ([("promote", 1), ("promote", 2), ("promote", 3), ("rollback", 2), ("rollback", 1)], [1]),
        ([("promote", 1), ("promote", 2), ("rollback", 1), ("promote", 3)], [1, 3]),
        ([("promote", 1), ("promote", 2), ("rollback", 1), ("rollback", 2)], [1, 2]),
        ([("promote", 1), ("promote", 2), ("promote", 1)], [1, 2, 1]),
    ],
)
def test_champions_stand_behind_each_other(moves: list[tuple[Kind, int | None]], standing: list[int]) -> None:
    assert [entry.version for entry in champions([move(kind, version) for kind, version in moves])] == standing


def test_a_version_in_another_runtime_is_another_champion() -> None:
    moves = [move("promote", 1, "openvino"), move("promote", 1, "openvino-int8"), move("promote", 2, "openvino")]
    assert champions(moves) == moves
    assert champions([*moves, move("rollback", 1, "openvino")]) == moves[:1]


def test_every_field_of_an_entry_is_in_its_hash() -> None:
    entry = move("promote", 1)
    assert entry.sha256 == move("promote", 1).sha256
    assert entry.sha256 != move("promote", 2).sha256
    assert "runtime" not in entry.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("http://ann@host:5000/x", "http://ann@host:5000/x"),
        ("http://ann:pa:ss@host:5000", "http://ann:***@host:5000"),
        ("postgresql+psycopg://ann:p@ss@db:5432/mlflow failed", "postgresql+psycopg://ann:***@db:5432/mlflow failed"),
        ("at http://a:b@c and http://d:e@f/g", "at http://a:***@c and http://d:***@f/g"),
        ("postgresql://db/mlflow?sslpassword=pass&user=ann failed", "postgresql://db/mlflow?sslpassword=***&user=ann failed"),
        ("sqlite:////home/ann/mlruns/mlflow.db", "sqlite:////home/ann/mlruns/mlflow.db"),
    ],
)
def test_passwords_are_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown
