"""The parity alarm rings: each fault of a careless export, planted alone, is outside the default tolerances.

The network was trained for real (an untrained one answers 1/8 for everything, and then nothing differs). Faults are
planted in the exported ONNX graph itself, so that what is measured is a file run by a runtime, as in an export.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundle

from fer_lab.backends.bundle import Bundle, open_bundle, write_manifest
from fer_lab.backends.session import Predictor, backends
from fer_lab.convert import graph, ir, parity
from fer_lab.measure.evaluate import kept_faces, predict_all

SIZE = 64  # not the 48 of a face: enlarging must do something, or its faults are invisible


@dataclass
class Alarm:
    """The honest graph, the reference answers and the faces."""

    folder: Path
    bundle: Bundle
    network: Any
    proto: Any
    pixels: np.ndarray
    targets: np.ndarray
    names: tuple[str, ...]
    reference: np.ndarray

    def refusal(self, runtime: str) -> str | None:
        """What the default tolerances say about the files that now lie in the bundle."""
        write_manifest(self.folder)
        with Predictor.open(open_bundle(self.folder), runtime, threads=2) as predictor:
            return self.judge(predictor, runtime)

    def judge(self, predictor: Any, runtime: str) -> str | None:
        probs = predict_all(predictor, self.pixels, model="alarm", batch=64)
        report = parity.measure(self.reference, probs, self.targets, self.names, self.bundle.card.labels)
        report |= parity.alone_and_together(predictor, self.pixels)
        return parity.refusal(report, backends()[runtime].tolerance)

    def plant(self, proto: Any, runtime: str, *, fp16: bool = False) -> None:
        """Write this graph as the artifact of `runtime`."""
        shutil.rmtree(self.folder / runtime, ignore_errors=True)
        (self.folder / runtime).mkdir()
        path = (self.folder / runtime if runtime == "onnx" else self.folder.parent) / "model.onnx"
        path.write_bytes(graph.serialise(proto))
        if runtime != "onnx":
            ir.save(ir.convert(path), self.folder / runtime / "model.xml", {}, fp16=fp16)


STEPS = 120  # of 48 faces: half a minute on one core, and the network is sure of itself


def trained(drawn: Any) -> Any:
    """The V2B0 architecture at a third of its width and depth (0.27 M parameters), trained on the drawn faces."""
    import torch
    from timm.models.efficientnet import _gen_efficientnetv2_base

    from fer_lab.models.deployable import Deployable

    rows, targets = kept_faces(drawn, "ferplus8", "train")
    faces, labels = torch.from_numpy(drawn.pixels[rows[:450]][:, None]), torch.from_numpy(targets[:450])
    torch.manual_seed(0)
    network = _gen_efficientnetv2_base(
        "tf_efficientnetv2_b0",
        channel_multiplier=0.35,
        depth_multiplier=0.35,
        in_chans=1,
        num_classes=8,
        pad_type="same",
        bn_eps=1e-3,
    )
    graph = Deployable(network, SIZE, 0.45, 0.22)
    optimiser = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=STEPS)
    graph.train()
    for _ in range(STEPS):
        chosen = torch.randint(0, len(labels), (48,))
        loss = torch.nn.functional.cross_entropy(graph.logits(faces[chosen]), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return graph.eval()


@pytest.fixture(scope="module")
def alarm(drawn: Any, tmp_path_factory: pytest.TempPathFactory) -> Alarm:
    return build(trained(drawn), drawn, tmp_path_factory.mktemp("alarm") / "bundle")


def build(network: Any, drawn: Any, folder: Path) -> Alarm:
    """The honest export of a trained network and its answers on the validation faces."""
    import torch

    folder.mkdir()
    card = tiny_bundle.card(name="alarm", image_size=SIZE, mean=0.45, std=0.22, fingerprint=drawn.fingerprint)
    (folder / "card.json").write_text(card.to_json(), encoding="utf-8")
    write_manifest(folder)
    rows, targets = kept_faces(drawn, "ferplus8", "valid")
    pixels, names = drawn.pixels[rows], tuple(drawn.names[i] for i in rows)
    with torch.inference_mode():
        reference = network(torch.from_numpy(pixels[:, None])).numpy()
    return Alarm(folder, open_bundle(folder), network, graph.to_onnx(network, card), pixels, targets, names, reference)


def node(proto: Any, kind: str) -> Any:
    return next(n for n in proto.graph.node if n.op_type == kind)


def constant(proto: Any, name: str) -> Any:
    return next(t for t in proto.graph.initializer if t.name == name)


def replace(tensor: Any, value: Any) -> None:
    from onnx import numpy_helper

    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), tensor.name))


def array(tensor: Any) -> np.ndarray:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


def preprocessing(proto: Any) -> tuple[Any, Any, Any]:
    """The constants 255, mean and std, found by the nodes that use them."""
    divisions = [n for n in proto.graph.node if n.op_type == "Div"]
    scale, std = (constant(proto, n.input[1]) for n in divisions[:2])
    return scale, constant(proto, node(proto, "Sub").input[1]), std


def double_scaling(proto: Any) -> None:
    replace(preprocessing(proto)[0], np.float32(255 * 255))


def missing_scaling(proto: Any) -> None:
    replace(preprocessing(proto)[0], np.float32(1))


def mean_and_std_swapped(proto: Any) -> None:
    _, mean, std = preprocessing(proto)
    values = array(mean), array(std)
    replace(mean, values[1])
    replace(std, values[0])


def _resize(proto: Any, **attributes: str) -> None:
    for attribute in node(proto, "Resize").attribute:
        if attribute.name in attributes:
            attribute.s = attributes[attribute.name].encode()


def resize_nearest(proto: Any) -> None:
    _resize(proto, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")


def resize_align_corners(proto: Any) -> None:
    _resize(proto, coordinate_transformation_mode="align_corners")


def resize_area(proto: Any) -> None:
    """Each pixel of the enlarged face is the mean of the pixels that its cell covers, as OpenCV's and torch's `area`."""
    from onnx import helper, numpy_helper

    cells = np.zeros((SIZE, 48), np.float32)
    for i in range(SIZE):
        start, stop = i * 48 // SIZE, -((-(i + 1) * 48) // SIZE)
        cells[i, start:stop] = 1 / (stop - start)
    resize = node(proto, "Resize")
    position = list(proto.graph.node).index(resize)
    faces, enlarged = resize.input[0], resize.output[0]
    proto.graph.initializer.extend([numpy_helper.from_array(cells, "rows"), numpy_helper.from_array(cells.T.copy(), "columns")])
    proto.graph.node.remove(resize)
    proto.graph.node.insert(position, helper.make_node("MatMul", ["rows", faces], ["tall"]))
    proto.graph.node.insert(position + 1, helper.make_node("MatMul", ["tall", "columns"], [enlarged]))


def labels_permuted(proto: Any) -> None:
    gemm = node(proto, "Gemm")
    order = [1, 0, *range(2, 8)]  # the mildest: two labels change places
    for name in gemm.input[1:]:
        tensor = constant(proto, name)
        value = array(tensor)
        replace(tensor, value[order] if value.shape[0] == 8 else value[:, order])


def padding_of_another_size(proto: Any) -> None:
    """SAME padding of a stride-2 convolution is (0, 1) at an even size and (1, 1) at an odd one."""
    for attribute in node(proto, "Conv").attribute:
        if attribute.name == "pads":
            assert list(attribute.ints) == [0, 0, 1, 1]
            attribute.ints[:] = [1, 1, 1, 1]


def four_bit_weights(proto: Any) -> None:
    for tensor in proto.graph.initializer:
        value = array(tensor)
        if value.dtype == np.float32 and value.ndim >= 2:
            step = np.abs(value).reshape(len(value), -1).max(axis=1).reshape(-1, *[1] * (value.ndim - 1)) / 7
            replace(tensor, (np.round(value / np.maximum(step, 1e-12)) * step).astype(np.float32))


FAULTS: tuple[Callable[[Any], None], ...] = (
    double_scaling, missing_scaling, mean_and_std_swapped, resize_nearest, resize_align_corners, resize_area, labels_permuted,
    padding_of_another_size, four_bit_weights,
)  # fmt: skip


def test_the_network_has_something_to_say(alarm: Alarm) -> None:
    """Otherwise parity means nothing."""
    assert alarm.reference.max(axis=1).mean() > 0.4
    assert len(set(alarm.reference.argmax(axis=1).tolist())) >= 4


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_an_honest_export_is_silent(alarm: Alarm, runtime: str) -> None:
    """No false alarm."""
    alarm.plant(alarm.proto, runtime)
    assert alarm.refusal(runtime) is None


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_rings(alarm: Alarm, fault: Callable[[Any], None], runtime: str) -> None:
    """One fault in the file is enough, in either runtime."""
    proto = type(alarm.proto)()
    proto.CopyFrom(alarm.proto)
    fault(proto)
    alarm.plant(proto, runtime)
    assert alarm.refusal(runtime) is not None


def test_fp16_weights_in_the_runtime_called_openvino_ring(alarm: Alarm) -> None:
    """OpenVINO's default of save_model; as `openvino-fp16` the same file is welcome."""
    alarm.plant(alarm.proto, "openvino", fp16=True)
    alarm.plant(alarm.proto, "openvino-fp16", fp16=True)
    assert "max |Δp|" in (alarm.refusal("openvino") or "")
    assert alarm.refusal("openvino-fp16") is None


def test_batch_norm_in_train_mode_rings(alarm: Alarm) -> None:
    """Statistics of the batch instead of the training set: a face's answer depends on its neighbours."""
    import torch

    network = copy.deepcopy(alarm.network)
    network.backbone.train()

    class TrainMode:
        runtime, labels = "openvino", alarm.bundle.card.labels

        def predict(self, faces: np.ndarray) -> np.ndarray:
            if len(faces) == 1:  # torch refuses statistics over one value; the twin gives the same mean
                return self.predict(np.concatenate([faces, faces]))[:1]
            with torch.no_grad():
                return network(torch.from_numpy(faces[:, None])).numpy()

    reason = alarm.judge(TrainMode(), "openvino")
    assert reason is not None
    assert "other faces of its batch" in reason
