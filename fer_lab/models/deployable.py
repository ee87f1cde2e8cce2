"""The one graph that is trained against, evaluated, exported and shipped.

    uint8 faces [N, 1, 48, 48] → enlarge → normalise → backbone → ÷ temperature → softmax → float32 [N, K]

Preprocessing is a part of the graph, so that no runtime and no demo can do it differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F  # torch's own convention
from torch import Tensor, nn

from fer_lab.core.errors import IntegrityError
from fer_lab.models import backbones
from fer_lab.models.weights import save_weights

__all__ = ["Deployable", "enlarge", "normalise", "restored", "save_weights"]


class GraphRecord(Protocol):
    """The part of a card that fixes the graph."""

    @property
    def backbone(self) -> str:
        """The backbone's name."""

    @property
    def labels(self) -> Sequence[str]:
        """The labels in output order."""

    @property
    def image_size(self) -> int:
        """The side in pixels to which a face is enlarged."""

    @property
    def mean(self) -> float:
        """Of gray values in 0–1."""

    @property
    def std(self) -> float:
        """Of gray values in 0–1."""

    @property
    def temperature(self) -> float:
        """What logits are divided by."""


def enlarge(faces: Tensor, image_size: int) -> Tensor:
    """Return faces of gray values 0–255, [N, 1, H, W], as float32 [N, 1, image_size, image_size] (bilinear)."""
    values = faces.to(torch.float32)
    return F.interpolate(values, size=(image_size, image_size), mode="bilinear", align_corners=False)


def normalise(values: Tensor, mean: float, std: float) -> Tensor:
    """Return (values / 255 − mean) / std for gray values 0–255; mean and std are of gray values in 0–1."""
    return (values / 255 - mean) / std


class Deployable(nn.Module):
    """Preprocessing, backbone, calibration and softmax as one graph.

    image_size: side in pixels to which a face is enlarged. mean, std: of gray values in 0–1. temperature: logits are
    divided by it (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
    """

    def __init__(self, backbone: nn.Module, image_size: int, mean: float, std: float, temperature: float = 1.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.temperature = temperature

    def logits(self, faces: Tensor) -> Tensor:
        """uint8 [N, 1, 48, 48] → float32 [N, K], before temperature and softmax."""
        logits: Tensor = self.backbone(normalise(enlarge(faces, self.image_size), self.mean, self.std))
        return logits

    def forward(self, faces: Tensor) -> Tensor:
        """uint8 [N, 1, 48, 48] → probabilities float32 [N, K]."""
        return torch.softmax(self.logits(faces) / self.temperature, dim=1)


def restored(card: GraphRecord, weights: bytes, where: str) -> Deployable:
    """Return the graph of a card (`backends.bundle.Card`, one layer above, fits) in eval mode on the CPU.

    weights: the bytes of a safetensors file, verified by the caller; where: its name for errors. Raises IntegrityError when
    they do not fit the backbone that the card names.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    backbone = backbones.build(card.backbone, classes=len(card.labels))
    try:
        backbone.load_state_dict(load(weights))
    except (SafetensorError, RuntimeError) as error:
        raise IntegrityError(f"{where} does not fit {card.backbone} with {len(card.labels)} labels: {str(error)[:200]}") from None
    return Deployable(backbone, card.image_size, card.mean, card.std, card.temperature).eval()
