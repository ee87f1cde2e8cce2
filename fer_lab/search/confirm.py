"""Confirmation: the best configurations are trained again over fresh seeds, because the best of many is partly luck.

The highest of k equally good trials lies above their mean (the winner's curse); fresh seeds do not know which trial was
lucky. The mean over them decides, and the spread is reported beside it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fer_lab.search.leases import Job
from fer_lab.search.space import maximised
from fer_lab.search.study import Sweep

FIRST_SEED = 1000
"""Fresh seeds start this far above the study's own seed, so that no trial has seen them."""


@dataclass(frozen=True)
class Confirmed:
    """One configuration over its fresh seeds."""

    trial: int  # its slot
    values: Mapping[str, Any]
    seeds: tuple[int, ...]  # of the runs that completed
    scores: tuple[float, ...]  # validation metric, one per seed
    run_ids: tuple[str, ...]
    p50_ms: float | None

    @property
    def mean(self) -> float:
        """Mean validation metric."""
        return statistics.fmean(self.scores)

    @property
    def sd(self) -> float | None:
        """Standard deviation over the seeds; None for a single one."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def median_index(self) -> int:
        """Index of the run with the median score (the lower one of an even number)."""
        order = sorted(range(len(self.scores)), key=lambda i: self.scores[i])
        return order[(len(order) - 1) // 2]

    @property
    def run_id(self) -> str:
        """The run whose weights stand for the configuration: the median seed's."""
        return self.run_ids[self.median_index]


def reserve_confirmations(sweep: Sweep, trials: Sequence[Job]) -> list[int]:
    """Make the confirm slots of the best configurations (idempotent: every worker plans the same). Returns their numbers."""
    seeds = sweep.config.sweep.confirm.seeds
    payloads = {
        confirm_number(job.number, index): {
            "trial": job.number, "values": job.payload["values"], "seed": sweep.config.seed + FIRST_SEED + index,
        }
        for job in candidates(sweep, trials) for index in range(seeds)
    }  # fmt: skip
    sweep.leases.reserve("confirm", payloads)
    return list(payloads)


def confirm_number(trial: int, index: int) -> int:
    """The slot of one confirmation: 3002 is trial 3 with its third fresh seed."""
    return trial * 1000 + index


def candidates(sweep: Sweep, trials: Sequence[Job]) -> list[Job]:
    """Return the trials to confirm: the top k different configurations, or the Pareto set when there are two objectives."""
    complete = [job for job in trials if job.status == "complete"]
    sign = 1 if maximised(sweep.config.sweep.metric) else -1
    ordered = sorted(complete, key=lambda job: (-sign * job.result["values"][0], job.number))
    different: dict[str, Job] = {}
    for job in ordered:
        different.setdefault(json.dumps(job.payload["values"], sort_keys=True), job)
    chosen = list(different.values())
    if not sweep.two_objectives:
        return chosen[: sweep.config.sweep.confirm.top]
    points = [(sign * job.result["values"][0], job.result["values"][1]) for job in chosen]
    return [chosen[i] for i in pareto(points)]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other beats: first coordinate larger is better, second smaller.

    >>> pareto([(0.9, 5.0), (0.8, 2.0), (0.7, 3.0)])
    [0, 1]
    """
    return [
        i for i, (a, b) in enumerate(points)
        if not any((x >= a and y <= b) and (x > a or y < b) for x, y in points)
    ]  # fmt: skip


def confirmed(trials: Sequence[Job], confirmations: Iterable[Job]) -> list[Confirmed]:
    """Group the completed confirmations by configuration, in the order of the trials.

    Those of other trials are passed over: a study may go on with fewer trials than it had.
    """
    by_number = {job.number: job for job in trials}
    runs: dict[int, list[Job]] = {}
    for job in confirmations:
        if job.status == "complete" and int(job.payload["trial"]) in by_number:
            runs.setdefault(int(job.payload["trial"]), []).append(job)
    return [
        Confirmed(
            number, jobs[0].payload["values"], tuple(int(j.payload["seed"]) for j in jobs),
            tuple(float(j.result["values"][0]) for j in jobs), tuple(str(j.result["run_id"]) for j in jobs),
            by_number[number].result.get("p50_ms"),
        )
        for number, jobs in sorted(runs.items())
    ]  # fmt: skip


def survivors(sweep: Sweep, found: Sequence[Confirmed]) -> list[Confirmed]:
    """Return what is registered, the winner first: by mean validation metric; with two objectives the Pareto set of means."""
    sign = 1 if maximised(sweep.config.sweep.metric) else -1
    kept = list(found)
    if sweep.two_objectives:
        points = [(sign * c.mean, c.p50_ms if c.p50_ms is not None else float("inf")) for c in found]
        kept = [found[i] for i in pareto(points)]
    return sorted(kept, key=lambda c: (-sign * c.mean, c.sd or 0.0, c.trial))
