"""A tiny backbone, a few faces, and configurations for both."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_backbone import register_tiny


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a registered tiny backbone."""
    return register_tiny(monkeypatch)


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
