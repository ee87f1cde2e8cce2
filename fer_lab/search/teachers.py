"""Teachers of a run: models whose answers for the training faces are mixed into its targets (`train.teachers`)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fer_lab.core.console import note
from fer_lab.core.errors import InputError, heed

if TYPE_CHECKING:
    from fer_lab.core.config import RunConfig, SweepConfig
    from fer_lab.data.faces import FaceDataset
    from fer_lab.tracking.registry import Resolved
    from fer_lab.tracking.store import Store

FACES_AT_ONCE = 256  # a second to five, after which a signal is heard
SAY_S = 20.0  # between two words of how far a teacher is

_heard: dict[tuple[str, str, str], npt.NDArray[np.float32]] = {}  # what `_answers` returned: minutes each, 1 MB


def resolve_teachers(config: RunConfig | SweepConfig, store: Store | None) -> list[Resolved]:
    """Return the models of `train.teachers`. Raises NotFound for an unknown one, InputError for one that lacks a label."""
    from fer_lab.core.labels import protocol
    from fer_lab.tracking.registry import resolve

    labels = protocol(config.data.protocol).label_set.labels
    teachers = [resolve(ref, store) for ref in config.train.teachers]
    for ref, teacher in zip(config.train.teachers, teachers, strict=True):
        if not set(labels) <= set(teacher.bundle.card.labels):
            raise InputError(f"teacher {ref} predicts {', '.join(teacher.bundle.card.labels)}; this run needs {', '.join(labels)}")
    return teachers


def pinned_teachers(config: RunConfig | SweepConfig) -> tuple[str, ...]:
    """The teachers, aliases among them by version: an alias may move while several runs go on, also to one of them."""
    if not any("@" in ref for ref in config.train.teachers if ref.startswith("models:/")):
        return config.train.teachers
    teachers = tuple(one.ref_shown for one in resolve_teachers(config, None))
    note(f"teachers: {', '.join(teachers)}; name them so to go on with this once an alias has moved")
    return teachers


def teacher_probs(
    teachers: Sequence[Resolved], config: RunConfig, dataset: FaceDataset, should_stop: Callable[[], int | None] | None = None
) -> npt.NDArray[np.float32] | None:
    """Return the mean probabilities of teachers for the training split, float32 [n, K], None without teachers.

    A teacher of more labels than the run's is heard on the run's alone, as the votes are. Each is asked once per process,
    however many runs it teaches. should_stop() is asked every few seconds and returns a signal number to stop:
    `Interrupted` is raised.
    """
    if not teachers:
        return None
    from fer_lab.core.labels import protocol
    from fer_lab.measure.host import usable_cores

    wanted = protocol(config.data.protocol).label_set
    answers = []
    for teacher in teachers:
        runtime = teacher.bundle.runtimes[0] if teacher.bundle.runtimes else "torch"  # a slim bundle has no torch weights
        key = (teacher.bundle.digest, runtime, dataset.fingerprint)
        if key not in _heard:
            _heard[key] = _answers(teacher, runtime, dataset, config.train.threads or usable_cores(), should_stop)
        answers.append(wanted.among(_heard[key], teacher.bundle.card.labels))
    mean: npt.NDArray[np.float32] = np.stack(answers).mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def _answers(
    teacher: Resolved, runtime: str, dataset: FaceDataset, threads: int, should_stop: Callable[[], int | None] | None
) -> npt.NDArray[np.float32]:
    """Return the probabilities of one teacher for the training split, float32 [n, its labels]; say how far it is."""
    from fer_lab.backends.session import Predictor

    faces = dataset.pixels[dataset.indices("train")]
    note(f"teacher {teacher.ref_shown}: predicting {len(faces)} training faces")
    parts = []
    with Predictor.open(teacher.bundle, runtime, threads=threads) as predictor:
        begun_s = said_s = time.monotonic()
        for start in range(0, len(faces), FACES_AT_ONCE):
            heed(should_stop, "stopped while the teachers answered")
            now_s = time.monotonic()
            if start and now_s - said_s > SAY_S:
                said_s = now_s
                left_s = (now_s - begun_s) / start * (len(faces) - start)
                note(f"teacher {teacher.ref_shown}: {start} of {len(faces)}, about {math.ceil(left_s / 60)} min left")
            parts.append(predictor.predict(faces[start : start + FACES_AT_ONCE]))
    return np.concatenate(parts)
