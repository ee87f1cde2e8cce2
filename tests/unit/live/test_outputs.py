"""What goes to files: the banner on each picture, snapshots that keep each other, a film that is not whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from live_bundle import write

from fer_lab.backends.session import Predictor
from fer_lab.core.errors import FerLabError
from fer_lab.live.models import Models, Named
from fer_lab.live.outputs import Outputs
from fer_lab.live.pipeline import KNOWN, Pipeline, Settings
from fer_lab.live.sample import SampleSource


def outputs(folder: Path, **options: object) -> Outputs:
    """Of the sample, with a model for faces and one of drawings beside it."""
    real, drawn = (
        Named(name, None, Predictor.open(write(folder / name, label_source=source), "openvino"))
        for name, source in (("real", "ferplus-2016"), ("drawn", "synthetic"))
    )
    pipeline = Pipeline(SampleSource(), [KNOWN], Models(real, drawn), Settings(known_boxes=True))
    return Outputs(pipeline, folder=folder, **options)  # type: ignore[arg-type]


def test_a_picture_wears_the_banner_while_a_model_of_drawings_is_in_front(tmp_path: Path) -> None:
    """Also one that was turned or promoted to the front, and no longer than that."""
    out = outputs(tmp_path)
    results = out.pipeline.results()
    result = next(results)
    results.close()
    plain = out.picture(result)
    out.pipeline.models.turn()
    assert (out.picture(result) != plain).any()
    out.pipeline.models.turn()
    assert (out.picture(result) == plain).all()


def test_two_snapshots_within_a_second_are_two_files(tmp_path: Path) -> None:
    """And the summary names both."""
    out = outputs(tmp_path)
    results = out.pipeline.results()
    taken = [out.snapshot(next(results)) for _ in range(3)]
    results.close()
    assert sorted(tmp_path.glob("fer-*.png")) == sorted(taken)
    assert out.result()["snapshots"] == [str(path) for path in taken]


def test_a_film_that_is_not_whole_still_gives_the_summary(tmp_path: Path) -> None:
    """It was cut short on the disk: the error says so and carries what was seen."""
    out = outputs(tmp_path, video_path=tmp_path / "a.avi")
    results = out.pipeline.results()
    for _ in range(3):
        out.take(next(results))
    results.close()
    assert out._video is not None
    out._video.frames += 5  # as if OpenCV had written them into nothing
    with pytest.raises(FerLabError, match="holds 3 of 8 frames") as caught:
        out.close()
    assert caught.value.result is not None
    assert (caught.value.result["frames"], caught.value.result["video"]) == (3, str(tmp_path / "a.avi"))
