"""ONNX → IR: float32 stays float32, the same graph gives the same bytes, the file says what it is."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_bundle

from fer_lab.convert import graph, ir
from fer_lab.core.errors import FerLabError


@pytest.fixture
def onnx_path(tmp_path: Path) -> Path:
    proto = tiny_bundle.proto()
    graph.describe(proto, tiny_bundle.card())
    path = tmp_path / "model.onnx"
    path.write_bytes(graph.serialise(proto))
    return path


def digest(xml: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in (xml, xml.with_suffix(".bin"))]


def test_float32_weights_stay_float32_and_fp16_is_on_purpose(onnx_path: Path, tmp_path: Path) -> None:
    """OpenVINO's own default would round them."""
    import openvino

    model = ir.convert(onnx_path)
    ir.save(model, tmp_path / "f32.xml", {})
    ir.save(model, tmp_path / "f16.xml", {}, fp16=True)
    read = openvino.Core().read_model
    assert "f16" not in ir.weight_types(read(tmp_path / "f32.xml"))
    assert "f16" in ir.weight_types(read(tmp_path / "f16.xml"))


def test_halved_weights_take_half_the_room_and_give_nearly_the_same_answers(onnx_path: Path, tmp_path: Path) -> None:
    """What an INT8 model keeps in float is stored so."""
    import numpy as np
    import openvino

    core = openvino.Core()
    faces = np.random.default_rng(0).integers(0, 256, (8, 1, 48, 48), np.uint8)
    ir.save(ir.convert(onnx_path), tmp_path / "whole.xml", {})
    ir.save(ir.halve(ir.convert(onnx_path)), tmp_path / "half.xml", {})
    assert "f16" in ir.weight_types(core.read_model(tmp_path / "half.xml"))
    assert (tmp_path / "half.bin").stat().st_size < 0.6 * (tmp_path / "whole.bin").stat().st_size
    whole, half = (core.compile_model(tmp_path / name, "CPU")(faces)[0] for name in ("whole.xml", "half.xml"))
    np.testing.assert_allclose(half, whole, atol=5e-3)


def test_names_and_facts_stand_in_the_file(onnx_path: Path, tmp_path: Path) -> None:
    """Input, output, labels, protocol and fingerprint."""
    import openvino

    card = tiny_bundle.card()
    ir.save(ir.convert(onnx_path), tmp_path / "model.xml", graph.metadata(card))
    model = openvino.Core().read_model(tmp_path / "model.xml")
    assert {"faces"} == model.inputs[0].get_names()
    assert {"probabilities"} == model.outputs[0].get_names()
    assert model.inputs[0].get_partial_shape()[0].is_dynamic
    for key, value in graph.metadata(card).items():
        assert value == model.get_rt_info(["fer_lab", key]).astype(str)


def test_the_same_graph_gives_the_same_bytes_here_and_in_another_process(onnx_path: Path, tmp_path: Path) -> None:
    """OpenVINO numbers its nodes by a counter of the process; the file does not show it."""
    facts = graph.metadata(tiny_bundle.card())
    ir.save(ir.convert(onnx_path), tmp_path / "one.xml", facts)
    ir.save(ir.convert(onnx_path), tmp_path / "two.xml", facts)
    command = [sys.executable, "-m", "fer_lab.convert.ir", str(onnx_path), str(tmp_path / "sub" / "three.xml")]
    subprocess.run(command, check=True, capture_output=True)
    assert digest(tmp_path / "one.xml") == digest(tmp_path / "two.xml") == digest(tmp_path / "sub" / "three.xml")


def test_something_else_is_an_error_in_words(tmp_path: Path) -> None:
    """One sentence, the file named."""
    (tmp_path / "model.onnx").write_bytes(b"text")
    with pytest.raises(FerLabError, match=r"model\.onnx: OpenVINO cannot convert it"):
        ir.convert(tmp_path / "model.onnx")


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
def test_a_short_write_is_noticed(onnx_path: Path, tmp_path: Path) -> None:
    """The real fault: the file system takes only part of the file."""
    import resource

    model = ir.convert(onnx_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="disk full"):
            ir.save(model, tmp_path / "model.xml", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
