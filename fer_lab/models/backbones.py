"""All backbones by name, whatever family file they live in.

>>> known()[0]
'efficientnetv2_rw_s'
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fer_lab.core.errors import InputError, nearest
from fer_lab.core.plugins import discover
from fer_lab.models.family import Family

if TYPE_CHECKING:
    import torch


def known() -> list[str]:
    """Return the names of all backbones, sorted."""
    return sorted(_families())


def build(
    backbone: str,
    *,
    classes: int,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
    weights_file: Path | None = None,
) -> torch.nn.Module:
    """Return an untrained or pretrained network: float32 [N, 1, S, S] (normalised) → logits float32 [N, classes].

    drop_rate: dropout before the classifier. drop_path_rate: stochastic depth of the last block (Huang et al., ECCV
    2016), rising linearly from the first. weights_file: a local file (safetensors, or a pickle-free .pth) in place of
    the hub; the classifier in a safetensors file stays when it is one of as many classes. Raises InputError for an
    unknown name or weights that do not fit, NotFound for a missing file.
    """
    return _family(backbone).build(
        backbone,
        classes=classes,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        pretrained=pretrained,
        weights_file=weights_file,
    )


def statistics(backbone: str) -> tuple[float, float]:
    """Return (mean, std) of gray values in 0–1 with which the backbone wants its input normalised."""
    return _family(backbone).statistics(backbone)


def check(backbone: str, image_size: int) -> None:
    """Raise InputError when the backbone is unknown (with close names) or `image_size` (pixels) is too small for it."""
    family = _family(backbone)
    if image_size < family.stride_px:
        raise InputError(
            f"{backbone} needs faces of at least {family.stride_px} px (its last feature map has one cell per "
            f"{family.stride_px} px), got {image_size}. Raise train.image_size or the size of the stage"
        )


def _families() -> dict[str, Family]:
    families: dict[str, Family] = discover("fer_lab.models", "BACKBONE")
    return {name: family for family in families.values() for name in family.names}


def _family(backbone: str) -> Family:
    families = _families()
    if backbone not in families:
        near = nearest(backbone, families) or f"; known: {', '.join(sorted(families))}"
        raise InputError(f"unknown backbone {backbone!r}{near}")
    return families[backbone]
