"""face-detection-retail-0044 and -0005 (Open Model Zoo) as OpenVINO IR by path: one adapter for both.

Input BGR 1×3×300×300 (or NHWC), output 1×1×N×7 rows of image id, label, confidence, x0, y0, x1, y1 in 0–1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fer_lab.backends import openvino_core
from fer_lab.core.errors import InputError, NotFound
from fer_lab.live.detectors import Search, check_file, largest_first
from fer_lab.live.frames import Found, Image


class SsdFinder:
    """A compiled SSD."""

    name = "openvino-ssd"
    margin = 1.05  # as for YuNet, whose boxes are alike; not measured
    drop = 0.0

    def __init__(self, compiled: Any, channels_first: bool, search: Search) -> None:
        self._request = compiled.create_infer_request()
        shape = [int(n) for n in compiled.inputs[0].shape]
        self._size = (shape[3], shape[2]) if channels_first else (shape[2], shape[1])
        self._dtype = compiled.inputs[0].element_type.to_dtype()
        self._channels_first = channels_first
        self._search = search
        self._threshold = search.threshold if search.threshold is not None else 0.8  # the seed's

    def find(self, image: Image) -> list[Found]:
        """BGR uint8 [H, W, 3] → faces, largest first."""
        import cv2

        height, width = image.shape[:2]
        batch = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)[None]
        if self._channels_first:
            batch = np.transpose(batch, (0, 3, 1, 2))
        results = self._request.infer({0: np.ascontiguousarray(batch, dtype=self._dtype)})
        rows = np.asarray(results[0]).reshape(-1, 7)
        smallest = min(height, width) * self._search.smallest
        found = []
        for image_id, _, score, x0, y0, x1, y1 in rows:
            if image_id < 0:  # the list ends here
                break
            box = (float(x0) * width, float(y0) * height, float(x1) * width, float(y1) * height)
            if score >= self._threshold and min(box[2] - box[0], box[3] - box[1]) >= smallest:
                found.append(Found(box, float(score)))
        return largest_first(found, self._search.most)


class OpenVinoSsd:
    """The plug-in."""

    name = "openvino-ssd"
    wants_file = True

    def open(self, path: Path | None, search: Search) -> SsdFinder:
        """Load the IR (`.xml` beside its `.bin`). Raises NotFound or InputError naming the file."""
        file = check_file(path, "OpenVINO")
        if file.suffix == ".xml" and not file.with_suffix(".bin").is_file():
            raise NotFound(f"{file.with_suffix('.bin')} is missing: an OpenVINO model is a pair of .xml and .bin")
        core = openvino_core.core()
        try:
            model = core.read_model(str(file))
            shape = model.inputs[0].partial_shape
            if len(model.inputs) != 1 or len(shape) != 4:
                raise InputError(f"{file}: expected one image input of four axes, got {len(model.inputs)} inputs, {shape}")
            channels_first = shape[1].is_static and shape[1].get_length() == 3
            height, width = (shape[i] for i in ((2, 3) if channels_first else (1, 2)))
            if not (height.is_static and width.is_static and shape[0].is_static):
                size = [1, 3, 300, 300] if channels_first else [1, 300, 300, 3]
                model.reshape(size)
            out = model.outputs[0].partial_shape
            if out[len(out) - 1].is_static and out[len(out) - 1].get_length() != 7:
                raise InputError(f"{file}: expected detections of 7 numbers, got {out}. Use face-detection-retail-0044 or -0005")
            compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1})
        except RuntimeError as error:
            raise InputError(f"{file} cannot be read as an OpenVINO model: {str(error).splitlines()[-1][:120]}") from None
        return SsdFinder(compiled, channels_first, search)


DETECTOR = OpenVinoSsd()
