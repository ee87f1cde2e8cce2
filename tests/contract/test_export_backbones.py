"""Every backbone that `train` accepts exports, and its ONNX and OpenVINO files answer as torch does.

Each is trained briefly, so that its answers differ from face to face; the reference is the network itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fer_lab.backends.bundle import open_bundle
from fer_lab.convert import record
from fer_lab.convert.export import export_bundle
from fer_lab.core.config import load_run_config
from fer_lab.models import backbones
from fer_lab.training.bundle import write_run_bundle
from fer_lab.training.fit import fit

QUICK = "tf_efficientnetv2_b0"  # exported in the quick set by tests/integration/test_export.py
CASES = [name for name in backbones.known() if name != QUICK]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("backbone", CASES)
def test_it_exports_and_passes_parity(backbone: str, drawn: Any, tmp_path: Path) -> None:
    """ONNX and the FP32 IR: at most one flip, no probability off by more than 1e-4, labels independent of the batch."""
    config = load_run_config(
        None,
        [
            f"model.backbone={backbone}", "data.dataset=synthetic", "data.subset=128", "train.epochs=1", "train.image_size=32",
            "train.batch_size=16", "train.device=cpu", "train.lr=1e-3", "train.ema_decay=null", "train.warmup_epochs=0",
        ],
    )  # fmt: skip
    run = write_run_bundle(fit(config, drawn, tmp_path / "fit"), config, drawn, tmp_path / "bundle")
    result = export_bundle(open_bundle(run.folder), drawn, ("onnx", "openvino"), tmp_path / "out")
    assert result.refused == {}
    rows = record.read(open_bundle(result.folder))["runtimes"]
    for runtime in ("onnx", "openvino"):
        assert len(rows[runtime]["flips"]) <= 1
        assert rows[runtime]["max_dp"] <= 1e-4
        assert rows[runtime]["batch_invariant"] is True
