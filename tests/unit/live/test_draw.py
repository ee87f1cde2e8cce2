"""What is drawn on a frame fits on it."""

from __future__ import annotations

import numpy as np
import pytest

from fer_lab.live import draw


@pytest.mark.parametrize("shape", [(20, 20), (40, 200), (300, 47), (720, 1280)])
def test_the_model_s_input_is_shown_on_a_frame_of_any_size(shape: tuple[int, int]) -> None:
    """As large as the frame allows, wherever the face lies."""
    for x, y in ((0, 0), (shape[1], shape[0])):
        image = np.zeros((*shape, 3), np.uint8)
        draw._inset(image, np.full((48, 48), 200, np.uint8), x, y)
        assert image.shape == (*shape, 3)
        assert (image == 200).any()
