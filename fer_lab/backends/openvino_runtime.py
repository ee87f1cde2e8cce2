"""OpenVINO: `openvino` (float32), `openvino-fp16` (compressed weights), `openvino-bf16` (bf16 arithmetic), `openvino-int8`.

Devices: CPU, GPU and NPU where OpenVINO finds them; never AUTO. The inference precision is always set, because OpenVINO
runs float32 models in bf16 by default on processors that have it, and the effective one is read back.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from fer_lab.backends import openvino_core
from fer_lab.backends.bundle import FOLDER_OF_RUNTIME, Bundle, read_verified
from fer_lab.backends.session import Faces, Probabilities, Tolerance
from fer_lab.core.errors import FerLabError, InputError, MissingPart

XML, BIN = "model.xml", "model.bin"
DEVICES = ("CPU", "GPU", "NPU")


@dataclass(frozen=True)
class OpenVinoBackend:
    """One IR (or one arithmetic of it), run by OpenVINO."""

    name: str
    hint: str  # INFERENCE_PRECISION_HINT: f32 or bf16
    stored: str  # what the weights are stored in: f32, f16, int8
    tolerance: Tolerance

    def unavailable(self, device: str) -> str | None:
        """Why OpenVINO cannot run it on `device`, or None; names the extra to install when it is missing."""
        try:
            core = openvino_core.core()
        except MissingPart as error:
            return str(error)
        if device.split(".")[0] not in DEVICES:
            return f"OpenVINO runs on {', '.join(DEVICES)} here, not on {device}"
        if not any(found == device or found.startswith(f"{device}.") for found in core.available_devices):
            return f"OpenVINO finds no {device} (it finds {', '.join(core.available_devices)})"
        if self.hint == "bf16" and "BF16" not in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
            return f"this {device} has no bf16 arithmetic"
        return None

    def open(self, bundle: Bundle, *, threads: int, device: str) -> OpenVinoSession:
        """Compile the IR of a verified bundle on one stream with `threads` threads; raises FerLabError when that fails."""
        folder = FOLDER_OF_RUNTIME.get(self.name, self.name)
        xml = read_verified(bundle, f"{folder}/{XML}")
        weights = read_verified(bundle, f"{folder}/{BIN}")
        core = openvino_core.core()
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self.hint,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if device == "CPU":
            settings |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        try:
            # mmap is off because the bytes that were hashed are the bytes that are compiled.
            model = core.read_model(model=xml, weights=weights)
            if len(model.inputs) != 1 or len(model.outputs) != 1:
                raise InputError(
                    f"{bundle.folder / folder}: {len(model.inputs)} inputs and {len(model.outputs)} outputs, expected 1 and 1"
                )
            compiled = core.compile_model(model, device, settings)
        except RuntimeError as error:
            raise FerLabError(f"{bundle.folder / folder}: OpenVINO cannot load it: {_reason(error)}") from None
        effective = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        if effective != self.hint:
            raise FerLabError(f"{self.name}:{device}: asked for {self.hint} arithmetic, OpenVINO took {effective}")
        return OpenVinoSession(compiled, "int8" if self.stored == "int8" else effective)


class OpenVinoSession:
    """A compiled model. `run` may be called from several threads; calls wait for each other."""

    def __init__(self, compiled: Any, precision: str) -> None:
        self.precision = precision
        self._request = compiled.create_infer_request()
        self._output = compiled.outputs[0]
        self._lock = threading.Lock()

    def run(self, faces: Faces) -> Probabilities:
        """uint8 [N, C, H, W] → float32 [N, K]."""
        with self._lock:
            probs: Probabilities = self._request.infer([np.ascontiguousarray(faces)], share_inputs=True)[self._output]
        return probs

    def close(self) -> None:
        """Free the compiled model."""
        self._request = None


def _reason(error: RuntimeError) -> str:
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return (lines or ["unknown reason"])[0]


_FLOAT32 = Tolerance(max_dp=1e-4, max_flip_rate=1 / 3191, max_drop=0.0005)  # as for onnx

BACKEND = (
    OpenVinoBackend("openvino", "f32", "f32", _FLOAT32),
    # Weights rounded to 11 bits, float32 arithmetic.
    OpenVinoBackend("openvino-fp16", "f32", "f16", Tolerance(max_dp=0.02, max_flip_rate=0.0025, max_drop=0.0025)),
    # 8 bits of mantissa in every layer: at most 0.5 % flips.
    OpenVinoBackend("openvino-bf16", "bf16", "f32", Tolerance(max_dp=0.25, max_flip_rate=0.005, max_drop=0.005)),
    OpenVinoBackend("openvino-int8", "f32", "int8", Tolerance(max_dp=1.0, max_flip_rate=0.1, max_drop=0.005)),
)
