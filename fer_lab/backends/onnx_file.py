"""What may stand in an ONNX file before ONNX Runtime sees it: one self-contained file of known operators.

The `onnx` library is not part of the serving install, so this walks the protobuf wire format by itself. Field numbers
are those of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3); they never change.
"""

from __future__ import annotations

from collections.abc import Iterator

from fer_lab.core.errors import InputError

MAX_BYTES = 500_000_000  # the largest backbone here (V2-XL, float32) is below this
MAX_OPSET = 26  # onnxruntime 1.32 knows no newer one
_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL
_MAX_DEPTH = 16
_MASK_32, _MASK_64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF  # what protobuf keeps of keys and enums, of other integers

# message → {field number → message it holds}, only the fields on the way to tensors and domains
_CHILDREN = {
    "Model": {7: "Graph", 8: "Opset", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 9: "Opset", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
}


def check(raw: bytes, where: str, *, domains: tuple[str, ...] = ("", "ai.onnx")) -> None:
    """Raise InputError when the file names external data, an operator outside `domains`, or a newer opset.

    raw: the bytes that are loaded afterwards. Nothing is allocated from sizes that the file states.
    """
    if not raw or len(raw) > MAX_BYTES:
        raise InputError(f"{where}: {len(raw)} bytes, an ONNX file here has 1 to {MAX_BYTES}")
    try:
        seen_opset = _walk(memoryview(raw), "Model", where, domains, 0)
    except (ValueError, IndexError):
        raise InputError(f"{where}: not an ONNX file (broken at the protobuf level). Export again") from None
    if not seen_opset:
        raise InputError(f"{where}: not an ONNX file (it imports no operator set). Export again")


def _walk(view: memoryview, message: str, where: str, domains: tuple[str, ...], depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deep")
    children = _CHILDREN.get(message, {})
    seen_opset = False
    for number, value in _fields(view):
        external = number == 13 or (number == 14 and isinstance(value, int) and value & _MASK_32 == _EXTERNAL)
        if message == "Tensor" and external:
            raise InputError(
                f"{where}: a tensor lies outside the file (external data); only self-contained ONNX files are loaded. "
                "Make it one file: python -c \"import onnx; onnx.save(onnx.load('IN.onnx'), 'OUT.onnx')\""
            )
        if (message, number) in (("Node", 7), ("Opset", 1), ("Function", 10)) and isinstance(value, memoryview):
            domain = str(value, "utf-8")
            if domain not in domains:
                known = ", ".join(repr(d) for d in domains)
                raise InputError(f"{where}: operators of the domain {domain!r}; allowed here: {known}")
        if message == "Opset" and number == 2 and isinstance(value, int) and value > MAX_OPSET:
            raise InputError(f"{where}: opset {value} is newer than this fer_lab understands (≤ {MAX_OPSET}); update fer_lab")
        if number in children and isinstance(value, memoryview):
            child = children[number]
            seen_opset = _walk(value, child, where, domains, depth + 1) or child == "Opset" or seen_opset
    return seen_opset


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, integer or bytes) of one message; raises ValueError or IndexError on broken input."""
    position, end = 0, len(view)
    while position < end:
        key, position = _varint(view, position)
        if not 8 <= key <= _MASK_32:  # protobuf reads 32 bits of a key: with more, it would see another field than we do
            raise ValueError(f"key {key}")
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, position = _varint(view, position)
            yield number, value
            continue
        if kind == 2:
            length, position = _varint(view, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if length > end - position:
            raise ValueError("length beyond the end")
        yield number, view[position : position + length]
        position += length


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK_64, position
        shift += 7
        if shift > 63:
            raise ValueError("varint too long")
