"""One bundle → a bundle whose every runtime has been verified on the whole validation split.

The new bundle is built beside its place, named after its digest, and only then does a one-line pointer file change: a
full disk or a kill leaves the previous bundle as it was. The test split is never opened.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lab.backends import onnx_runtime, openvino_runtime
from fer_lab.backends.bundle import (
    CARD,
    FOLDER_OF_RUNTIME,
    RUNTIMES,
    WEIGHTS,
    Bundle,
    Card,
    open_bundle,
    read_verified,
    write_manifest,
)
from fer_lab.backends.session import Predictor, Tolerance, backends
from fer_lab.convert import graph, ir, parity, publish, quantise, record
from fer_lab.core import labels
from fer_lab.core.errors import FerLabError, InputError, Refused, nearest
from fer_lab.core.files import write_whole
from fer_lab.data.faces import FaceDataset
from fer_lab.measure import host
from fer_lab.measure.evaluate import kept_faces, predict_all

EXPORTED = tuple(name for name in RUNTIMES if name != "torch")
MAX_DROP = 0.005  # the policy on INT8: half a point of accuracy

_LIBRARIES = ("torch", "timm", "onnx", "onnxruntime", "openvino", "nncf")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class RuntimeReport:
    """What one runtime showed. `state` is verified, refused or unavailable; figures are None where nothing was measured."""

    state: str
    flips: int | None = None
    max_dp: float | None = None
    accuracy: float | None = None
    size_mb: float | None = None
    refused: str | None = None  # the reason
    unavailable: str | None = None  # the reason
    method: str | None = None  # of INT8: ptq, or accuracy-control


@dataclass(frozen=True)
class ExportResult:
    """The folder named after the digest, and one report per requested runtime."""

    folder: Path
    digest: str
    runtimes: dict[str, RuntimeReport]

    @property
    def refused(self) -> dict[str, str]:
        """runtime → reason, of those that were refused."""
        return {name: report.refused for name, report in self.runtimes.items() if report.refused}


def check_runtimes(wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the runtimes in their fixed order; bf16 brings the float32 IR it runs. Raises InputError, known ones listed."""
    for name in wanted:
        if name not in EXPORTED:
            raise InputError(f"unknown runtime {name!r}; known: {', '.join(EXPORTED)}{nearest(name, EXPORTED)}")
    if not wanted:
        raise InputError(f"no runtime to export; known: {', '.join(EXPORTED)}")
    chosen = set(wanted) | {FOLDER_OF_RUNTIME.get(name, name) for name in wanted}
    return tuple(name for name in EXPORTED if name in chosen)


def check_dataset(card: Card, dataset: FaceDataset) -> str | None:
    """Return a remark when the dataset is not the very one of the card, None when it is.

    Raises InputError when the card's labels are not those of its protocol, or when the label source differs.
    """
    rule = labels.protocol(card.protocol)
    if rule.label_set.labels != card.labels:
        raise InputError(
            f"{card.name} answers {list(card.labels)}, but its protocol {card.protocol} on {dataset.name} has the labels "
            f"{list(rule.label_set.labels)}. Export it with the dataset and protocol it was trained under"
        )
    if dataset.label_source != card.label_source:
        raise InputError(
            f"{card.name} was trained on {card.label_source} and {dataset.name} is {dataset.label_source}: their figures are not "
            f"comparable. Prepare {card.dataset} again, or name it with --dataset"
        )
    if dataset.fingerprint != card.fingerprint:
        return (
            f"{dataset.name} (fingerprint {dataset.fingerprint[:12]}) is not the data of {card.name} ({card.fingerprint[:12]}); "
            "its label set fits, so it is used"
        )
    return None


def export_bundle(
    bundle: Bundle,
    dataset: FaceDataset,
    runtimes: Sequence[str],
    out: Path,
    *,
    max_drop: float = MAX_DROP,
    seed: int = 0,
    threads: int | None = None,
    exported_from: str | None = None,
    calibration_faces: int = quantise.FACES,
    int8_minutes: float = quantise.MINUTES,
    keep_weights: bool = True,
    progress: Progress = lambda _: None,
) -> ExportResult:
    """Export, verify and publish `out/<digest>`; a refused runtime is left out and reported.

    dataset: its training faces calibrate INT8, its validation faces verify. max_drop: of accuracy, a fraction, the policy
    on the INT8 runtimes. threads: for verification (all usable cores when None). exported_from: what to write into the
    card (the bundle's digest when None). int8_minutes: how long layers of one runtime may be tried in float, where plain
    INT8 loses too much. keep_weights: leave torch's weights in the bundle; without them it is small enough to ship, and can
    be run but not exported again. Raises InputError for unknown runtimes, a dataset that does not fit, a bundle without
    weights; Refused when no runtime is left; OSError when the disk is full, the previous bundle untouched.
    """
    wanted = check_runtimes(runtimes)
    check_dataset(bundle.card, dataset)
    if WEIGHTS not in bundle.files:
        raise InputError(
            f"{bundle.folder}: the bundle of {bundle.card.name} has no {WEIGHTS}; only a trained network can be exported"
        )
    rows, targets = kept_faces(dataset, bundle.card.protocol, "valid")
    threads = threads or host.usable_cores()
    with publish.building(out) as root:
        stage = root / "bundle"
        stage.mkdir()
        card = bundle.card.model_copy(update={"exported_from": exported_from or f"bundle {bundle.digest[:16]}"})
        (stage / CARD).write_text(card.to_json(), encoding="utf-8", newline="\n")
        (stage / WEIGHTS).write_bytes(read_verified(bundle, WEIGHTS))
        write_manifest(stage)
        faces = Faces(dataset.pixels[rows], targets, tuple(dataset.names[i] for i in rows))
        work = Workshop(open_bundle(stage), faces, dataset, max_drop, seed, threads, calibration_faces, int8_minutes, progress)
        reports = {name: work.make(name) for name in wanted}
        if not any(report.state == "verified" for report in reports.values()):
            reasons = "; ".join(f"{name}: {report.refused or report.unavailable}" for name, report in reports.items())
            raise Refused(f"{card.name}: no runtime passed. {reasons}", result={"runtimes": summary(reports)})
        record.write(stage, work.record())
        if not keep_weights:
            (stage / WEIGHTS).unlink()
        digest = write_manifest(stage)
        folder = publish.publish(stage, out, digest)
    return ExportResult(folder, digest, reports)


def summary(reports: dict[str, RuntimeReport]) -> dict[str, dict[str, Any]]:
    """Return the reports as the JSON of the verb's last line."""
    return {name: asdict(report) for name, report in reports.items()}


@dataclass(frozen=True)
class Faces:
    """The kept validation faces: pixels uint8 [N, 48, 48], targets int64 [N], names."""

    pixels: npt.NDArray[np.uint8]
    targets: npt.NDArray[np.int64]
    names: tuple[str, ...]


class Workshop:
    """Makes and verifies one runtime after the other in a bundle that is being built."""

    def __init__(
        self, bundle: Bundle, faces: Faces, dataset: FaceDataset, max_drop: float, seed: int, threads: int, calibration_faces: int,
        int8_minutes: float, progress: Progress,
    ) -> None:  # fmt: skip
        from fer_lab.models.deployable import restored

        self.stage = bundle.folder
        self.card = bundle.card
        self.facts = graph.metadata(bundle.card)
        self.faces, self.dataset = faces, dataset
        self.max_drop, self.seed, self.threads, self.calibration_faces = max_drop, seed, threads, calibration_faces
        self.int8_minutes, self.progress = int8_minutes, progress
        self.probes = record.probes(bundle.card)
        self.entries: dict[str, dict[str, Any]] = {}
        self.expected: dict[str, npt.NDArray[np.float32]] = {}
        self._watched: quantise.Calibration | None = None
        self._ir: Any = None
        progress(f"torch: the reference, {len(faces.targets)} validation faces")
        with Predictor.open(bundle, "torch", threads=threads) as predictor:
            self.reference = predict_all(predictor, faces.pixels, model=self.card.name, batch=parity.BATCH)
            self.expected["torch"] = predictor.predict(self.probes)
        progress("onnx: tracing the graph")
        self.proto = graph.to_onnx(restored(self.card, read_verified(bundle, WEIGHTS), WEIGHTS), self.card)
        self._scratch_onnx = _write(self.stage.with_name("scratch") / onnx_runtime.FILE, graph.serialise(self.proto))

    def make(self, runtime: str) -> RuntimeReport:
        """Build the runtime's folder, verify it; remove it again when it is refused."""
        backend = backends()[runtime]
        folder = self.stage / FOLDER_OF_RUNTIME.get(runtime, runtime)
        own_folder = runtime not in FOLDER_OF_RUNTIME
        if not own_folder and not folder.is_dir():
            return self._refuse(runtime, f"the runtime {folder.name}, whose files it runs, was refused", {})
        tolerance = self._tolerance(runtime, backend.tolerance)
        methods = (None,) if not runtime.endswith("-int8") else ("ptq", "accuracy-control")
        unavailable = backend.unavailable("CPU")
        entry: dict[str, Any] = {}
        reasons: list[str] = []
        for method in methods:
            measured: dict[str, Any] = {}
            try:
                if own_folder:
                    why = f"; {reasons[-1]}; layers go back to float, at most {self.int8_minutes:g} min" if reasons else ""
                    self.progress(f"{runtime}: converting" + (f" ({method}{why})" if method else ""))
                    shutil.rmtree(folder, ignore_errors=True)
                    self._build(runtime, folder, method)
                if unavailable:
                    return self._unavailable(runtime, unavailable, remove=folder if own_folder else None)
                self.progress(f"{runtime}: verifying")
                measured, reason = self._verify(runtime, tolerance)
            except (InputError, OSError):
                raise
            except (FerLabError, RuntimeError) as error:  # a runtime that cannot be made is refused; the others go on
                reason = " ".join(str(error).split())[:300]
            if measured or not entry:  # where the second method comes to nothing, what the first one showed stays
                entry = measured | ({"method": method} if method else {})
            if reason is None:
                self.entries[runtime] = {"state": "verified", **entry}
                return _report("verified", entry)
            reasons.append(f"{method}: {reason}" if method else reason)
        if own_folder:
            shutil.rmtree(folder, ignore_errors=True)
        self.expected.pop(runtime, None)
        return self._refuse(runtime, "; ".join(reasons), entry)

    def record(self) -> dict[str, Any]:
        """Return the content of parity.json."""
        watched = self._watched
        return {
            "schema": record.SCHEMA,
            "dataset": {
                "name": self.dataset.name, "label_source": self.dataset.label_source, "fingerprint": self.dataset.fingerprint,
                "protocol": self.card.protocol, "split": "valid", "n": len(self.faces.targets),
            },
            "reference": {
                "runtime": "torch", "precision": "f32", "device": "CPU",
                "accuracy": float((self.reference.argmax(axis=1) == self.faces.targets).mean()),
            },
            "calibration": None if watched is None else {
                "split": "train", "n": len(watched.faces), "sha256": watched.sha256, "per_class": watched.per_class,
                "seed": self.seed,
            },
            "threads": self.threads,
            "host": {"cpu": host.this_host().cpu, "flags": list(host.this_host().flags)},
            "versions": {k: v for k, v in host.this_host().versions.items() if k in _LIBRARIES},
            "runtimes": self.entries,
            "probes": record.encode_probes(self.probes, self.expected),
        }  # fmt: skip

    def _build(self, runtime: str, folder: Path, method: str | None) -> None:
        if runtime == "onnx":
            _write(folder / onnx_runtime.FILE, graph.serialise(self.proto))
        elif runtime == "onnx-int8":
            quantised = self._quantise(self.proto, runtime, method)
            graph.describe(quantised, self.card)
            _write(folder / onnx_runtime.FILE, graph.serialise(quantised))
        elif runtime == "openvino-int8":
            # What NNCF leaves in float (squeeze and excitation, a fifth of the weights) is stored in 16 bits: 7 MB, not 10.
            ir.save(ir.halve(self._quantise(self._model(), runtime, method)), folder / openvino_runtime.XML, self.facts)
        else:
            ir.save(self._model(), folder / openvino_runtime.XML, self.facts, fp16=runtime == "openvino-fp16")

    def _model(self) -> Any:
        if self._ir is None:
            self._ir = ir.convert(self._scratch_onnx)
        return self._ir

    def _quantise(self, model: Any, runtime: str, method: str | None) -> Any:
        if self._watched is None:
            self._watched = quantise.calibration(self.dataset, self.card.protocol, n=self.calibration_faces, seed=self.seed)
        if method == "ptq":
            return quantise.quantise(model, self._watched)
        return quantise.quantise_with_accuracy_control(
            model, self._watched, self.faces.pixels[:, None], self.faces.targets, max_drop=self.max_drop,
            minutes=self.int8_minutes, progress=lambda text: self.progress(f"{runtime}: {text}"),
        )  # fmt: skip

    def _tolerance(self, runtime: str, default: Tolerance) -> Tolerance:
        if not runtime.endswith("-int8"):
            return default
        return Tolerance(default.max_dp, default.max_flip_rate, self.max_drop)

    def _verify(self, runtime: str, tolerance: Tolerance) -> tuple[dict[str, Any], str | None]:
        write_manifest(self.stage)
        bundle = open_bundle(self.stage)
        with Predictor.open(bundle, runtime, threads=self.threads) as predictor:
            probs = predict_all(predictor, self.faces.pixels, model=self.card.name, batch=parity.BATCH)
            entry = {
                "precision": predictor.precision, "device": "CPU",
                "size_mb": _size_mb(self.stage / FOLDER_OF_RUNTIME.get(runtime, runtime)),
                "digest": bundle.runtime_digest(runtime), "tolerance": parity.limits(tolerance),
                **parity.measure(self.reference, probs, self.faces.targets, self.faces.names, self.card.labels),
                **parity.alone_and_together(predictor, self.faces.pixels),
            }  # fmt: skip
            self.expected[runtime] = predictor.predict(self.probes)
        return entry, parity.refusal(entry, tolerance)

    def _refuse(self, runtime: str, reason: str, entry: dict[str, Any]) -> RuntimeReport:
        self.progress(f"{runtime}: refused: {reason}")
        self.entries[runtime] = {"state": "refused", "reason": reason, **entry}
        return _report("refused", entry, refused=reason)

    def _unavailable(self, runtime: str, reason: str, remove: Path | None) -> RuntimeReport:
        """Nothing was measured: an unverified folder does not stay in the bundle."""
        if remove is not None:
            shutil.rmtree(remove, ignore_errors=True)
        self.progress(f"{runtime}: unavailable: {reason}")
        self.entries[runtime] = {"state": "unavailable", "reason": reason}
        return RuntimeReport("unavailable", unavailable=reason)


def _report(state: str, entry: dict[str, Any], *, refused: str | None = None) -> RuntimeReport:
    flips = entry.get("flips")
    return RuntimeReport(
        state, None if flips is None else len(flips), entry.get("max_dp"), entry.get("accuracy"), entry.get("size_mb"), refused,
        method=entry.get("method"),
    )  # fmt: skip


def _write(path: Path, raw: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(path, raw)


def _size_mb(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 3)
