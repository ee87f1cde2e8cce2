"""The three stages: at the film's own speed or not, paused, with another detector, ended by an error."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from live_bundle import write

from fer_lab.backends.session import Predictor
from fer_lab.live.frames import Found
from fer_lab.live.models import Models, Named
from fer_lab.live.pipeline import Pipeline, Settings
from fer_lab.live.sample import SampleSource
from fer_lab.live.sources import VideoSource


class Middle:
    """A detector that finds one box, or fails."""

    margin, drop = 1.0, 0.0

    def __init__(self, name: str = "middle", error: Exception | None = None) -> None:
        self.name, self.asked, self.error = name, 0, error

    def find(self, image: np.ndarray) -> list[Found]:
        """Always the same place."""
        self.asked += 1
        if self.error is not None:
            raise self.error
        return [Found((10, 10, 50, 50), 1.0)]


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """The tiny model."""
    return Models(Named("tiny", None, Predictor.open(write(tmp_path / "tiny"), "openvino")))


@pytest.mark.parametrize("pace", [True, False])
def test_a_film_is_played_at_its_own_speed_for_people(tmp_path: Path, models: Models, pace: bool) -> None:
    """Five frames a second last two seconds; without anybody who looks, as long as the machine takes. No frame is left out."""
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 64))
    for i in range(11):
        writer.write(np.full((64, 64, 3), 20 * i, np.uint8))
    writer.release()
    pipeline = Pipeline(VideoSource(path), [Middle()], models, Settings(pace=pace))
    seen = [(time.perf_counter(), result.frame.index) for result in pipeline.results()]
    assert [index for _, index in seen] == list(range(11))
    lasted_s = seen[-1][0] - seen[0][0]
    assert lasted_s > 1.9 if pace else lasted_s < 1.9


def test_a_pause_takes_no_frames_and_goes_on_with_the_next(models: Models) -> None:
    """Nothing is lost in it."""
    pipeline = Pipeline(SampleSource(), [Middle()], models, Settings())
    results = pipeline.results()
    seen = [next(results).frame.index for _ in range(3)]
    pipeline.pause(True)
    threading.Timer(0.5, pipeline.pause, [False]).start()
    began_s = time.perf_counter()
    seen += [next(results).frame.index for _ in range(6)]  # more than lay between the stages
    assert time.perf_counter() - began_s > 0.4
    assert seen == list(range(9))
    results.close()


def test_the_next_detector_is_used_and_after_the_last_the_first(models: Models) -> None:
    """From the next frames on."""
    first, second = Middle("first"), Middle("second")
    pipeline = Pipeline(SampleSource(), [first, second], models, Settings())
    results = pipeline.results()
    next(results)
    assert second.asked == 0
    assert pipeline.next_finder() is second
    for _ in range(4):
        next(results)
    assert second.asked > 0
    assert pipeline.next_finder() is first
    results.close()


def test_an_error_of_a_stage_comes_out_and_the_source_is_closed(models: Models) -> None:
    """In the thread that reads the results."""
    source = SampleSource()
    pipeline = Pipeline(source, [Middle(error=ArithmeticError("broken"))], models, Settings())
    with pytest.raises(ArithmeticError, match="broken"):
        next(pipeline.results())
    assert source.ended
    assert not [thread for thread in pipeline._threads if thread.is_alive()]
