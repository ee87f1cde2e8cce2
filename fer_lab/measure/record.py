"""What a comparison stores while it runs: enough to go on after an interruption, and to derive every figure again.

    plan.json       who takes part, on which faces, under which rules
    faces.npz       names, labels, votes, the clean mask, the slices, the names of the faces that the protocol drops: never pixels
    rows/00.npz     one model × runtime: per-face probabilities (one array per seed, dropped faces apart), corrupted predictions,
                    the batch audit
    latency.json    raw samples
    .lock           while a process works on the folder

`derive` in measure.derive reads the first four and nothing else.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lab.core import lock
from fer_lab.core.errors import InputError, NotFound, refuse_newer
from fer_lab.core.files import replacing, write_whole
from fer_lab.core.types import Evaluation, Host, Split
from fer_lab.data.faces import DAMAGED_NPZ
from fer_lab.measure.comparison import FILE, Audit

SCHEMA = 1
PLAN, FACES, ROWS, LATENCY, PROFILES = "plan.json", "faces.npz", "rows", "latency.json", "profiles"


@dataclass(frozen=True)
class PlannedRow:
    """One model × runtime of the plan."""

    model: str
    runtime: str
    digest: str
    bundle_digest: str
    size_mb: float
    name: str | None = None
    version: int | None = None
    run_id: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] | None = None
    foreign: bool = False
    seeds: tuple[str, ...] = ()  # the runs of one configuration, when the row aggregates several
    robustness: bool = False  # whether the corruption curves are measured on this row
    same_data: bool | None = None
    test_faces_in_training: int | None = None
    leak_note: str = ""
    signed_by: str | None = None  # the public key whose signature of the bundle was verified


@dataclass(frozen=True)
class Plan:
    """A comparison before its figures."""

    key: str  # hash of everything that decides the figures: the same key may go on where another run stopped
    id: str
    created: str
    host: Host
    dataset: str
    fingerprint: str
    label_source: str
    protocol: str
    split: Split
    labels: tuple[str, ...]
    margin: float
    reference: int  # index into rows
    rows: tuple[PlannedRow, ...]
    unavailable: Mapping[str, str] = field(default_factory=dict)
    looks: int | None = None
    notes: tuple[str, ...] = ()
    pictures: bool = True  # whether the report may show faces, here and when it is derived again
    groups: int | None = None  # how many groups of latency profiles belong to it; None: an earlier fer_lab did not say
    schema: int = SCHEMA

    def write(self, folder: Path) -> None:
        """Write plan.json."""
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / PLAN, json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False, default=dict) + "\n")


@dataclass(frozen=True)
class Faces:
    """The faces of a comparison without their pixels."""

    names: tuple[str, ...]
    targets: npt.NDArray[np.int64]
    votes: npt.NDArray[np.uint8]
    clean: npt.NDArray[np.bool_]
    slices: Mapping[str, tuple[str, ...]]
    dropped: tuple[str, ...] = ()  # the split's other faces: another label source may keep them (`relabel`)


@dataclass(frozen=True)
class Answers:
    """What one model × runtime answered."""

    probs: tuple[npt.NDArray[np.float32], ...]  # [N, K] per seed; one when the row is one run
    precision: str
    audit: Audit
    corrupted: Mapping[str, npt.NDArray[np.int16]] = field(default_factory=dict)  # corruption → predicted labels [levels, n]
    corrupted_rows: npt.NDArray[np.int64] | None = None  # which faces those are
    dropped: tuple[npt.NDArray[np.float32], ...] = ()  # [D, K] per seed: what it says about `Faces.dropped`


def held(folder: Path) -> AbstractContextManager[None]:
    """Make `folder` and keep other processes out of it meanwhile. Raises Conflict when one is at work there."""
    return lock.held(
        folder,
        f"another process makes the comparison in {folder}; nothing was changed. Wait for its end, or stop it and give the "
        "same command again, it goes on from there",
    )


def is_new(folder: Path) -> bool:
    """Whether there is no such folder, or nothing in it but the lock."""
    return not folder.is_dir() or all(path.name == lock.LOCK for path in folder.iterdir())


def read_plan(folder: Path) -> Plan:
    """Read plan.json. Raises NotFound when there is none, InputError when it does not fit."""
    from pydantic import TypeAdapter, ValidationError

    path = folder / PLAN
    if not path.is_file():
        raise NotFound(f"{folder} holds no comparison to replay: it has no {PLAN}")
    raw = path.read_bytes()
    try:
        refuse_newer(path, json.loads(raw)["schema"], SCHEMA)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{path}: not the plan of a comparison") from None
    try:
        plan = TypeAdapter(Plan).validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if not plan.rows or not 0 <= plan.reference < len(plan.rows):
        raise InputError(f"{path}: reference {plan.reference} is none of its {len(plan.rows)} rows")
    return plan


def row_path(folder: Path, index: int) -> Path:
    """Where the answers of a row lie."""
    return folder / ROWS / f"{index:02d}.npz"


def write_faces(folder: Path, faces: Faces) -> None:
    """Write faces.npz."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "names": np.array(faces.names), "targets": faces.targets, "votes": faces.votes, "clean": faces.clean,
        "slice_names": np.array(list(faces.slices), np.str_), "dropped": np.array(faces.dropped, np.str_),
    }  # fmt: skip
    arrays |= {f"slice_{i}": np.array(members, np.str_) for i, members in enumerate(faces.slices.values())}
    _save(folder / FACES, arrays)


def read_faces(folder: Path) -> Faces:
    """Read faces.npz."""
    arrays = _load(folder / FACES)
    slices = {str(name): tuple(map(str, arrays[f"slice_{i}"])) for i, name in enumerate(arrays["slice_names"].tolist())}
    dropped = tuple(map(str, arrays["dropped"].tolist())) if "dropped" in arrays else ()  # older records have none
    return Faces(tuple(map(str, arrays["names"].tolist())), arrays["targets"], arrays["votes"], arrays["clean"], slices, dropped)


def write_answers(folder: Path, plan: Plan, index: int, answers: Answers) -> None:
    """Write a row's answers and whose they are; an interrupted write leaves nothing behind."""
    arrays: dict[str, npt.NDArray[Any]] = {f"probs_{i}": probs for i, probs in enumerate(answers.probs)}
    arrays |= {f"dropped_{i}": probs for i, probs in enumerate(answers.dropped)}
    arrays |= {f"corrupted: {name}": predicted for name, predicted in answers.corrupted.items()}
    if answers.corrupted_rows is not None:
        arrays["corrupted_rows"] = answers.corrupted_rows
    facts = {"precision": answers.precision, "audit": asdict(answers.audit), **_whose(plan, index)}
    arrays["facts"] = np.array(json.dumps(facts))
    _save(row_path(folder, index), arrays)


def read_answers(folder: Path, plan: Plan, index: int) -> Answers:
    """Read a row's answers. Raises InputError when they are those of another comparison or artifact."""
    path = row_path(folder, index)
    arrays = _load(path)
    facts = json.loads(str(arrays["facts"]))
    expected = _whose(plan, index)
    found = {name: facts.get(name, value) for name, value in expected.items()}  # older records do not say
    if found != expected:
        raise InputError(f"{path}: answers of {found}, expected those of {expected}. {_way_out(path)}")
    count = sum(name.startswith("probs_") for name in arrays)
    return Answers(
        tuple(arrays[f"probs_{i}"] for i in range(count)),
        facts["precision"],
        Audit(**facts["audit"]),
        {name.removeprefix("corrupted: "): value for name, value in arrays.items() if name.startswith("corrupted: ")},
        arrays.get("corrupted_rows"),
        tuple(arrays[f"dropped_{i}"] for i in range(count) if f"dropped_{i}" in arrays),
    )


def evaluation(plan: Plan, row: PlannedRow, faces: Faces, probs: npt.NDArray[np.float32]) -> Evaluation:
    """Put one array of probabilities back into the record of an evaluation."""
    return Evaluation(
        row.model, row.runtime, plan.dataset, plan.fingerprint, plan.label_source, plan.protocol, plan.split, plan.labels,
        faces.names, faces.targets, faces.votes, probs,
    )  # fmt: skip


def _whose(plan: Plan, index: int) -> dict[str, str]:
    """What the answers of a row belong to."""
    row = plan.rows[index]
    return {"comparison": plan.id, "runtime": row.runtime, "digest": row.digest}


def _save(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _load(path: Path) -> dict[str, npt.NDArray[Any]]:
    if not path.is_file():
        raise NotFound(f"{path} is missing. {_way_out(path)}")
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except DAMAGED_NPZ as error:
        raise InputError(f"{path}: unreadable ({error}). {_way_out(path)}") from None


def _way_out(path: Path) -> str:
    """What to do about a part that is missing or that does not fit."""
    folder = path.parent.parent if path.parent.name == ROWS else path.parent
    if (folder / FILE).is_file():
        return f"This comparison is finished: bring back a copy of {path.name}; comparing again is another look at the faces"
    remove = f"remove {path.name} and " if path.is_file() else ""
    return f"This comparison is not finished: {remove}give the same fer_lab.compare again, it goes on from there"
