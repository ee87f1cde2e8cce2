"""The synthetic sample: drawn faces with ten simulated votes each, to learn and to test the tool on.

Expressions are prototypes of action units (EMFACS; Friesen & Ekman 1983), shown at varying strength and blended with a
neighbour (fear with surprise, disgust with anger, contempt with neutral or happiness …). Votes are drawn from the same
blend, so ambiguous faces get ambiguous votes, as the crowd of FER+ gave them. Nothing here says anything about people.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

import numpy as np
import numpy.typing as npt

from fer_lab.core.errors import InputError, nearest
from fer_lab.core.labels import EIGHT, VOTE_COLUMNS
from fer_lab.data import drawing
from fer_lab.data.datasets import Reading
from fer_lab.data.faces import FaceDataset

NAME = "synthetic"
COUNT = 4000
VOTES = 10  # as in FER+

# Units of each expression at full strength (EMFACS prototypes), with the range from which each face takes its share.
PROTOTYPES: dict[str, dict[str, float]] = {
    "neutral": {},
    "happiness": {"cheek_raiser": 0.8, "lip_corner_puller": 1.0, "lips_part": 0.6, "teeth": 0.6},
    "surprise": {"inner_brow_raiser": 0.9, "outer_brow_raiser": 0.9, "upper_lid_raiser": 0.8, "lips_part": 0.6, "jaw_drop": 0.9},
    "sadness": {"inner_brow_raiser": 0.9, "brow_lowerer": 0.5, "lip_corner_depressor": 1.0, "chin_raiser": 0.5},
    "anger": {"brow_lowerer": 1.0, "upper_lid_raiser": 0.4, "lid_tightener": 0.6, "lip_tightener": 0.9, "teeth": 0.3},
    "disgust": {"brow_lowerer": 0.5, "nose_wrinkler": 1.0, "upper_lip_raiser": 1.0, "lip_corner_depressor": 0.4, "lips_part": 0.4},
    "fear": {"inner_brow_raiser": 1.0, "outer_brow_raiser": 0.5, "brow_lowerer": 0.5, "upper_lid_raiser": 1.0, "lip_stretcher": 1.0,
             "lips_part": 0.7, "teeth": 0.4},
    "contempt": {"lip_corner_puller": 1.0, "dimpler": 1.0, "lid_tightener": 0.25},
}  # fmt: skip

# How often each expression is drawn: unequal as in FERPlus, but milder, so that each class stands in each split.
SHARES = {
    "neutral": 0.14, "happiness": 0.22, "surprise": 0.15, "sadness": 0.13, "anger": 0.13, "disgust": 0.08, "fear": 0.08,
    "contempt": 0.07,
}  # fmt: skip

# With which other expressions people confuse it, the first most often.
NEIGHBOURS = {
    "neutral": ("sadness", "contempt", "anger"), "happiness": ("surprise", "contempt", "neutral"),
    "surprise": ("fear", "happiness", "neutral"), "sadness": ("neutral", "fear", "anger"),
    "anger": ("disgust", "sadness", "neutral"), "disgust": ("anger", "sadness", "contempt"),
    "fear": ("surprise", "sadness", "surprise"), "contempt": ("neutral", "happiness", "neutral"),
}  # fmt: skip


class Synthetic:
    """The sample that needs no file: drawn by `prepare`, or by the first `train` or `sweep` that wants it."""

    name = NAME
    help = "drawn faces with simulated votes, to learn and test the tool on"
    leaves = (NAME,)
    drawn = True
    then = "python -m fer_lab.sweep"

    def arguments(self, parser: ArgumentParser) -> None:
        """How many, and which."""
        parser.add_argument("--count", type=int, default=COUNT, metavar="N", help=f"faces to draw (default {COUNT})")
        parser.add_argument("--seed", type=int, default=0)

    def read(self, args: Namespace) -> Reading:
        """Draw the faces."""
        if not 100 <= args.count <= 100_000:
            raise InputError(f"--count {args.count}: between 100 and 100000 faces can be drawn")
        if args.seed < 0:
            raise InputError(f"--seed {args.seed}: a whole number from 0 on is needed")
        return Reading(draw(args.count, args.seed))


DATASET = Synthetic()


def draw(n: int = COUNT, seed: int = 0) -> FaceDataset:
    """Draw n faces: train, valid and test in 80/10/10, deterministic by seed.

    A hundredth of the faces repeat the picture of another one with fresh votes, as FERPlus does, so that the audit and
    `drop_twins` have something to find. Slices: `occlusion`, `pose30`.
    """
    rng = np.random.default_rng([seed, n])
    expressions = _quota(n, rng)
    scene, blend = _scene(expressions, rng)
    pixels = _developed(scene, 48, rng)
    votes = _votes(blend, scene.visible, rng)
    repeats = rng.permutation(n)[: 2 * (n // 100)].reshape(2, -1)
    pixels[repeats[0]] = pixels[repeats[1]]
    names = tuple(f"syn{i:07d}.png" for i in range(n))
    occluded, turned = scene.occlusion.copy(), scene.yaw.copy()
    occluded[repeats[0]], turned[repeats[0]] = occluded[repeats[1]], turned[repeats[1]]
    slices = {
        "occlusion": tuple(names[i] for i in np.flatnonzero(occluded > 0)),
        "pose30": tuple(names[i] for i in np.flatnonzero(np.abs(turned) > 0.5)),
    }
    return FaceDataset(NAME, NAME, pixels, votes, _splits(expressions, rng), names, slices)


def draw_large(expression: str, size_px: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """One big face with this expression at full strength, looking at the camera: uint8 [size_px, size_px], gray.

    Raises InputError for an unknown expression.
    """
    if expression not in EIGHT.labels:
        raise InputError(f"unknown expression {expression!r}; known: {', '.join(EIGHT.labels)}{nearest(expression, EIGHT.labels)}")
    scene, _ = _scene(np.array([EIGHT.labels.index(expression)]), rng, posed=True)
    face: npt.NDArray[np.uint8] = _developed(scene, size_px, rng)[0]
    return face


def _quota(n: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Expression index per face in the shares of `SHARES`, shuffled."""
    ends = np.round(np.cumsum([SHARES[label] for label in EIGHT.labels]) * n).astype(np.int64)
    return rng.permutation(np.searchsorted(ends, np.arange(n), side="right").clip(0, 7))


def _splits(expressions: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """80/10/10, stratified by the drawn expression."""
    order = np.lexsort((rng.random(len(expressions)), expressions))
    splits = np.zeros(len(expressions), np.uint8)
    splits[order[4::10]] = 1
    splits[order[9::10]] = 2
    return splits


def _scene(
    expressions: npt.NDArray[np.int64], rng: np.random.Generator, *, posed: bool = False
) -> tuple[drawing.Faces, npt.NDArray[np.float64]]:
    """What to draw, and the share of each of the eight expressions in each face, float64 [N, 8]."""
    n = len(expressions)

    def uniform(low: float, high: float) -> npt.NDArray[np.float32]:
        return rng.uniform(low, high, n).astype(np.float32)

    def normal(mean: float, sd: float, low: float, high: float) -> npt.NDArray[np.float32]:
        return rng.normal(mean, sd, n).clip(low, high).astype(np.float32)

    def some(share: float) -> npt.NDArray[np.float32]:
        return (rng.random(n) < (0 if posed else share)).astype(np.float32)

    # The blend: most faces show one expression clearly, some are weak, some lean to a neighbour.
    neighbour_of = np.array([[EIGHT.labels.index(other) for other in NEIGHBOURS[label]] for label in EIGHT.labels])
    neighbour = neighbour_of[expressions, rng.choice(3, n, p=[0.55, 0.25, 0.20])]
    leaning = np.where(rng.random(n) < 0.40, rng.beta(1.2, 2.0, n) * 0.50, 0.0)
    strength = rng.beta(7.0, 1.4, n)
    if posed:
        leaning, strength = np.zeros(n), np.ones(n)
    blend = np.zeros((n, 8))
    rows = np.arange(n)
    blend[rows, expressions] += strength * (1 - leaning)
    blend[rows, neighbour] += strength * leaning
    blend[:, 0] += 1 - blend.sum(axis=1)  # what shows nothing is neutral

    table = np.array([[PROTOTYPES[label].get(unit, 0.0) for unit in drawing.UNITS] for label in EIGHT.labels])
    # People show an expression with some of its units: each is scaled by its own share.
    share = 1.0 if posed else rng.beta(7.0, 1.2, (n, len(drawing.UNITS)))
    stray = 0.0 if posed else np.maximum(rng.normal(0, 0.06, (n, len(drawing.UNITS))), 0)
    units = (blend @ table * share + stray).clip(0, 1.1).astype(np.float32)
    scorn = blend[:, EIGHT.labels.index("contempt")] > blend[:, EIGHT.labels.index("happiness")] + 0.1
    one_sided = np.where(scorn, rng.choice([-1.0, 1.0], n), 0.0).astype(np.float32)

    visible = 1 - some(0.008)
    loose = 0.25 if posed else 1.0
    skin = uniform(115, 215)
    dark_hair = uniform(20, 90)
    scene = drawing.Faces(
        units=units, one_sided=one_sided, visible=visible,
        x=normal(0, 0.05 * loose, -0.14, 0.14), y=normal(0.04, 0.04 * loose, -0.05, 0.16),
        size=normal(0.74 if posed else 0.88, 0.04 * loose, 0.7 if posed else 0.76, 0.98),
        roll=normal(0, 0.09 * loose, -0.4, 0.4), yaw=normal(0, 0.26 * loose, -1, 1), pitch=normal(0, 0.28 * loose, -1, 1),
        width=uniform(0.70, 0.84), jaw=uniform(0.10, 0.36), skin=skin,
        hair=np.where(rng.random(n) < 0.2, uniform(120, 200), dark_hair).astype(np.float32), hairline=uniform(-0.95, -0.58),
        long_hair=np.where(rng.random(n) < 0.4, uniform(0.5, 1.0), 0.0).astype(np.float32),
        eye_distance=uniform(0.33, 0.42), eye_size=uniform(0.82, 1.2), brow_thickness=uniform(0.028, 0.055),
        brow_arch=uniform(0, 1),
        nose=uniform(0, 1), mouth_width=uniform(0.31, 0.40), lips=uniform(0.030, 0.075),
        beard=some(0.12) * uniform(0.3, 0.9), glasses=some(0.10), age=rng.beta(1.2, 2.0, n).astype(np.float32),
        background=uniform(40, 225), light_x=uniform(-1, 1), light_y=uniform(-1, 1),
        contrast=uniform(0.85, 1.25) if not posed else uniform(0.95, 1.05), blur=uniform(0, 0.5) if not posed else uniform(0, 0.3),
        noise=uniform(1, 6) if not posed else uniform(1, 3),
        occlusion=some(0.10), occlusion_x=uniform(-0.6, 0.6), occlusion_y=uniform(-0.5, 0.8), occlusion_size=uniform(0.12, 0.28),
        occlusion_tone=uniform(20, 235),
    )  # fmt: skip
    return scene, blend


def _developed(scene: drawing.Faces, size_px: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The drawn pictures with sensor noise, uint8 [N, size_px, size_px]."""
    image = drawing.draw(scene, size_px)
    image += rng.standard_normal(image.shape, np.float32) * scene.noise[:, None, None]
    return np.rint(image).clip(0, 255).astype(np.uint8)


def _votes(blend: npt.NDArray[np.float64], visible: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Ten votes per face, uint8 [N, 10]: the crowd sees the stronger part more often, and sometimes anything."""
    seen = blend**2.0
    seen /= seen.sum(axis=1, keepdims=True)
    chances = np.zeros((len(blend), len(VOTE_COLUMNS)))
    chances[:, :8] = 0.93 * seen + 0.05 / 8
    chances[:, VOTE_COLUMNS.index("unknown")] = 0.02
    chances[visible == 0] = np.eye(len(VOTE_COLUMNS))[VOTE_COLUMNS.index("not_a_face")]
    return rng.multinomial(VOTES, chances / chances.sum(axis=1, keepdims=True)).astype(np.uint8)
