"""The parts of a comparison on another label source: seeds, curves, latency, faces that nobody drops, records of old."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fer_lab.core.errors import FerLabError, InputError
from fer_lab.core.labels import EIGHT, protocol
from fer_lab.data.faces import FaceDataset
from fer_lab.measure import record
from fer_lab.measure.comparison import Audit
from fer_lab.measure.evaluate import kept_faces
from fer_lab.measure.host import this_host
from fer_lab.measure.relabel import relabel


def stored(folder: Path, dataset: FaceDataset, rng: np.random.Generator) -> tuple[record.Plan, list[np.ndarray]]:
    """A finished comparison of one row of two seeds, as `conduct` stores it; returns the plan and what each seed said of all."""
    rows, targets = kept_faces(dataset, "ferplus8", "test")
    everyone = dataset.indices("test")
    dropped = np.setdiff1d(everyone, rows)
    said = [rng.dirichlet(np.ones(8), len(dataset)).astype(np.float32) for _ in range(2)]
    planned = record.PlannedRow("net", "onnx", "d", "b", 1.0, card={"fingerprint": dataset.fingerprint}, robustness=True)
    plan = record.Plan(
        "key", "id", "2026-01-01T00:00:00Z", this_host(), dataset.name, dataset.fingerprint, dataset.label_source, "ferplus8",
        "test", EIGHT.labels, 0.015, 0, (planned,),
    )  # fmt: skip
    plan.write(folder)
    names = tuple(dataset.names[i] for i in rows)
    clean = np.ones(len(rows), np.bool_)
    left_out = tuple(dataset.names[i] for i in dropped)
    record.write_faces(folder, record.Faces(names, targets, dataset.votes[rows], clean, dataset.slices, left_out))
    curves = {"blur": np.zeros((2, 3), np.int16)}
    answers = record.Answers(
        tuple(probs[rows] for probs in said), "f32", Audit(), curves, np.arange(3), tuple(probs[dropped] for probs in said)
    )
    record.write_answers(folder, plan, 0, answers)
    (folder / record.LATENCY).write_text("{}")
    return plan, said


def answers_in(folder: Path) -> record.Answers:
    """The answers of the one row in a folder."""
    return record.read_answers(folder, record.read_plan(folder), 0)


@pytest.fixture
def other(drawn: FaceDataset) -> FaceDataset:
    """The drawn faces with the votes of others."""
    votes = drawn.votes[np.random.default_rng(1).permutation(len(drawn))]
    return replace(drawn, name="other", label_source="other", votes=votes)


def test_each_seed_answers_for_the_faces_that_are_kept_now(tmp_path: Path, drawn: FaceDataset, other: FaceDataset) -> None:
    """In the other dataset's order; the curves belong to the first votes and stay behind; latency comes along."""
    _, said = stored(tmp_path / "a", drawn, np.random.default_rng(0))
    relabel(tmp_path / "a", drawn, other, tmp_path / "b", pictures=False)
    rows, targets = kept_faces(other, "ferplus8", "test")
    faces, answers = record.read_faces(tmp_path / "b"), answers_in(tmp_path / "b")
    assert faces.names == tuple(other.names[i] for i in rows)
    assert (faces.targets == targets).all()
    for probs, seed in zip(answers.probs, said, strict=True):
        assert (probs == seed[rows]).all()
    dropped = np.setdiff1d(other.indices("test"), rows)
    assert sorted(faces.dropped) == sorted(other.names[i] for i in dropped)
    assert [len(part) for part in answers.dropped] == [len(dropped)] * 2
    assert (dict(answers.corrupted), answers.corrupted_rows) == ({}, None)
    assert (tmp_path / "b" / record.LATENCY).read_text() == "{}"
    assert record.read_plan(tmp_path / "b").pictures is False


def test_the_same_again_is_written_over(tmp_path: Path, drawn: FaceDataset, other: FaceDataset) -> None:
    """So that one that was interrupted can be repeated; another comparison in that folder is kept."""
    stored(tmp_path / "a", drawn, np.random.default_rng(0))
    relabel(tmp_path / "a", drawn, other, tmp_path / "b")
    record.row_path(tmp_path / "b", 0).unlink()
    relabel(tmp_path / "a", drawn, other, tmp_path / "b")
    assert record.row_path(tmp_path / "b", 0).is_file()
    stored(tmp_path / "c", drawn, np.random.default_rng(0))
    with pytest.raises(InputError, match="new or empty folder"):
        relabel(tmp_path / "a", drawn, other, tmp_path / "c")


def test_votes_that_drop_nobody(tmp_path: Path, drawn: FaceDataset) -> None:
    """A split without dropped faces has answers about none of them."""
    sure = protocol("ferplus8").labels(drawn.votes) >= 0
    whole = drawn.take(np.flatnonzero(sure))
    turned = replace(whole, name="turned", label_source="turned", votes=whole.votes[::-1].copy())
    stored(tmp_path / "a", whole, np.random.default_rng(0))
    relabel(tmp_path / "a", whole, turned, tmp_path / "b")
    assert record.read_faces(tmp_path / "b").dropped == ()
    assert [part.shape for part in answers_in(tmp_path / "b").dropped] == [(0, 8)] * 2


def test_what_cannot_be_said_is_refused(tmp_path: Path, drawn: FaceDataset, other: FaceDataset) -> None:
    """Answers that an older version did not store, and answers that are no probabilities; nothing is written."""
    plan, _ = stored(tmp_path / "a", drawn, np.random.default_rng(0))
    answers, faces = answers_in(tmp_path / "a"), record.read_faces(tmp_path / "a")
    record.write_answers(
        tmp_path / "a", plan, 0, replace(answers, dropped=tuple(np.full_like(part, np.nan) for part in answers.dropped))
    )
    with pytest.raises(FerLabError, match="NaN"):
        relabel(tmp_path / "a", drawn, other, tmp_path / "b")
    record.write_answers(tmp_path / "a", plan, 0, replace(answers, dropped=()))
    with pytest.raises(InputError, match="Compare again"):
        relabel(tmp_path / "a", drawn, other, tmp_path / "b")
    record.write_answers(tmp_path / "a", plan, 0, answers)
    record.write_faces(tmp_path / "a", replace(faces, dropped=()))
    with pytest.raises(InputError, match="Compare again"):
        relabel(tmp_path / "a", drawn, other, tmp_path / "b")
    assert not (tmp_path / "b").exists()
