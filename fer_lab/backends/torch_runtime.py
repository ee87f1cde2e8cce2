"""The torch runtime: the reference that every other runtime is held against. float32 throughout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fer_lab.backends.bundle import WEIGHTS, Bundle, read_verified
from fer_lab.backends.session import Faces, Probabilities, Tolerance
from fer_lab.core.errors import MissingPart

if TYPE_CHECKING:
    from fer_lab.models.deployable import Deployable

MAX_BATCH = 256  # faces per forward pass: bounds memory, a larger one is no faster on a CPU


class TorchSession:
    """A loaded network on one device."""

    precision = "f32"

    def __init__(self, graph: Deployable, device: str, threads: int) -> None:
        import torch

        # Channels last is torch's quicker layout for convolutions on a CPU; the answers stay within rounding.
        self._graph: Deployable | None = graph.to(device).to(memory_format=torch.channels_last)
        self._device = device
        self._threads = threads

    def run(self, faces: Faces) -> Probabilities:
        """uint8 [N, 1, H, W] → float32 [N, K]."""
        import numpy as np
        import torch

        assert self._graph is not None, "the session is closed"
        before = torch.get_num_threads()
        if self._threads != before:  # torch has one thread count per process: set it for this call only
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                parts = [
                    self._graph(torch.from_numpy(np.ascontiguousarray(faces[start : start + MAX_BATCH])).to(self._device))
                    for start in range(0, len(faces), MAX_BATCH)
                ]
                probs: Any = torch.cat(parts).to("cpu", torch.float32).numpy()
        finally:
            if self._threads != before:
                torch.set_num_threads(before)
        result: Probabilities = probs
        return result

    def close(self) -> None:
        """Drop the network."""
        self._graph = None


class TorchBackend:
    """Opens the weights of a bundle with torch."""

    name = "torch"
    tolerance = Tolerance(max_dp=0.0, max_flip_rate=0.0, max_drop=0.0)  # it is the reference itself

    def unavailable(self, device: str) -> str | None:
        """Why this host cannot run it on `device` (CPU, CUDA or GPU, MPS), or None."""
        try:
            import torch
        except ImportError:
            return "torch is not installed; install it with: uv sync --extra train"
        if device == "CPU":
            return None
        if device.startswith(("CUDA", "GPU")):
            return None if torch.cuda.is_available() else "torch sees no CUDA device"
        if device == "MPS":
            return None if torch.backends.mps.is_available() else "torch sees no Apple GPU"
        return f"torch knows no device {device!r}; it has CPU, CUDA, MPS"

    def open(self, bundle: Bundle, *, threads: int, device: str) -> TorchSession:
        """Load the weights of a verified bundle. Raises MissingPart without torch or timm."""
        try:
            from fer_lab.models.deployable import restored
        except ImportError as error:
            raise MissingPart(error.name or "torch", "train", "the torch runtime") from None
        graph = restored(bundle.card, read_verified(bundle, WEIGHTS), f"{bundle.folder / WEIGHTS}")
        return TorchSession(graph, _torch_device(device), threads)


def _torch_device(device: str) -> str:
    """`GPU.1`, `CUDA:1` → `cuda:1`; the session's device names are upper case."""
    kind, _, index = device.lower().replace(".", ":").partition(":")
    kind = "cuda" if kind == "gpu" else kind
    return f"{kind}:{index}" if index else kind


BACKEND = TorchBackend()
