"""What every face detector must keep, whichever file it lives in.

One that needs a model file is opened with the file that FER_LAB_<NAME> names (FER_LAB_YUNET, FER_LAB_SSD); what needs the
open detector is left out where none is named.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from portrait import FACE, astronaut, yunet_file

from fer_lab.core.errors import InputError, NotFound
from fer_lab.live.detectors import Detector, Finder, Search, detectors

KINDS = detectors()
NAMED_BY = {"openvino-ssd": "FER_LAB_SSD"}  # where it is not FER_LAB_ and the detector's name


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> Detector:
    return KINDS[request.param]


def opened(kind: Detector, search: Search = Search()) -> Finder:  # noqa: B008  # frozen
    """The detector, ready to look; skips where its model file is not named."""
    if kind.name == "yunet":
        return kind.open(yunet_file(), search)
    variable = NAMED_BY.get(kind.name, f"FER_LAB_{kind.name.upper().replace('-', '_')}")
    path = os.environ.get(variable) if kind.wants_file else None
    if kind.wants_file and not path:
        pytest.skip(f"{variable} does not name the file of {kind.name}")
    return kind.open(Path(path) if path else None, search)


def test_it_is_found_under_its_own_name(kind: Detector) -> None:
    assert KINDS[kind.name] is kind


def test_a_file_that_is_missing_or_broken_is_named(kind: Detector, tmp_path: Path) -> None:
    """As bad input, whatever the library beneath raises."""
    if not kind.wants_file:
        pytest.skip(f"{kind.name} needs no file")
    with pytest.raises(NotFound, match="nowhere"):
        kind.open(tmp_path / "nowhere.onnx", Search())
    for suffix in (".onnx", ".xml"):
        for content in (b"", b"noise" * 5000, b"<!DOCTYPE html>"):
            path = tmp_path / f"broken{suffix}"
            path.write_bytes(content)
            with pytest.raises(InputError, match="broken"):
                kind.open(path, Search())


def test_it_finds_the_face_in_pixels_of_the_frame_and_leaves_the_frame_alone(kind: Detector) -> None:
    """Whatever size it looks at; largest first, scores from 0 to 1."""
    finder, image = opened(kind), astronaut()
    before = image.copy()
    found = finder.find(image)
    np.testing.assert_array_equal(image, before)
    centres = [((f.box_px[0] + f.box_px[2]) / 2, (f.box_px[1] + f.box_px[3]) / 2) for f in found]
    assert any(FACE[0] < x < FACE[2] and FACE[1] < y < FACE[3] for x, y in centres)
    areas = [(f.box_px[2] - f.box_px[0]) * (f.box_px[3] - f.box_px[1]) for f in found]
    assert areas == sorted(areas, reverse=True)
    assert all(0 <= f.score <= 1 for f in found)
    assert len(opened(kind, Search(most=1)).find(image)) == 1


@pytest.mark.parametrize("shape", [(2, 2), (40, 1000), (1000, 3), (1, 1)])
def test_odd_frames_hold_no_face_and_raise_nothing(kind: Detector, shape: tuple[int, int]) -> None:
    """Tiny and thin frames, black and white."""
    finder = opened(kind)
    for gray in (0, 255):
        assert finder.find(np.full((*shape, 3), gray, np.uint8)) == []


def test_its_box_says_how_the_model_s_square_lies(kind: Detector) -> None:
    """Side and centre of the crop, as fractions of the box."""
    finder = opened(kind)
    assert finder.name == kind.name
    assert 0.5 < finder.margin < 2
    assert -0.5 < finder.drop < 0.5
