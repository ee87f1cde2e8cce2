"""The predictor: one contract at the model's edge."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny_bundle

from fer_lab.backends import onnx_runtime, openvino_core
from fer_lab.backends.session import Predictor, split_runtime
from fer_lab.core.errors import FerLabError, InputError, MissingPart
from fer_lab.measure.host import usable_cores


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle.write(tmp_path_factory.mktemp("session") / "bundle", ["onnx", "openvino"])


def test_a_device_is_named_behind_the_runtime() -> None:
    """The CPU is meant when none is named."""
    assert split_runtime("openvino-int8:gpu") == ("openvino-int8", "GPU")
    assert split_runtime("onnx") == ("onnx", "CPU")


def test_an_unknown_runtime_lists_the_known_ones() -> None:
    """With the nearest one."""
    with pytest.raises(InputError, match=r"unknown runtime 'openvin'; known: torch, onnx.*did you mean 'openvino'\?"):
        split_runtime("openvin")


@pytest.mark.parametrize(
    "faces",
    [
        np.zeros((2, 48, 48), np.float32), np.zeros((2, 3, 48, 48), np.uint8), np.zeros((2, 64, 64), np.uint8),
        np.zeros((48, 48), np.uint8),
    ],
    ids=["floats", "three channels", "another size", "no batch"],
)  # fmt: skip
def test_faces_that_are_not_the_cards_are_refused(folder: Path, faces: np.ndarray) -> None:
    """No guessing of scale or layout."""
    with Predictor.open(folder, "onnx") as predictor, pytest.raises(InputError, match="takes uint8 faces of 1×48×48, got"):
        predictor.predict(faces)


def test_two_runtimes_agree(folder: Path) -> None:
    """The same bytes, the same answer."""
    faces = np.random.default_rng(0).integers(0, 256, (33, 48, 48), dtype=np.uint8)
    with Predictor.open(folder, "onnx") as one, Predictor.open(folder, "openvino") as other:
        np.testing.assert_allclose(one.predict(faces), other.predict(faces), atol=1e-5)


def test_the_threads_that_were_asked_for_are_those_that_work(folder: Path) -> None:
    """A latency is one of its thread count; torch has one count per process, which is given back."""
    import torch

    from fer_lab.backends.torch_runtime import TorchSession

    with Predictor.open(folder, "onnx", threads=3) as predictor:
        onnx: Any = predictor._session
        assert onnx._session.get_session_options().intra_op_num_threads == 3
    with Predictor.open(folder, "openvino", threads=2) as predictor:
        openvino: Any = predictor._session
        taken = openvino._request.get_compiled_model().get_property("INFERENCE_NUM_THREADS")
        assert taken == min(2, usable_cores())  # OpenVINO takes no more than there are

    class Counts(torch.nn.Module):
        def forward(self, faces: torch.Tensor) -> torch.Tensor:
            return torch.full((len(faces), 1), float(torch.get_num_threads()))

    before = torch.get_num_threads()
    counted = TorchSession(Counts(), "cpu", before + 1).run(np.zeros((2, 1, 48, 48), np.uint8))  # type: ignore[arg-type]
    assert counted.tolist() == [[before + 1]] * 2
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("module", "loads", "runtime"), [(onnx_runtime, "_library", "onnx"), (openvino_core, "core", "openvino")])
def test_a_missing_library_names_the_extra(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, loads: str, runtime: str
) -> None:
    """The sentence can be typed."""

    def missing() -> None:
        raise MissingPart(runtime, "lab", f"the runtime {runtime}")

    monkeypatch.setattr(module, loads, missing)
    with pytest.raises(InputError, match="uv sync --extra lab"):
        Predictor.open(folder, runtime)


def test_an_ir_with_an_unknown_layer_is_an_error_in_words(tmp_path: Path) -> None:
    """No extension is ever loaded for it."""
    from fer_lab.backends.bundle import write_manifest

    folder = tiny_bundle.write(tmp_path / "bundle", ["openvino"])
    xml = folder / "openvino" / "model.xml"
    xml.write_text(xml.read_text(encoding="utf-8").replace('type="ReLU"', 'type="Backdoor"'), encoding="utf-8")
    write_manifest(folder)
    with pytest.raises(FerLabError, match="OpenVINO cannot load it"):
        Predictor.open(folder, "openvino")
