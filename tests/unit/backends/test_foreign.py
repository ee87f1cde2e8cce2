"""Foreign models answer through the same contract, and every misfit of card and file is named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fer_lab.backends import foreign
from fer_lab.core.errors import InputError, IntegrityError, NotFound
from fer_lab.core.labels import EIGHT, FIVE

SIDE = 8


def write_model(path, classes=8, layout="NCHW", channels=3, batch=None, kind=np.float32, softmax=False):
    """A linear model over mean intensity: logit k = (k + 1) · mean of the input, of bytes / 255."""
    import openvino
    import openvino.opset13 as ops

    shape = [-1 if batch is None else batch, *((channels, SIDE, SIDE) if layout == "NCHW" else (SIDE, SIDE, channels))]
    x = ops.parameter(openvino.PartialShape(shape), kind, name="picture")
    floats = x if kind is np.float32 else ops.divide(ops.convert(x, "f32"), np.float32(255))
    mean = ops.reduce_mean(floats, np.array([1, 2, 3]), keep_dims=False)
    column = ops.unsqueeze(mean, np.array(1))
    logits = ops.multiply(column, np.arange(1, classes + 1, dtype=np.float32)[None])
    answer = ops.softmax(logits, 1) if softmax else logits
    openvino.save_model(openvino.Model([answer], [x]), str(path), compress_to_fp16=False)
    return path


def write_card(path, **changes):
    """A card that fits write_model."""
    card = {
        "schema": 1, "labels": list(EIGHT.labels), "height": SIDE, "width": SIDE, "layout": "NCHW", "channels": "RGB",
        "output": "logits",
    }  # fmt: skip
    card = {key: value for key, value in {**card, **changes}.items() if value is not None}
    foreign.card_path(path).write_text(json.dumps(card), encoding="utf-8")
    return path


@pytest.fixture
def faces():
    return np.random.default_rng(0).integers(0, 256, (5, 1, 48, 48), np.uint8)


def expected(faces, scale=1 / 255, mean=0.0, std=1.0, classes=8):
    """Softmax over (k + 1) · mean, computed here."""
    import cv2

    sized = np.array([cv2.resize(f[0].astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for f in faces])
    logits = ((sized * scale - mean) / std).mean(axis=(1, 2))[:, None] * np.arange(1, classes + 1)
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("layout", "channels", "depth", "batch"), [("NCHW", "RGB", 3, None), ("NHWC", "gray", 1, None), ("NCHW", "BGR", 3, 2)]
)
def test_probabilities_follow_the_card(tmp_path, faces, layout, channels, depth, batch):
    """Scale, mean, std, layout and a fixed batch are honoured."""
    path = write_card(
        write_model(tmp_path / "net.xml", 8, layout, depth, batch), layout=layout, channels=channels, scale=0.01, mean=0.5, std=0.25
    )
    with foreign.open_foreign(path).predictor("openvino", EIGHT.labels, "ferplus8") as predictor:
        got = predictor.predict(faces)
    assert expected(faces, scale=0.01, mean=0.5, std=0.25) == pytest.approx(got, abs=1e-5)
    assert got.dtype == np.float32


def test_bytes_go_in_and_probabilities_come_out_as_the_card_says(tmp_path, faces):
    """A model that takes uint8 gets the pixels themselves; what are probabilities already gets no second softmax."""
    model = write_model(tmp_path / "net.xml", kind=np.uint8, softmax=True)
    path = write_card(model, dtype="uint8", output="probabilities")
    with foreign.open_foreign(path).predictor("openvino", EIGHT.labels, "ferplus8") as predictor:
        got = predictor.predict(faces)
    assert expected(faces) == pytest.approx(got, abs=1e-3)  # pixels are rounded after they were resized


def test_a_face_of_which_no_label_is_left_gets_them_all_alike(tmp_path, faces):
    """The model is certain of what the card leaves out: rows still sum to one."""
    path = write_card(write_model(tmp_path / "net.xml"), scale=1.0, label_map={EIGHT.labels[-1]: None})
    with foreign.open_foreign(path).predictor("openvino", EIGHT.labels, "ferplus8") as predictor:
        got = predictor.predict(faces)
    assert np.full((5, 8), 1 / 8) == pytest.approx(got)


def test_labels_are_mapped_onto_ours(tmp_path, faces):
    """Another order, another word, and a label left out, renormalised."""
    theirs = ["angry", "neutral", "happiness", "sadness", "surprise", "valence"]
    path = write_card(write_model(tmp_path / "net.xml", 6), labels=theirs, label_map={"angry": "anger", "valence": None})
    with foreign.open_foreign(path).predictor("openvino", FIVE.labels, "ferplus5") as predictor:
        got = predictor.predict(faces)
    p = expected(faces, classes=6)[:, :5]
    p /= p.sum(1, keepdims=True)
    assert p[:, [1, 2, 4, 3, 0]] == pytest.approx(got, abs=1e-5)  # neutral happiness surprise sadness anger


@pytest.mark.parametrize(
    ("model", "card", "says"),
    [
        ({}, {"height": 9}, r"height is 9 in the card \(layout NCHW\), but dimension 2"),
        ({}, {"layout": "NHWC"}, "dimension 1"),
        ({}, {"channels": "gray"}, "channels is 1"),
        ({}, {"labels": list(FIVE.labels)}, "5 labels in the card, but the model answers with 8"),
        ({}, {"labels": [*EIGHT.labels[:7], "angst"]}, r"'angst' is not one of .*; did you mean 'anger'\? Map it in"),
        ({}, {"labels": [*EIGHT.labels[:7], "joy"]}, r"'joy' is not one of neutral, .*contempt\. Map it in"),
        ({}, {"label_map": {"joy": "happiness"}}, "'joy'"),
        ({}, {"output": "scores"}, "output"),
        ({}, {"output": None}, "output"),
        ({}, {"colour": "RGB"}, "colour"),
        ({}, {"std": 0}, "std"),
        ({}, {"schema": 9}, "newer"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(tmp_path, model, card, says):
    """The message names the dimension, the label or the key."""
    path = write_card(write_model(tmp_path / "net.xml", **model), **card)
    with pytest.raises(InputError, match=says):
        foreign.open_foreign(path).predictor("openvino", EIGHT.labels, "ferplus8")


@pytest.mark.parametrize("text", [b'["FILL IN"]', b'{"FILL IN": 1}', b"7", b"{", b"\xff"])
def test_what_is_no_card_is_bad_input(tmp_path, text):
    """Whatever somebody left in the file."""
    path = write_model(tmp_path / "net.xml")
    foreign.card_path(path).write_bytes(text)
    with pytest.raises(InputError, match=r"net\.card\.json: "):
        foreign.open_foreign(path)


def test_a_model_that_states_no_shape_is_bad_input(tmp_path):
    """A card can be begun, and what cannot be run says why."""
    from onnx import TensorProto, helper

    nothing = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", nothing[:1], nothing[1:])
    path = tmp_path / "net.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    assert json.loads(foreign.write_card(path).read_text(encoding="utf-8"))["labels"] == ["FILL IN: its labels in output order"]
    write_card(path)
    for runtime in ("onnx", "openvino"):
        with pytest.raises(InputError, match=r"net\.onnx: .*\w"):
            foreign.open_foreign(path).predictor(runtime, EIGHT.labels, "ferplus8")


def test_what_is_absent_is_named(tmp_path):
    """No model, no card, no weights, a runtime that cannot run it."""
    with pytest.raises(NotFound, match="no such model"):
        foreign.open_foreign(tmp_path / "net.xml")
    path = write_model(tmp_path / "net.xml")
    with pytest.raises(NotFound, match="--init-card"):
        foreign.open_foreign(path)
    write_card(path)
    with pytest.raises(NotFound, match="not in torch"):
        foreign.open_foreign(path).predictor("torch", EIGHT.labels, "ferplus8")
    path.with_suffix(".bin").unlink()
    with pytest.raises(NotFound, match=r"net\.bin"):
        foreign.open_foreign(path)


def test_a_written_card_states_what_the_file_states_and_asks_for_the_rest(tmp_path):
    """Size and layout are read from the model; the gaps are refused until filled in; a card is never overwritten."""
    path = write_model(tmp_path / "net.xml", 7, "NHWC")
    card = json.loads(foreign.write_card(path).read_text(encoding="utf-8"))
    assert (card["height"], card["layout"], len(card["labels"])) == (SIDE, "NHWC", 7)
    with pytest.raises(InputError, match="labels still says"):
        foreign.open_foreign(path)
    with pytest.raises(InputError, match="already"):
        foreign.write_card(path)


def test_where_signatures_are_demanded_no_foreign_model_is_parsed(tmp_path, monkeypatch):
    """Nobody can sign one; neither its card nor the file itself is read."""
    monkeypatch.setenv("FER_LAB_SIGNED_BY", "A" * 43 + "=")
    (tmp_path / "net.onnx").write_bytes(b"never parsed")
    for read in (foreign.open_foreign, foreign.write_card):
        with pytest.raises(IntegrityError, match="only signed bundles run"):
            read(tmp_path / "net.onnx")


def test_the_digest_covers_model_and_card(tmp_path):
    """Another scale is another artifact."""
    path = write_card(write_model(tmp_path / "net.xml"))
    before = foreign.open_foreign(path).digest
    write_card(path, scale=1.0)
    assert before != foreign.open_foreign(path).digest


def onnx_model():
    """A linear layer over the gray pixels."""
    from onnx import TensorProto, helper

    weights = np.random.default_rng(1).normal(0, 0.1, (SIDE * SIDE, 8)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("Gemm", ["flat", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.tobytes(), raw=True)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_foreign_onnx_runs_in_both_runtimes(tmp_path, faces):
    """The same file in ONNX Runtime and in OpenVINO gives the same probabilities."""
    import onnx

    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_model().SerializeToString())
    onnx.checker.check_model(str(path))
    model = foreign.open_foreign(write_card(path, channels="gray"))
    answers = []
    for runtime in model.runtimes:
        with model.predictor(runtime, EIGHT.labels, "ferplus8") as predictor:
            answers.append(predictor.predict(faces))
    assert answers[0] == pytest.approx(answers[1], abs=1e-5)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_weights_outside_an_onnx_file_are_refused_in_both_runtimes(tmp_path, faces, runtime):
    """Nothing would hash them; the message says how to bring them into the file, and that works."""
    import onnx

    path = write_card(tmp_path / "net.onnx", channels="gray")
    onnx.save_model(onnx_model(), str(path), save_as_external_data=True, location="net.data", size_threshold=0)
    with pytest.raises(InputError, match=r"lies outside the file.*onnx\.save\(onnx\.load"):
        foreign.open_foreign(path).predictor(runtime, EIGHT.labels, "ferplus8")
    foreign.card_path(path).unlink()
    with pytest.raises(InputError, match="lies outside the file"):
        foreign.write_card(path)
    onnx.save(onnx.load(path), path)
    (tmp_path / "net.data").unlink()
    write_card(path, channels="gray")
    with foreign.open_foreign(path).predictor(runtime, EIGHT.labels, "ferplus8") as predictor:
        assert predictor.predict(faces).shape == (5, 8)
