"""Post-training INT8 with NNCF (https://github.com/openvinotoolkit/nncf), calibrated on training faces only.

Activations are watched on a few hundred training faces, the same number of each class as far as there are enough: a
rare expression's activations would otherwise never be seen. No face of the validation or test split takes part, save
that the accuracy-control fallback chooses, on the validation split, which layers stay float.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lab.convert.graph import INPUT, quiet
from fer_lab.convert.ir import no_telemetry
from fer_lab.core import labels
from fer_lab.core.errors import InputError, MissingPart, Refused
from fer_lab.data.faces import FaceDataset
from fer_lab.measure.evaluate import kept_faces

FACES = 300  # NNCF's own default; more changed nothing in its published figures
BATCH = 64  # faces per item of the validation set in the accuracy-control fallback

MAX_RESTORED = 25  # layers put back to float at most; beyond that INT8 has no speed left to give
RANKING_BATCHES = 8  # of the validation set, on which the layers are ranked; the full set still decides
MINUTES = 20.0  # that the fallback may try networks, per runtime
EVERY_S = 15.0  # between two lines of progress

Pixels = npt.NDArray[np.uint8]  # [N, 1, 48, 48]


@dataclass(frozen=True)
class Calibration:
    """The training faces that set the INT8 ranges. `sha256` over their pixels, `per_class` how many of each label."""

    faces: Pixels
    sha256: str
    per_class: dict[str, int]


def calibration(dataset: FaceDataset, protocol: str, *, n: int = FACES, seed: int = 0) -> Calibration:
    """Choose up to `n` training faces, the same number per class as far as there are enough; deterministic by seed.

    Raises InputError when the protocol keeps no training face.
    """
    rows, targets = kept_faces(dataset, protocol, "train")
    names = labels.protocol(protocol).label_set.labels
    rng = np.random.default_rng([seed, n])
    queues = [rng.permutation(rows[targets == k]).tolist() for k in range(len(names))]
    chosen: list[tuple[int, int]] = []
    while len(chosen) < n and any(queues):
        for k, queue in enumerate(queues):  # one face of each class in turn
            if queue and len(chosen) < n:
                chosen.append((int(queue.pop()), k))
    pixels = dataset.pixels[[row for row, _ in chosen]][:, None]
    counts = {name: sum(1 for _, k in chosen if k == index) for index, name in enumerate(names)}
    return Calibration(pixels, hashlib.sha256(pixels.tobytes()).hexdigest(), counts)


def quantise(model: Any, watched: Calibration) -> Any:
    """Return the INT8 version of an openvino.Model or onnx.ModelProto (Q/DQ nodes); `model` is not changed."""
    nncf = _library()
    with _undisturbed():
        return nncf.quantize(model, _items(nncf, model, watched.faces), **_settings(nncf, len(watched.faces)))


def quantise_with_accuracy_control(
    model: Any,
    watched: Calibration,
    faces: Pixels,
    targets: npt.NDArray[np.int64],
    *,
    max_drop: float,
    minutes: float = MINUTES,
    progress: Callable[[str], None] = lambda _: None,
) -> Any:
    """Return an INT8 version in which NNCF put layers back to float until accuracy drops by at most `max_drop`.

    faces, targets: the validation split. max_drop: a fraction, absolute. minutes: how long trying may take; every layer is
    tried alone, so that large networks take long. progress: told now and then how many networks were tried. Raises
    Refused when the time is up, InputError without validation faces.
    """
    if not len(faces):
        raise InputError("accuracy control needs validation faces, got none")
    nncf = _library()
    batches = [(faces[i : i + BATCH], targets[i : i + BATCH]) for i in range(0, len(faces), BATCH)]
    with _undisturbed():
        return nncf.quantize_with_accuracy_control(
            model, _items(nncf, model, watched.faces), nncf.Dataset(batches, lambda item: item[0]),
            _Validation(minutes, progress), max_drop=max_drop,
            drop_type=nncf.DropType.ABSOLUTE, **_settings(nncf, len(watched.faces)),
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                max_num_iterations=MAX_RESTORED, ranking_subset_size=RANKING_BATCHES, num_ranking_workers=1
            ),
        )  # fmt: skip


class _Validation:
    """NNCF's validation function: accuracy of one network after the other, until the time is up."""

    def __init__(self, minutes: float, progress: Callable[[str], None]) -> None:
        self.minutes, self.progress = minutes, progress
        self.started: float | None = None  # the clock runs from the first network on, not while INT8 is calibrated
        self.said = -EVERY_S
        self.networks = 0

    def __call__(self, model: Any, batches: Iterable[tuple[Pixels, npt.NDArray[np.int64]]]) -> tuple[float, list[float]]:
        """Accuracy over the batches, and of each batch; `model` is an openvino.CompiledModel or an onnx.ModelProto."""
        self._look_at_the_clock()
        predict = _predictor(model)
        hits = [(predict(faces).argmax(axis=1) == targets) for faces, targets in batches]
        self.networks += 1
        return float(np.concatenate(hits).mean()), [float(batch.mean()) for batch in hits]

    def _look_at_the_clock(self) -> None:
        now = time.monotonic()
        self.started = now if self.started is None else self.started
        gone = now - self.started
        if gone > self.minutes * 60:
            raise Refused(f"not done after {self.minutes:g} min, {self.networks} networks tried; --int8-minutes gives it more")
        if gone - self.said >= EVERY_S:
            self.said = gone
            self.progress(f"{self.networks} networks tried, at most {self.minutes - gone / 60:.0f} min left")


def _settings(nncf: Any, n: int) -> dict[str, Any]:
    return {"subset_size": n, "target_device": nncf.TargetDevice.CPU, "preset": nncf.QuantizationPreset.MIXED}


def _items(nncf: Any, model: Any, faces: Pixels) -> Any:
    single = [faces[i : i + 1] for i in range(len(faces))]
    if _is_onnx(model):
        return nncf.Dataset(single, lambda face: {INPUT: face})
    return nncf.Dataset(single)


def _predictor(model: Any) -> Callable[[Pixels], npt.NDArray[np.float32]]:
    if not _is_onnx(model):
        return lambda faces: np.asarray(model([faces])[0])
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda faces: np.asarray(session.run(None, {INPUT: faces})[0])


def _is_onnx(model: Any) -> bool:
    return hasattr(model, "SerializeToString")


def _library() -> Any:
    try:
        with _undisturbed():
            import nncf
    except ModuleNotFoundError:
        raise MissingPart("nncf", "train", "INT8 export") from None
    return nncf


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """NNCF prints progress bars, warns about its own imports and reports usage unless it believes to run in CI."""
    with no_telemetry(), quiet():
        yield
