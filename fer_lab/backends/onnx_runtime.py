"""ONNX Runtime: `onnx` (float32) and `onnx-int8` (QDQ).

Devices: CPU and CUDA. Threads are explicit, arithmetic is what the graph states (float32, or int8 between Q and DQ).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fer_lab.backends import onnx_file
from fer_lab.backends.bundle import Bundle, read_verified
from fer_lab.backends.session import Faces, Probabilities, Tolerance
from fer_lab.core.errors import FerLabError, MissingPart

FILE = "model.onnx"
PROVIDERS = {"CPU": "CPUExecutionProvider", "CUDA": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class OnnxBackend:
    """One kind of ONNX file, run by ONNX Runtime."""

    name: str
    precision: str
    tolerance: Tolerance
    domains: tuple[str, ...] = ("", "ai.onnx")

    def unavailable(self, device: str) -> str | None:
        """Why ONNX Runtime cannot run on `device`, or None; names the extra to install when it is missing."""
        try:
            available = _library().get_available_providers()
        except MissingPart as error:
            return str(error)
        if device not in PROVIDERS:
            return f"ONNX Runtime runs on {', '.join(PROVIDERS)} here, not on {device}"
        if PROVIDERS[device] not in available:
            return f"the installed ONNX Runtime has no {PROVIDERS[device]} (it has {', '.join(available)})"
        return None

    def open(self, bundle: Bundle, *, threads: int, device: str) -> OnnxSession:
        """Load `<runtime>/model.onnx` of a verified bundle; raises InputError for a file that onnx_file refuses."""
        path = f"{self.name}/{FILE}"
        raw = read_verified(bundle, path)
        onnx_file.check(raw, str(bundle.folder / path), domains=self.domains)
        runtime = _library()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        # A spinning pool burns a core between calls and makes every other measurement on the machine noisy.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = runtime.InferenceSession(raw, options, providers=[PROVIDERS[device]])
        except Exception as error:  # onnxruntime raises a class of its own for every failure
            raise FerLabError(f"{bundle.folder / path}: ONNX Runtime cannot load it: {_first_line(error)}") from None
        if PROVIDERS[device] not in session.get_providers():
            raise FerLabError(f"{self.name}:{device}: ONNX Runtime fell back to {', '.join(session.get_providers())}")
        return OnnxSession(session, self.precision)


class OnnxSession:
    """A loaded ONNX file. `run` may be called from several threads."""

    def __init__(self, session: Any, precision: str) -> None:
        self.precision = precision
        self._session = session
        self._input = session.get_inputs()[0].name
        self._outputs = [session.get_outputs()[0].name]

    def run(self, faces: Faces) -> Probabilities:
        """uint8 [N, C, H, W] → float32 [N, K]."""
        probs: Probabilities = self._session.run(self._outputs, {self._input: np.ascontiguousarray(faces)})[0]
        return probs

    def close(self) -> None:
        """Free the session."""
        self._session = None


def _library() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise MissingPart("onnxruntime", "lab", "the runtime onnx") from None
    return onnxruntime


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


BACKEND = (
    # Float32 arithmetic in another order: 7e-7 was seen on a trained V2B0, 1e-4 is the promise. One flip in 3 191 faces.
    OnnxBackend("onnx", "f32", Tolerance(max_dp=1e-4, max_flip_rate=1 / 3191, max_drop=0.0005)),
    # Single probabilities may move far at a decision border, so the accuracy is what is bounded; 10 % flips means broken.
    OnnxBackend("onnx-int8", "int8", Tolerance(max_dp=1.0, max_flip_rate=0.1, max_drop=0.005), ("", "ai.onnx", "com.microsoft")),
)
