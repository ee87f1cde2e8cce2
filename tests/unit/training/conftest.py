"""A backbone of three layers, so that a whole training run takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

TINY = "tiny"


def build_tiny(backbone: str, *, classes: int, drop_rate: float = 0.0, drop_path_rate: float = 0.0, **_: Any) -> Any:
    """A convolution, a batch norm, dropout, a classifier: one of everything that has state or randomness."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=4, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Dropout(drop_rate), nn.Linear(32, classes),
    )  # fmt: skip


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a registered tiny backbone."""
    from fer_lab.models import backbones
    from fer_lab.models.family import Family

    family = Family("tiny", (TINY,), 32, build_tiny, lambda backbone: (0.5, 0.25))
    real = backbones._families()
    monkeypatch.setattr(backbones, "_families", lambda: real | {TINY: family})
    return TINY


@pytest.fixture
def few(drawn: Any) -> Any:
    """200 training, 60 validation and 40 test faces of the drawn dataset."""
    import numpy as np

    rows = np.concatenate([drawn.indices("train")[:200], drawn.indices("valid")[:60], drawn.indices("test")[:40]])
    return drawn.take(rows)


@pytest.fixture
def settings(tiny: str) -> Any:
    """Makes a run configuration for the tiny backbone, with overrides."""
    from fer_lab.core.config import load_run_config

    def make(*overrides: str) -> Any:
        base = [
            f"model.backbone={tiny}", "data.dataset=synthetic", "train.epochs=3", "train.image_size=32", "train.batch_size=32",
            "train.device=cpu", "train.threads=1", "train.lr=1e-2", "train.precision=float32",
        ]  # fmt: skip
        return load_run_config(None, [*base, *overrides])

    return make


def digest(path: Path) -> str:
    """sha256 of a file."""
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()
