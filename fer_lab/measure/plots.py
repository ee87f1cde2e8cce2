"""Pictures of a run and of a comparison, as PNG files (matplotlib, no display needed)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lab.core.errors import MissingPart
from fer_lab.measure.metrics import reliability_bins

INK, MUTED, GRID = "#1d2430", "#667085", "#e4e7ec"
PALETTE = ("#2563eb", "#e8590c", "#2b8a3e", "#9c36b5", "#c92a2a", "#0b7285", "#846358", "#495057")
_STYLE = {
    "font.family": ["DejaVu Sans"], "font.size": 9, "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "axes.titlecolor": INK,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "xtick.color": MUTED, "ytick.color": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.8,
    "axes.axisbelow": True, "legend.frameon": False, "figure.facecolor": "white", "savefig.dpi": 144,
}  # fmt: skip
_PANELS = (
    ("Loss", (("train/loss", "train"), ("val/nll", "validation NLL"))),
    ("Validation quality", (("val/accuracy", "accuracy"), ("val/macro_recall", "macro recall"), ("val/macro_f1", "macro F1"))),
    ("Calibration", (("val/ece", "ECE"), ("val/kl_to_votes", "KL to votes"))),
    ("Learning rate", (("lr", "lr"),)),
)


def curves(history: Sequence[Mapping[str, float]], path: Path) -> Path:
    """Draw the training curves of one run; `history` holds one mapping of metrics per epoch (key `epoch` is optional)."""
    figure, axes = _subplots(2, 2, (9.2, 5.6), sharex=True)
    epochs = [int(row.get("epoch", index)) for index, row in enumerate(history)]
    for axis, (title, series) in zip(axes.flat, _PANELS, strict=True):
        shown = 0
        for (key, label), color in zip(series, PALETTE, strict=False):
            points = [(epoch, row[key]) for epoch, row in zip(epochs, history, strict=True) if key in row]
            if points:
                xs, ys = zip(*points, strict=True)
                axis.plot(xs, ys, color=color, linewidth=1.6, label=label, marker="o" if len(xs) < 3 else None, markersize=4)
                shown += 1
        _title(axis, title)
        if shown > 1:
            axis.legend(loc="best", fontsize=8)
        if not shown:
            axis.text(0.5, 0.5, "not recorded", transform=axis.transAxes, ha="center", va="center", color=MUTED)
    accuracies = [(row["val/accuracy"], epoch) for epoch, row in zip(epochs, history, strict=True) if "val/accuracy" in row]
    if accuracies:
        best, epoch = max(accuracies, key=lambda pair: (pair[0], -pair[1]))
        axes.flat[1].axvline(epoch, color=MUTED, linewidth=0.9, linestyle=":")
        _title(axes.flat[1], f"Validation: best accuracy {best:.2%}, epoch {epoch}")
    axes.flat[3].set_yscale("log" if any(row.get("lr", 0) > 0 for row in history) else "linear")
    for axis in axes[1]:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    return _save(figure, path)


def confusion_matrix(matrix: npt.NDArray[np.int64], labels: Sequence[str], path: Path) -> Path:
    """Draw a confusion matrix [K, K] (rows true, columns predicted), normalised by row; each row states its n."""
    k = len(labels)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.4 + 0.62 * k
    figure, axis = _subplots(1, 1, (side + 0.6, side))
    axis.grid(False)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row in range(k):
        for column in range(k):
            if matrix[row, column]:
                value = share[row, column] * 100
                text = f"{value:.0f}" if value >= 0.5 else "<1"
                color = "white" if share[row, column] > 0.55 else INK if row == column or value >= 5 else MUTED
                axis.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    axis.set_xticks(range(k), labels, rotation=40, ha="right", rotation_mode="anchor", color=INK)
    axis.set_yticks(range(k), [f"{label}  n={int(n)}" for label, n in zip(labels, matrix.sum(axis=1), strict=True)], color=INK)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("predicted, % of the row")
    axis.set_ylabel("majority vote")
    total = max(int(matrix.sum()), 1)
    _title(axis, f"Accuracy {np.trace(matrix) / total:.2%} of {int(matrix.sum())} faces")
    return _save(figure, path)


def worst_mistakes(
    pixels: npt.NDArray[np.uint8],
    names: Sequence[str],
    targets: npt.NDArray[np.int64],
    probs: npt.NDArray[np.floating[Any]],
    labels: Sequence[str],
    path: Path,
    n: int = 25,
) -> Path:
    """Draw the `n` wrong faces whose true label got the least probability, each with both labels and the name.

    pixels: uint8 [N, 48, 48]; probs: [N, K].
    """
    chosen = worst_rows(targets, probs, n)
    columns = 5
    rows = max(1, -(-len(chosen) // columns))
    side = pixels.shape[1]
    wide, high = side * 1.3, side * 1.75  # a face with its margin, and with its three lines of text
    # One axis for all faces: laying out one axis per face takes seconds.
    figure, axis = _subplots(1, 1, (columns * 1.75, rows * 2.35 + 0.45))
    axis.axis("off")
    for place, index in enumerate(chosen):
        left, top = place % columns * wide, place // columns * high
        middle, guess = left + side / 2, int(probs[index].argmax())
        axis.imshow(pixels[index], cmap="gray", vmin=0, vmax=255, extent=(left, left + side, top + side, top))
        said = f"{labels[guess]} {probs[index, guess]:.0%}"
        truth = f"is {labels[targets[index]]} ({probs[index, targets[index]]:.1%})"
        axis.text(middle, top - side * 0.04, said, ha="center", va="bottom", fontsize=8.5, color="#c92a2a")
        axis.text(middle, top + side * 1.05, truth, ha="center", va="top", fontsize=7.5, color=INK)
        axis.text(middle, top + side * 1.2, names[index], ha="center", va="top", fontsize=6.5, color=MUTED)
    axis.set_xlim(-0.1 * side, columns * wide)
    axis.set_ylim(rows * high - 0.3 * side, -0.25 * side)
    title = f"The {len(chosen)} worst mistakes: said (red), and the majority vote" if len(chosen) else "No mistake"
    figure.suptitle(title, x=0.02, ha="left", fontsize=10, fontweight="bold", color=INK)
    return _save(figure, path)


def worst_rows(targets: npt.NDArray[np.int64], probs: npt.NDArray[np.floating[Any]], n: int = 25) -> npt.NDArray[np.int64]:
    """Row numbers of the wrong faces with the least probability on their label, worst first, at most `n`."""
    own = probs[np.arange(len(targets)), targets]
    wrong = np.flatnonzero(probs.argmax(axis=1) != targets)
    return np.asarray(wrong[np.argsort(own[wrong], kind="stable")][:n], np.int64)


def reliability(
    probs: npt.NDArray[np.floating[Any]], targets: npt.NDArray[np.int64], path: Path, *, title: str = "", bins: int = 15
) -> Path:
    """Draw the reliability diagram: accuracy against confidence per bin, the gap shaded, and how many faces lie where."""
    edges, share, confidence, accuracy = reliability_bins(probs, targets, bins)
    filled = share > 0
    figure, (axis, below) = _subplots(2, 1, (4.6, 5.2), sharex=True, height_ratios=(4, 1))
    centre = (edges[:-1] + edges[1:]) / 2
    axis.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--", label="perfect")
    axis.bar(centre[filled], accuracy[filled], width=1 / bins * 0.92, color=PALETTE[0], alpha=0.85, label="accuracy")
    gap = confidence[filled] - accuracy[filled]
    axis.bar(
        centre[filled], gap, bottom=accuracy[filled], width=1 / bins * 0.92, color="#ffc9a8", edgecolor="#e8590c",
        linewidth=0.7, alpha=0.75, label="gap",
    )  # fmt: skip
    axis.set(ylim=(0, 1.02), xlim=(0, 1), ylabel="accuracy")
    axis.legend(loc="upper left", fontsize=8)
    error = float((share * np.abs(accuracy - confidence)).sum())
    _title(axis, f"{title}\nECE {error:.3f}, {bins} equal-width bins, n = {len(targets)}".strip())
    below.bar(centre, share * 100, width=1 / bins * 0.92, color=MUTED, alpha=0.6)
    below.set(xlabel="confidence (top probability)", ylabel="% faces")
    return _save(figure, path)


def _subplots(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """Figure and axes on an Agg canvas, without touching pyplot's global state."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPart("matplotlib", "lab", "drawing plots") from None
    ratios = options.pop("height_ratios", None)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, gridspec_kw={"height_ratios": ratios} if ratios else None, **options)
    return figure, axes


def _title(axis: Any, text: str) -> None:
    axis.set_title(text, loc="left", fontsize=9.5, fontweight="bold", color=INK)


def _save(figure: Any, path: Path) -> Path:
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        figure.savefig(path, format="png", dpi=144, metadata={"Software": None})
    return path
