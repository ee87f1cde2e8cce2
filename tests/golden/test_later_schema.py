"""What a later release wrote is refused with the advice to update, whatever else stands in it; nothing calls it broken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle

from fer_lab.backends import bundle as bundles
from fer_lab.backends import foreign
from fer_lab.convert import record as parity
from fer_lab.core.errors import InputError
from fer_lab.data import faces
from fer_lab.measure import comparison, profiles, record
from fer_lab.training import checkpoint

LATER = json.dumps({"schema": 99, "what": "unknown yet"})


def dataset(folder: Path) -> None:
    np.savez(folder / faces.FILE, schema=np.array(99))
    faces.load(folder)


def manifest(folder: Path) -> None:
    path = tiny_bundle.write(folder / "bundle") / "MANIFEST.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    bundles.open_bundle(path.parent)


def card(folder: Path) -> None:
    place = tiny_bundle.write(folder / "bundle")
    _replace(place, "card.json")
    bundles.open_bundle(place)


def parity_record(folder: Path) -> None:
    place = tiny_bundle.write(folder / "bundle")
    _replace(place, parity.FILE)
    parity.read(bundles.open_bundle(place))


def foreign_card(folder: Path) -> None:
    (folder / "net.onnx").write_bytes(b"x")
    foreign.card_path(folder / "net.onnx").write_text(LATER)
    foreign.open_foreign(folder / "net.onnx")


def stored_comparison(folder: Path) -> None:
    comparison.parse(LATER, "comparison.json")


def plan(folder: Path) -> None:
    (folder / record.PLAN).write_text(LATER)
    record.read_plan(folder)


def latency_profiles(folder: Path) -> None:
    (folder / "profiles.json").write_text(LATER)
    profiles.read(folder / "profiles.json")


def training_checkpoint(folder: Path) -> None:
    (folder / "checkpoint-000001.json").write_text(LATER)
    (folder / "checkpoint-000001.safetensors").write_bytes(b"")
    checkpoint.load(folder)


def _replace(place: Path, name: str) -> None:
    """Put a file of a later schema into a bundle, and its sha256 into the manifest."""
    (place / name).write_text(LATER)
    manifest = json.loads((place / "MANIFEST.json").read_text())
    manifest["files"][name] = hashlib.sha256(LATER.encode()).hexdigest()
    (place / "MANIFEST.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "read",
    [dataset, manifest, card, parity_record, foreign_card, stored_comparison, plan, latency_profiles, training_checkpoint],
    ids=lambda function: function.__name__,
)
def test_it_asks_for_an_update(read: Callable[[Path], None], tmp_path: Path) -> None:
    """The ledger's entries are tested with the ledger."""
    with pytest.raises(InputError, match=r"schema 99 is newer than this fer_lab understands \(≤ \d\); update fer_lab"):
        read(tmp_path)
