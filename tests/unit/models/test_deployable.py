"""The graph from uint8 faces to probabilities."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fer_lab.core.errors import IntegrityError
from fer_lab.models.deployable import Deployable, enlarge, normalise, restored
from fer_lab.models.weights import write_tensors

FACES = torch.randint(0, 256, (5, 1, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Probe(nn.Module):
    """A backbone that remembers its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits from two means."""
        self.seen = x
        return torch.stack([x.mean(dim=(1, 2, 3)), x[:, 0, 0, 0]], dim=1)


CARD = SimpleNamespace(backbone="tf_efficientnetv2_b0", labels=("a", "b"), image_size=64, mean=0.4, std=0.2, temperature=1.5)


def test_uint8_faces_become_probabilities() -> None:
    """Enlarged, normalised, divided by the temperature, softmaxed."""
    probe = Probe()
    probs = Deployable(probe, 64, 0.4, 0.2, temperature=2.0)(FACES)
    wanted = (F.interpolate(FACES.float(), size=(64, 64), mode="bilinear", align_corners=False) / 255 - 0.4) / 0.2
    torch.testing.assert_close(probe.seen, wanted)
    torch.testing.assert_close(probs, torch.softmax(probe(wanted) / 2.0, dim=1))
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(5))


def test_enlarging_to_the_same_size_changes_nothing() -> None:
    """48 → 48 is the face itself."""
    torch.testing.assert_close(enlarge(FACES, 48), FACES.float())
    torch.testing.assert_close(normalise(torch.tensor([0.0, 255.0]), 0.5, 0.25), torch.tensor([-2.0, 2.0]))


def test_weights_that_do_not_fit_the_card_are_an_integrity_error(tmp_path: Path) -> None:
    """A truncated file and another network's tensors."""
    write_tensors({"x": torch.zeros(2)}, tmp_path / "weights.safetensors")
    for raw in (b"\x10\x00", (tmp_path / "weights.safetensors").read_bytes()):
        with pytest.raises(IntegrityError, match=r"weights\.safetensors does not fit"):
            restored(CARD, raw, "weights.safetensors")
