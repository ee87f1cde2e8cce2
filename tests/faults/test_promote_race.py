"""Fifty promoters, a server that goes away, and first starts from nothing: with real processes and a real MLflow server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tracking_store import free_port, fresh_store, mlflow_server, tiny_bundle, together

from fer_lab.tracking.ledger import Ledger
from fer_lab.tracking.registry import aliases, register, resolve, versions
from fer_lab.tracking.store import open_store

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.name != "posix", reason="forks processes"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
NAME = "fer-synthetic-8"
PROMOTERS = 50


def race(home: Path, tmp_path: Path) -> None:
    """Fifty processes that all saw version 1; each promotes version 2 or 3."""
    store = open_store(home)
    for content in "abc":
        register(store, tiny_bundle(tmp_path / content, content), run_id=None)
    Ledger(store, NAME).promote(1, expected=None, runtime="openvino")
    found = together(
        PROMOTERS,
        lambda i: f"won {Ledger(open_store(home), NAME).promote(2 + i % 2, expected=1, runtime='openvino').version}",
    )
    winners = [text for text in found if text.startswith("won")]
    assert len(winners) == 1, found
    assert sum(text.startswith("Conflict: ") for text in found) == PROMOTERS - 1, found
    ledger = Ledger(open_store(home), NAME)
    assert [entry.kind for entry in ledger.verify()] == ["promote", "promote"]
    assert f"won {aliases(ledger.store, NAME)['champion']}" == winners[0]
    assert ledger.drift() is None


def test_of_fifty_promoters_on_sqlite_one_wins(home: Path, tmp_path: Path) -> None:
    fresh_store(home)
    race(home, tmp_path)


def test_through_a_server_one_promoter_wins_and_one_version_is_made(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process has a home, and so a file lock, of its own, as if it stood on another machine."""
    port = free_port()
    with mlflow_server(tmp_path / "server", port):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        monkeypatch.setattr("fer_lab.tracking.store.faces.home", lambda: home / str(os.getpid()))
        bundle = tiny_bundle(tmp_path / "one", "one")
        assert together(8, lambda i: register(open_store(), bundle, run_id=None, name="once").version) == [1] * 8
        store = open_store()
        assert [v.version for v in versions(store, "once")] == [1]
        assert resolve("models:/once/1", store, cache=tmp_path / "cache").bundle.card.name == "tiny"

        for content in "abc":
            register(store, tiny_bundle(tmp_path / content, content), run_id=None)
        Ledger(store, NAME).promote(1, expected=None, runtime="openvino")
        found = together(
            PROMOTERS, lambda i: f"won {Ledger(open_store(), NAME).promote(2 + i % 2, expected=1, runtime='onnx').version}"
        )
        winners = [text for text in found if text.startswith("won")]
        assert len(winners) == 1, found
        assert sum(text.startswith("Conflict: ") for text in found) == PROMOTERS - 1, found
        ledger = Ledger(store, NAME)
        assert len(ledger.verify()) == 2
        assert f"won {aliases(store, NAME)['champion']}" == winners[0]


def test_a_run_survives_the_server(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is killed in mid-run and comes back: every row arrives once, in order."""
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with mlflow_server(tmp_path / "server", port):
        store = open_store(home)
        run = store.start_run("s", "r")
        run.log_metrics(0, {"loss": 0.0})
    began = time.monotonic()
    for step in range(1, 5):
        run.log_metrics(step, {"loss": float(step)})
    run.log_text("x", "notes/x.txt")
    waited = time.monotonic() - began
    with mlflow_server(tmp_path / "server", port):
        store = open_store(home)  # the next command sends what waits
        assert [(m.step, m.value) for m in store.client.get_metric_history(run.id, "loss")] == [(i, float(i)) for i in range(5)]
        run.log_metrics(5, {"loss": 5.0})
        run.end()
        assert [m.step for m in store.client.get_metric_history(run.id, "loss")] == list(range(6))
        assert store.run_info(run.id)["status"] == "FINISHED"
        assert [f.path for f in store.client.list_artifacts(run.id, "notes")] == ["notes/x.txt"]
    assert waited < 30


def test_four_commands_that_start_on_no_store_all_get_one(home: Path) -> None:
    """Real commands, each importing everything for itself."""
    code = (
        "from fer_lab.tracking.store import open_store; r = open_store().start_run('s', 'r'); r.log_metrics(0, {'x': 1}); r.end()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(4)]
    said = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert [run["status"] for run in open_store(home).find_runs("s", {})] == ["FINISHED"] * 4
