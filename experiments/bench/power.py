"""How often the verdict on accuracy is right and wrong: twins (no difference) and planted gains, by simulation.

    python experiments/bench/power.py

Twins: one network whose probabilities are perturbed twice by the same amount, so that both have equal accuracy in expectation;
1 000 resamples of the faces. Power: 10 % of n = 3 137 faces discordant, a gain planted in expectation, 2 000 draws per
gain. Both go through `judge_accuracy`, the code behind every verdict. The network is simulated by logits with the
confusion of a model that is right on 85 %; no data set is needed. Writes experiments/results/statistics/power.{json,png}.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np

from fer_lab.measure import stats, verdicts
from fer_lab.measure.host import this_host

OUT = Path(__file__).resolve().parents[1] / "results" / "statistics"
N, DISAGREEMENT, SEED = 3137, 0.10, 20260101
GAINS = tuple(round(0.25 * i, 2) for i in range(15))  # points
DRAWS, RESAMPLES = 2000, 1000
CLASSES = 8


def twins(rng: np.random.Generator) -> dict[str, object]:
    """Words over 1 000 resamples of the faces, each with two fresh perturbations of one network."""
    targets = rng.integers(0, CLASSES, N)
    logits = rng.normal(0, 1, (N, CLASSES))
    logits[np.arange(N), targets] += 2.65  # right on about 85 %
    words: dict[str, int] = {}
    disagreement, accuracy = [], []
    for _ in range(RESAMPLES):
        rows = rng.integers(0, N, N)
        noisy = [logits[rows] + rng.normal(0, 0.5, (N, CLASSES)) for _ in range(2)]
        right = [scores.argmax(axis=1) == targets[rows] for scores in noisy]
        counts = stats.paired(*right)
        word = verdicts.judge_accuracy("twin", "torch", counts).verdict
        words[word] = words.get(word, 0) + 1
        disagreement.append(counts.disagreement)
        accuracy.append(right[0].mean())
    false = (words.get("better", 0) + words.get("worse", 0)) / RESAMPLES
    low, high = stats.wilson(round(false * RESAMPLES), RESAMPLES)
    return {
        "resamples": RESAMPLES, "n": N, "words": words, "false_better_or_worse": false, "low": low, "high": high,
        "mean_disagreement": float(np.mean(disagreement)), "mean_accuracy": float(np.mean(accuracy)),
    }  # fmt: skip


def power(rng: np.random.Generator) -> list[dict[str, float]]:
    """Share of each word at each planted gain."""
    lines = []
    for points in GAINS:
        gain = points / 100
        shares = [(DISAGREEMENT + gain) / 2, (DISAGREEMENT - gain) / 2, 1 - DISAGREEMENT]
        draws = rng.multinomial(N, shares, DRAWS)
        words = [verdicts.judge_accuracy("m", "torch", stats.Paired(N, int(g), int(w))).verdict for g, w, _ in draws]
        line = {
            "gain_points": points,
            **{word: words.count(word) / DRAWS for word in ("better", "non-inferior", "undecided", "worse")},
        }
        line["low"], line["high"] = stats.wilson(words.count("better"), DRAWS)
        lines.append(line)
    return lines


def draw(lines: list[dict[str, float]], path: Path) -> None:
    """The power curve."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    xs = [line["gain_points"] for line in lines]
    axis.fill_between(
        xs, [line["low"] for line in lines], [line["high"] for line in lines], color="#2563eb", alpha=0.18, linewidth=0
    )
    for word, color in (("better", "#2563eb"), ("non-inferior", "#2b8a3e"), ("undecided", "#b7791f"), ("worse", "#c92a2a")):
        axis.plot(xs, [line[word] for line in lines], color=color, linewidth=2, marker="o", markersize=3.5, label=word)
    for points, wanted in ((1.5, 0.70), (2.5, 0.95)):
        axis.plot([points], [wanted], marker="_", color="#1d2430", markersize=16, markeredgewidth=2)
        axis.annotate(
            f"promised ≥ {wanted:.0%}", (points, wanted), (6, -14), textcoords="offset points", fontsize=8, color="#1d2430"
        )
    axis.set(xlabel="true gain in accuracy, points", ylabel="share of comparisons", ylim=(-0.02, 1.03))
    axis.set_title(
        f"What compare says at n = {N:,} with {DISAGREEMENT:.0%} of the faces discordant".replace(",", " "), loc="left", fontsize=10
    )
    axis.grid(color="#e4e7ec")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=144, metadata={"Software": None})


def main() -> None:
    """Run both simulations, write the record and the picture."""
    rng = np.random.default_rng(SEED)
    OUT.mkdir(parents=True, exist_ok=True)
    lines = power(rng)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=OUT).stdout.strip() or "unknown"
    host = this_host()
    record = {
        "command": "python experiments/bench/power.py", "seed": SEED, "commit": commit, "host": host.name,
        "versions": {"python": host.versions["python"], "numpy": host.versions["numpy"]}, "threads": 1,
        "twins": twins(rng), "power": {"n": N, "disagreement": DISAGREEMENT, "draws": DRAWS, "curve": lines},
    }  # fmt: skip
    (OUT / "power.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(lines, OUT / "power.png")
    print(json.dumps({"twins": record["twins"], "better": {line["gain_points"]: line["better"] for line in lines}}))


if __name__ == "__main__":
    main()
