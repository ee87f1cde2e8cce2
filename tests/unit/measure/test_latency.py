"""The measurement contract: interleaved, warmed up, never under 30 samples, closed at the end."""

from __future__ import annotations

import gc
import time

import numpy as np
import pytest

from fer_lab.core.errors import InputError
from fer_lab.core.types import LatencySpec
from fer_lab.measure import latency, stats

QUICK = latency.Budget(rounds=6, samples=60, seconds=0.3, warm_up_seconds=0.01)


class Fake:
    """Answers after a fixed time and writes down who was called."""

    def __init__(self, name="m", seconds=0.0, log=None):
        self.name, self.seconds, self.log, self.closed, self.precision = name, seconds, log, False, "f32"

    def predict(self, faces):
        if self.log is not None:
            self.log.append((self.name, gc.isenabled()))
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            pass
        return np.full((len(faces), 8), 1 / 8, np.float32)

    def close(self):
        self.closed = True


def spec(**changes):
    """Batch 1, one thread."""
    return LatencySpec(**{"runtime": "fake", "threads": 1, "batch": 1, **changes})


def test_candidates_take_turns_abba():
    """Forward in one round, backward in the next; garbage collection is off while samples are taken."""
    log = []
    latency.measure([("a", lambda: Fake("a", log=log), spec()), ("b", lambda: Fake("b", log=log), spec())], QUICK)
    timed = [name for name, collecting in log if not collecting]
    turns = [name for i, name in enumerate(timed) if i == 0 or timed[i - 1] != name]
    assert turns == ["a", "b", "a", "b", "a", "b", "a"]  # ab ba ab ba ab ba; equal neighbours merged
    assert gc.isenabled()


def test_samples_are_bounded_by_count_and_never_below_thirty():
    """A quick model gives exactly the samples asked for, a slow one at least thirty."""
    quick, slow = latency.measure(
        [("q", Fake, spec()), ("s", lambda: Fake(seconds=0.01), spec())],
        latency.Budget(rounds=6, samples=60, seconds=0.05, warm_up_seconds=0.01),
    )
    assert len(quick.samples_ms) <= 60
    assert len(slow.samples_ms) == 30
    assert slow.percentile_ms(50) >= 10  # a busy machine makes it longer, nothing makes it shorter
    assert len(slow.rounds) == 6


def test_the_control_is_the_first_candidate_again():
    """The A/A ratio is near one; sessions are closed, also the control's."""
    made = []

    def open_fake():
        made.append(Fake(seconds=0.001))
        return made[-1]

    timed = [latency.Timed("a", open_fake, spec(), "digest", 2.5), latency.Timed("b", open_fake, spec())]
    measured = latency.measure_with_control(timed, QUICK)
    assert [p.model for p in measured.profiles] == ["a", "b"]
    assert (measured.profiles[0].digest, measured.profiles[0].size_mb) == ("digest", 2.5)
    assert len(made) == 3
    assert all(fake.closed for fake in made)
    assert measured.control.low <= measured.control.value <= measured.control.high  # how near to 1 depends on the machine
    assert measured.floor >= abs(measured.control.value - 1)


def test_the_control_times_the_first_candidate_and_no_other():
    """Its calls are that one's, one uncounted per turn; the ratio is between the two series of the same model."""
    log = []
    timed = [
        latency.Timed(name, lambda name=name, s=seconds: Fake(name, s, log), spec())
        for name, seconds in (("a", 0.001), ("b", 0.003))
    ]
    measured = latency.measure_with_control(timed, QUICK)
    calls = [name for name, collecting in log if not collecting]
    first = measured.profiles[0]
    assert calls.count("a") == len(first.samples_ms) + sum(map(len, measured.control_rounds)) + 2 * QUICK.rounds
    assert measured.control == stats.latency_ratio(first.rounds, measured.control_rounds)[0]


def test_end_to_end_feeds_faces_of_the_contract():
    """From colour crops to labels: the model still gets uint8 [N, 48, 48]."""
    seen = []

    class Checks(Fake):
        def predict(self, faces):
            seen.append((faces.shape, faces.dtype))
            return super().predict(faces)

    latency.end_to_end(Checks(), 3)(0)
    assert seen == [((3, 48, 48), np.dtype(np.uint8))]


def test_a_model_that_fails_while_measured_is_an_error_and_is_closed():
    """A failure is no sample."""
    fake = Fake()
    fake.predict = lambda faces: (_ for _ in ()).throw(RuntimeError("boom"))
    with pytest.raises(RuntimeError, match="boom"):
        latency.measure([("m", lambda: fake, spec())], QUICK)
    assert fake.closed


def test_nothing_to_measure_is_said():
    """An empty list is bad input."""
    with pytest.raises(InputError):
        latency.measure([])


def test_drawn_faces_are_faces_of_the_contract():
    """Reproducible uint8 pictures."""
    faces = latency.drawn_faces(3)
    assert (faces.shape, faces.dtype) == ((3, 48, 48), np.uint8)
    assert (faces == latency.drawn_faces(3)).all()
