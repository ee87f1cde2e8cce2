"""Does a runtime give the same answer as torch float32? Over every face of the validation split, never a sample.

`measure` is arithmetic on two arrays of probabilities; `alone_and_together` is the audit of `compare`, on up to 512 of the
faces: does an answer depend on its neighbours? `refusal` holds the rules. "unmeasured" is a state: no number is inherited from
another runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lab.backends.session import Predictor, Tolerance
from fer_lab.measure import audits

Probabilities = npt.NDArray[np.float32]

RESAMPLES = 10_000
CLASS_N = 50  # a class with fewer faces never refuses: its interval is wider than any limit worth having
CLASS_LIMIT = -0.02  # of a class's recall
BATCH = 64


def measure(
    reference: Probabilities,
    probs: Probabilities,
    targets: npt.NDArray[np.int64],
    names: tuple[str, ...],
    labels: tuple[str, ...],
) -> dict[str, Any]:
    """Return what differs between two sets of probabilities [N, K] of the same faces, as a JSON object.

    Keys: n, max_dp, mean_dp (|Δp| over faces and classes), flips (each with name, both labels, both margins to the
    runner-up), accuracy, accuracy_reference, change with its paired 95 % bootstrap interval, per_class (recall).
    """
    before, after = reference.argmax(axis=1), probs.argmax(axis=1)
    distance = np.abs(reference.astype(np.float64) - probs)
    flipped = np.flatnonzero(before != after)
    gain = (after == targets).astype(np.int64) - (before == targets)  # −1, 0, +1 per face
    return {
        "n": len(targets),
        "max_dp": float(distance.max(initial=0)),
        "mean_dp": float(distance.mean()) if len(distance) else 0.0,
        "flips": [
            {
                "name": names[i], "target": labels[targets[i]], "reference": labels[before[i]], "runtime": labels[after[i]],
                "margin_reference": margin(reference[i]), "margin_runtime": margin(probs[i]),
            }
            for i in flipped
        ],
        "accuracy": float((after == targets).mean()),
        "accuracy_reference": float((before == targets).mean()),
        **change(gain),
        "per_class": {
            label: {"n": int((targets == k).sum()), **change(gain[targets == k])}
            for k, label in enumerate(labels)
            if (targets == k).any()
        },
    }  # fmt: skip


def margin(row: Probabilities) -> float:
    """Return how far the first label is ahead of the second, 0–1."""
    second, first = np.sort(row)[-2:]
    return float(first - second)


def change(gain: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return the mean of a paired −1/0/+1 per face and its 95 % percentile bootstrap interval (Efron 1979).

    Resampling faces with replacement only changes how many of the three values are drawn, so the counts are drawn from
    a multinomial distribution: the same as resampling, without the index arrays. Fixed seed.
    """
    n = len(gain)
    shares = np.array([(gain == value).sum() for value in (-1, 0, 1)]) / n
    counts = np.random.default_rng(0).multinomial(n, shares, size=RESAMPLES)
    low, high = np.percentile((counts[:, 2] - counts[:, 0]) / n, [2.5, 97.5])
    return {"change": float(gain.mean()), "change_low": float(low), "change_high": float(high)}


def allowed_flips(tolerance: Tolerance, n: int) -> int:
    """Return how many flips are within tolerance among n faces; one face on a decision border is always allowed."""
    return max(1, int(tolerance.max_flip_rate * n + 1e-9))


def refusal(report: Mapping[str, Any], tolerance: Tolerance) -> str | None:
    """Return why a runtime is outside its tolerance, all reasons in one sentence, or None.

    The overall rule is on the point value of the drop. A class refuses only when it has at least `CLASS_N` faces and
    the upper bound of its change lies below `CLASS_LIMIT`: a coin toss must not block an export.
    """
    reasons = []
    if not report["max_dp"] <= tolerance.max_dp:  # NaN is a refusal too
        reasons.append(f"max |Δp| {report['max_dp']:.2g} > {tolerance.max_dp:g}")
    allowed = allowed_flips(tolerance, report["n"])
    if len(report["flips"]) > allowed:
        reasons.append(f"{len(report['flips'])} flips among {report['n']} faces > {allowed}")
    if not report["change"] >= -tolerance.max_drop - 1e-9 and len(report["flips"]) > 1:
        reasons.append(f"accuracy drops by {-report['change'] * 100:.2f} points > {tolerance.max_drop * 100:g}")
    for label, row in report["per_class"].items():
        if row["n"] >= CLASS_N and row["change_high"] < CLASS_LIMIT:
            reasons.append(f"recall of {label} drops by at least {-row['change_high'] * 100:.1f} points (n={row['n']}) > 2")
    if not report.get("batch_invariant", True):
        reasons.append("a face's label depends on the other faces of its batch")
    return "; ".join(reasons) or None


def alone_and_together(predictor: Predictor, faces: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Return batch_invariant, batch_faces, batch_flips, batch_max_dp of `audits.batch_invariance`; faces: uint8 [N, 48, 48]."""
    audit = asdict(audits.batch_invariance(predictor, faces))
    return {name: value for name, value in audit.items() if name.startswith("batch_")}


def limits(tolerance: Tolerance) -> dict[str, float]:
    """Return a tolerance as JSON."""
    return asdict(tolerance)
