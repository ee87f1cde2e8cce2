"""Per-face random changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fer_lab.core.config import AugmentConfig
from fer_lab.models.deployable import enlarge
from fer_lab.training.augment import COLUMNS, Mix, augment, draw_epoch, mix

OFF = AugmentConfig(rotation_deg=0, shift=0, zoom=0, shear=0, flip=0, brightness=0, contrast=0, erasing=0)
FACES = torch.randint(0, 256, (64, 1, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def numbers(**columns: float) -> torch.Tensor:
    """Uniform numbers of 64 faces: the middle of every range, except the named columns."""
    values = torch.full((64, len(COLUMNS)), 0.5)
    for name, value in columns.items():
        values[:, COLUMNS.index(name)] = value
    return values


def off(**changes: float) -> AugmentConfig:
    """Nothing but the named changes."""
    return OFF.model_copy(update=changes)


@pytest.mark.parametrize("size", [48, 64, 96])
def test_with_everything_off_it_is_the_deployed_enlargement(size: int) -> None:
    """Training faces and shipped faces go through the same arithmetic."""
    draws = torch.from_numpy(draw_epoch(0, 0, 64, 1, OFF).uniforms)
    torch.testing.assert_close(augment(FACES, draws, size, OFF), enlarge(FACES, size), atol=2e-3, rtol=0)


def test_a_flip_mirrors_and_a_shift_moves() -> None:
    """A shift by a quarter of the side moves the content by twelve pixels to the left; reflection fills."""
    flipped = augment(FACES, numbers(flip=0.0), 48, off(flip=1.0))
    torch.testing.assert_close(flipped, FACES.float().flip(-1), atol=2e-3, rtol=0)
    moved = augment(FACES, numbers(shift_x=1.0), 48, off(shift=0.25))
    torch.testing.assert_close(moved[..., :36], FACES.float()[..., 12:], atol=2e-3, rtol=0)
    torch.testing.assert_close(moved[..., 36:], FACES.float()[..., 36:].flip(-1), atol=2e-3, rtol=0)


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    """90° through the same matrix."""
    turned = augment(FACES, numbers(rotation=1.0), 48, off(rotation_deg=90.0))
    torch.testing.assert_close(turned, torch.rot90(FACES.float(), 1, (2, 3)), atol=2e-2, rtol=0)


def test_each_face_gets_its_own_draw() -> None:
    """torchvision's batch transforms flip all faces or none (pytorch/vision#8484)."""
    draws = torch.from_numpy(draw_epoch(0, 0, 64, 1, AugmentConfig()).uniforms)
    flipped = augment(FACES, draws, 48, off(flip=0.5))
    same = sum(torch.allclose(a, b, atol=1e-2) for a, b in zip(flipped, FACES.float(), strict=True))
    assert 16 < same < 48


def test_light_changes_stay_within_gray_values() -> None:
    """Contrast turns about the face's mean; brightness moves it."""
    brighter = augment(FACES, numbers(brightness=1.0), 48, off(brightness=0.2))
    torch.testing.assert_close(brighter, (FACES.float() + 51).clamp(0, 255), atol=1e-2, rtol=0)
    flat = augment(FACES, numbers(contrast=0.0), 48, off(contrast=0.5))
    mean = FACES.float().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(flat, mean + (FACES.float() - mean) / 2, atol=2e-2, rtol=0)


def test_erasing_paints_one_rectangle_of_the_drawn_area() -> None:
    """Only on the drawn share of the faces."""
    values = numbers(erase_value=1.0)
    values[:32, COLUMNS.index("erase")] = 0.1
    values[32:, COLUMNS.index("erase")] = 0.9
    painted = augment(torch.zeros_like(FACES), values, 96, off(erasing=0.5))
    share = (painted == 255).float().mean(dim=(1, 2, 3))
    assert (share[32:] == 0).all()
    torch.testing.assert_close(share[:32], torch.full((32,), (0.02 + 1 / 3) / 2), atol=0.01, rtol=0)


def test_mixing_keeps_targets_a_distribution_in_the_proportion_of_the_picture() -> None:
    """timm's Mixup returns (512, 8) targets for soft (64, 8) ones."""
    values = torch.zeros(4, 1, 10, 10)
    values[2:] = 1.0  # the partner of face 0 is face 3
    targets = torch.eye(4)
    mixed, wanted = mix(values, targets, Mix("mixup", 0.7, 0.5, 0.5))
    assert mixed[0].mean() == pytest.approx(0.3)
    assert wanted[0].tolist() == pytest.approx([0.7, 0, 0, 0.3])
    pasted, wanted = mix(values, targets, Mix("cutmix", 0.75, 0.0, 0.5))
    assert wanted[0, 3] == pytest.approx(float(pasted[0].mean()))  # half of the rectangle lay outside
    assert wanted.sum(dim=1).tolist() == pytest.approx([1.0] * 4)
    assert mix(values, targets, Mix("none", 1.0, 0.5, 0.5))[0] is values


def test_an_epochs_numbers_depend_on_seed_and_epoch_alone() -> None:
    """What was drawn before does not matter; so a replayed epoch is the same epoch."""
    config = AugmentConfig(mixup=0.2, cutmix=1.0)
    first, again = draw_epoch(3, 5, 50, 4, config), draw_epoch(3, 5, 50, 4, config)
    np.testing.assert_array_equal(first.order, again.order)
    np.testing.assert_array_equal(first.uniforms, again.uniforms)
    assert [(m.kind, m.share) for m in first.mixes] == [(m.kind, m.share) for m in again.mixes]
    assert sorted(first.order.tolist()) == list(range(50))
    assert not np.array_equal(first.order, draw_epoch(3, 6, 50, 4, config).order)
    assert not np.array_equal(first.order, draw_epoch(4, 5, 50, 4, config).order)
