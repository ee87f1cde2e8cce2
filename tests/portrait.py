"""A face that detectors find, and the file of the detector that needs one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

FACE = (175, 60, 275, 190)  # x0, y0, x1, y1: where the astronaut's face is, roughly


def astronaut() -> np.ndarray:
    """NASA's public-domain portrait, BGR."""
    data = pytest.importorskip("skimage.data")
    return np.ascontiguousarray(data.astronaut()[:, :, ::-1])


def yunet_file() -> Path:
    """YuNet by FER_LAB_YUNET, or in the shared folder beside the checkout."""
    named = os.environ.get("FER_LAB_YUNET")
    found = (
        [Path(named)] if named else sorted((Path(__file__).parents[2] / "shared" / "models").glob("face_detection_yunet_*.onnx"))
    )
    if not found or not found[0].is_file():
        pytest.skip("FER_LAB_YUNET does not name the YuNet file")
    return found[0]
