"""A finished comparison on the labels of another source: the same answers to the same look, no model is run."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from shutil import copyfile, copytree

import numpy as np
import numpy.typing as npt

from fer_lab.core.errors import FerLabError, InputError
from fer_lab.core.types import Split
from fer_lab.data.faces import FaceDataset
from fer_lab.measure import audits, record
from fer_lab.measure.evaluate import check_probabilities, kept_faces


def relabel(folder: Path, measured: FaceDataset, other: FaceDataset, out: Path, *, pictures: bool = True) -> None:
    """Write the parts of the comparison in `folder` to `out`, on the faces that the protocol keeps under `other`'s votes.

    measured: the dataset of that comparison; `other` holds the same pictures under the same names with other votes. The
    corruption curves stay behind, since their faces were drawn among those that the first votes keep; latency comes along.
    pictures: False keeps faces out of its report, as does a comparison that was made without them. Raises InputError when
    the pictures differ or the votes do not, when the comparison did not store its answers about the dropped faces, and when
    `out` holds something else than this very comparison.
    """
    plan, faces = record.read_plan(folder), record.read_faces(folder)
    if measured.fingerprint != plan.fingerprint:
        raise InputError(
            f"{folder} was measured on {plan.dataset} {plan.fingerprint[:12]}…, prepared here is {measured.fingerprint[:12]}…"
        )
    if other.fingerprint == plan.fingerprint:
        raise InputError(f"{folder} is on the labels of {other.name} already; leave --dataset out")
    answers = [record.read_answers(folder, plan, i) for i in range(len(plan.rows))]
    if any([len(probs) for probs in answer.dropped] != [len(faces.dropped)] * len(answer.probs) for answer in answers):
        raise InputError(
            f"{folder} stores no answers about the faces that {plan.label_source} drops: an older fer_lab began it. Compare again"
        )
    key = hashlib.sha256(f"{plan.key} {other.fingerprint}".encode()).hexdigest()
    if not record.is_new(out) and _key(out) != key:
        raise InputError(f"{out} holds other files; give a new or empty folder with --out")

    rows, targets = kept_faces(other, plan.protocol, plan.split)
    there = _same_faces(measured, other, rows, plan.split)
    names, asked = tuple(other.names[row] for row in rows), (*faces.names, *faces.dropped)
    position = {name: i for i, name in enumerate(asked)}
    kept = np.array([position[name] for name in names])
    dropped = np.setdiff1d(np.arange(len(asked)), kept)
    relabelled = []
    for row, answer in zip(plan.rows, answers, strict=True):
        whole = [np.concatenate(pair) for pair in zip(answer.probs, answer.dropped, strict=True)]
        for probs in whole:
            check_probabilities(probs[kept], len(kept), len(plan.labels), f"{row.model} ({row.runtime})")
        said, unjudged = tuple(probs[kept] for probs in whole), tuple(probs[dropped] for probs in whole)
        relabelled.append(replace(answer, probs=said, dropped=unjudged, corrupted={}, corrupted_rows=None))

    planned = []
    for row in plan.rows:
        trained_on, at = (other, rows) if row.card.get("fingerprint") == other.fingerprint else (measured, there)
        same, leaked, note = audits.leakage(row.card, trained_on, at)
        planned.append(replace(row, robustness=False, same_data=same, test_faces_in_training=leaked, leak_note=note))
    note = (
        f"the answers are those of comparison {plan.id} on {plan.dataset}: one look at the {plan.split} faces, two label sources; "
        "looks are counted under the first"
    )
    plan = replace(
        plan, key=key, id=f"{plan.id}-{other.label_source}", dataset=other.name, fingerprint=other.fingerprint,
        label_source=other.label_source, rows=tuple(planned), notes=(*plan.notes, note), pictures=plan.pictures and pictures,
    )  # fmt: skip
    plan.write(out)
    record.write_faces(
        out,
        record.Faces(
            names, targets, other.votes[rows], audits.clean_mask(other, rows, plan.split), other.slices,
            tuple(asked[i] for i in dropped),
        ),
    )  # fmt: skip
    for index, answer in enumerate(relabelled):
        record.write_answers(out, plan, index, answer)
    if (folder / record.LATENCY).is_file():
        copyfile(folder / record.LATENCY, out / record.LATENCY)
    if (folder / record.PROFILES).is_dir():
        copytree(folder / record.PROFILES, out / record.PROFILES, dirs_exist_ok=True)


def _same_faces(measured: FaceDataset, other: FaceDataset, rows: npt.NDArray[np.int64], split: Split) -> npt.NDArray[np.int64]:
    """Return where `measured` has the faces that are `rows` of `other`, by name. Raises InputError when a picture differs."""
    row_of = {measured.names[row]: int(row) for row in measured.indices(split)}
    there = np.array([row_of.get(other.names[row], -1) for row in rows])
    strange = np.flatnonzero((there < 0) | (measured.pixels[there] != other.pixels[rows]).any(axis=(1, 2)))
    if len(strange):
        raise InputError(
            f"{other.name} has other pictures than {measured.name}: {len(strange)} of its {len(rows)} {split} faces, "
            f"first {other.names[rows[strange[0]]]}. Only label sources of the same pictures can share a look"
        )
    return there


def _key(folder: Path) -> str | None:
    try:
        return record.read_plan(folder).key
    except FerLabError:
        return None
