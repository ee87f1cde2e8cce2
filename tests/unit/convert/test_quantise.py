"""INT8: which faces calibrate, and that the choice never changes."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_bundle

from fer_lab.convert import quantise
from fer_lab.core.errors import InputError, Refused
from fer_lab.data.faces import FaceDataset


def test_only_training_faces_calibrate_each_class_alike(drawn: FaceDataset) -> None:
    """Stratified: no class has more than one face over another while there are enough."""
    watched = quantise.calibration(drawn, "ferplus8", n=43)
    train = {drawn.pixels[row].tobytes() for row in drawn.indices("train")}
    assert 43 == len(watched.faces) == sum(watched.per_class.values())
    assert all(face.tobytes() in train for face in watched.faces)
    assert {5, 6} == set(watched.per_class.values())
    assert (np.uint8, (43, 1, 48, 48)) == (watched.faces.dtype, watched.faces.shape)


def test_the_choice_is_one_of_the_seed(drawn: FaceDataset) -> None:
    """Twice the same, and another one for another seed."""
    digests = [quantise.calibration(drawn, "ferplus8", n=20, seed=seed).sha256 for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_it_takes_what_there_is(drawn: FaceDataset) -> None:
    """Fewer faces than asked for."""
    few = drawn.take(drawn.indices("train")[:30])
    watched = quantise.calibration(few, "ferplus8", n=300)
    assert len(watched.faces) <= 30


def test_no_training_face_is_bad_input(drawn: FaceDataset) -> None:
    """Validation faces are never taken instead."""
    with pytest.raises(InputError, match="keeps none of the 0 train faces"):
        quantise.calibration(drawn.take(drawn.indices("valid")), "ferplus8")


def test_accuracy_control_needs_validation_faces(drawn: FaceDataset) -> None:
    """It would otherwise accept anything."""
    watched = quantise.calibration(drawn, "ferplus8", n=8)
    with pytest.raises(InputError, match="validation faces"):
        quantise.quantise_with_accuracy_control(None, watched, drawn.pixels[:0, None], np.zeros(0, np.int64), max_drop=0.005)


def answers(raw: bytes, faces):  # type: ignore[no-untyped-def]
    """The probabilities that a serialised ONNX graph gives."""
    import onnxruntime

    return onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"]).run(None, {"faces": faces})[0]


def predicted(proto, faces):  # type: ignore[no-untyped-def]
    """The labels that an ONNX graph gives."""
    return answers(proto.SerializeToString(), faces).argmax(axis=1)


def test_accuracy_control_puts_layers_back_until_the_answers_are_those_of_float(drawn: FaceDataset, monkeypatch) -> None:
    """A graph whose labels plain INT8 changes on half of the faces; what is tried is told, with the time left."""
    monkeypatch.setattr(quantise, "EVERY_S", 0.0)
    watched = quantise.calibration(drawn, "ferplus8", n=16)
    proto, faces, said = tiny_bundle.proto(seed=7), drawn.pixels[:512, None], []
    labels = predicted(proto, faces)
    assert (predicted(quantise.quantise(proto, watched), faces) != labels).mean() > 0.1
    restored = quantise.quantise_with_accuracy_control(proto, watched, faces, labels, max_drop=0.0, minutes=3, progress=said.append)
    assert (predicted(restored, faces) == labels).all()
    assert said[0] == "0 networks tried, at most 3 min left"
    assert [int(text.split()[0]) for text in said] == list(range(len(said)))
    assert len(said) > 4  # the original, asked twice, plain INT8, and those with layers put back


def test_accuracy_control_ends_when_its_time_is_up(drawn: FaceDataset) -> None:
    """Refused, with what would give it more."""
    watched = quantise.calibration(drawn, "ferplus8", n=16)
    proto, faces = tiny_bundle.proto(seed=7), drawn.pixels[:512, None]
    with pytest.raises(Refused, match=r"not done after 1e-06 min, 1 networks tried; --int8-minutes"):
        quantise.quantise_with_accuracy_control(proto, watched, faces, predicted(proto, faces), max_drop=0.0, minutes=1e-6)


def test_a_quantised_graph_is_the_same_twice_and_near_the_original(drawn: FaceDataset) -> None:
    """QDQ ONNX of the hand-made graph."""
    watched = quantise.calibration(drawn, "ferplus8", n=16)
    proto = tiny_bundle.proto()
    first, second = (quantise.quantise(proto, watched).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    faces = drawn.pixels[:32, None]
    one, other = (answers(raw, faces) for raw in (proto.SerializeToString(), first))
    assert 0 < np.abs(one - other).max() < 0.2
