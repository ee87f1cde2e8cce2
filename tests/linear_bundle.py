"""A bundle that needs no training loop: ridge regression on the pixels, written as OpenVINO IR and ONNX. Quick, and really right
on the drawn faces more often than chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fer_lab.backends.bundle import Bundle, Card, open_bundle, write_manifest
from fer_lab.core.labels import protocol
from fer_lab.data.faces import FaceDataset


def write(
    folder: Path, dataset: FaceDataset, *, ridge: float = 300.0, noise: float = 0.0, seed: int = 0,
    runtimes: tuple[str, ...] = ("openvino", "onnx"), answer: str = "softmax", protocol_name: str = "ferplus8", **card: Any,
) -> Bundle:  # fmt: skip
    """Fit on the train split and write a bundle; `noise` spoils the weights; `answer`: softmax, or raw, nan, neighbours."""
    rule = protocol(protocol_name)
    rows = dataset.indices("train")
    targets = rule.labels(dataset.votes[rows])
    rows, targets = rows[targets >= 0], targets[targets >= 0]
    k = len(rule.label_set.labels)
    x = dataset.pixels[rows].reshape(len(rows), -1).astype(np.float64) / 255
    mean = x.mean(axis=0)
    x = x - mean
    y = np.eye(k)[targets] - np.eye(k)[targets].mean(axis=0)
    gram = x @ x.T + ridge * np.eye(len(x))  # the dual: faster than 2304 unknowns for few faces
    weights = x.T @ np.linalg.solve(gram, y)
    rng = np.random.default_rng(seed)
    weights = 8 * (weights + noise * weights.std() * rng.normal(size=weights.shape))
    bias = -mean @ weights + 8 * np.eye(k)[targets].mean(axis=0)
    w, b = (weights / 255).astype(np.float32), bias.astype(np.float32)
    for runtime in runtimes:
        (folder / runtime).mkdir(parents=True, exist_ok=True)
        if runtime == "openvino":
            _openvino(folder / runtime, w, b, answer)
        else:
            _onnx(folder / runtime, w, b)
    facts: dict[str, Any] = {
        "schema": 1, "name": folder.name, "labels": rule.label_set.labels, "protocol": rule.name,
        "label_source": dataset.label_source, "dataset": dataset.name, "fingerprint": dataset.fingerprint, "backbone": "linear",
        "image_size": 48, "mean": 0.0, "std": 1.0,
        "parameters": w.size + b.size, "config": {"seed": seed, "data": {"drop_twins": True}}, "commit": "test",
        "versions": {"numpy": np.__version__}, "run_id": f"run-{folder.name}",
    }  # fmt: skip
    (folder / "card.json").write_text(Card(**{**facts, **card}).to_json(), encoding="utf-8")
    write_manifest(folder)
    return open_bundle(folder)


def _openvino(folder: Path, w: np.ndarray, b: np.ndarray, answer: str) -> None:
    import openvino
    import openvino.opset13 as ops

    faces = ops.parameter(openvino.PartialShape([-1, 1, 48, 48]), np.uint8, name="faces")
    flat = ops.reshape(ops.convert(faces, "f32"), np.array([-1, 2304]), special_zero=False)
    logits = ops.add(ops.matmul(flat, w, False, False), b[None])
    if answer == "neighbours":  # what a batch-mixing attention does: the batch's mean moves every answer
        logits = ops.subtract(logits, ops.multiply(ops.reduce_mean(logits, np.array([0]), keep_dims=True), np.float32(0.9)))
    out = {"raw": logits, "nan": ops.log(ops.minimum(logits, np.float32(-1)))}.get(answer) or ops.softmax(logits, 1)
    openvino.save_model(openvino.Model([out], [faces]), str(folder / "model.xml"), compress_to_fp16=False)


def _onnx(folder: Path, w: np.ndarray, b: np.ndarray) -> None:
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["faces"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["f", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probs"], axis=1),
    ]
    constants = [
        helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 2304]),
        helper.make_tensor("w", TensorProto.FLOAT, w.shape, w.tobytes(), raw=True),
        helper.make_tensor("b", TensorProto.FLOAT, b.shape, b.tobytes(), raw=True),
    ]
    graph = helper.make_graph(
        nodes, "linear", [helper.make_tensor_value_info("faces", TensorProto.UINT8, ["n", 1, 48, 48])],
        [helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["n", len(b)])], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
