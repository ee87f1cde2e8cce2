"""Random changes of a batch of faces, each face with its own draw, on the device, without a loop over faces.

`draw_epoch` makes every random number of an epoch at once from (seed, epoch); `augment` is then a pure function of
faces and numbers. An epoch therefore replays exactly, whatever was interrupted before it, and the device never waits
for a random generator.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # torch's own convention
from torch import Tensor

from fer_lab.core.config import AugmentConfig

COLUMNS = (
    "rotation", "shift_x", "shift_y", "zoom_x", "zoom_y", "shear", "flip", "brightness", "contrast",
    "erase", "erase_area", "erase_aspect", "erase_x", "erase_y", "erase_value",
)  # fmt: skip
"""What each of the uniform numbers of a face decides."""

ERASE_AREA = (0.02, 1 / 3)  # share of the face, and the aspect below: the defaults of Zhong et al., AAAI 2020, as in timm
ERASE_ASPECT = (0.3, 1 / 0.3)


def draw_epoch(seed: int, epoch: int, faces: int, batches: int, config: AugmentConfig) -> EpochDraw:
    """Return the random numbers of one epoch: order of the faces, numbers per face, mixing per batch."""
    draw = np.random.default_rng([seed, 2, epoch])  # 2: apart from the stream that draws the subset (targets)
    order = draw.permutation(faces)
    uniforms = draw.random((faces, len(COLUMNS)), np.float32)
    kinds = [kind for kind, alpha in (("mixup", config.mixup), ("cutmix", config.cutmix)) if alpha > 0]
    mixes = []
    for _ in range(batches):
        if not kinds:
            mixes.append(Mix("none", 1.0, 0.5, 0.5))
            continue
        kind = kinds[draw.integers(len(kinds))]
        alpha = config.mixup if kind == "mixup" else config.cutmix
        mixes.append(Mix(kind, float(draw.beta(alpha, alpha)), float(draw.random()), float(draw.random())))
    return EpochDraw(order, uniforms, tuple(mixes))


class Mix:
    """How one batch is mixed with itself."""

    __slots__ = ("centre_x", "centre_y", "kind", "share")

    def __init__(self, kind: str, share: float, centre_x: float, centre_y: float) -> None:
        self.kind = kind  # none, mixup, cutmix
        self.share = share  # of the first face, 0–1
        self.centre_x = centre_x  # of the pasted rectangle, 0–1 (cutmix)
        self.centre_y = centre_y


class EpochDraw:
    """Every random number of one epoch."""

    __slots__ = ("mixes", "order", "uniforms")

    def __init__(self, order: npt.NDArray[np.int64], uniforms: npt.NDArray[np.float32], mixes: tuple[Mix, ...]) -> None:
        self.order = order  # int64 [N], a permutation
        self.uniforms = uniforms  # float32 [N, len(COLUMNS)] in 0–1
        self.mixes = mixes  # one per batch


def augment(faces: Tensor, uniforms: Tensor, size: int, config: AugmentConfig) -> Tensor:
    """Return changed and enlarged faces.

    faces: uint8 [N, 1, H, W]. uniforms: float32 [N, len(COLUMNS)] in 0–1. Returns float32 [N, 1, size, size], gray
    values 0–255. Warping and enlarging are one bilinear resampling; with everything off the result equals
    `models.deployable.enlarge`.
    """
    values = faces.to(torch.float32)
    grid = F.affine_grid(_warp(uniforms, config), [len(faces), 1, size, size], align_corners=False)
    mode = {"reflect": "reflection", "border": "border", "zeros": "zeros"}[config.fill]
    values = F.grid_sample(values, grid, mode="bilinear", padding_mode=mode, align_corners=False)
    if config.brightness > 0 or config.contrast > 0:
        values = _relight(values, uniforms, config)
    if config.erasing > 0:
        values = _erase(values, uniforms, config.erasing)
    return values


def mix(values: Tensor, targets: Tensor, how: Mix) -> tuple[Tensor, Tensor]:
    """Return the batch mixed with itself in reverse order, and its soft targets in the same proportion.

    values: [N, 1, S, S]. targets: [N, K]. The batch was shuffled, so that its reverse is a random partner.
    """
    if how.kind == "none":
        return values, targets
    share = how.share
    partner = values.flip(0)
    if how.kind == "mixup":
        values = values * share + partner * (1 - share)
    else:
        size = values.shape[-1]
        side = math.sqrt(1 - share) * size
        x0, x1 = _span(how.centre_x * size, side, size)
        y0, y1 = _span(how.centre_y * size, side, size)
        values = values.clone()
        values[:, :, y0:y1, x0:x1] = partner[:, :, y0:y1, x0:x1]
        share = 1 - (x1 - x0) * (y1 - y0) / size**2  # what is really left, after clipping at the border
    return values, targets * share + targets.flip(0) * (1 - share)


def _warp(uniforms: Tensor, config: AugmentConfig) -> Tensor:
    """Return the matrices [N, 2, 3] from output to input coordinates (−1…1), as `affine_grid` wants them."""
    signed = {name: uniforms[:, i] * 2 - 1 for i, name in enumerate(COLUMNS[:6])}
    angle = signed["rotation"] * math.radians(config.rotation_deg)
    cos, sin = torch.cos(angle), torch.sin(angle)
    flip = torch.where(uniforms[:, COLUMNS.index("flip")] < config.flip, -1.0, 1.0)
    zoom_x = (1 + signed["zoom_x"] * config.zoom) * flip
    zoom_y = 1 + signed["zoom_y"] * config.zoom
    shear = signed["shear"] * config.shear
    # rotation · shear · zoom, the order of Keras' ImageDataGenerator; coordinates span 2, a shift of the side is 2·shift
    first = torch.stack([cos * zoom_x, (cos * shear - sin) * zoom_y, signed["shift_x"] * 2 * config.shift], dim=1)
    second = torch.stack([sin * zoom_x, (sin * shear + cos) * zoom_y, signed["shift_y"] * 2 * config.shift], dim=1)
    return torch.stack([first, second], dim=1)


def _relight(values: Tensor, uniforms: Tensor, config: AugmentConfig) -> Tensor:
    """Scale gray values about the face's mean and move them, within 0–255."""
    gain = 1 + (uniforms[:, COLUMNS.index("contrast")] * 2 - 1) * config.contrast
    move = (uniforms[:, COLUMNS.index("brightness")] * 2 - 1) * config.brightness * 255
    offset = values.mean(dim=(1, 2, 3)) * (1 - gain) + move
    return torch.addcmul(offset[:, None, None, None], values, gain[:, None, None, None]).clamp_(0, 255)


def _erase(values: Tensor, uniforms: Tensor, probability: float) -> Tensor:
    """Paint one rectangle of a random gray over a share of the faces."""
    size = values.shape[-1]
    column = {name: uniforms[:, i] for i, name in enumerate(COLUMNS)}
    area = ERASE_AREA[0] + column["erase_area"] * (ERASE_AREA[1] - ERASE_AREA[0])
    low, high = math.log(ERASE_ASPECT[0]), math.log(ERASE_ASPECT[1])
    aspect = torch.exp(low + column["erase_aspect"] * (high - low))
    height = (torch.sqrt(area * aspect) * size).clamp(max=size - 1)
    width = (torch.sqrt(area / aspect) * size).clamp(max=size - 1)
    top = column["erase_y"] * (size - height)
    left = column["erase_x"] * (size - width)
    pixel = torch.arange(size, device=values.device) + 0.5
    rows = (pixel >= top[:, None]) & (pixel < (top + height)[:, None])
    columns = (pixel >= left[:, None]) & (pixel < (left + width)[:, None])
    rows &= (column["erase"] < probability)[:, None]
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, (column["erase_value"] * 255)[:, None, None, None], values)


def _span(centre: float, side: float, size: int) -> tuple[int, int]:
    return max(0, round(centre - side / 2)), min(size, round(centre + side / 2))
