"""What may stand in an ONNX file."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_bundle

from fer_lab.backends import onnx_file
from fer_lab.core.errors import InputError


def test_a_plain_file_passes() -> None:
    """Standard operators in one file."""
    onnx_file.check(tiny_bundle.proto().SerializeToString(), "model.onnx")


def test_a_foreign_domain_is_refused_and_named() -> None:
    """A custom operator could bring its own code."""
    raw = tiny_bundle.proto(domain="evil.ops").SerializeToString()
    with pytest.raises(InputError, match=r"'evil\.ops'; allowed here: '', 'ai\.onnx'"):
        onnx_file.check(raw, "model.onnx")


def test_contrib_operators_are_for_int8_only() -> None:
    """com.microsoft passes only where it is named."""
    raw = tiny_bundle.proto(domain="com.microsoft").SerializeToString()
    onnx_file.check(raw, "model.onnx", domains=("", "com.microsoft"))
    with pytest.raises(InputError, match=r"com\.microsoft"):
        onnx_file.check(raw, "model.onnx")


@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph"])
def test_external_data_is_refused_wherever_it_hides(place: str) -> None:
    """A tensor outside the file could name any file of the disk."""
    from onnx import TensorProto, helper

    outside = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="../../etc/passwd")
    model = tiny_bundle.proto()
    if place == "initializer":
        model.graph.initializer.append(outside)
    else:
        node = helper.make_node("Constant", [], ["c"])
        node.attribute.append(helper.make_attribute("value", outside))
        if place == "subgraph":
            inner = helper.make_graph([node], "inner", [], [])
            node = helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner)
        model.graph.node.append(node)
    with pytest.raises(InputError, match="external data"):
        onnx_file.check(model.SerializeToString(), "model.onnx")


@pytest.mark.parametrize("field", [13, 14])
def test_external_data_is_refused_under_a_key_that_protobuf_cuts(field: int) -> None:
    """Protobuf reads 32 bits of a key: with a 33rd one set, ONNX Runtime and OpenVINO see the field, and we must too."""
    inside = b"\x0a\x08location" if field == 13 else b""
    wire = 2 if field == 13 else 0
    key = field << 3 | wire | 1 << 32
    smuggled = bytes(key >> shift & 0x7F | 0x80 for shift in range(0, 28, 7)) + bytes([key >> 28])
    smuggled += bytes([len(inside)]) + inside if wire == 2 else b"\x01"
    model = tiny_bundle.proto()
    tensor = model.graph.initializer[0].SerializeToString() + smuggled
    raw = model.SerializeToString() + onnx_message(7, onnx_message(5, tensor))
    with pytest.raises(InputError, match=r"broken at the protobuf level|external data"):
        onnx_file.check(raw, "model.onnx")


def onnx_message(field: int, content: bytes) -> bytes:
    """One message inside another, as protobuf writes it; a second graph is merged into the first."""
    length, size = len(content), b""
    while length > 0x7F:
        size += bytes([length & 0x7F | 0x80])
        length >>= 7
    return bytes([field << 3 | 2]) + size + bytes([length]) + content


def test_a_newer_opset_is_refused_with_the_number() -> None:
    """The message says what to do."""
    model = tiny_bundle.proto()
    model.opset_import[0].version = 99
    with pytest.raises(InputError, match=r"opset 99 is newer .* update fer_lab"):
        onnx_file.check(model.SerializeToString(), "model.onnx")


@pytest.mark.parametrize("raw", [b"", b"not a model", b"version https://git-lfs.github.com/spec/v1\n", b"\xff" * 64, b"\x08\x01"])
def test_something_else_is_no_onnx_file(raw: bytes) -> None:
    """Empty files, text, pointer files."""
    with pytest.raises(InputError):
        onnx_file.check(raw, "model.onnx")


def test_no_damage_ends_in_anything_but_an_answer() -> None:
    """2 000 seeded single-byte changes: passed or refused, never a crash."""
    raw = tiny_bundle.proto(hidden=1).SerializeToString()
    rng = np.random.default_rng(0)
    for _ in range(2000):
        changed = bytearray(raw)
        changed[rng.integers(len(raw))] = rng.integers(256)
        try:
            onnx_file.check(bytes(changed[: rng.integers(1, len(raw) + 1)]), "model.onnx")
        except InputError as error:
            assert "model.onnx" in str(error)  # noqa: PT017  # the point is that no other class is raised
