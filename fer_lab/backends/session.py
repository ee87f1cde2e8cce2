"""One contract at the model's edge: uint8 faces in, float32 probabilities out, whatever the runtime.

A runtime is one file of this package with a constant `BACKEND`; `Predictor` is what everybody else uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fer_lab.backends.bundle import RUNTIMES, Bundle, open_trusted
from fer_lab.core.errors import InputError, NotFound, nearest
from fer_lab.core.plugins import discover

MAX_CALL = 256  # faces per call of a session: memory stays bounded however many a caller hands over

Faces = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tolerance:
    """How far a runtime may be from torch float32 on the whole validation split."""

    max_dp: float  # largest |Δp|
    max_flip_rate: float  # share of faces whose label differs
    max_drop: float  # accuracy, as a fraction


class Session(Protocol):
    """A loaded graph on one device."""

    precision: str  # the effective inference precision: f32, bf16, int8 …

    def run(self, faces: Faces) -> Probabilities:
        """uint8 [N, C, H, W] → float32 [N, K]."""

    def close(self) -> None:
        """Free the device; the session is not used afterwards."""


class Backend(Protocol):
    """One runtime."""

    name: str
    tolerance: Tolerance

    def unavailable(self, device: str) -> str | None:
        """Why this host cannot run it on `device` (CPU, GPU, NPU, CUDA), or None."""

    def open(self, bundle: Bundle, *, threads: int, device: str) -> Session:
        """Load the runtime's artifact of a verified bundle. `threads` ≥ 1, `device` explicit, never AUTO."""


def backends() -> dict[str, Backend]:
    """All runtimes by name, in the order of RUNTIMES."""
    found = discover("fer_lab.backends", "BACKEND")
    return {name: found[name] for name in sorted(found, key=lambda n: RUNTIMES.index(n) if n in RUNTIMES else len(RUNTIMES))}


def split_runtime(text: str) -> tuple[str, str]:
    """`openvino-int8:GPU` → (`openvino-int8`, `GPU`); the device is CPU when none is named."""
    name, _, device = text.partition(":")
    if name not in backends():
        raise InputError(f"unknown runtime {name!r}; known: {', '.join(backends())}{nearest(name, backends())}")
    return name, device.upper() or "CPU"


class Predictor:
    """A model in one runtime: the only way faces become probabilities, in the benchmark, the report and the demo."""

    def __init__(self, bundle: Bundle, session: Session, runtime: str) -> None:
        self.bundle = bundle
        self.runtime = runtime
        self.labels = bundle.card.labels
        self._session = session
        contract = bundle.card.input
        self._shape = (contract.channels, contract.height, contract.width)

    @classmethod
    def open(cls, bundle: Bundle | str | Path, runtime: str = "openvino", *, threads: int = 1) -> Predictor:
        """Open a bundle (verified first) in a runtime such as `openvino` or `openvino-int8:GPU`.

        Raises InputError for an unknown runtime, or when this host lacks the library, precision or device; NotFound when
        the bundle does not hold it.
        """
        if not isinstance(bundle, Bundle):
            bundle = open_trusted(bundle)
        name, device = split_runtime(runtime)
        if name not in bundle.runtimes:
            raise NotFound(f"{bundle.folder} holds no {name}; it has: {', '.join(bundle.runtimes)}. Run fer_lab.export first")
        backend = backends()[name]
        reason = backend.unavailable(device)
        if reason:
            raise InputError(f"{runtime} is unavailable on this host: {reason}")
        return cls(bundle, backend.open(bundle, threads=threads, device=device), runtime)

    @property
    def precision(self) -> str:
        """The effective inference precision."""
        return self._session.precision

    def predict(self, faces: Faces) -> Probabilities:
        """uint8 [N, H, W] or [N, C, H, W] → float32 [N, K]; N may be 0.

        Raises InputError when dtype or shape is not the card's.
        """
        if faces.ndim == 3:
            faces = faces[:, None]
        if faces.dtype != np.uint8 or faces.ndim != 4 or faces.shape[1:] != self._shape:
            wanted = "×".join(map(str, self._shape))
            raise InputError(f"{self.bundle.card.name} takes uint8 faces of {wanted}, got {faces.dtype} {list(faces.shape)}")
        if len(faces) == 0:
            return np.zeros((0, len(self.labels)), np.float32)
        if len(faces) <= MAX_CALL:
            return self._session.run(faces)
        return np.concatenate([self._session.run(faces[i : i + MAX_CALL]) for i in range(0, len(faces), MAX_CALL)])

    def close(self) -> None:
        """Free the session."""
        self._session.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
