"""Conducts a comparison: plans it, asks every model, times every model, and derives the record. Resumes what was interrupted."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lab.core import labels
from fer_lab.core.errors import FerLabError, InputError, NotFound
from fer_lab.core.types import Split
from fer_lab.data.faces import FaceDataset
from fer_lab.measure import audits, corruptions, derive, latency, profiles, record, verdicts
from fer_lab.measure.candidates import Candidate
from fer_lab.measure.coldstart import cold_start
from fer_lab.measure.comparison import FILE, Audit, Comparison
from fer_lab.measure.evaluate import check_probabilities, evaluate, kept_faces, predict_all, refuse_absent
from fer_lab.measure.host import this_host, usable_cores

ROBUST_FACES = 512
ROBUST_RUNTIMES = ("openvino", "onnx", "torch")
"""Robustness belongs to the network: it is measured once per model, in the quickest float32 runtime that is there."""


@dataclass(frozen=True)
class Request:
    """What is compared under which rules."""

    protocol: str = "ferplus8"
    split: Split = "test"
    runtimes: tuple[str, ...] | None = None  # all that each model holds when None
    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = (1, 8, 64)
    margin: float = verdicts.MARGIN
    robustness: bool = True
    timed: bool = True
    cold_start: bool = True
    end_to_end: bool = True
    reference_runtime: str | None = None
    budget: latency.Budget = field(default_factory=latency.Budget)
    pictures: bool = True  # whether the report may show faces

    @property
    def groups(self) -> int:
        """How many groups of latency profiles are taken."""
        return len(self.threads) * len(self.batches) + self.end_to_end if self.timed else 0


def conduct(
    candidates: Sequence[Candidate],
    dataset: FaceDataset,
    request: Request,
    *,
    home: Path,
    out: Path | None = None,
    reference: int = 0,
    count_look: Callable[[str], int | None] | None = None,
    extra: Mapping[str, profiles.Profiles] | None = None,
    publish: Callable[[Comparison, Path], object] = lambda *_: None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Comparison, Path]:
    """Compare the candidates on the faces of `dataset` against `candidates[reference]`; returns the record and its folder.

    The folder is `out`, or home/comparisons/<id>; no other process may work on it meanwhile. An unfinished comparison of the
    same models, faces and rules goes on where it stopped, per model × runtime. `count_look` is told the id before the test
    split is opened; `extra` are latency profiles measured on other hosts, by file; `publish` gets the record and the folder
    before comparison.json says that nothing is left to do. Raises InputError for models of another protocol or label set,
    for profiles of other artifacts and for an `out` that holds something else, Conflict when another process is at work
    there, FerLabError when a model fails or answers with something else than probabilities.
    """
    if request.split == "train":
        raise InputError("compare measures on the test or the valid split, not on faces that were trained on")
    _check(candidates, request, dataset)
    entries, unavailable = _entries(candidates, request)
    extra = extra or {}
    profiles.check(extra, {(candidate.digest(runtime), runtime) for candidate, runtime in entries})
    reference_row = _reference_index(entries, candidates[reference], request.reference_runtime)
    key = _key(entries, candidates[reference], dataset, request)
    identity = _identity(key)
    with _held(key, home / "comparisons" / identity, out) as (folder, plan):
        if plan is None:
            plan = _begin(entries, reference_row, dataset, request, key, identity, unavailable, count_look)
            plan.write(folder)
        else:
            if plan.pictures != request.pictures:
                plan = replace(plan, pictures=request.pictures)
                plan.write(folder)
            have = sum(record.row_path(folder, i).is_file() for i in range(len(plan.rows)))
            progress(f"going on with {plan.id}: {have} of {len(plan.rows)} rows were measured before")
        record.write_faces(folder, _faces(dataset, plan))  # also when it goes on: what lies there may be damaged
        _ask_all(entries, dataset, plan, folder, progress)
        if request.timed:
            _time(entries, plan, folder, request, progress)
        profiles.keep(extra.values(), folder / record.PROFILES)
        comparison = derive.derive(folder)
        publish(comparison, folder)
        comparison.write(folder)
    return comparison, folder


def _check(candidates: Sequence[Candidate], request: Request, dataset: FaceDataset) -> None:
    if not candidates:
        raise InputError("nothing to compare: give at least one model")
    rule = labels.protocol(request.protocol)
    _, targets = kept_faces(dataset, rule.name, request.split)
    refuse_absent(np.bincount(targets, minlength=len(rule.label_set.labels)) > 0, rule, request.split)
    for candidate in candidates:
        if candidate.foreign:
            candidate.foreign.check_labels(rule.label_set.labels)
            continue
        card = candidate.bundle.card
        if card.protocol != rule.name or card.labels != rule.label_set.labels:
            raise InputError(
                f"{candidate.shown} was trained under {card.protocol} ({len(card.labels)} labels), this comparison is under "
                f"{rule.name} ({len(rule.label_set.labels)}). Different protocols are never compared as one"
            )
        contract = card.input
        if (contract.channels, contract.height, contract.width) != (1, 48, 48):
            shape = (contract.channels, contract.height, contract.width)
            raise InputError(f"{candidate.shown} takes faces of {shape}, {dataset.name} has (1, 48, 48)")


def _entries(candidates: Sequence[Candidate], request: Request) -> tuple[list[tuple[Candidate, str]], dict[str, str]]:
    """What is measured, and what this host cannot run. Raises NotFound when a bundle lacks a runtime that was asked for."""
    entries: list[tuple[Candidate, str]] = []
    unavailable: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for candidate in candidates:
        wanted = candidate.runtimes if request.runtimes is None else request.runtimes
        if candidate.foreign and request.runtimes is not None:
            wanted = tuple(r for r in request.runtimes if r in candidate.runtimes) or candidate.runtimes[:1]
        for runtime in wanted:
            reason = candidate.unavailable(runtime)
            if reason:
                unavailable[f"{candidate.shown} · {runtime}"] = reason
            elif (candidate.identity, runtime) not in seen:
                seen.add((candidate.identity, runtime))
                entries.append((candidate, runtime))
    if not entries:
        raise FerLabError("this host can run none of them: " + "; ".join(f"{who}: {why}" for who, why in unavailable.items()))
    return entries, unavailable


def _key(entries: Sequence[tuple[Candidate, str]], reference: Candidate, dataset: FaceDataset, request: Request) -> str:
    members = [[c.shown, c.identity, c.digest(runtime), runtime, c.bundle.signed_by] for c, runtime in entries]
    decides: dict[str, Any] = {
        "members": members, "reference": [reference.identity, request.reference_runtime], "fingerprint": dataset.fingerprint,
        "protocol": request.protocol, "split": request.split, "threads": request.threads, "batches": request.batches,
        "margin": request.margin, "robustness": request.robustness, "timed": request.timed, "host": this_host().name,
        "schema": record.SCHEMA,
    }  # fmt: skip
    if not request.end_to_end:  # said only then, so that comparisons begun earlier keep their key
        decides["end_to_end"] = False
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _identity(key: str) -> str:
    """With milliseconds: the same comparison made twice within a second is two looks at the test split."""
    seconds = time.time()
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(seconds))}{int(seconds % 1 * 1000):03d}-{key[:8]}"


@contextmanager
def _held(key: str, new: Path, out: Path | None) -> Iterator[tuple[Path, record.Plan | None]]:
    """Hold the folder of the comparison with this key; yield it, and the plan when it was begun before.

    That is `out`, else an unfinished one beside `new`, else `new`.
    """
    if out is None:
        begun = sorted(new.parent.glob(f"*-{key[:8]}"), reverse=True)
        folders = [*(path for path in begun if not (path / FILE).is_file()), new]
    else:
        _check_free(out, key)  # before the lock, which has no place in a folder of something else
        folders = [out]
    for folder in folders:
        with record.held(folder):
            if out is not None:
                _check_free(out, key)  # again: somebody may have been quicker
            plan = _unfinished(folder, key)
            if plan is not None or folder is folders[-1]:
                yield folder, plan
                return


def _unfinished(folder: Path, key: str) -> record.Plan | None:
    """The plan of the unfinished comparison in a folder, if it has this key."""
    if (folder / FILE).is_file():
        return None
    try:
        plan = record.read_plan(folder)
    except FerLabError:
        return None
    return plan if plan.key == key else None


def _check_free(out: Path, key: str) -> None:
    """Raise InputError unless the comparison with this key may begin, or go on, in `out`."""
    if record.is_new(out) or _unfinished(out, key) is not None:
        return
    finished = (out / FILE).is_file()
    if not finished and not (out / record.PLAN).is_file():
        raise InputError(f"--out {out} holds other files; give a new or empty folder")
    try:
        there = f"comparison {record.read_plan(out).id}"
    except FerLabError:
        there = "a comparison"
    if finished:
        raise InputError(
            f"--out {out} holds {there}; give another folder, or show that one again: python -m fer_lab.compare --replay {out}"
        )
    raise InputError(f"--out {out} holds {there}, not finished, of other models or rules; give another folder, or finish that one")


def _begin(
    entries: Sequence[tuple[Candidate, str]],
    reference: int,
    dataset: FaceDataset,
    request: Request,
    key: str,
    identity: str,
    unavailable: Mapping[str, str],
    count_look: Callable[[str], int | None] | None,
) -> record.Plan:
    rows, _ = kept_faces(dataset, request.protocol, request.split)
    planned = []
    for candidate, runtime in entries:
        card = candidate.card()
        same, leaked, note = audits.leakage(card, dataset, rows)
        planned.append(
            record.PlannedRow(
                candidate.shown, runtime, candidate.digest(runtime), candidate.bundle.digest, candidate.size_mb(runtime),
                candidate.name, candidate.version, candidate.run_id, card, candidate.parity(runtime),
                candidate.foreign is not None, tuple(seed.shown for seed in candidate.seeds),
                request.robustness and runtime == _robust_runtime(candidate, entries), same, leaked, note,
                candidate.bundle.signed_by,
            )
        )  # fmt: skip
    looks = count_look(identity) if count_look is not None and request.split == "test" else None
    return record.Plan(
        key, identity, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), this_host(), dataset.name, dataset.fingerprint,
        dataset.label_source, request.protocol, request.split, labels.protocol(request.protocol).label_set.labels,
        request.margin, reference, tuple(planned), unavailable, looks,
        pictures=request.pictures, groups=request.groups,
    )  # fmt: skip


def _faces(dataset: FaceDataset, plan: record.Plan) -> record.Faces:
    rows, targets = kept_faces(dataset, plan.protocol, plan.split)
    return record.Faces(
        tuple(dataset.names[i] for i in rows), targets, dataset.votes[rows], audits.clean_mask(dataset, rows, plan.split),
        dataset.slices, tuple(dataset.names[i] for i in _dropped(dataset, plan.split, rows)),
    )  # fmt: skip


def _reference_index(entries: Sequence[tuple[Candidate, str]], reference: Candidate, runtime: str | None) -> int:
    own = [i for i, (candidate, _) in enumerate(entries) if candidate.identity == reference.identity]
    if not own:
        raise NotFound(f"the reference {reference.shown} could be run in none of the runtimes asked for")
    if runtime is not None:
        exact = [i for i in own if entries[i][1] == runtime]
        if not exact:
            there = ", ".join(entries[i][1] for i in own)
            raise NotFound(f"the reference {reference.shown} was not measured in {runtime}; it was in: {there}")
        return exact[0]
    return next((i for i in own if entries[i][1] == "openvino"), own[0])


def _robust_runtime(candidate: Candidate, entries: Sequence[tuple[Candidate, str]]) -> str:
    there = [runtime for c, runtime in entries if c.identity == candidate.identity]
    return next((runtime for runtime in ROBUST_RUNTIMES if runtime in there), there[0])


def _ask_all(
    entries: Sequence[tuple[Candidate, str]],
    dataset: FaceDataset,
    plan: record.Plan,
    folder: Path,
    progress: Callable[[str], None],
) -> None:
    """Ask every model × runtime that has not answered yet."""
    rows, targets = kept_faces(dataset, plan.protocol, plan.split)
    for index, (candidate, runtime) in enumerate(entries):
        if record.row_path(folder, index).is_file():
            record.read_answers(folder, plan, index)  # what is wrong with them is said now, not after hours
            continue
        started = time.perf_counter()
        answers = _ask(candidate, runtime, dataset, plan, plan.rows[index].robustness, rows)
        record.write_answers(folder, plan, index, answers)
        right = float((answers.probs[0].argmax(axis=1) == targets).mean())
        took = time.perf_counter() - started
        progress(f"{index + 1}/{len(entries)} {candidate.shown} · {runtime}: {right:.2%} of {len(rows)} faces, {took:.0f} s")


def _ask(
    candidate: Candidate, runtime: str, dataset: FaceDataset, plan: record.Plan, robust: bool, rows: npt.NDArray[np.int64]
) -> record.Answers:
    """Everything that one model × runtime is asked: the faces, in batches and alone, and the corrupted faces."""
    threads = usable_cores()
    probs, unjudged = [], []
    dropped = _dropped(dataset, plan.split, rows)
    precision, audit = "f32", Audit()
    corrupted: dict[str, npt.NDArray[np.int16]] = {}
    some: npt.NDArray[np.int64] | None = None
    for member in candidate.seeds or (candidate,):
        with member.open(runtime, threads, plan.protocol) as predictor:
            precision = predictor.precision
            said = evaluate(predictor, dataset, plan.protocol, plan.split, model=member.shown, allow_test=True)
            probs.append(said.probs)
            # Unchecked: a blank picture that counts for nobody must not end a comparison.
            unjudged.append(predict_all(predictor, dataset.pixels[dropped], model=member.shown, check=False))
            if len(probs) > 1:
                continue
            audit = audits.batch_invariance(predictor, dataset.pixels[rows])
            if robust:
                some = np.sort(np.random.default_rng(0).permutation(len(rows))[:ROBUST_FACES])
                for corruption in corruptions.CORRUPTIONS:
                    lines = []
                    for level in (0.0, *corruption.levels):
                        faces = corruptions.corrupt(corruption, dataset.pixels[rows[some]], level)
                        answers = predictor.predict(faces)
                        check_probabilities(answers, len(faces), len(plan.labels), f"{member.shown} ({runtime}), {corruption.name}")
                        lines.append(answers.argmax(axis=1).astype(np.int16))
                    corrupted[corruption.name] = np.stack(lines)
    return record.Answers(tuple(probs), precision, audit, corrupted, some, tuple(unjudged))


def _dropped(dataset: FaceDataset, split: Split, kept: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The rows of the split that the protocol drops."""
    return np.setdiff1d(dataset.indices(split), kept)


def _time(
    entries: Sequence[tuple[Candidate, str]], plan: record.Plan, folder: Path, request: Request, progress: Callable[[str], None]
) -> None:
    target = folder / record.LATENCY
    order = [plan.reference, *(i for i in range(len(entries)) if i != plan.reference)]  # the control is the reference
    entrants = [profiles.Entrant(*entries[i]) for i in order]

    def cold(entrant: profiles.Entrant, threads: int) -> tuple[float, float, float | None]:
        foreign = entrant.candidate.foreign
        path = foreign.path if foreign else entrant.candidate.bundle.folder
        return cold_start(str(path), entrant.runtime, threads, plan.protocol)

    profiles.take(
        entrants, threads=request.threads, batches=request.batches, created=plan.created, protocol=plan.protocol,
        budget=request.budget, with_end_to_end=request.end_to_end, cold=cold if request.cold_start else None,
        done=profiles.read(target) if target.is_file() else None, save=lambda taken: taken.write(target), progress=progress,
    )  # fmt: skip
