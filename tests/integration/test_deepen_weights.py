"""`experiments/deepen_weights.py`: a B1 that begins as the B0 it was made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fer_lab.models import backbones
from fer_lab.models.deployable import save_weights

SCRIPT = Path(__file__).parents[2] / "experiments" / "deepen_weights.py"


@pytest.fixture
def shallow(tmp_path: Path) -> torch.nn.Module:
    """A V2B0 with statistics that are not those of a new one, saved as b0.safetensors."""
    torch.manual_seed(1)
    network = backbones.build("tf_efficientnetv2_b0", classes=8)
    network.train()
    network(torch.randn(16, 1, 64, 64))
    save_weights(network, tmp_path / "b0.safetensors")
    return network.eval()


def deepen(folder: Path, into: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(folder / "b0.safetensors"), "--into", into, "--out", str(folder / "out" / "deep")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_deeper_network_gives_the_same_answers_and_learns_with_its_new_blocks(shallow, tmp_path):
    """The file loads whole into a V2B1 with the B0's logits, and a loss has a slope along every closed gain."""
    assert deepen(tmp_path, "tf_efficientnetv2_b1").returncode == 0
    deep = backbones.build("tf_efficientnetv2_b1", classes=8).eval()
    deep.load_state_dict(load_file(tmp_path / "out" / "deep"))
    values = torch.randn(4, 1, 64, 64)
    with torch.no_grad():
        expected = shallow(values)
    answers = deep(values)
    torch.testing.assert_close(answers, expected, atol=1e-4, rtol=1e-4)
    torch.nn.functional.cross_entropy(answers, torch.tensor([0, 1, 2, 3])).backward()
    closed = [m for m in deep.modules() if isinstance(m, torch.nn.BatchNorm2d) and not m.weight.any()]
    assert len(closed) == sum(map(len, deep.blocks)) - sum(map(len, shallow.blocks)) == 6
    assert all(norm.weight.grad.abs().max() > 0 for norm in closed)


@pytest.mark.usefixtures("shallow")
def test_a_network_of_other_widths_is_refused(tmp_path):
    """B3 is wider: nothing is written, and the message says what differs."""
    done = deepen(tmp_path, "tf_efficientnetv2_b3")
    assert done.returncode == 1
    assert "other widths" in done.stderr
    assert not (tmp_path / "out").exists()
