"""Every backbone that a family file names keeps the same promises; a new one is tested without a new test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fer_lab.core.errors import InputError
from fer_lab.models import backbones
from fer_lab.models.weights import save_weights
from fer_lab.training.recipe import start_classifier

QUICK = "tf_efficientnetv2_b0"
CASES = [pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in backbones.known()]
SIZE = 32


@pytest.fixture(scope="module", params=CASES)
def network(request: pytest.FixtureRequest) -> tuple[str, torch.nn.Module]:
    """A small batch's worth of one backbone, 8 classes, in eval mode."""
    torch.manual_seed(0)
    return request.param, backbones.build(request.param, classes=8, drop_rate=0.2, drop_path_rate=0.1).eval()


def test_it_turns_one_channel_into_one_logit_per_class(network: tuple[str, torch.nn.Module]) -> None:
    """float32 [N, 1, S, S] in, finite float32 [N, K] out."""
    logits = network[1](torch.randn(3, 1, SIZE, SIZE))
    assert logits.shape == (3, 8)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


def test_a_face_is_judged_alone(network: tuple[str, torch.nn.Module]) -> None:
    """The other faces of a batch change nothing (PAtt-Lite's published result fails here)."""
    faces = torch.randn(3, 1, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(network[1](faces)[:1], network[1](faces[:1]), rtol=1e-3, atol=1e-4)


def test_it_learns_through_every_parameter(network: tuple[str, torch.nn.Module]) -> None:
    """A backward pass reaches every parameter."""
    _, module = network
    module(torch.randn(2, 1, SIZE, SIZE)).square().sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []
    module.zero_grad()


def test_its_weights_survive_a_file(network: tuple[str, torch.nn.Module], tmp_path: Path) -> None:
    """What is saved loads strictly into a fresh network of the same name."""
    name, module = network
    save_weights(module, tmp_path / "weights.safetensors")
    fresh = backbones.build(name, classes=8)
    fresh.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), module.state_dict().values(), strict=True))


def test_a_file_of_as_many_classes_gives_the_same_answers(network: tuple[str, torch.nn.Module], tmp_path: Path) -> None:
    """Classifier and all: whoever decides whether a new one is drawn and whoever loads it agree."""
    name, module = network
    save_weights(module, tmp_path / "weights.safetensors")
    again = backbones.build(name, classes=8, weights_file=tmp_path / "weights.safetensors").eval()
    start_classifier(again, 0.01, tmp_path / "weights.safetensors")
    faces = torch.randn(2, 1, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(again(faces), module(faces))


def test_it_says_how_to_normalise_and_how_small_is_too_small(network: tuple[str, torch.nn.Module]) -> None:
    """Statistics are of gray values in 0–1; a face below the stride is refused."""
    mean, std = backbones.statistics(network[0])
    assert 0 < mean < 1
    assert 0 < std < 1
    with pytest.raises(InputError, match="at least 32 px"):
        backbones.check(network[0], 31)
