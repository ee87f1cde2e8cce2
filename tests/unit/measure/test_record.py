"""The parts of a comparison on the disk: whose they are, what is said of damaged ones, who may work on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fer_lab.core.errors import Conflict, InputError
from fer_lab.core.labels import EIGHT
from fer_lab.measure import record
from fer_lab.measure.comparison import FILE, Audit
from fer_lab.measure.host import this_host

PLAN = record.Plan(
    "key", "id", "2026-01-01T00:00:00Z", this_host(), "drawn", "f", "drawn", "ferplus8", "test", EIGHT.labels, 0.015, 0,
    (record.PlannedRow("net", "onnx", "d", "b", 1.0),),
)  # fmt: skip
ANSWERS = record.Answers((np.full((4, 8), 0.125, np.float32),), "f32", Audit())


@pytest.mark.parametrize(
    "other",
    [
        replace(PLAN, id="another"),
        replace(PLAN, rows=(replace(PLAN.rows[0], digest="e"),)),
        replace(PLAN, rows=(replace(PLAN.rows[0], runtime="openvino"),)),
    ],
    ids=["comparison", "digest", "runtime"],
)
def test_answers_of_something_else_are_refused(tmp_path: Path, other: record.Plan) -> None:
    """What another process left under this plan is no row of it."""
    record.write_answers(tmp_path, other, 0, ANSWERS)
    with pytest.raises(InputError, match="expected those of"):
        record.read_answers(tmp_path, PLAN, 0)
    assert record.read_answers(tmp_path, other, 0).precision == "f32"


def test_answers_that_do_not_say_whose_they_are_are_read(tmp_path: Path) -> None:
    """Those of older records."""
    path = record.row_path(tmp_path, 0)
    path.parent.mkdir()
    facts = json.dumps({"precision": "f32", "audit": {}})
    np.savez_compressed(path, probs_0=ANSWERS.probs[0], facts=np.array(facts))
    assert (record.read_answers(tmp_path, PLAN, 0).probs[0] == ANSWERS.probs[0]).all()


def test_damaged_bytes_are_bad_input(tmp_path: Path) -> None:
    """Whichever byte it is: zlib's, zipfile's and NumPy's errors become one line with a way out, and nothing else is raised."""
    record.write_answers(tmp_path, PLAN, 0, ANSWERS)
    path = record.row_path(tmp_path, 0)
    raw = path.read_bytes()
    told = []
    for at in range(len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :])
        try:
            record._load(path)
        except InputError as error:
            told.append(str(error))
    assert len(told) > len(raw) / 2
    assert all("remove 00.npz and give the same fer_lab.compare again" in text for text in told)


def test_a_finished_comparison_is_not_to_be_made_again_for_a_lost_file(tmp_path: Path) -> None:
    """The same command would be another look: a copy of the file is what helps."""
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(InputError, match=r"faces.npz is missing. This comparison is finished: bring back a copy"):
        record.read_faces(tmp_path)


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    """The second gets a conflict; the first leaves no lock behind, and no folder in which it wrote nothing."""
    folder = tmp_path / "new"
    with record.held(folder):
        assert record.is_new(folder)
        with pytest.raises(Conflict, match="another process"), record.held(folder):
            pass
    assert not folder.exists()
    with record.held(folder):
        PLAN.write(folder)
    assert [path.name for path in folder.iterdir()] == [record.PLAN]
    assert not record.is_new(folder)
