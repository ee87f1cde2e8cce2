"""A backbone of three layers that tests register in place of an EfficientNetV2, so that a training run takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

TINY = "tiny"


def build_tiny(backbone: str, *, classes: int, drop_rate: float = 0.0, weights_file: Path | None = None, **_: Any) -> Any:
    """A convolution, a batch norm, dropout, a classifier: one of everything that has state or randomness."""
    from safetensors.torch import load_file
    from torch import nn

    network = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=4, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Dropout(drop_rate), nn.Linear(32, classes),
    )  # fmt: skip
    if weights_file is not None:
        network.load_state_dict(load_file(weights_file))
    return network


def register_tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """Make the tiny backbone known for one test and return its name."""
    from fer_lab.models import backbones
    from fer_lab.models.family import Family

    family = Family("tiny", (TINY,), 32, build_tiny, lambda backbone: (0.5, 0.25))
    real = backbones._families()
    monkeypatch.setattr(backbones, "_families", lambda: real | {TINY: family})
    return TINY
