"""The parity record as a picture: accuracy change with its interval, largest |Δp| and flips of each runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer_lab.core.errors import MissingPart


def draw(content: Mapping[str, Any], path: Path) -> Path:
    """Draw the content of parity.json to a PNG file. Raises MissingPart without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ModuleNotFoundError:
        raise MissingPart("matplotlib", "lab", "the parity picture") from None

    measured = {name: entry for name, entry in content["runtimes"].items() if "max_dp" in entry}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 1.6 + 0.45 * max(len(measured), 1)), layout="constrained", sharey=True)
    colours = {"verified": "tab:blue", "refused": "tab:red"}
    for row, entry in enumerate(measured.values()):
        colour = colours.get(entry["state"], "tab:gray")
        change, low, high = (100 * entry[key] for key in ("change", "change_low", "change_high"))
        left.errorbar(change, row, xerr=[[max(0.0, change - low)], [max(0.0, high - change)]], fmt="o", color=colour, capsize=3)
        right.barh(row, max(entry["max_dp"], 1e-9), color=colour)
        right.text(max(entry["max_dp"], 1e-9), row, f" {entry['max_dp']:.1e}, {len(entry['flips'])} flips", va="center", fontsize=8)
    left.axvline(0, color="black", linewidth=0.8)
    left.set_yticks(range(len(measured)), list(measured))
    left.set_ylim(-0.6, max(len(measured), 1) - 0.4)
    left.invert_yaxis()
    dataset = content["dataset"]
    left.set_xlabel(f"accuracy − torch float32, points, 95 % interval (n={dataset['n']})")
    right.set_xscale("log")
    right.set_xlim(1e-9, 30)
    right.set_xlabel("largest |Δp| against torch float32")
    figure.suptitle(f"{dataset['name']}, {dataset['protocol']}, {dataset['split']}: every runtime against torch")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
