"""A tiny OpenVINO bundle for tests of the demo: brightness decides the label, so that every test knows the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fer_lab.backends.bundle import Card, InputContract, write_manifest
from fer_lab.core.labels import EIGHT

LEVELS = 8


def write(folder: Path, *, name: str = "tiny", labels: tuple[str, ...] = EIGHT.labels, label_source: str = "ferplus-2016",
          turn: int = 0, side: int = 48, channels: int = 1) -> Path:  # fmt: skip
    """Write a bundle whose label is the mean gray level of the face in K steps (darkest first), turned by `turn`."""
    import openvino as ov
    from openvino import opset13 as ops

    k = len(labels)
    faces = ops.parameter([-1, channels, side, side], np.uint8, name="faces")
    gray = ops.convert(faces, np.float32)
    mean = ops.reduce_mean(gray, ops.constant([1, 2, 3], np.int64), False)  # [N]
    mean = ops.unsqueeze(mean, ops.constant([1], np.int64))
    centres = ((np.arange(k) + 0.5) * 256 / k).astype(np.float32)[None]
    centres = np.roll(centres, turn, axis=1)
    distance = ops.divide(ops.abs(ops.subtract(mean, ops.constant(centres))), ops.constant(np.float32(256 / k)))
    probs = ops.softmax(ops.multiply(distance, ops.constant(np.float32(-4.0))), 1)
    model = ov.Model([ops.result(probs)], [faces], "tiny")
    (folder / "openvino").mkdir(parents=True)
    ov.save_model(model, folder / "openvino" / "model.xml", compress_to_fp16=False)
    card = Card(
        schema=1, name=name, labels=labels, protocol="ferplus8", label_source=label_source, dataset=label_source,
        fingerprint="0" * 64, backbone="tiny", image_size=side, mean=0.5, std=0.5,
        input=InputContract(height=side, width=side, channels=channels),
    )  # fmt: skip
    (folder / "card.json").write_text(card.to_json(), encoding="utf-8")
    write_manifest(folder)
    return folder
