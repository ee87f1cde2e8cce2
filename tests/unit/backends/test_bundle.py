"""A bundle is refused before anything in it is parsed, and the message names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_bundle

from fer_lab.backends.bundle import open_bundle, read_verified, write_manifest
from fer_lab.core.errors import InputError, IntegrityError, NotFound


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_bundle.write(tmp_path / "bundle", ["onnx"])


def test_a_whole_bundle_opens_with_its_identity(folder: Path) -> None:
    """The digest is that of the manifest and the same in a copy."""
    bundle = open_bundle(folder)
    assert bundle.runtimes == ("onnx",)
    assert bundle.digest == write_manifest(folder)
    assert bundle.card.name == "tiny"


@pytest.mark.parametrize("path", ["card.json", "onnx/model.onnx"])
@pytest.mark.parametrize("fault", ["flip", "truncate", "append", "delete", "link"])
def test_every_changed_file_is_named(folder: Path, path: str, fault: str) -> None:
    """One bit is enough."""
    file = folder / path
    raw = file.read_bytes()
    if fault == "delete":
        file.unlink()
    elif fault == "link":
        file.unlink()
        (folder.parent / "elsewhere").write_bytes(raw)
        file.symlink_to(folder.parent / "elsewhere")
    else:
        changed = {"flip": raw[:-1] + bytes([raw[-1] ^ 1]), "truncate": raw[:-1], "append": raw + b" "}[fault]
        file.write_bytes(changed)
    with pytest.raises(IntegrityError, match=path):
        open_bundle(folder)


def test_an_extra_file_is_refused(folder: Path) -> None:
    """Nothing rides along."""
    (folder / "extra.py").write_text("print()", encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"extra\.py is not in the manifest"):
        open_bundle(folder)


def test_a_card_from_a_newer_schema_says_update(folder: Path) -> None:
    """Old readers do not guess."""
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    (folder / "card.json").write_text(json.dumps(card | {"schema": 9}), encoding="utf-8")
    write_manifest(folder)
    with pytest.raises(InputError, match=r"schema 9 is newer .* update fer_lab"):
        open_bundle(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1, "files": [1]}', '{"schema": 1, "files": {"a": 1}}'])
def test_a_manifest_that_is_none_is_an_integrity_error(folder: Path, text: str) -> None:
    """A torn manifest is not a bundle without files."""
    (folder / "MANIFEST.json").write_text(text, encoding="utf-8")
    with pytest.raises(IntegrityError, match="not a manifest"):
        open_bundle(folder)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    """It is not found, rather than damaged."""
    with pytest.raises(NotFound, match=r"no MANIFEST\.json"):
        open_bundle(tmp_path)
    with pytest.raises(NotFound, match="no such bundle folder"):
        open_bundle(tmp_path / "nowhere")


def test_a_file_is_checked_again_when_it_is_read(folder: Path) -> None:
    """Between the check and the load, a file may change or vanish."""
    bundle = open_bundle(folder)
    path = folder / "onnx" / "model.onnx"
    assert path.read_bytes() == read_verified(bundle, "onnx/model.onnx")
    path.write_bytes(b"other")
    with pytest.raises(IntegrityError, match=r"onnx/model\.onnx was altered"):
        read_verified(bundle, "onnx/model.onnx")
    path.unlink()
    with pytest.raises(IntegrityError, match=r"onnx/model\.onnx is missing"):
        read_verified(bundle, "onnx/model.onnx")
    with pytest.raises(NotFound, match="its runtimes: onnx"):
        read_verified(bundle, "openvino/model.xml")


def test_the_digest_of_a_runtime_is_of_the_files_it_reads(tmp_path: Path) -> None:
    """Another runtime in the bundle changes the bundle's digest, not this runtime's."""
    alone = open_bundle(tiny_bundle.write(tmp_path / "a", ["onnx"]))
    both = open_bundle(tiny_bundle.write(tmp_path / "b", ["onnx", "openvino"]))
    assert alone.digest != both.digest
    assert alone.runtime_digest("onnx") == both.runtime_digest("onnx")
    assert both.runtime_digest("openvino") != both.runtime_digest("openvino-bf16")
