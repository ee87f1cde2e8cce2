"""The bytes that the model sees."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fer_lab.core.errors import InputError
from fer_lab.live.crop import crops, square
from fer_lab.live.frames import Found


def gradient(height: int = 200, width: int = 300) -> np.ndarray:
    """A frame whose gray level tells the column."""
    return np.repeat(np.linspace(0, 255, width).astype(np.uint8)[None, :, None], height, 0).repeat(3, 2)


def test_a_box_inside_the_frame_is_cut_square_and_area_averaged() -> None:
    """The crop equals OpenCV's area resize of the same square."""
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    expected = cv2.resize(cv2.cvtColor(image[40:136, 100:196], cv2.COLOR_BGR2GRAY), (48, 48), interpolation=cv2.INTER_AREA)
    actual = crops(image, [square(Found((100, 40, 196, 136), 1.0), margin=1.0)])
    assert actual.shape == (1, 1, 48, 48)
    assert actual.dtype == np.uint8
    np.testing.assert_array_equal(expected, actual[0, 0])


def test_a_tall_box_becomes_a_square_around_its_centre() -> None:
    """Faces are never stretched."""
    assert square(Found((10, 10, 50, 90), 1.0), margin=1.5) == (30, 50, 90, 0)


@pytest.mark.parametrize(
    "box", [(-40, -40, 40, 40), (260, 160, 340, 240), (-500, 50, -400, 150), (1000, 1000, 1100, 1100), (0, 0, 0.2, 0.2)]
)
def test_a_face_at_or_beyond_the_border_repeats_the_border(box: tuple[float, ...]) -> None:
    """No crash, no black corner."""
    image = np.full((200, 300, 3), 90, np.uint8)
    assert np.unique(crops(image, [square(Found(box, 1.0), margin=1.2)])).tolist() == [90]  # type: ignore[arg-type]


def test_alignment_levels_the_eyes() -> None:
    """A turned face gives the crop of the upright one."""
    upright = np.zeros((300, 300, 3), np.uint8)
    cv2.rectangle(upright, (100, 120), (200, 140), (255, 255, 255), -1)  # a bar across both eyes
    turned = cv2.warpAffine(upright, cv2.getRotationMatrix2D((150, 150), -25, 1), (300, 300))
    matrix = cv2.getRotationMatrix2D((150, 150), -25, 1)
    eyes = [tuple(matrix @ np.array([x, 130, 1.0])) for x in (110, 190)]
    box = (75.0, 75.0, 225.0, 225.0)
    expected = crops(upright, [square(Found(box, 1.0), margin=1.0)])[0, 0].astype(int)
    actual = crops(turned, [square(Found(box, 1.0, (eyes[0], eyes[1])), margin=1.0, align=True)])[0, 0].astype(int)
    assert np.abs(expected - actual).mean() < 6
    assert square(Found(box, 1.0, (eyes[0], eyes[1])), margin=1.0, align=True)[3] == pytest.approx(25, abs=0.1)


def test_no_faces_give_an_empty_batch_of_the_cards_size() -> None:
    """The model is asked with an empty batch."""
    assert crops(gradient(), [], 64, 64).shape == (0, 1, 64, 64)


def test_a_box_that_is_no_number_is_told() -> None:
    """NaN from a broken detector does not become a crop."""
    with pytest.raises(InputError, match="no number"):
        crops(gradient(), [(float("nan"), 1, 2, 0)])
