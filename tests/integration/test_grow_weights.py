"""`experiments/grow_weights.py`: a larger network that begins as the smaller one it was made of."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fer_lab.models import backbones
from fer_lab.models.deployable import save_weights

SCRIPT = Path(__file__).parents[2] / "experiments" / "grow_weights.py"


@pytest.fixture
def small(tmp_path: Path) -> torch.nn.Module:
    """A V2B0 with statistics that are not those of a new one, saved as b0.safetensors."""
    torch.manual_seed(1)
    network = backbones.build("tf_efficientnetv2_b0", classes=8)
    network.train()
    network(torch.randn(16, 1, 64, 64))
    save_weights(network, tmp_path / "b0.safetensors")
    return network.eval()


def grow(folder: Path, into: str, *further: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(folder / "b0.safetensors"), "--into", into, "--out", str(folder / "out" / "large")]
    return subprocess.run([*command, *further], capture_output=True, text=True, check=False)


def test_the_deeper_network_gives_the_same_answers_and_learns_with_its_new_blocks(small, tmp_path):
    """The file loads whole into a V2B1 with the B0's logits, and a loss has a slope along every closed gain."""
    assert grow(tmp_path, "tf_efficientnetv2_b1").returncode == 0
    deep = backbones.build("tf_efficientnetv2_b1", classes=8).eval()
    deep.load_state_dict(load_file(tmp_path / "out" / "large"))
    values = torch.randn(4, 1, 64, 64)
    with torch.no_grad():
        expected = small(values)
    answers = deep(values)
    torch.testing.assert_close(answers, expected, atol=1e-4, rtol=1e-4)
    torch.nn.functional.cross_entropy(answers, torch.tensor([0, 1, 2, 3])).backward()
    closed = [m for m in deep.modules() if isinstance(m, torch.nn.BatchNorm2d) and not m.weight.any()]
    assert len(closed) == sum(map(len, deep.blocks)) - sum(map(len, small.blocks)) == 6
    assert all(norm.weight.grad.abs().max() > 0 for norm in closed)


def test_the_wider_network_gives_the_same_answers_and_learns_to_hear_its_new_channels(small, tmp_path):
    """B3 is wider from the stem to the classifier: the B0's logits, and a slope along the weights that hear the new channels."""
    done = grow(tmp_path, "tf_efficientnetv2_b3")
    assert done.returncode == 0, done.stderr
    assert "model.mean=0.449 model.std=0.226" in done.stdout  # what the B0's input was scaled with
    wide = backbones.build("tf_efficientnetv2_b3", classes=8).eval()
    wide.load_state_dict(load_file(tmp_path / "out" / "large"))
    values = torch.randn(4, 1, 64, 64)
    with torch.no_grad():
        expected = small(values)
    answers = wide(values)
    torch.testing.assert_close(answers, expected, atol=1e-4, rtol=1e-4)
    torch.nn.functional.cross_entropy(answers, torch.tensor([0, 1, 2, 3])).backward()
    before = small.classifier.in_features
    unheard = wide.classifier.weight[:, before:]
    assert unheard.numel() > 0
    assert not unheard.any()
    assert wide.classifier.weight.grad[:, before:].abs().max() > 0


@pytest.mark.usefixtures("small")
def test_a_front_that_is_narrower_learns_the_smaller_one_on_the_training_faces(drawn: Any, home: Path):
    """The stem of S has fewer channels than that of B0: what follows gives the same answers, the front comes near."""
    drawn.save(home / "data" / "synthetic")
    done = grow(home, "tf_efficientnetv2_s", "--dataset", "synthetic", "--image-size", "16", "--rounds", "40")
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"behind the first stage (\S+)", done.stdout)[1]) < 1e-4
    missed = [float(share) for share in re.findall(r"(\S+) of the variance missed", done.stdout)]
    assert missed[-1] < 0.7 * missed[0]  # of the front as timm drew it
    backbones.build("tf_efficientnetv2_s", classes=8).load_state_dict(load_file(home / "out" / "large"))


@pytest.mark.usefixtures("small")
def test_a_network_with_other_stages_is_refused(tmp_path):
    """M has a seventh stage: nothing is written, and the message says what differs."""
    done = grow(tmp_path, "tf_efficientnetv2_m")
    assert done.returncode == 1
    assert "same stages, got 6 and 7" in done.stderr
    assert not (tmp_path / "out").exists()
