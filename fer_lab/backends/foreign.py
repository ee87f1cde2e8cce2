"""Foreign models: any .onnx, OpenVINO .xml or .tflite, made to answer the same question by a small card beside it.

    net.onnx + net.card.json

The card states what cannot be read from the file: the labels in output order, gray/RGB/BGR, scale, mean, std, whether the
output are logits or probabilities, and how its labels map onto ours. Nothing is guessed; what the file does state (shape,
number of classes) is checked against the card. `.onnx` runs in ONNX Runtime or OpenVINO, the others in OpenVINO.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fer_lab.backends import openvino_core
from fer_lab.backends.bundle import MOST_SIDE, Bundle, Card, sha256_of
from fer_lab.backends.session import Faces, Predictor, Probabilities
from fer_lab.backends.signature import VARIABLE, demanded
from fer_lab.core.errors import InputError, IntegrityError, MissingPart, NotFound, nearest, refuse_newer

SUFFIXES = (".onnx", ".xml", ".tflite")
RUNTIMES_OF = {".onnx": ("onnx", "openvino"), ".xml": ("openvino",), ".tflite": ("openvino",)}
SCHEMA = 1
FILL_IN = "FILL IN"


class ForeignCard(BaseModel):
    """What a foreign model takes and gives. Its input is `(value × scale − mean) / std` of each channel."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    schema_version: int = Field(SCHEMA, alias="schema")
    labels: tuple[str, ...] = Field(min_length=2)  # its own, in output order
    height: int = Field(ge=1, le=MOST_SIDE)
    width: int = Field(ge=1, le=MOST_SIDE)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channels: Literal["gray", "RGB", "BGR"] = "gray"
    dtype: Literal["float32", "uint8"] = "float32"
    scale: float = 1 / 255  # of the 0–255 pixel value
    mean: float | tuple[float, float, float] = 0.0
    std: float | tuple[float, float, float] = 1.0
    output: Literal["logits", "probabilities"]
    label_map: dict[str, str | None] = Field(default_factory=dict)  # its label → ours; null leaves its probability out
    licence: str = "unknown"
    source: str = ""
    label_source: str = "unknown"  # what it was trained on
    note: str = ""

    @model_validator(mode="after")
    def _fits(self) -> ForeignCard:
        unknown = [label for label in self.label_map if label not in self.labels]
        if unknown:
            raise ValueError(f"label_map names {unknown[0]!r}, which is not among labels{nearest(unknown[0], self.labels)}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels stand twice")
        stds = self.std if isinstance(self.std, tuple) else (self.std,)
        if any(value <= 0 for value in stds):
            raise ValueError("std must be above 0")
        if self.channels == "gray" and (isinstance(self.mean, tuple) or isinstance(self.std, tuple)):
            raise ValueError("a gray model has one mean and one std")
        return self

    @property
    def depth(self) -> int:
        """Number of channels."""
        return 1 if self.channels == "gray" else 3

    def shape(self, n: int) -> tuple[int, int, int, int]:
        """Shape of an input of n faces."""
        if self.layout == "NCHW":
            return (n, self.depth, self.height, self.width)
        return (n, self.height, self.width, self.depth)


@dataclass(frozen=True)
class ForeignModel:
    """A foreign file with its card, not loaded yet."""

    path: Path
    card: ForeignCard
    files: tuple[Path, ...]
    digest: str  # sha256 over the model's files and the card

    @property
    def runtimes(self) -> tuple[str, ...]:
        """What can run it."""
        return RUNTIMES_OF[self.path.suffix.lower()]

    @property
    def size_mb(self) -> float:
        """Size of the model's files in MB."""
        return sum(path.stat().st_size for path in self.files) / 1e6

    def check_labels(self, labels: tuple[str, ...]) -> npt.NDArray[np.float32]:
        """Return the matrix [K theirs, K ours] that moves their probabilities to ours.

        Raises InputError for a label that is neither ours nor mapped, and when none is left.
        """
        matrix = np.zeros((len(self.card.labels), len(labels)), np.float32)
        for row, label in enumerate(self.card.labels):
            ours = self.card.label_map.get(label, label)
            if ours is None:
                continue
            if ours not in labels:
                hint = nearest(ours, labels)
                raise InputError(
                    f"{card_path(self.path)}: label {ours!r} is not one of {', '.join(labels)}{hint or '.'} "
                    f"Map it in label_map, to null to leave it out"
                )
            matrix[row, labels.index(ours)] = 1
        if not matrix.any():
            raise InputError(f"{card_path(self.path)}: label_map leaves no label")
        return matrix

    def predictor(self, runtime: str, labels: tuple[str, ...], protocol: str, *, threads: int = 1) -> Predictor:
        """Load it in `runtime` and return a Predictor over `labels`.

        Raises InputError naming the dimension or the count that does not fit the card, or when it cannot be loaded.
        """
        if runtime not in self.runtimes:
            raise NotFound(f"{self.path.name} runs in {', '.join(self.runtimes)}, not in {runtime}")
        matrix = self.check_labels(labels)
        session = ForeignSession(self, _load(self, runtime, threads), matrix)
        return Predictor(self.as_bundle(labels, protocol), session, runtime)

    def as_bundle(self, labels: tuple[str, ...], protocol: str) -> Bundle:
        """A stand-in for a bundle: the card in our terms, so that everything downstream treats all models alike."""
        card = Card(
            schema=SCHEMA, name=self.path.stem, labels=labels, protocol=protocol, label_source=self.card.label_source,
            dataset=self.card.label_source, fingerprint="unknown", backbone=self.path.stem, image_size=self.card.height,
            mean=0.0, std=1.0, licence=self.card.licence,
        )  # fmt: skip
        return Bundle(self.path.parent, card, self.digest, {path.name: sha256_of(path) for path in self.files})


class ForeignSession:
    """A loaded foreign model behind our contract: uint8 [N, 1, 48, 48] → float32 [N, K]."""

    precision = "f32"

    def __init__(self, model: ForeignModel, loaded: _Loaded, matrix: npt.NDArray[np.float32]) -> None:
        self._model, self._loaded, self._matrix = model, loaded, matrix
        self._lock = threading.Lock()
        _check_shapes(model, loaded)

    def run(self, faces: Faces) -> Probabilities:
        """uint8 [N, 1, 48, 48] → float32 [N, K]; a model of a fixed batch is fed in pieces of its size."""
        prepared = prepare(faces, self._model.card)
        fixed = self._loaded.input_shape[0]
        step = fixed or len(prepared)
        parts = []
        with self._lock:
            for start in range(0, len(prepared), step):
                piece = prepared[start : start + step]
                padded = np.concatenate([piece, np.repeat(piece[-1:], step - len(piece), axis=0)]) if len(piece) < step else piece
                try:
                    parts.append(self._loaded.call(padded)[: len(piece)])
                except Exception as error:  # a graph may load and not run; each runtime has classes of its own for that
                    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                    raise InputError(f"{self._model.path}: it loads, but fails on a face: {reason}") from None
        answers = np.concatenate(parts).reshape(len(faces), -1).astype(np.float32)
        if answers.shape[1] != len(self._model.card.labels):
            raise InputError(_count_message(self._model, answers.shape[1]))
        probs = _softmax(answers) if self._model.card.output == "logits" else answers
        ours = probs @ self._matrix
        if self._matrix.sum() < len(self._matrix):  # labels were left out: what remains is renormalised
            total = ours.sum(axis=1, keepdims=True)
            ours = np.divide(ours, total, out=np.full_like(ours, 1 / ours.shape[1]), where=total > 1e-12)
        result: Probabilities = ours
        return result

    def close(self) -> None:
        """Free the model."""
        self._loaded = _Loaded((None, 1, 1, 1), None, lambda _: np.zeros((0, 0), np.float32))


@dataclass(frozen=True)
class _Loaded:
    input_shape: tuple[int | None, ...]
    classes: int | None
    call: Any  # prepared batch → answers [N, K]


def is_foreign(ref: str) -> bool:
    """Whether a model argument names a foreign file."""
    return not ref.startswith(("models:/", "runs:/")) and Path(ref).suffix.lower() in SUFFIXES


def card_path(model: Path) -> Path:
    """The card's place: `net.onnx` → `net.card.json`."""
    return model.with_suffix(".card.json")


def open_foreign(path: str | Path) -> ForeignModel:
    """Read a foreign model's card.

    Raises NotFound when model or card is absent, InputError naming the key at fault, IntegrityError where this machine takes
    signed bundles only.
    """
    path = Path(path)
    _check_unsigned_is_welcome(path)
    if not path.is_file():
        raise NotFound(f"no such model: {path}")
    beside = card_path(path)
    if not beside.is_file():
        raise NotFound(f"{path} has no card {beside.name} beside it. Write one: python -m fer_lab.compare --init-card {path}")
    raw = beside.read_bytes()
    try:
        tree = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{beside}: not JSON ({error})") from None
    if isinstance(tree, dict):
        for key, value in tree.items():
            if FILL_IN in json.dumps(value):
                raise InputError(f"{beside}: {key} still says {FILL_IN!r}")
        if isinstance(tree.get("schema"), int):
            refuse_newer(beside, tree["schema"], SCHEMA)
    try:
        card = ForeignCard.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{beside}: {'.'.join(map(str, first['loc'])) or 'card'}: {first['msg']}") from None
    files = [path]
    if path.suffix.lower() == ".xml":
        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise NotFound(f"{path}: its weights {weights.name} are not beside it")
        files.append(weights)
    lines = "".join(f"{sha256_of(file)}\n" for file in [*files, beside])
    return ForeignModel(path, card, tuple(files), hashlib.sha256(lines.encode()).hexdigest())


def write_card(path: str | Path) -> Path:
    """Write a card to fill in beside a model, with what the file itself states filled in already.

    Raises InputError when a card is there or the suffix is unknown.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: a foreign model is one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise NotFound(f"no such model: {path}")
    _check_unsigned_is_welcome(path)
    target = card_path(path)
    if target.exists():
        raise InputError(f"{target} is there already; edit it, or remove it first")
    shape, classes, dtype = _stated(path)
    layout = "NHWC" if len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3) else "NCHW"
    sides: tuple[int | None, ...] = (None, None, None)
    if len(shape) == 4:
        sides = (shape[1], shape[2], shape[3]) if layout == "NHWC" else (shape[2], shape[3], shape[1])
    tree: Mapping[str, Any] = {
        "schema": SCHEMA,
        "labels": [f"{FILL_IN}: label {i}" for i in range(classes)] if classes else [f"{FILL_IN}: its labels in output order"],
        "height": sides[0] or 48,
        "width": sides[1] or 48,
        "layout": layout,
        "channels": "gray" if sides[2] == 1 else f"{FILL_IN}: RGB or BGR",
        "dtype": dtype,
        "scale": round(1 / 255, 8),
        "mean": 0.0,
        "std": 1.0,
        "output": f"{FILL_IN}: logits or probabilities",
        "label_map": {},
        "licence": "unknown",
        "source": "",
        "label_source": "unknown",
        "note": "its input is (pixel * scale - mean) / std; label_map: its label to ours, or null to leave it out",
    }
    target.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return target


def prepare(faces: Faces, card: ForeignCard) -> npt.NDArray[Any]:
    """uint8 [N, 1, 48, 48] → the card's input: enlarged bilinearly, channels repeated, scaled, laid out."""
    import cv2

    n = len(faces)
    sized = np.empty((n, card.height, card.width), np.float32)
    for i in range(n):
        cv2.resize(faces[i, 0].astype(np.float32), (card.width, card.height), dst=sized[i], interpolation=cv2.INTER_LINEAR)
    pictures = np.repeat(sized[..., None], card.depth, axis=3)  # [N, H, W, C]; a gray face is the same in RGB and BGR
    if card.dtype == "uint8":
        values: npt.NDArray[Any] = pictures.round().astype(np.uint8)
    else:
        mean, std = np.asarray(card.mean, np.float32), np.asarray(card.std, np.float32)
        values = ((pictures * np.float32(card.scale) - mean) / std).astype(np.float32)
    return np.ascontiguousarray(values if card.layout == "NHWC" else values.transpose(0, 3, 1, 2))


def _load(model: ForeignModel, runtime: str, threads: int) -> _Loaded:
    return _load_onnx(model, threads) if runtime == "onnx" else _load_openvino(model, threads)


def _load_onnx(model: ForeignModel, threads: int) -> _Loaded:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise MissingPart("onnxruntime", "lab", f"running {model.path.name}") from None
    raw = _checked_onnx(model.path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a class of its own for every failure
        raise InputError(f"{model.path}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1:
        raise InputError(f"{model.path}: has {len(inputs)} inputs, expected one picture")
    name, answer = inputs[0].name, outputs[0].name
    shape = tuple(side if isinstance(side, int) else None for side in inputs[0].shape)
    last = outputs[0].shape[-1] if outputs[0].shape else None
    return _Loaded(shape, last if isinstance(last, int) else None, lambda batch: session.run([answer], {name: batch})[0])


def _check_unsigned_is_welcome(path: Path) -> None:
    if demanded() is not None:
        raise IntegrityError(f"{path} is a foreign model, which nobody can sign; with {VARIABLE} set, only signed bundles run")


def _checked_onnx(path: Path) -> bytes:
    """The bytes of an ONNX file that needs no other file; both runtimes are given these bytes, not the path."""
    from fer_lab.backends import onnx_file

    raw = path.read_bytes()
    onnx_file.check(raw, str(path), domains=("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
    return raw


def _load_openvino(model: ForeignModel, threads: int) -> _Loaded:
    core, network = _read_openvino(model.path)
    settings = {
        "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
    }  # fmt: skip
    try:
        compiled = core.compile_model(network, "CPU", settings)
    except RuntimeError as error:
        raise InputError(f"{model.path}: OpenVINO cannot compile it: {str(error).strip().splitlines()[-1]}") from None
    request, answer = compiled.create_infer_request(), compiled.outputs[0]
    shape, classes, _ = _stated_by(network)

    def call(batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        result: npt.NDArray[Any] = request.infer([batch])[answer].copy()
        return result

    return _Loaded(shape, classes, call)


def _read_openvino(path: Path) -> tuple[Any, Any]:
    core = openvino_core.core()
    try:
        network = core.read_model(_checked_onnx(path) if path.suffix.lower() == ".onnx" else path)
    except RuntimeError as error:
        raise InputError(f"{path}: OpenVINO cannot read it: {str(error).strip().splitlines()[-1]}") from None
    if len(network.inputs) != 1:
        raise InputError(f"{path}: has {len(network.inputs)} inputs, expected one picture")
    return core, network


def _stated(path: Path) -> tuple[tuple[int | None, ...], int | None, Literal["float32", "uint8"]]:
    """Input shape, number of classes and dtype that the file states."""
    return _stated_by(_read_openvino(path)[1])


def _stated_by(network: Any) -> tuple[tuple[int | None, ...], int | None, Literal["float32", "uint8"]]:
    shape, answer = _sides(network.inputs[0].partial_shape), _sides(network.outputs[0].partial_shape)
    classes = answer[-1] if answer else None
    kind = str(network.inputs[0].element_type.get_type_name())
    return shape, classes, "uint8" if kind == "u8" else "float32"


def _sides(shape: Any) -> tuple[int | None, ...]:
    """The sides of an OpenVINO shape; none when not even their number is stated."""
    return tuple(side.get_length() if side.is_static else None for side in shape) if shape.rank.is_static else ()


def _check_shapes(model: ForeignModel, loaded: _Loaded) -> None:
    card = model.card
    wanted = card.shape(1)
    names = ("batch", "channels", "height", "width") if card.layout == "NCHW" else ("batch", "height", "width", "channels")
    if len(loaded.input_shape) != 4:
        raise InputError(f"{model.path}: its input has {len(loaded.input_shape)} dimensions, the card's layout {card.layout} has 4")
    for axis in (1, 2, 3):
        stated = loaded.input_shape[axis]
        if stated is not None and stated != wanted[axis]:
            raise InputError(
                f"{card_path(model.path)}: {names[axis]} is {wanted[axis]} in the card (layout {card.layout}), "
                f"but dimension {axis} of the model's input {_shown(loaded.input_shape)} is {stated}"
            )
    if loaded.classes is not None and loaded.classes != len(card.labels):
        raise InputError(_count_message(model, loaded.classes))


def _count_message(model: ForeignModel, classes: int) -> str:
    return f"{card_path(model.path)}: {len(model.card.labels)} labels in the card, but the model answers with {classes} values"


def _shown(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("?" if side is None else str(side) for side in shape) + "]"


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: npt.NDArray[np.float32] = shifted / shifted.sum(axis=1, keepdims=True)
    return result
