"""ONNX → OpenVINO IR, in a process of its own when called as a module.

    python -m fer_lab.convert.ir model.onnx openvino/model.xml [--fp16]

float32 stays float32 (OpenVINO's default would round the weights to fp16); `--fp16` compresses them on purpose. Names
that OpenVINO makes up from a counter are replaced by positions, so that the same graph gives the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fer_lab.backends import openvino_core
from fer_lab.convert.graph import INPUT, OUTPUT
from fer_lab.core.errors import FerLabError, MissingPart

SECTION = "fer_lab"  # of the IR's rt_info
WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")  # nodes with large constants


def convert(onnx_path: Path) -> Any:
    """Return the openvino.Model of an ONNX file; raises FerLabError when OpenVINO cannot read it."""
    openvino = library()
    with no_telemetry():
        try:
            return openvino.convert_model(str(onnx_path))
        except Exception as error:  # openvino raises classes of its own front ends
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FerLabError(f"{onnx_path}: OpenVINO cannot convert it: {first}") from error


def save(model: Any, xml: Path, facts: Mapping[str, str], *, fp16: bool = False) -> None:
    """Write `xml` and the `.bin` beside it, with `facts` in rt_info/fer_lab. `model` is cloned, not changed.

    Raises OSError when the disk is full (OpenVINO itself may write a short file without a word).
    """
    openvino = library()
    copy = model.clone()
    for index, node in enumerate(copy.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{index}")
    copy.inputs[0].get_node().set_friendly_name(INPUT)
    copy.inputs[0].get_tensor().set_names({INPUT})
    copy.outputs[0].get_tensor().set_names({OUTPUT})
    for key, value in sorted(facts.items()):
        copy.set_rt_info(value, [SECTION, key])
    xml.parent.mkdir(parents=True, exist_ok=True)
    try:
        openvino.save_model(copy, str(xml), compress_to_fp16=fp16)
        # Reading it back is the only way to learn that nothing was lost.
        openvino_core.core().read_model(model=xml.read_bytes(), weights=xml.with_suffix(".bin").read_bytes())
    except RuntimeError as error:
        raise OSError(f"OpenVINO could not write {xml.name} whole (disk full?): {str(error).strip().splitlines()[-1]}") from error


def halve(model: Any) -> Any:
    """Store the float32 weights of an openvino.Model's convolutions and matrix products in 16 bits, in place; returns it.

    OpenVINO's own compression leaves a quantised model alone. It computes with them as float32, as before.
    """
    ops = library().opset13
    for node in model.get_ops():
        if node.get_type_name() != "Constant" or node.get_element_type().get_type_name() != "f32":
            continue
        users = [user for user in node.output(0).get_target_inputs() if user.get_node().get_type_name() in WEIGHTED]
        if users:
            wide = ops.convert(ops.constant(node.data.astype("float16")), "f32")
            for user in users:
                user.replace_source_output(wide.output(0))
    return model


def weight_types(model: Any) -> set[str]:
    """Return the element types of the constants of an openvino.Model, e.g. {"f32", "i64"}; what the weights are stored in."""
    return {node.get_element_type().get_type_name() for node in model.get_ops() if node.get_type_name() == "Constant"}


def library() -> Any:
    """Return openvino; raises MissingPart."""
    try:
        import openvino
    except ModuleNotFoundError:
        raise MissingPart("openvino", "train", "export") from None
    return openvino


@contextlib.contextmanager
def no_telemetry() -> Iterator[None]:
    """OpenVINO's tools and NNCF report usage to a server unless they believe to run in CI; an export talks to nobody."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


def main(argv: list[str] | None = None) -> int:
    """Convert one file; the facts of its metadata_props go into the IR."""
    import onnx

    parser = argparse.ArgumentParser(prog="python -m fer_lab.convert.ir", description=__doc__.splitlines()[0])
    parser.add_argument("onnx", type=Path)
    parser.add_argument("xml", type=Path)
    parser.add_argument("--fp16", action="store_true")
    args = parser.parse_args(argv)
    facts = {prop.key: prop.value for prop in onnx.load(str(args.onnx), load_external_data=False).metadata_props}
    save(convert(args.onnx), args.xml, facts, fp16=args.fp16)
    return 0


if __name__ == "__main__":
    sys.exit(main())
