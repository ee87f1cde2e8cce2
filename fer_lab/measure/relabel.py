"""A finished comparison on the labels of another source: the same answers to the same look, no model is run."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from shutil import copyfile

import numpy as np

from fer_lab.core.errors import InputError
from fer_lab.data.faces import FaceDataset
from fer_lab.measure import audits, record
from fer_lab.measure.evaluate import kept_faces


def relabel(folder: Path, measured: FaceDataset, other: FaceDataset, out: Path) -> None:
    """Write the parts of the comparison in `folder` to `out`, on the faces that the protocol keeps under `other`'s votes.

    measured: the dataset of that comparison; `other` holds the same pictures under the same names with other votes. The
    corruption curves stay behind, since their faces were drawn among those that the first votes keep; latency comes along.
    Raises InputError when the pictures differ, or when the comparison did not store its answers about the dropped faces.
    """
    plan, faces = record.read_plan(folder), record.read_faces(folder)
    if measured.fingerprint != plan.fingerprint:
        raise InputError(f"{folder} was measured on {plan.dataset} {plan.fingerprint[:12]}…, not on {measured.fingerprint[:12]}…")
    answers = [record.read_answers(record.row_path(folder, i)) for i in range(len(plan.rows))]
    if any(len(answer.dropped) != len(answer.probs) for answer in answers):
        raise InputError(
            f"{folder} stores no answers about the faces that {plan.label_source} drops: an older fer_lab wrote it. Compare again"
        )
    rows, targets = kept_faces(other, plan.protocol, plan.split)
    names = [other.names[row] for row in rows]
    row_of = {measured.names[row]: row for row in measured.indices(plan.split)}
    strange = [n for n, row in zip(names, rows, strict=True) if n not in row_of or not _same(measured, row_of[n], other, row)]
    if strange:
        raise InputError(
            f"{other.name} has other pictures than {measured.name}: {len(strange)} of its {len(names)} {plan.split} faces, "
            f"first {strange[0]}. Only label sources of the same pictures can share a look"
        )
    asked = (*faces.names, *faces.dropped)
    position = {name: i for i, name in enumerate(asked)}
    kept = np.array([position[name] for name in names])
    dropped = np.setdiff1d(np.arange(len(asked)), kept)
    there = np.array([row_of[name] for name in names])
    planned = []
    for row in plan.rows:
        same, leaked, note = audits.leakage(row.card, measured, there)
        planned.append(replace(row, robustness=False, same_data=same, test_faces_in_training=leaked, leak_note=note))
    note = f"the answers are those of comparison {plan.id} on {plan.dataset}: one look at the {plan.split} faces, two label sources"
    replace(
        plan, key=hashlib.sha256(f"{plan.key} {other.fingerprint}".encode()).hexdigest(), id=f"{plan.id}-{other.label_source}",
        dataset=other.name, fingerprint=other.fingerprint, label_source=other.label_source, rows=tuple(planned),
        notes=(*plan.notes, note),
    ).write(out)  # fmt: skip
    record.write_faces(
        out,
        record.Faces(
            tuple(names), targets, other.votes[rows], audits.clean_mask(other, rows, plan.split), other.slices,
            tuple(asked[i] for i in dropped),
        ),
    )  # fmt: skip
    for index, answer in enumerate(answers):
        whole = [np.concatenate(pair) for pair in zip(answer.probs, answer.dropped, strict=True)]
        record.write_answers(
            record.row_path(out, index),
            replace(
                answer, probs=tuple(probs[kept] for probs in whole), dropped=tuple(probs[dropped] for probs in whole),
                corrupted={}, corrupted_rows=None,
            ),
        )  # fmt: skip
    if (folder / record.LATENCY).is_file():
        copyfile(folder / record.LATENCY, out / record.LATENCY)


def _same(a: FaceDataset, i: int, b: FaceDataset, j: int) -> bool:
    return bool((a.pixels[i] == b.pixels[j]).all())
