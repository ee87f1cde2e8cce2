"""The leaderboard of a study: one row per trial, best first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fer_lab.search.confirm import Confirmed
from fer_lab.search.leases import Job
from fer_lab.search.space import maximised
from fer_lab.search.study import Sweep

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = ("parameters", "p50_ms", "best_epoch", "epochs_run", "wall_s")


def leaderboard(sweep: Sweep, trials: Sequence[Job], found: Sequence[Confirmed]) -> pd.DataFrame:
    """Return the table: trial, status, metric, the confirmation's mean ± sd and seeds, values, cost, run, reason.

    Confirmed configurations come first, by their mean; then the others by their trial's metric; pruned and failed last.
    """
    import pandas as pd

    metric = sweep.config.sweep.metric
    by_trial = {c.trial: c for c in found}
    rows: list[dict[str, Any]] = []
    for job in trials:
        again = by_trial.get(job.number)
        values = job.result.get("values") or [None]
        rows.append(
            {
                "trial": job.number, "status": job.status, metric: values[0],
                "confirm_mean": again.mean if again else None, "confirm_sd": again.sd if again else None,
                "confirm_seeds": " ".join(map(str, again.seeds)) if again else None,
                **{key: job.payload.get("values", {}).get(key) for key in sweep.config.space},
                **{key: job.result.get(key) for key in NUMBERS},
                "run_id": job.run_id, "reason": job.reason,
            }
        )  # fmt: skip
    table = pd.DataFrame(rows)
    sign = -1 if maximised(metric) else 1
    keys = table[["confirm_mean", metric]].astype(float) * sign
    order = (
        keys.assign(trial=table["trial"]).sort_values(["confirm_mean", metric, "trial"], na_position="last", kind="stable").index
    )
    return table.loc[order].reset_index(drop=True).dropna(axis="columns", how="all")
