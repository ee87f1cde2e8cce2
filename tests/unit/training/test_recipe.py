"""Optimiser, schedule, loss, precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fer_lab.core.config import TrainConfig
from fer_lab.core.errors import InputError
from fer_lab.training import recipe


def test_keras_rmsprop_follows_its_formula() -> None:
    """v ← 0.9 v + 0.1 g²; w ← w − lr · g / √(v + 1e-7), from v = 0 (Keras 3's source), against float64 numpy."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3e-4]))
    optimizer = recipe.KerasRMSprop([weight], lr=0.01)
    wanted, velocity = np.array([1.0, -2.0, 3e-4]), np.zeros(3)
    for step in range(5):
        gradient = np.array([0.5, -1e-4 * (step + 1), 1e-5])
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
        velocity = 0.9 * velocity + 0.1 * gradient**2
        wanted = wanted - 0.01 * gradient / np.sqrt(velocity + 1e-7)
    np.testing.assert_allclose(weight.detach().numpy(), wanted, rtol=1e-5)


def test_keras_rmsprop_with_momentum_follows_its_formula() -> None:
    """m ← μ m + lr · g / √(v + ε); w ← w − m."""
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = recipe.KerasRMSprop([weight], lr=0.1, momentum=0.5)
    wanted, velocity, moving = 1.0, 0.0, 0.0
    for _ in range(3):
        weight.grad = torch.tensor([0.5])
        optimizer.step()
        velocity = 0.9 * velocity + 0.1 * 0.25
        moving = 0.5 * moving + 0.1 * 0.5 / math.sqrt(velocity + 1e-7)
        wanted -= moving
    assert weight.item() == pytest.approx(wanted, rel=1e-5)


def rates(config: TrainConfig, steps_per_epoch: int) -> list[float]:
    """The learning rate of every step of a run."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    schedule = recipe.Schedule(config, optimizer, steps_per_epoch)
    seen = []
    for step in range(config.epochs * steps_per_epoch):
        seen.append(optimizer.param_groups[0]["lr"])
        schedule.step(step + 1)
    return seen


def test_a_cosine_warms_up_and_falls_to_its_floor() -> None:
    """Linear from a hundredth, a peak after the warm-up, half-way down in the middle of the rest."""
    seen = rates(TrainConfig(epochs=12, warmup_epochs=2, lr=0.1, min_lr=0.0), 10)
    assert seen[0] == pytest.approx(0.001)
    assert seen[10] == pytest.approx(0.001 + 0.099 / 2)
    assert max(seen) == pytest.approx(0.1) == seen[20]
    assert seen[70] == pytest.approx(0.05)
    assert seen[-1] < 1e-4


def test_a_constant_rate_is_constant_after_its_warm_up() -> None:
    """And the warm-up never exceeds a quarter of a short run."""
    seen = rates(TrainConfig(epochs=4, warmup_epochs=2, lr=0.1, schedule="constant"), 10)
    assert seen[:10] == sorted(seen[:10])
    assert seen[10:] == pytest.approx([0.1] * 30)


def test_a_plateau_falls_after_patience_epochs_as_keras_does() -> None:
    """Improvements below 1e-4 do not count; after the fall the count starts anew."""
    config = TrainConfig(epochs=20, lr=1.0, schedule="plateau", plateau_patience=3, warmup_epochs=0, min_lr=0.0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = recipe.Schedule(config, optimizer, 1)
    seen = []
    for epoch, nll in enumerate([2.0, 1.0, 0.99995, 1.0, 1.0, 1.0, 1.0, 1.0]):
        schedule.epoch_end(epoch + 1, nll)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01])


def test_a_plateau_begins_after_the_warm_up_and_ends_at_its_floor() -> None:
    """By its own factor; what the epochs of the warm-up reached is not counted."""
    config = TrainConfig(epochs=20, lr=1.0, schedule="plateau", plateau_patience=1, plateau_factor=0.5, warmup_epochs=2, min_lr=0.3)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = recipe.Schedule(config, optimizer, 1)
    seen = []
    for epoch in range(1, 7):
        schedule.step(epoch)
        schedule.epoch_end(epoch, 2.0)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([2 / 3, 1, 1, 0.5, 0.3, 0.3])


def test_the_loss_is_torchs_soft_cross_entropy() -> None:
    """With class weights and smoothing, against F.cross_entropy on distributions."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator)
    targets = torch.softmax(torch.randn(6, 4, generator=generator), dim=1)
    weights = torch.tensor([0.5, 1.0, 2.0, 1.0])
    wanted = F.cross_entropy(logits, targets, weight=weights, label_smoothing=0.1)
    torch.testing.assert_close(recipe.soft_cross_entropy(logits, targets, weights, 0.1), wanted)


def test_every_metric_has_a_direction() -> None:
    """Lower is better for losses, higher for rates."""
    assert recipe.is_better("val/nll", 0.5, 0.6)
    assert recipe.is_better("val/accuracy", 0.6, 0.5)
    assert not recipe.is_better("val/accuracy", 0.5, 0.5)
    assert recipe.is_better("val/accuracy", 0.0, None)


def test_weight_decay_spares_biases_and_norms() -> None:
    """As timm groups them."""
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = recipe.make_optimizer(TrainConfig(weight_decay=0.1), network)
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] > 0 for p in group["params"]]
    assert len(decayed) == 1
    assert decayed[0] is network[0].weight


def test_bf16_is_refused_where_it_would_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto falls back to float32, an explicit wish is an error."""
    monkeypatch.setattr(recipe, "_computes_bf16", lambda device: False)
    cpu = torch.device("cpu")
    assert recipe.pick_precision("auto", cpu) is None
    with pytest.raises(InputError, match="bf16 natively"):
        recipe.pick_precision("bf16", cpu)
    monkeypatch.setattr(recipe, "_computes_bf16", lambda device: True)
    assert recipe.pick_precision("auto", cpu) is None
    assert recipe.pick_precision("auto", torch.device("cuda")) is torch.bfloat16
    assert recipe.pick_precision("bf16", cpu) is torch.bfloat16
    assert recipe.pick_precision("float32", cpu) is None
