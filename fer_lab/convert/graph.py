"""The one graph of a model: torch → ONNX, with preprocessing, temperature and softmax inside.

`faces` uint8 [N, C, H, W] in, `probabilities` float32 [N, K] out, the batch dynamic. The exporter writes absolute paths
and stack traces into the file; they are removed, so that two checkouts give the same bytes.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fer_lab.backends.bundle import Card
from fer_lab.core.errors import FerLabError, MissingPart

if TYPE_CHECKING:
    import torch

INPUT, OUTPUT = "faces", "probabilities"
OPSET = 20
PRODUCER = "fer_lab"


def metadata(card: Card) -> dict[str, str]:
    """Return what every exported file says about itself; keys of `metadata_props` and of the IR's `rt_info`."""
    return {
        "name": card.name,
        "labels": json.dumps(card.labels),
        "protocol": card.protocol,
        "protocol_version": str(card.protocol_version),
        "label_source": card.label_source,
        "fingerprint": card.fingerprint,
        "backbone": card.backbone,
        "image_size": str(card.image_size),
        "temperature": repr(card.temperature),
    }


def to_onnx(deployable: torch.nn.Module, card: Card) -> Any:
    """Return the onnx.ModelProto of a deployable network, checked and with inferred shapes.

    Raises FerLabError when the exporter or the checker refuses the network, MissingPart without onnx.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  # the dynamo exporter needs it
        import torch
    except ModuleNotFoundError as error:
        raise MissingPart(error.name or "onnx", "train", "export") from None

    deployable = deployable.cpu().eval()
    contract = card.input
    generator = torch.Generator().manual_seed(0)
    # Two faces: the exporter takes a batch of one for a constant.
    example = torch.randint(0, 256, (2, contract.channels, contract.height, contract.width), dtype=torch.uint8, generator=generator)
    with quiet():
        try:
            program = torch.onnx.export(
                deployable, (example,), dynamo=True, external_data=False, opset_version=OPSET, verbose=False,
                input_names=[INPUT], output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65535)},),
            )  # fmt: skip
        except Exception as error:  # the exporter raises dozens of classes
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FerLabError(f"{card.name}: torch cannot export {card.backbone} to ONNX: {first}") from error
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    describe(proto, card)
    _check_edges(proto, card)
    return proto


def describe(proto: Any, card: Card) -> None:
    """Write the card's facts into `metadata_props` and run onnx.checker. Changes `proto`."""
    import onnx

    del proto.metadata_props[:]
    for key, value in sorted(metadata(card).items()):
        proto.metadata_props.add(key=key, value=value)
    proto.producer_name, proto.producer_version, proto.doc_string = PRODUCER, "", ""
    onnx.checker.check_model(proto, full_check=True)


def serialise(proto: Any) -> bytes:
    """Return the file's bytes, the same for the same graph."""
    raw: bytes = proto.SerializeToString(deterministic=True)
    return raw


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' chatter: progress on stdout, warnings about their own deprecated calls, log lines."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _strip(proto: Any) -> None:
    """Remove stack traces, module paths and doc strings from every part of the graph."""
    for part in _parts(proto):
        del part.metadata_props[:]
        part.doc_string = ""


def _parts(proto: Any) -> Iterator[Any]:
    yield proto
    yield from proto.functions
    for function in proto.functions:
        yield from function.node
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        yield graph
        for group in (graph.node, graph.initializer, graph.input, graph.output, graph.value_info):
            yield from group
        for node in graph.node:
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def _check_edges(proto: Any, card: Card) -> None:
    """The graph takes and gives exactly what the card says; anything else is an error here, not at the user's."""
    contract = card.input
    wanted = (
        (proto.graph.input, INPUT, 2, [contract.channels, contract.height, contract.width]),  # 2: TensorProto.UINT8
        (proto.graph.output, OUTPUT, 1, [len(card.labels)]),  # 1: TensorProto.FLOAT
    )
    for values, name, kind, sizes in wanted:
        tensor = values[0].type.tensor_type
        found = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        if len(values) != 1 or values[0].name != name or tensor.elem_type != kind or found != [None, *sizes]:
            raise FerLabError(
                f"{card.name}: the exported graph has {values[0].name} {found} of type {tensor.elem_type}, not {name}"
            )
