"""The end of a study: register what survived confirmation, put the leaderboard and the pictures on the study's page."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.search.confirm import Confirmed, confirmed, survivors
from fer_lab.search.leaderboard import leaderboard
from fer_lab.search.leases import Job, Keeper
from fer_lab.search.pictures import draw_pictures
from fer_lab.search.reaper import settle
from fer_lab.search.study import Sweep

if TYPE_CHECKING:
    from fer_lab.tracking.store import Store

CHALLENGER = "challenger"


def finish(sweep: Sweep, store: Store, job: Job) -> None:
    """Close the study: every step may be repeated by another worker if this one dies."""
    from fer_lab.tracking.run import Run

    row = sweep.leases.study_row()
    assert row is not None
    parent = Run(store, str(row["parent_run_id"]), resumed=True)
    with Keeper(sweep.leases, job) as keeper:
        parent.guard = keeper.guard
        settle(sweep, store)
        trials = [t for t in sweep.leases.jobs("trial") if t.number < sweep.total]
        confirmations = sweep.leases.jobs("confirm")
        found = confirmed(trials, confirmations)
        kept = survivors(sweep, found)
        metrics = {str(c.result["run_id"]): c.result["metrics"] for c in confirmations if c.status == "complete"}
        registered = []
        for place, survivor in enumerate(kept):
            keeper.check()
            registered.append(_register(sweep, store, survivor, parent.id, is_winner=place == 0))
        result = summary(sweep, parent.id, trials, kept, metrics, registered)
        keeper.check()
        _publish(sweep, parent, trials, found, result)
        keeper.check()
        status, reason = ("FINISHED", None) if kept else ("FAILED", _why_nothing(trials, confirmations))
        if kept:
            store.forget_end(parent.id)
        parent.end(status, reason)  # type: ignore[arg-type]  # one of the two literals above
        sweep.leases.set_study(result=result)
        sweep.leases.end(job, "complete", result=result)
    if not any(job.status == "leased" for job in sweep.leases.jobs()):  # another worker may be at a trial beyond this one's number
        shutil.rmtree(sweep.work, ignore_errors=True)


def summary(
    sweep: Sweep, parent_id: str, trials: Sequence[Job], kept: Sequence[Confirmed],
    metrics: Mapping[str, Mapping[str, float]], registered: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """Return the study's result as the verb prints it."""
    counts = Counter(job.status for job in trials)
    result: dict[str, Any] = {
        "study": sweep.name,
        "parent_run_id": parent_id,
        "trials": {status: counts[status] for status in ("complete", "pruned", "failed")},
        "total": sweep.total,
        "metric": sweep.config.sweep.metric,
        "best": None,
        "registered": None,
        "also_registered": [],
        "confirmed": [
            {
                "trial": c.trial, "mean": c.mean, "sd": c.sd, "scores": list(c.scores), "seeds": list(c.seeds),
                "run_id": c.run_id, "p50_ms": c.p50_ms, "values": dict(c.values),
            }
            for c in kept
        ],
    }  # fmt: skip
    if kept:
        winner = kept[0]
        result["best"] = {
            "run_id": winner.run_id, "val_accuracy": metrics[winner.run_id].get("val/accuracy"),
            "mean": winner.mean, "sd": winner.sd, "seeds": list(winner.seeds), "trial": winner.trial,
        }  # fmt: skip
        result["registered"] = {**registered[0], "alias": CHALLENGER}
        result["also_registered"] = [dict(version) for version in registered[1:]]
    else:
        result["reasons"] = [f"{job.key}: {job.reason}" for job in trials if job.reason][:5]
    return result


def _register(sweep: Sweep, store: Store, survivor: Confirmed, parent_id: str, *, is_winner: bool) -> dict[str, Any]:
    from fer_lab.tracking import registry

    metric = sweep.config.sweep.metric
    tags = {
        "study": sweep.name, "parent_run_id": parent_id, "trial": survivor.trial,
        "protocol": sweep.config.data.protocol, "label_source": sweep.dataset.label_source,
        "seeds": " ".join(map(str, survivor.seeds)), f"{metric.replace('/', '_')}_mean": f"{survivor.mean:.4f}",
        "n_valid": sweep.n_valid,
    }  # fmt: skip
    if survivor.sd is not None:
        tags[f"{metric.replace('/', '_')}_sd"] = f"{survivor.sd:.4f}"
    with tempfile.TemporaryDirectory(prefix="fer-bundle-") as staging:
        folder = store.download_run_folder(survivor.run_id, "bundle", Path(staging) / "bundle")
        version = registry.register(store, folder, run_id=survivor.run_id, tags=tags)
    if is_winner:
        registry.set_alias(store, version.name, CHALLENGER, version.version)
    return {"name": version.name, "version": version.version, "run_id": survivor.run_id}


def _publish(sweep: Sweep, parent: Any, trials: Sequence[Job], found: Sequence[Confirmed], result: Mapping[str, Any]) -> None:
    with tempfile.TemporaryDirectory(prefix="fer-study-") as staging:
        folder = Path(staging)
        leaderboard(sweep, trials, found).to_csv(folder / "leaderboard.csv", index=False, float_format="%.6g", lineterminator="\n")
        (folder / "summary.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        for path in (folder / "leaderboard.csv", folder / "summary.json", *draw_pictures(sweep, trials, folder)):
            parent.log_file(path)
    best = result["best"]
    if best is not None:
        spread = {} if best["sd"] is None else {"confirm/sd": best["sd"]}
        parent.log_metrics(sweep.total, {sweep.config.sweep.metric: best["mean"], **spread})
        parent.set_tags({"fer.winner": best["run_id"], "fer.registered": json.dumps(result["registered"])})


def _why_nothing(trials: Sequence[Job], confirmations: Sequence[Job]) -> str:
    if not any(job.status == "complete" for job in trials):
        return "no trial completed"
    reasons = [job.reason for job in confirmations if job.reason]
    return f"no confirmation completed: {reasons[0] if reasons else 'unknown'}"
