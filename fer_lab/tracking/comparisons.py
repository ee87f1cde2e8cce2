"""Comparisons in the store: logged where they were made, found again by whoever promotes, on another machine too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fer_lab.core.console import note
from fer_lab.core.errors import FerLabError, NotFound, Unreachable
from fer_lab.gates import evidence
from fer_lab.measure.comparison import FILE, Comparison
from fer_lab.tracking.store import Store

EXPERIMENT = "fer-comparisons"
KIND = "comparison"


def log(store: Store, comparison: Comparison, folder: Path) -> str:
    """Log the comparison as a run of its own, linked to the models by tags."""
    from fer_lab.measure import paper, report

    tags = {
        "kind": KIND, "comparison_id": comparison.id, "protocol": comparison.protocol, "split": comparison.split,
        "label_source": comparison.label_source, "host": comparison.host.name,
        "models": ", ".join(dict.fromkeys(row.model for row in comparison.rows)),
        "compared_runs": ", ".join(dict.fromkeys(row.run_id for row in comparison.rows if row.run_id)),
    }  # fmt: skip
    run = store.start_run(EXPERIMENT, comparison.id, tags=tags, params={"reference": comparison.reference_model})
    try:
        run.log_dataset(
            comparison.dataset,
            comparison.fingerprint,
            comparison.protocol,
            comparison.label_source,
            {comparison.split: comparison.n},
        )
        run.log_metrics(0, _metrics(comparison))
        for name in (FILE, *paper.TEXTS, report.FILE):  # all but the answers
            run.log_file(folder / name)
    except BaseException as error:
        run.end_by(error)
        raise
    run.end("FINISHED")
    return str(run.id)


def named(store: Store, where: str) -> Comparison:
    """A comparison by path, id or run id; one that was made elsewhere is fetched from the store."""
    try:
        return evidence.read(where, store.home)
    except NotFound:
        for logged in store.find_runs(EXPERIMENT, {"kind": KIND}):
            if where in (logged["run_id"], logged["tags"].get("comparison_id")):
                return evidence.read(str(_fetch(store, logged)), store.home)
        raise


def fetch_all(store: Store, model: str) -> None:
    """Fetch the logged comparisons in which a version took part: made on another machine, or with --out elsewhere.

    One whose file is lost is left out: it must not stand in the way of the others.
    """
    for logged in store.find_runs(EXPERIMENT, {"kind": KIND, "split": "test"}):
        if logged["status"] == "FINISHED" and model in logged["tags"].get("models", "").split(", "):
            try:
                _fetch(store, logged)
            except Unreachable:
                raise
            except (FerLabError, OSError) as error:
                note(f"evidence: the comparison of run {logged['run_id']} is left out: {error}")


def _fetch(store: Store, logged: dict[str, Any]) -> Path:
    """Copy comparison.json of a logged comparison, whole or not at all, to where comparisons of this store root lie."""
    folder = evidence.folder_of(store.home) / str(logged["run_id"])
    if not (folder / FILE).is_file():
        store.download_run_folder(str(logged["run_id"]), FILE, folder / FILE)
    return folder


def _metrics(comparison: Comparison) -> dict[str, float]:
    """The main figures under keys that MLflow takes, no two alike: letters, digits, `_`, `-`, `.` and spaces between slashes."""
    found: dict[str, float] = {}
    for row in comparison.rows:
        parts = re.sub(r"[^\w.\- /]", "-", f"{comparison.split}/{comparison.names[row.model]}/{row.runtime}").split("/")
        where = "/".join(part for part in parts if part.strip("."))
        while f"{where}/accuracy" in found:
            where += "-"
        figures = {
            "accuracy": row.accuracy,
            "macro_recall": row.macro_recall,
            "ece": row.ece,
            "brier": row.brier,
            "p50_ms": row.p50_ms,
        }
        found |= {f"{where}/{name}": value for name, value in figures.items() if value is not None}
    return found
