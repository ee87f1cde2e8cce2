"""Latency as a specification plus raw samples: candidates interleaved in rounds, with a control of one against itself.

Rules of a measurement: twenty rounds; within a round every candidate has one turn, in order, and in reverse order in the
next (ABBA), so that a slow drift of the machine hits all alike; the first call of a turn is not counted (the caches were
somebody else's); before the rounds each candidate is called until three block medians agree within 2 %. A row ends at
1 000 samples or 5 s, whichever comes first, never below 30. All sessions are open at once, garbage collection is off.

Needs the core install only.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fer_lab.core.errors import InputError
from fer_lab.core.types import LatencyProfile, LatencySpec
from fer_lab.measure import stats

ROUNDS = 20
SAMPLES = 1000
SECONDS = 5.0
FEWEST = 30
CROP_PX = 160
"""Side of the camera crop from which end-to-end latency starts: a face at arm's length in a 640×480 frame."""


class Runs(Protocol):
    """What is timed: a Predictor."""

    @property
    def precision(self) -> str: ...
    def predict(self, faces: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]: ...
    def close(self) -> None: ...


class Timed(NamedTuple):
    """One candidate of a measurement; `open` is called once and the session closed at the end."""

    model: str
    open: Callable[[], Runs]
    spec: LatencySpec
    digest: str = ""
    size_mb: float = 0.0


@dataclass(frozen=True)
class Budget:
    """How long a measurement may take per row."""

    rounds: int = ROUNDS
    samples: int = SAMPLES
    seconds: float = SECONDS
    warm_up_seconds: float = 1.0


@dataclass(frozen=True)
class Measurement:
    """Profiles in the order of the candidates, and what the control of the first against itself said."""

    profiles: tuple[LatencyProfile, ...]
    control: stats.Interval
    control_rounds: tuple[tuple[float, ...], ...]
    steal: float | None  # share of the time that the hypervisor gave to others meanwhile

    @property
    def floor(self) -> float:
        """The noise floor: how far from 1 the ratio of the reference to itself may lie."""
        return stats.noise_floor(self.control)


def measure(
    candidates: Sequence[Timed | tuple[str, Callable[[], Runs], LatencySpec]], budget: Budget | None = None
) -> list[LatencyProfile]:
    """Return one profile per candidate `(model, open, spec[, digest, size_mb])`, interleaved, without a control."""
    profiles, _ = _interleave([Timed(*candidate) for candidate in candidates], budget or Budget())
    return profiles


def measure_with_control(candidates: Sequence[Timed], budget: Budget | None = None) -> Measurement:
    """Measure the candidates with a second session of the first among them: the A/A control."""
    before = _cpu_times()
    profiles, _ = _interleave([*candidates, candidates[0]], budget or Budget())
    *own, control = profiles
    ratio, _ = stats.latency_ratio(own[0].rounds, control.rounds)
    return Measurement(tuple(own), ratio, control.rounds, _steal(before, _cpu_times()))


def _interleave(candidates: Sequence[Timed], budget: Budget) -> tuple[list[LatencyProfile], list[Callable[[int], None]]]:
    if not candidates:
        raise InputError("nothing to measure: no model and runtime given")
    sessions: list[Runs] = []
    calls: list[Callable[[int], None]] = []
    profiles: list[LatencyProfile] = []
    try:
        for candidate in candidates:
            started = time.perf_counter_ns()
            session = candidate.open()
            load_ms = _since(started)
            sessions.append(session)
            call = (
                end_to_end(session, candidate.spec.batch)
                if candidate.spec.end_to_end
                else model_only(session, candidate.spec.batch)
            )
            calls.append(call)
            started = time.perf_counter_ns()
            call(0)
            spec = replace(candidate.spec, precision=session.precision)
            profiles.append(
                LatencyProfile(candidate.model, candidate.digest, spec, (), load_ms, _since(started), None, candidate.size_mb)
            )
        for call in calls:
            _warm_up(call, budget.warm_up_seconds)
        taken: list[list[tuple[float, ...]]] = [[] for _ in calls]
        with _without_garbage_collection():
            for turn in range(budget.rounds):
                order = range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls)))
                for index in order:
                    taken[index].append(_turn(calls[index], budget, turn))
        return [replace(p, rounds=tuple(rounds)) for p, rounds in zip(profiles, taken, strict=True)], calls
    finally:
        for session in sessions:
            session.close()


def model_only(session: Runs, batch: int) -> Callable[[int], None]:
    """Return a call that predicts the i-th of sixteen drawn batches: uint8 faces to probabilities."""
    batches = [drawn_faces(batch, seed) for seed in range(16)]

    def call(i: int) -> None:
        session.predict(batches[i % 16])

    return call


def end_to_end(session: Runs, batch: int) -> Callable[[int], None]:
    """Return a call from colour crops to labels: gray, shrink to 48 pixels by area, predict, argmax."""
    import cv2

    rng = np.random.default_rng(0)
    crops = [rng.integers(0, 256, (CROP_PX, CROP_PX, 3), np.uint8) for _ in range(16)]

    def call(i: int) -> None:
        faces = np.empty((batch, 48, 48), np.uint8)
        for j in range(batch):
            gray = cv2.cvtColor(crops[(i + j) % 16], cv2.COLOR_BGR2GRAY)
            cv2.resize(gray, (48, 48), dst=faces[j], interpolation=cv2.INTER_AREA)
        session.predict(faces).argmax(axis=1)

    return call


def drawn_faces(n: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Faces for a measurement where there is no dataset: smooth blobs, uint8 [n, 48, 48] (content does not change speed)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:48, 0:48]
    centre, width = rng.uniform(16, 32, (2, n, 1, 1)), rng.uniform(8, 20, (n, 1, 1))
    blob = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * width**2))
    return np.ascontiguousarray((40 + 170 * blob + rng.normal(0, 6, (n, 48, 48))).clip(0, 255).astype(np.uint8))


def size_mb(paths: Sequence[Path]) -> float:
    """Size of an artifact's files in MB."""
    return sum(path.stat().st_size for path in paths) / 1e6


def _turn(call: Callable[[int], None], budget: Budget, turn: int) -> tuple[float, ...]:
    most = max(1, round(budget.samples / budget.rounds))
    fewest = min(most, -(-FEWEST // budget.rounds))
    until = time.perf_counter_ns() + int(budget.seconds / budget.rounds * 1e9)
    call(turn)
    samples: list[float] = []
    while len(samples) < most and (len(samples) < fewest or time.perf_counter_ns() < until):
        started = time.perf_counter_ns()
        call(turn + len(samples))
        samples.append(_since(started))
    return tuple(samples)


def _warm_up(call: Callable[[int], None], seconds: float) -> None:
    """Call until the last three medians of five calls agree within 2 %, or the time is up; at least three blocks."""
    until = time.perf_counter_ns() + int(seconds * 1e9)
    medians: list[float] = []
    while True:
        block = []
        for i in range(5):
            started = time.perf_counter_ns()
            call(i)
            block.append(_since(started))
        medians.append(float(np.median(block)))
        last = medians[-3:]
        if (len(last) == 3 and max(last) <= 1.02 * min(last)) or time.perf_counter_ns() > until:
            return


def _since(started_ns: int) -> float:
    return (time.perf_counter_ns() - started_ns) / 1e6


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _cpu_times() -> tuple[int, int] | None:
    """(stolen, total) jiffies of all processors, or None where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    fields = [int(word) for word in stat.read_text().splitlines()[0].split()[1:9]]
    return (fields[7] if len(fields) > 7 else 0), sum(fields)


def _steal(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    if before is None or after is None or after[1] == before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])
