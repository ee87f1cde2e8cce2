"""`experiments/average_weights.py`: one network in the middle of several."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from fer_lab.models import backbones
from fer_lab.models.weights import save_weights, write_tensors

SCRIPT = Path(__file__).parents[2] / "experiments" / "average_weights.py"


def average(*paths: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, paths), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_tensor_is_the_mean_and_the_file_loads_whole(tmp_path: Path) -> None:
    """Parameters and running statistics; the counter of batches stays a whole number."""
    networks = []
    for seed in (0, 1, 2):
        torch.manual_seed(seed)
        network = backbones.build("tf_efficientnetv2_b0", classes=8).train()
        network(torch.randn(8, 1, 32, 32))
        save_weights(network, tmp_path / f"{seed}.safetensors")
        networks.append(network.state_dict())
    done = average(*(tmp_path / f"{seed}.safetensors" for seed in (0, 1, 2)), out=tmp_path / "new" / "mean.safetensors")
    assert done.returncode == 0, done.stderr
    mean = load_file(tmp_path / "new" / "mean.safetensors")
    backbones.build("tf_efficientnetv2_b0", classes=8).load_state_dict(mean)
    for name in ("conv_stem.weight", "bn1.running_var", "classifier.bias"):
        torch.testing.assert_close(mean[name], (networks[0][name] + networks[1][name] + networks[2][name]) / 3)
    assert mean["bn1.num_batches_tracked"].dtype == networks[0]["bn1.num_batches_tracked"].dtype


def test_other_architectures_are_refused_by_the_first_tensor_that_differs(tmp_path: Path) -> None:
    """Nothing is written."""
    write_tensors({"a": torch.zeros(2), "b": torch.zeros(3)}, tmp_path / "one.safetensors")
    write_tensors({"a": torch.zeros(2), "b": torch.zeros(4)}, tmp_path / "two.safetensors")
    done = average(tmp_path / "one.safetensors", tmp_path / "two.safetensors", out=tmp_path / "mean.safetensors")
    assert done.returncode != 0
    assert "1 tensors differ, b first" in done.stderr
    assert not (tmp_path / "mean.safetensors").exists()
