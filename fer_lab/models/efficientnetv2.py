"""EfficientNetV2 (Tan & Le, "EfficientNetV2: Smaller Models and Faster Training", ICML 2021), as built by timm.

The `tf_` variants carry the original's "same" padding; `efficientnetv2_rw_*` are timm's own. Both are trained from
scratch here, or start from timm's ImageNet weights, whose first convolution is folded to one channel.
"""

from __future__ import annotations

from pathlib import Path

import torch

from fer_lab.core.errors import InputError, NotFound
from fer_lab.models.family import Family
from fer_lab.models.weights import shape_in


def build(
    backbone: str,
    *,
    classes: int,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
    weights_file: Path | None = None,
) -> torch.nn.Module:
    """Return the network: float32 [N, 1, S, S], normalised → logits [N, classes]. See `models.backbones.build`."""
    import timm

    options = {"num_classes": classes, "in_chans": 1, "drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    if weights_file is not None:
        if not weights_file.is_file():
            raise NotFound(f"model.weights_file: no such file {weights_file}")
        overlay: dict[str, object] = {"file": str(weights_file)}
        if (shape := shape_in(weights_file, "classifier.weight")) is not None and shape[0] == classes:
            overlay["num_classes"] = classes  # timm takes a file for ImageNet's: it would leave the classifier out,
        if (shape := shape_in(weights_file, "conv_stem.weight")) is not None and shape[1] == 1:
            overlay["input_size"] = (1, 224, 224)  # and warn that the file has one channel instead of three
        try:
            network = timm.create_model(backbone, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        except Exception as error:  # timm raises whatever its reader meets: pickle, zip, safetensors, shape errors
            raise InputError(f"model.weights_file {weights_file} does not fit {backbone}: {_first_line(error)}") from None
    elif pretrained:
        try:
            network = timm.create_model(backbone, pretrained=True, **options)
        except Exception as error:  # the hub client's errors have no common base
            raise InputError(
                f"model.pretrained: the hub gave no weights of {backbone} ({_first_line(error)}). "
                "Give a local file with model.weights_file=PATH, or train from scratch with model.pretrained=false"
            ) from None
    else:
        network = timm.create_model(backbone, **options)
    assert isinstance(network, torch.nn.Module)
    return network


def statistics(backbone: str) -> tuple[float, float]:
    """Return mean and standard deviation of gray values in 0–1: timm's record of the backbone, its channels averaged."""
    import timm

    record = timm.get_pretrained_cfg(backbone)
    if record is None:
        return 0.5, 0.5
    return sum(record.mean) / len(record.mean), sum(record.std) / len(record.std)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]


BACKBONE = Family(
    name="efficientnetv2",
    names=(
        "tf_efficientnetv2_b0",
        "tf_efficientnetv2_b1",
        "tf_efficientnetv2_b2",
        "tf_efficientnetv2_b3",
        "tf_efficientnetv2_s",
        "tf_efficientnetv2_m",
        "tf_efficientnetv2_l",
        "efficientnetv2_rw_t",
        "efficientnetv2_rw_s",
    ),
    stride_px=32,  # the last feature map has one cell per 32 pixels
    build=build,
    statistics=statistics,
)
