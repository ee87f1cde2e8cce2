"""Labels that do not flicker."""

from __future__ import annotations

import numpy as np

from fer_lab.live.frames import UNCERTAIN, Found
from fer_lab.live.tracks import Steadiness, Tracker, overlap

LABELS = ("neutral", "happiness", "anger")


def crop() -> np.ndarray:
    """A flat face."""
    return np.full((1, 1, 48, 48), 100, np.uint8)


def probs(*values: float) -> np.ndarray:
    """One face's probabilities."""
    return np.array([values], np.float32)


def face(x: float = 0.0) -> list[Found]:
    """One face of 100 pixels."""
    return [Found((x, 0, x + 100, 100), 0.9)]


def test_one_wrong_frame_does_not_change_the_label() -> None:
    """A single outlier is averaged away."""
    tracker = Tracker(LABELS)
    for i in range(30):
        one = probs(0.1, 0.1, 0.8) if i == 15 else probs(0.1, 0.8, 0.1)
        (track,) = tracker.update(face(), one, crop(), i / 30)
        assert tracker.shown(track)[0] == "happiness"
    assert (tracker.changes, tracker.started) == (0, 1)


def test_a_real_change_shows_within_a_second_and_once() -> None:
    """Hysteresis delays, it does not block."""
    tracker = Tracker(LABELS)
    shown = []
    for i in range(90):
        (track,) = tracker.update(face(), probs(0.1, 0.8, 0.1) if i < 30 else probs(0.1, 0.1, 0.8), crop(), i / 30)
        shown.append(track.label)
    assert shown[29] == 1
    assert shown[60] == 2
    assert tracker.changes == 1


def test_noise_around_even_odds_changes_rarely() -> None:
    """At most 0.2 label changes per second, where raw labels change several times."""
    rng = np.random.default_rng(3)
    tracker = Tracker(LABELS)
    raw = []
    for i in range(30 * 60):
        one = rng.dirichlet((8, 9, 1)).astype(np.float32)[None]
        tracker.update(face(), one, crop(), i / 30)
        raw.append(int(one.argmax()))
    assert np.count_nonzero(np.diff(raw)) / 60 > 3
    assert tracker.changes / tracker.face_s <= 0.2


def test_another_label_wins_when_it_leads_by_enough_for_long_enough() -> None:
    """Neither a rival that is ahead by too little, however long, nor one that leads for a moment, however often; the clock
    starts with the lead."""
    tracker, shown, time_s = Tracker(LABELS, Steadiness(memory_s=1e-6, lead=0.1, hold_s=0.25)), [], 0.0
    for rival, frames in ((0.3, 1), (0.54, 30), (0.7, 7), (0.3, 1), (0.7, 7), (0.54, 1), (0.7, 7), (0.3, 1), (0.7, 9)):
        for _ in range(frames):
            (track,) = tracker.update(face(), probs(1 - rival, rival, 0), crop(), time_s)
            time_s += 1 / 30
        shown.append(track.label)
    assert shown == [0] * 8 + [1]


def test_light_alone_is_no_cut() -> None:
    """A lamp that goes on, a cloud: mean and contrast change, the face stays."""
    tracker = Tracker(LABELS)
    picture = np.random.default_rng(0).integers(0, 200, (1, 1, 48, 48))
    numbers = [
        tracker.update(face(), probs(1, 0, 0), (picture * light).astype(np.uint8), i / 30)[0].number
        for i, light in enumerate((1.0, 0.5, 1.2))
    ]
    assert numbers == [1, 1, 1]


def test_a_face_goes_on_with_the_track_that_it_overlaps_most() -> None:
    """Not with the oldest one that it touches."""
    tracker = Tracker(LABELS)
    tracker.update(face(0) + face(60), np.concatenate([probs(1, 0, 0)] * 2), np.concatenate([crop()] * 2), 0.0)
    (track,) = tracker.update(face(50), probs(1, 0, 0), crop(), 0.04)
    assert track.number == 2


def test_the_frame_rate_does_not_change_the_memory() -> None:
    """The average is over time, not over frames."""
    ends = []
    for fps in (10, 60):
        tracker = Tracker(LABELS)
        for i in range(fps * 2):
            (track,) = tracker.update(face(), probs(1, 0, 0) if i < fps else probs(0, 1, 0), crop(), i / fps)
        ends.append(float(track.probs[1]))
    assert abs(ends[0] - ends[1]) < 0.03


def test_a_track_survives_a_short_miss_and_ends_after_a_long_one() -> None:
    """The number stays over half a second without the face, not over two."""
    tracker = Tracker(LABELS)
    (first,) = tracker.update(face(), probs(1, 0, 0), crop(), 0.0)
    for i in range(1, 15):
        tracker.update([], np.zeros((0, 3), np.float32), np.zeros((0, 1, 48, 48), np.uint8), i / 30)
    (second,) = tracker.update(face(5), probs(1, 0, 0), crop(), 0.5)
    for i in range(16, 75):
        tracker.update([], np.zeros((0, 3), np.float32), np.zeros((0, 1, 48, 48), np.uint8), i / 30)
    (third,) = tracker.update(face(5), probs(1, 0, 0), crop(), 2.5)
    assert (first.number, second.number, third.number) == (1, 1, 2)


def test_two_faces_keep_their_numbers_when_the_detector_swaps_their_order() -> None:
    """Association goes by place."""
    tracker = Tracker(LABELS)
    both = np.concatenate([crop(), crop()])
    a = tracker.update(face(0) + face(300), np.concatenate([probs(1, 0, 0), probs(0, 1, 0)]), both, 0.0)
    b = tracker.update(face(305) + face(3), np.concatenate([probs(0, 1, 0), probs(1, 0, 0)]), both, 0.04)
    assert [t.number for t in a] == [1, 2]
    assert [t.number for t in b] == [2, 1]


def test_another_face_in_the_same_place_is_another_track() -> None:
    """A cut does not drag the old label along."""
    rng = np.random.default_rng(0)
    tracker = Tracker(LABELS)
    first, second = (rng.integers(0, 256, (1, 1, 48, 48)).astype(np.uint8) for _ in range(2))
    (a,) = tracker.update(face(), probs(1, 0, 0), first, 0.0)
    (b,) = tracker.update(face(), probs(0, 1, 0), second, 0.04)
    assert (a.number, b.number, tracker.shown(b)[0], tracker.changes) == (1, 2, "happiness", 0)


def test_low_confidence_is_shown_as_uncertain() -> None:
    """Below the threshold no expression is claimed."""
    tracker = Tracker(LABELS, Steadiness(uncertain_below=0.5))
    (track,) = tracker.update(face(), probs(0.4, 0.35, 0.25), crop(), 0.0)
    assert tracker.shown(track)[0] == UNCERTAIN


def test_a_hundred_faces_are_followed() -> None:
    """Each keeps its number."""
    tracker = Tracker(LABELS)
    found = [Found((x * 20.0, y * 20.0, x * 20.0 + 15, y * 20.0 + 15), 0.9) for x in range(10) for y in range(10)]
    many = np.tile(probs(0.2, 0.5, 0.3), (100, 1))
    for i in range(3):
        tracks = tracker.update(found, many, np.repeat(crop(), 100, 0), i / 30)
    assert tracker.started == 100
    assert len({t.number for t in tracks}) == 100


def test_overlap_matches_a_count_of_pixels() -> None:
    """Intersection over union, counted on a grid."""
    a, b = (2, 3, 12, 9), (6, 1, 15, 7)
    grid = np.zeros((2, 20, 20), bool)
    for k, (x0, y0, x1, y1) in enumerate((a, b)):
        grid[k, y0:y1, x0:x1] = True
    assert overlap(a, b) == (grid[0] & grid[1]).sum() / (grid[0] | grid[1]).sum()


def test_a_pause_is_no_time_of_watching() -> None:
    """An outage of ten minutes ends the track, and does not water the rate of changes down."""
    tracker = Tracker(LABELS)
    for i in range(300):
        tracker.update(face(), probs(0.1, 0.8, 0.1), crop(), i / 30)
    before_s = tracker.face_s
    (track,) = tracker.update(face(), probs(0.1, 0.1, 0.8), crop(), 610.0)
    assert (track.number, track.label) == (2, 2)
    assert tracker.face_s == before_s


def test_at_one_frame_in_three_seconds_a_face_is_still_followed() -> None:
    """A slow machine is not an outage."""
    tracker = Tracker(LABELS)
    numbers = {tracker.update(face(), probs(0.1, 0.8, 0.1), crop(), 3.0 * i)[0].number for i in range(5)}
    assert numbers == {1}
