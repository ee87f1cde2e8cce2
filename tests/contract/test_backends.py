"""What every runtime promises, whatever file of fer_lab.backends it stands in."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle

from fer_lab.backends.bundle import FOLDER_OF_RUNTIME, RUNTIMES, WEIGHTS, open_bundle, write_manifest
from fer_lab.backends.session import Predictor, backends
from fer_lab.core.errors import InputError, IntegrityError, NotFound

NAMES = [name for name in RUNTIMES if name != "torch"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runtimes = [name for name in NAMES if name not in FOLDER_OF_RUNTIME]
    return tiny_bundle.write(tmp_path_factory.mktemp("backends") / "bundle", runtimes)


@pytest.fixture(params=["torch", *NAMES])
def predictor(request: pytest.FixtureRequest, folder: Path):  # type: ignore[no-untyped-def]
    name = request.param
    reason = backends()[name].unavailable("CPU")
    if reason:
        pytest.skip(f"{name} is unavailable on this host: {reason}")
    where = request.getfixturevalue("trained_bundle") if name == "torch" else folder
    with Predictor.open(where, name, threads=1) as opened:
        yield opened


def faces(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, 48, 48), dtype=np.uint8)


def test_every_runtime_of_the_design_has_a_backend() -> None:
    """The plug-ins are exactly the named runtimes, in their order."""
    assert list(RUNTIMES) == list(backends())


@pytest.mark.parametrize("n", [1, 2, 5, 65, 300])
def test_any_batch_gives_probabilities(predictor: Predictor, n: int) -> None:
    """The batch is dynamic; rows are float32 and sum to one."""
    probs = predictor.predict(faces(n))
    assert (np.float32, (n, 8)) == (probs.dtype, probs.shape)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)


def test_no_face_gives_no_row(predictor: Predictor) -> None:
    """An empty batch is answered, not refused."""
    assert predictor.predict(faces(0)).shape == (0, 8)


def test_a_result_is_not_overwritten_by_the_next_call(predictor: Predictor) -> None:
    """What was returned belongs to the caller."""
    first = predictor.predict(faces(3))
    kept = first.copy()
    predictor.predict(255 - faces(3))
    np.testing.assert_array_equal(kept, first)


def test_a_view_is_as_good_as_an_array(predictor: Predictor) -> None:
    """Strided faces give the answers of their copy."""
    block = np.random.default_rng(1).integers(0, 256, (4, 96, 96), dtype=np.uint8)
    np.testing.assert_array_equal(predictor.predict(block[:, ::2, ::2].copy()), predictor.predict(block[:, ::2, ::2]))


def test_several_threads_may_ask_at_once(predictor: Predictor) -> None:
    """A web server calls one predictor from many threads."""
    expected = predictor.predict(faces(7))
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(predictor.predict(faces(7)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for probs in found:
        np.testing.assert_allclose(probs, expected, atol=1e-6)


def test_precision_is_what_was_asked_for(predictor: Predictor) -> None:
    """The effective precision is read back and named."""
    name = predictor.runtime
    expected = "int8" if name.endswith("int8") else "bf16" if name.endswith("bf16") else "f32"
    assert expected == predictor.precision


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_a_device_it_does_not_know_is_named(name: str) -> None:
    """An unknown device is a reason in words, never a silent fall-back."""
    assert "ABACUS" in (backends()[name].unavailable("ABACUS") or "")


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_without_the_runtime_says_what_it_holds(name: str, tmp_path: Path) -> None:
    """A runtime that was not exported is not found."""
    other = "onnx" if name.startswith("openvino") else "openvino"
    with pytest.raises(NotFound, match=f"holds no {name}; it has: {other}"):
        Predictor.open(tiny_bundle.write(tmp_path / "bundle", [other]), name)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FOLDER_OF_RUNTIME])
def test_a_file_swapped_after_the_check_is_refused(name: str, tmp_path: Path) -> None:
    """The bytes that are parsed are the bytes that the manifest lists, also when they change in between."""
    bundle = open_bundle(tiny_bundle.write(tmp_path / "bundle", [name]))
    for file in (bundle.folder / name).iterdir():
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    with pytest.raises(IntegrityError, match="was altered"):
        backends()[name].open(bundle, threads=1, device="CPU")


def test_weights_swapped_after_the_check_are_refused(tmp_path: Path) -> None:
    """torch too parses the bytes that were hashed."""
    folder = tiny_bundle.write(tmp_path / "bundle")
    (folder / WEIGHTS).write_bytes(b"listed")
    write_manifest(folder)
    bundle = open_bundle(folder)
    (folder / WEIGHTS).write_bytes(b"swapped")
    with pytest.raises(IntegrityError, match="was altered"):
        backends()["torch"].open(bundle, threads=1, device="CPU")


def test_bf16_is_unavailable_not_failed_without_the_arithmetic(folder: Path) -> None:
    """A host without bf16 says so in a sentence and exits as for bad input."""
    if backends()["openvino-bf16"].unavailable("CPU") is None:
        pytest.skip("this host has bf16")
    with pytest.raises(InputError, match="no bf16 arithmetic"):
        Predictor.open(folder, "openvino-bf16")
