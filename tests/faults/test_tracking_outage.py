"""A tracking server that hangs in mid-training: training goes on at its pace, and every row arrives later, once, in order.

One that is gone when the next trial begins: the worker ends, and the trial is not lost.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fault_figures import LONG, count, publish
from tiny_backbone import register_tiny
from tracking_store import free_port, mlflow_server

from fer_lab.core.config import SweepConfig, load_run_config
from fer_lab.core.errors import Unreachable
from fer_lab.core.signals import Stop
from fer_lab.data.faces import FaceDataset
from fer_lab.search.storage import open_storage
from fer_lab.search.study import open_sweep
from fer_lab.search.tracked import tracked_fit
from fer_lab.search.trainer import trainer
from fer_lab.search.trial import Train, Trained
from fer_lab.search.worker import work
from fer_lab.tracking.run import Run
from fer_lab.tracking.spool import waiting
from fer_lab.tracking.store import open_store
from fer_lab.training.fit import Pruned

pytestmark = [pytest.mark.faults, pytest.mark.skipif(sys.platform == "win32", reason="SIGSTOP is POSIX")]

OUTAGE_S = count(20, 600)
CALM_S = count(5, 120)  # before the outage, and after what waited was sent


class Outage:
    """Stops the server after CALM_S of training and lets it go on OUTAGE_S later; ends the run CALM_S after the last replay."""

    def __init__(self, server: int, spools: Path) -> None:
        self.server, self.spools = server, spools
        self.phase = "before"
        self.since = time.monotonic()
        self.epochs: list[dict[str, float]] = []
        self.steps_ms: dict[str, list[float]] = {"before": [], "during": [], "catching up": [], "after": []}
        self.tracking_s = dict.fromkeys(self.steps_ms, 0.0)
        self.lasted_s = dict.fromkeys(self.steps_ms, 0.0)
        self._last = 0.0

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        now = time.perf_counter()
        if step > 1:  # the first holds what lies between the epochs
            self.steps_ms[self.phase].append((now - self._last) * 1000)
        self._last = now

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        self.epochs.append(metrics)
        lasted = time.monotonic() - self.since
        if self.phase == "before" and lasted > CALM_S:
            os.killpg(self.server, signal.SIGSTOP)
            self._enter("during")
        elif self.phase == "during" and lasted > OUTAGE_S:
            os.killpg(self.server, signal.SIGCONT)
            self._enter("catching up")
        elif self.phase == "catching up" and not waiting(self.spools):
            self._enter("after")
        elif self.phase == "after" and lasted > CALM_S:
            self._enter("after")
            raise Pruned("the test has seen enough")

    def timed(self, do: Callable[..., None]) -> Callable[..., None]:
        """The same operation on a run, its time added up by phase."""

        def call(*arguments: Any) -> None:
            began = time.perf_counter()
            do(*arguments)
            self.tracking_s[self.phase] += time.perf_counter() - began

        return call

    def _enter(self, phase: str) -> None:
        self.lasted_s[self.phase] += time.monotonic() - self.since
        self.phase, self.since = phase, time.monotonic()


def test_training_does_not_wait_for_the_server(
    home: Path, drawn: FaceDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server accepts connections and never answers (SIGSTOP), the slowest of all outages."""
    backbone, port = register_tiny(monkeypatch), free_port()
    settings = {
        "data.dataset": "synthetic", "model.backbone": backbone, "train.epochs": 100_000, "train.batch_size": 16,
        "train.image_size": 128, "train.device": "cpu", "train.threads": 1, "train.warmup_epochs": 0,
    }  # fmt: skip
    config = load_run_config(None, [f"{key}={value}" for key, value in settings.items()])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with mlflow_server(tmp_path / "server", port) as server:
        store = open_store(home)
        outage = Outage(server.pid, store.spool_folder)
        monkeypatch.setattr(Run, "_do", outage.timed(Run._do))
        run = store.start_run("outage", "run")
        with pytest.raises(Pruned):
            tracked_fit(config, drawn, store, run=run, on_step=outage.on_step, on_epoch=outage.on_epoch)
        rows = {key: store.client.get_metric_history(run.id, key) for key in outage.epochs[0]}
        assert store.run_info(run.id)["status"] == "KILLED"
    assert not waiting(store.spool_folder)
    wanted = {key: [(epoch, metrics[key]) for epoch, metrics in enumerate(outage.epochs)] for key in rows}
    assert {key: [(row.step, row.value) for row in found] for key, found in rows.items()} == wanted
    share = outage.tracking_s["during"] / outage.lasted_s["during"]
    assert share < (0.01 if LONG else 0.3)  # 3 s until the server is known to be away, once
    median_ms = {phase: round(statistics.median(values), 2) for phase, values in outage.steps_ms.items() if values}
    publish(
        "tracking_outage", outage_s=OUTAGE_S, epochs=len(outage.epochs), rows=sum(map(len, rows.values())), rows_missing=0,
        rows_twice=0, rows_out_of_order=0, share_of_time_in_tracking={
            phase: round(outage.tracking_s[phase] / max(outage.lasted_s[phase], 1e-9), 5) for phase in outage.tracking_s
        }, step_ms_median=median_ms, steps={phase: len(values) for phase, values in outage.steps_ms.items()},
    )  # fmt: skip


def test_a_trial_that_cannot_begin_is_not_lost(
    home: Path, drawn: FaceDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is killed between two trials: the worker ends, the second one is free; after its return the study completes."""
    backbone, port = register_tiny(monkeypatch), free_port()
    config = SweepConfig.model_validate(
        {
            "data": {"dataset": "synthetic", "subset": 200}, "model": {"backbone": backbone},
            "train": {"epochs": 1, "batch_size": 32, "image_size": 32, "device": "cpu", "threads": 1},
            "space": {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}},
            "sweep": {"trials": 2, "pruner": {"name": "none"}, "confirm": {"top": 1, "seeds": 1}},
        }
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    storage = open_storage(home)
    sweep = open_sweep(config, drawn, home, storage, address)
    with ExitStack() as server:
        server.enter_context(mlflow_server(tmp_path / "server", port))
        store = open_store(home)

        def below(parent: str) -> Train:
            real = trainer(sweep, store, parent)

            def train(*arguments: Any, name: str, **more: Any) -> Trained:
                if name == "trial-001":
                    server.close()
                return real(*arguments, name=name, **more)

            return train

        with pytest.raises(Unreachable):
            work(sweep, store, below, Stop())
        assert [(job.status, job.deaths) for job in sweep.leases.jobs("trial")] == [("complete", 0), ("free", 0)]
        server.enter_context(mlflow_server(tmp_path / "server", port))
        result = work(sweep, open_store(home), lambda parent: trainer(sweep, store, parent), Stop())
    assert result["trials"] == {"complete": 2, "pruned": 0, "failed": 0}
    assert result["registered"] is not None
    storage.close()
