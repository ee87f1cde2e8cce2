"""Pictures of a study for its MLflow page: history, importance, parallel coordinates, accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.search.confirm import pareto
from fer_lab.search.leases import Job
from fer_lab.search.space import maximised
from fer_lab.search.study import Sweep, optuna_study, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, ACCENT, LOST = "#1f2933", "#9aa5b1", "#0b7285", "#c92a2a"


def draw_pictures(sweep: Sweep, trials: Sequence[Job], folder: Path) -> list[Path]:
    """Write the PNG files that the study's trials allow and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    complete = [job for job in trials if job.status == "complete"]
    written = [_history(sweep, trials, folder / "history.png")]
    if len(complete) >= 2:
        written.append(_parallel(sweep, complete, folder / "parallel_coordinates.png"))
        written.append(_cost(sweep, complete, folder / ("pareto.png" if sweep.two_objectives else "accuracy_and_size.png")))
        shares = importance(sweep)
        if shares:
            written.append(_importance(sweep, shares, folder / "importance.png"))
    return written


def importance(sweep: Sweep) -> dict[str, float]:
    """Return each searched key's share of what moved the metric (Optuna's PED-ANOVA), largest first; {} when it cannot say."""
    import optuna

    study = optuna_study(sweep, 0)
    with quiet():
        try:
            shares = optuna.importance.get_param_importances(
                study, target=(lambda trial: trial.values[0]) if sweep.two_objectives else None
            )
        except (RuntimeError, ValueError):  # too few trials, or all of one value
            return {}
    return {key: float(share) for key, share in shares.items() if math.isfinite(share)}


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=110)
    return path


def _scores(jobs: Sequence[Job]) -> list[float]:
    return [float(job.result["values"][0]) for job in jobs]


def _history(sweep: Sweep, trials: Sequence[Job], path: Path) -> Path:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(7, 4)
    complete = [job for job in trials if job.status == "complete"]
    best: list[float] = []
    pick = max if maximised(sweep.config.sweep.metric) else min
    for score in _scores(complete):
        best.append(pick([score, *best[-1:]]))
    axes.step([j.number for j in complete], best, where="post", color=ACCENT, lw=1.5, label="best so far")
    axes.scatter([j.number for j in complete], _scores(complete), color=INK, s=28, zorder=3, label="complete")
    for status, marker in (("pruned", "x"), ("failed", "^")):
        numbers = [job.number for job in trials if job.status == status]
        if numbers:
            axes.plot(
                numbers, [0.02] * len(numbers), marker, color=QUIET if status == "pruned" else LOST,
                transform=axes.get_xaxis_transform(), clip_on=False, label=status,
            )  # fmt: skip
    axes.set(xlabel="trial", ylabel=sweep.config.sweep.metric, title=f"{sweep.name}: history")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)
    return _save(figure, path)


def _importance(sweep: Sweep, shares: Mapping[str, float], path: Path) -> Path:
    figure, axes = _figure(7, 1.2 + 0.4 * len(shares))
    keys = list(shares)[::-1]
    bars = axes.barh(keys, [shares[key] for key in keys], color=ACCENT, height=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    axes.set(
        xlim=(0, max(shares.values()) * 1.15 or 1), xlabel="share (PED-ANOVA)", title=f"what moved {sweep.config.sweep.metric}"
    )
    return _save(figure, path)


def _parallel(sweep: Sweep, complete: Sequence[Job], path: Path) -> Path:
    import numpy as np
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    keys = list(sweep.config.space)
    figure, axes = _figure(max(6.0, 1.7 * (len(keys) + 1)), 4.5)
    scores = _scores(complete)
    low, high = min(scores), max(scores)
    shades = ScalarMappable(Normalize(low, high if high > low else low + 1e-9), "viridis")
    colours = shades.to_rgba(np.array(scores))
    columns = [_heights(sweep, key, [job.payload["values"][key] for job in complete]) for key in keys]
    columns.append(([(s - low) / (high - low) if high > low else 0.5 for s in scores], f"{low:.3f}", f"{high:.3f}"))
    for row in range(len(scores)):
        axes.plot(range(len(columns)), [column[0][row] for column in columns], color=colours[row], lw=1.8, alpha=0.85)
    for x, (_, bottom, top) in enumerate(columns):
        axes.axvline(x, color=QUIET, lw=0.8)
        axes.annotate(bottom, (x, -0.04), ha="center", va="top", fontsize=8, annotation_clip=False)
        axes.annotate(top, (x, 1.04), ha="center", va="bottom", fontsize=8, annotation_clip=False)
    axes.set_xticks(range(len(columns)), [*(key.split(".")[-1] for key in keys), sweep.config.sweep.metric], fontsize=9)
    axes.tick_params(axis="x", pad=18, length=0)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(f"{sweep.name}: complete trials", pad=24)  # above the texts at the axes' upper ends
    figure.colorbar(shades, ax=axes, label=sweep.config.sweep.metric, pad=0.02)
    return _save(figure, path)


def _heights(sweep: Sweep, key: str, values: Sequence[Any]) -> tuple[list[float], str, str]:
    """Place values on an axis of 0–1; returns them with the texts at its ends."""
    dimension = sweep.config.space[key]
    if dimension.choices is not None:
        choices = list(dimension.choices)
        last = max(len(choices) - 1, 1)
        return [choices.index(v) / last for v in values], str(choices[0]), str(choices[-1]) if len(choices) > 1 else ""
    assert dimension.low is not None
    assert dimension.high is not None
    scale = math.log if dimension.log else float
    low, high = scale(dimension.low), scale(dimension.high)
    return [(scale(v) - low) / (high - low) for v in values], f"{dimension.low:g}", f"{dimension.high:g}"


def _cost(sweep: Sweep, complete: Sequence[Job], path: Path) -> Path:
    figure, axes = _figure(7, 4.5)
    scores = _scores(complete)
    if sweep.two_objectives:
        costs, label = [float(job.result["values"][1]) for job in complete], "median forward pass, one face, one thread (ms)"
    else:
        costs, label = [float(job.result.get("parameters", 0)) / 1e6 for job in complete], "parameters (millions)"
    sign = 1 if maximised(sweep.config.sweep.metric) else -1
    front = sorted(pareto([(sign * s, c) for s, c in zip(scores, costs, strict=True)]), key=lambda i: costs[i])
    axes.scatter(costs, scores, color=QUIET, s=30, label="trial")
    axes.plot([costs[i] for i in front], [scores[i] for i in front], "o-", color=ACCENT, label="no other is better in both")
    for job, cost, score in zip(complete, costs, scores, strict=True):
        axes.annotate(str(job.number), (cost, score), xytext=(5, 4), textcoords="offset points", fontsize=8, color=INK)
    axes.set(xlabel=label, ylabel=sweep.config.sweep.metric, title=f"{sweep.name}: accuracy against cost")
    axes.legend(frameon=False, fontsize=9)
    return _save(figure, path)
