"""A bundle around a hand-made graph: no training, no torch, written and run in a moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

LABELS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")


def card(**changes: Any) -> Any:
    """The card of the hand-made graph."""
    from fer_lab.backends.bundle import Card

    facts = {
        "schema": 1, "name": "tiny", "labels": LABELS, "protocol": "ferplus8", "label_source": "synthetic", "dataset": "synthetic",
        "fingerprint": "f" * 64, "backbone": "by_hand", "image_size": 48, "mean": 0.5, "std": 0.25,
    }  # fmt: skip
    return Card.model_validate(facts | changes)


def proto(*, hidden: int = 16, domain: str = "", seed: int = 0) -> Any:
    """faces uint8 [N, 1, 48, 48] → /255 → convolution → mean → softmax → probabilities float32 [N, 8]."""
    from onnx import TensorProto, checker, helper, numpy_helper

    rng = np.random.default_rng(seed)
    tensors = {
        "scale": np.float32(255),
        "kernel": rng.normal(0, 1, (hidden, 1, 3, 3)).astype(np.float32),
        "weight": rng.normal(0, 3, (hidden, 8)).astype(np.float32),
        "axes": np.array([2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["faces"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "scale"], ["unit"]),
        helper.make_node("Conv", ["unit", "kernel"], ["conv"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("ReduceMean", ["relu", "axes"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1, domain=domain),
    ]
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info("faces", TensorProto.UINT8, ["batch", 1, 48, 48])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if not domain:
        checker.check_model(model)
    return model


def write(folder: Path, runtimes: Sequence[str] = ("onnx", "openvino"), **changes: Any) -> Path:
    """Write the bundle with these runtimes (each holds the float32 graph; fp16 its compressed form)."""
    from fer_lab.backends.bundle import write_manifest
    from fer_lab.convert import graph, ir

    folder.mkdir(parents=True, exist_ok=True)
    facts = card(**changes)
    (folder / "card.json").write_text(facts.to_json(), encoding="utf-8")
    model = proto()
    scratch = folder.with_name(f"{folder.name}.onnx")
    scratch.write_bytes(graph.serialise(model))
    for runtime in runtimes:
        if runtime.startswith("onnx"):
            (folder / runtime).mkdir(exist_ok=True)
            (folder / runtime / "model.onnx").write_bytes(scratch.read_bytes())
        else:
            ir.save(ir.convert(scratch), folder / runtime / "model.xml", graph.metadata(facts), fp16=runtime == "openvino-fp16")
    scratch.unlink()
    write_manifest(folder)
    return folder
