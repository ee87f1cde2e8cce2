"""What one backbone family tells the rest: the record behind the constant `BACKBONE`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Build(Protocol):
    """Builds one backbone of a family."""

    def __call__(
        self,
        backbone: str,
        *,
        classes: int,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        pretrained: bool = False,
        weights_file: Path | None = None,
    ) -> torch.nn.Module:
        """Return a network from float32 [N, 1, S, S] to logits [N, classes]."""


class Statistics(Protocol):
    """Tells how a backbone wants its input normalised."""

    def __call__(self, backbone: str) -> tuple[float, float]:
        """Return (mean, std) of gray values in 0–1."""


@dataclass(frozen=True)
class Family:
    """One file of this package: a family of backbones."""

    name: str
    names: tuple[str, ...]  # of its backbones
    stride_px: int  # the smallest side in pixels that leaves one cell in the last feature map
    build: Build
    statistics: Statistics
