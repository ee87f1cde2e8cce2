"""What an earlier release wrote is read by this one: a bundle, a dataset and a store of every released schema."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle

from fer_lab.backends.bundle import open_bundle
from fer_lab.backends.session import Predictor
from fer_lab.data import faces
from fer_lab.tracking import registry
from fer_lab.tracking.ledger import Ledger
from fer_lab.tracking.store import open_store

FOLDERS = sorted(Path(__file__).parent.glob("schema-*"))
released = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def test_there_is_one_folder_per_schema() -> None:
    assert [folder.name for folder in FOLDERS] == ["schema-1"]


@released
def test_a_dataset_keeps_its_fingerprint(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    assert faces.load(folder / "dataset").fingerprint == expected["fingerprint"]


@released
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_bundle_verifies_and_answers_as_it_did(folder: Path, runtime: str) -> None:
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    bundle = open_bundle(folder / "bundle")
    assert bundle.digest == expected["digest"]
    with Predictor.open(bundle, runtime, threads=1) as predictor:
        answers = predictor.predict(faces.load(folder / "dataset").pixels[:4])
    np.testing.assert_allclose(answers, expected["answers"], atol=2e-5)


@released
def test_a_store_keeps_its_versions_its_champion_and_its_history(folder: Path, home: Path, tmp_path: Path) -> None:
    """The same store goes on: it takes another version and another promotion."""
    with tarfile.open(folder / "store.tar.xz") as archive:
        archive.extractall(home, filter="data")
    store = open_store(home)
    ledger = Ledger(store, "fer-synthetic-8")
    assert [version.version for version in registry.versions(store, "fer-synthetic-8")] == [1, 2]
    assert registry.aliases(store, "fer-synthetic-8") == {"champion": 2, "previous": 1}
    assert [(entry.kind, entry.version) for entry in ledger.verify()] == [("promote", 1), ("promote", 2)]
    new = registry.register(store, tiny_bundle.write(tmp_path / "new", ("onnx",), name="third"), run_id=None)
    ledger.promote(new.version, expected=2, runtime="onnx")
    assert registry.aliases(store, "fer-synthetic-8") == {"champion": 3, "previous": 2}
