"""Races of promoters and of registrations, a server that goes away, first starts from nothing: real processes, a real server."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
from fault_figures import count, publish
from tracking_store import free_port, fresh_store, mlflow_server, tiny_bundle, together

from fer_lab.core.errors import Conflict
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
REGISTRARS = 8


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


def registered_once(tmp_path: Path) -> int:
    """Eight processes register one bundle at once, in several rounds: each round makes one version. Returns the rounds."""
    rounds = count(2, 20)
    for n in range(rounds):
        bundle = tiny_bundle(tmp_path / f"once-{n}", f"once {n}")
        found = together(REGISTRARS, lambda i, bundle=bundle: register(open_store(), bundle, run_id=None, name="once").version)
        assert len(set(found)) == 1, found
        assert isinstance(found[0], int), found
    return rounds


def test_of_eight_registrations_at_once_one_makes_the_version(home: Path, tmp_path: Path) -> None:
    store = fresh_store(home)
    rounds = registered_once(tmp_path)
    assert [v.version for v in versions(store, "once")] == list(range(1, rounds + 1))
    publish("register_race", at_once=REGISTRARS, rounds=rounds, versions=rounds)


def test_each_of_many_races_has_one_winner(home: Path, tmp_path: Path) -> None:
    """Two to eight promoters that all saw the same champion; the chain of the ledger has no gap afterwards."""
    store = fresh_store(home)
    for content in "abc":
        register(store, tiny_bundle(tmp_path / content, content), run_id=None)
    Ledger(store, NAME).promote(1, expected=None, runtime="openvino")
    rounds = count(5, 200)
    racers = random.Random(0).choices(range(2, 9), k=rounds)
    together_again = get_context("fork").Barrier(max(racers))

    def promoter(i: int) -> list[str]:
        ledger, outcomes = Ledger(open_store(home), NAME), []
        for n in range(rounds):
            together_again.wait()
            champion = aliases(ledger.store, NAME)["champion"]
            together_again.wait()
            if i >= racers[n]:
                outcomes.append("watched")
                continue
            wanted = [version for version in (1, 2, 3) if version != champion][i % 2]
            try:
                ledger.promote(wanted, expected=champion, runtime="openvino")
                outcomes.append("won")
            except Conflict:
                outcomes.append("lost")
        return outcomes

    found = together(max(racers), promoter)
    assert all(isinstance(outcomes, list) for outcomes in found), found
    winners = [sum(outcomes[n] == "won" for outcomes in found) for n in range(rounds)]
    losers = [sum(outcomes[n] == "lost" for outcomes in found) for n in range(rounds)]
    assert winners == [1] * rounds
    assert losers == [n - 1 for n in racers]
    ledger = Ledger(open_store(home), NAME)
    assert len(ledger.verify()) == rounds + 1
    assert ledger.drift() is None
    publish("promote_race", rounds=rounds, promoters=sum(racers), rounds_with_one_winner=winners.count(1), gaps_in_the_ledger=0)


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
        rounds = registered_once(tmp_path)
        store = open_store()
        assert len(versions(store, "once")) == rounds  # losers take theirs back, so numbers are left out
        publish("register_race_server", at_once=REGISTRARS, rounds=rounds, versions=rounds)
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
