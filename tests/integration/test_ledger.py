"""The ledger: one winner, no gap, and a champion at every moment."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from tracking_store import fresh_store, tiny_bundle, together

from fer_lab.backends.bundle import open_bundle, write_manifest
from fer_lab.core.errors import Conflict, InputError, IntegrityError, NotFound
from fer_lab.tracking import registry
from fer_lab.tracking.ledger import ENTRY_TAG, RUNTIME_TAG, Ledger
from fer_lab.tracking.registry import aliases, register, version_tags
from fer_lab.tracking.store import Store, open_store

posix = pytest.mark.skipif(os.name != "posix", reason="forks processes")
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
NAME = "fer-synthetic-8"
VERDICTS = [{"gate": "accuracy", "passed": True, "observed": "0.9", "required": "≥ 0.8"}]


@pytest.fixture
def store(home: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    """A local store with three registered versions."""
    store = fresh_store(home)
    for content in "abc":
        folder = tiny_bundle(tmp_path / f"bundle-{content}", content)
        for runtime in ("onnx", "openvino", "openvino-int8"):
            (folder / runtime).mkdir()
            (folder / runtime / "model").write_text(content)
        write_manifest(folder)
        register(store, folder, run_id=None)
    return store


@pytest.fixture
def ledger(store) -> Ledger:  # type: ignore[no-untyped-def]
    return Ledger(store, NAME)


def promote(ledger: Ledger, version: int, expected: int | None, **facts):  # type: ignore[no-untyped-def]
    return ledger.promote(version, expected=expected, runtime=facts.pop("runtime", "openvino"), **facts)


def rewrite(home: Path, statement: str, *values: object) -> None:
    """Tamper with the database behind MLflow's back."""
    connection = sqlite3.connect(home / "mlruns" / "mlflow.db")
    with connection:
        assert connection.execute(statement, values).rowcount == 1
    connection.close()


def test_a_promotion_moves_the_aliases_and_is_written_down(ledger: Ledger, store) -> None:  # type: ignore[no-untyped-def]
    first = promote(ledger, 1, None, verdicts=VERDICTS, policy_hash="p" * 64, comparison_id="c1", user="ann")
    second = promote(ledger, 2, 1, runtime="openvino-int8")
    assert aliases(store, NAME) == {"champion": 2, "previous": 1}
    assert version_tags(store, NAME, 2)[RUNTIME_TAG] == "openvino-int8"
    assert version_tags(store, NAME, 1)[ENTRY_TAG] == f"0:{first.sha256}"
    assert ledger.verify() == [first, second]
    assert (first.kind, first.version, first.previous, first.user, first.comparison_id) == ("promote", 1, None, "ann", "c1")
    assert second.before == first.sha256
    assert ledger.verdicts(first) == VERDICTS
    assert ledger.verdicts(second) == []
    assert ledger.drift() is None


def test_a_promoter_who_saw_another_champion_is_told(ledger: Ledger, store) -> None:  # type: ignore[no-untyped-def]
    promote(ledger, 1, None)
    for expected in (None, 2, 3):
        with pytest.raises(Conflict, match="is version 1, not") as caught:
            promote(ledger, 2, expected)
        assert caught.value.exit_code == 5
    assert aliases(store, NAME) == {"champion": 1}
    assert len(ledger.entries()) == 1
    with pytest.raises(NotFound, match="no version 9"):
        promote(ledger, 9, 1)


def test_a_refusal_is_recorded_and_moves_nothing(ledger: Ledger, store) -> None:  # type: ignore[no-untyped-def]
    entry = ledger.refuse(2, expected=None, runtime="onnx", verdicts=VERDICTS, reason="accuracy too low")
    assert (entry.kind, entry.reason, ledger.verdicts(entry)) == ("refuse", "accuracy too low", VERDICTS)
    assert aliases(store, NAME) == {}


def test_rollback_walks_back_through_the_champions(ledger: Ledger, store) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="no earlier champion"):
        ledger.rollback()
    promote(ledger, 1, None, runtime="onnx")
    promote(ledger, 2, 1)
    promote(ledger, 3, 2)
    assert ledger.rollback().version == 2
    entry = ledger.rollback()
    assert (entry.version, entry.previous, entry.runtime) == (1, 2, "onnx")
    assert aliases(store, NAME) == {"champion": 1, "previous": 2}
    with pytest.raises(InputError, match="no earlier champion"):
        ledger.rollback()
    assert ledger.rollback(to=3).version == 3
    with pytest.raises(InputError, match="is the champion already"):
        ledger.rollback(to=3)
    with pytest.raises(InputError, match=r"version 9 of .* never was champion \(champions so far: 1, 2, 3\)"):
        ledger.rollback(to=9)
    assert [e.kind for e in ledger.verify()] == ["promote"] * 3 + ["rollback"] * 3


def test_a_champion_in_another_runtime_is_gone_back_to(ledger: Ledger, store) -> None:  # type: ignore[no-untyped-def]
    """The version alone does not say what is shipped."""
    promote(ledger, 1, None)
    promote(ledger, 2, 1)
    promote(ledger, 2, 2, runtime="openvino-int8")
    entry = ledger.rollback()
    assert (entry.version, entry.runtime, version_tags(store, NAME, 2)[RUNTIME_TAG]) == (2, "openvino", "openvino")
    assert aliases(store, NAME) == {"champion": 2, "previous": 1}
    assert ledger.rollback(to=2).runtime == "openvino-int8"
    assert ledger.rollback(to=1).version == 1
    with pytest.raises(InputError, match=r"version 1 of .* is the champion already"):
        ledger.rollback(to=1)


@pytest.mark.parametrize("fault", ["gone", "altered", "never held"])
def test_nobody_goes_back_to_what_cannot_be_loaded(fault: str, ledger: Ledger, store) -> None:  # type: ignore[no-untyped-def]
    """Though a whole copy of it lies in the cache of this machine."""
    promote(ledger, 1, None, runtime="openvino-fp16" if fault == "never held" else "openvino")
    promote(ledger, 2, 1)
    registry.resolve(f"models:/{NAME}/1", store)
    files = Path(store.client.get_model_version_download_uri(NAME, "1").removeprefix("file://")) / "artifacts" / "bundle"
    if fault == "gone":
        shutil.rmtree(files)
    elif fault == "altered":
        (files / "openvino" / "model").write_text("x")
    kind, said = {
        "gone": (NotFound, "the files of .* are gone"),
        "altered": (IntegrityError, "was altered"),
        "never held": (NotFound, "holds no openvino-fp16"),
    }[fault]
    with pytest.raises(kind, match=f"{said}.* Nothing was changed; --rollback --to N"):
        ledger.rollback()
    assert aliases(store, NAME) == {"champion": 2, "previous": 1}
    assert len(ledger.verify()) == 2


def test_looks_at_the_test_split_are_counted_once_per_comparison(ledger: Ledger) -> None:
    assert ledger.count_look("fer-synthetic-8", "f1", "c1") == 1
    assert ledger.count_look("fer-synthetic-8", "f1", "c1") == 1
    assert ledger.count_look("fer-synthetic-8", "f1", "c2") == 2
    assert ledger.count_look("foreign", "f1", "c2") == 1
    assert ledger.count_look("fer-synthetic-8", "f2", "c3") == 1
    assert (ledger.looks("fer-synthetic-8"), ledger.looks(fingerprint="f1"), ledger.looks()) == (3, 3, 4)


def test_every_registered_name_that_looks_is_counted(store: Store, tmp_path: Path) -> None:
    """Champion and challenger of two families, a run under its model's name; not a path, nor a name that has no model."""
    from fer_lab.measure.candidates import Candidate
    from fer_lab.tracking.entrants import count_look

    faces: Any = SimpleNamespace(fingerprint="f1")
    small, large = (open_bundle(tiny_bundle(tmp_path / name, backbone=name)) for name in ("small", "large"))
    unknown = open_bundle(tiny_bundle(tmp_path / "unknown", label_source="elsewhere"))
    run, path = Candidate("runs:/0123", small, run_id="0123"), Candidate("folder", small, run_id="0123")
    nameless = Candidate("runs:/4567", unknown, run_id="4567")
    own_run = store.start_run("s", "r")
    registry.register(store, unknown.folder, run_id=own_run.id, name="mine")
    under_its_own = Candidate(f"runs:/{own_run.id}", unknown, run_id=own_run.id)
    assert count_look(store, [path, nameless], faces, "c0") is None
    assert count_look(store, [run, path, nameless], faces, "c1") == 1
    assert count_look(store, [under_its_own], faces, "c0") == 1
    assert Ledger(store, "mine").looks() == 1
    foreign = store.start_run("s", "made in MLflow's own page")
    store.client.create_registered_model("theirs")
    store.client.create_model_version("theirs", "file:///nowhere", run_id=foreign.id)
    assert count_look(store, [Candidate(f"runs:/{foreign.id}", unknown, run_id=foreign.id)], faces, "c0") is None
    assert count_look(store, [Candidate("models:/x/1", small, NAME, 1), Candidate("models:/x/2", large, NAME, 2)], faces, "c2") == 2
    ledger = Ledger(store, NAME)
    assert (ledger.looks("small"), ledger.looks("large")) == (2, 1)


def test_a_changed_or_lost_entry_breaks_the_chain(ledger: Ledger, home: Path) -> None:
    for version, expected in ((1, None), (2, 1), (3, 2)):
        promote(ledger, version, expected)
    entry = ledger.entries()[1]
    where = "WHERE run_uuid = ? AND key = 'entry-000001'"
    rewrite(home, f"UPDATE params SET value = ? {where}", entry.text.replace('"version":2', '"version":3'), ledger.run_id)
    with pytest.raises(IntegrityError, match="is broken: entry 2 does not follow entry 1"):
        ledger.entries()
    rewrite(home, f"UPDATE params SET value = 'x' {where}", ledger.run_id)
    with pytest.raises(IntegrityError, match="entry 1 cannot be read"):
        ledger.entries()
    rewrite(home, f"DELETE FROM params {where}", ledger.run_id)
    with pytest.raises(IntegrityError, match="entry 1 is missing"):
        ledger.promote(1, expected=3, runtime="onnx")


def test_an_entry_of_a_later_schema_is_not_called_broken(ledger: Ledger, home: Path) -> None:
    """A team whose other machine has the newer fer_lab is told to update this one."""
    promote(ledger, 1, None)
    later = json.dumps({"schema": 2, "n": 0, "what": "unknown yet"})
    rewrite(home, "UPDATE params SET value = ? WHERE run_uuid = ? AND key = 'entry-000000'", later, ledger.run_id)
    with pytest.raises(InputError, match=r"entry 0 in the ledger of .*: schema 2 is newer .* update fer_lab"):
        ledger.entries()


def test_a_cut_off_end_is_noticed(ledger: Ledger, home: Path) -> None:
    promote(ledger, 1, None)
    promote(ledger, 2, 1)
    for key in ("entry-000001", "done-000001"):
        rewrite(home, "DELETE FROM params WHERE run_uuid = ? AND key = ?", ledger.run_id, key)
    assert len(ledger.entries()) == 1
    with pytest.raises(IntegrityError, match="has lost entry 1, which made version 2 champion"):
        ledger.verify()


def test_an_alias_moved_past_the_ledger_is_visible(ledger: Ledger, store) -> None:  # type: ignore[no-untyped-def]
    promote(ledger, 1, None)
    registry.set_alias(store, NAME, "champion", 3)
    assert ledger.drift() == (1, 3)
    assert ledger.recover() is None
    with pytest.raises(Conflict):
        promote(ledger, 2, 1)


def test_two_who_finish_one_move_at_once_do_not_hinder_each_other(
    ledger: Ledger, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow refuses the second of two first writers of an alias; here another one writes it just before."""
    promote(ledger, 1, None)
    real = store.client.set_registered_model_alias
    asked: list[str] = []

    def refused_once(name: str, alias: str, version: str) -> None:
        asked.append(alias)
        if asked == ["previous"]:
            real(name, alias, version)
            raise MlflowException("UNIQUE constraint failed: registered_model_aliases", error_code=BAD_REQUEST)
        real(name, alias, version)

    monkeypatch.setattr(store.client, "set_registered_model_alias", refused_once)
    assert promote(Ledger(store, NAME), 2, 1).version == 2
    assert asked == ["previous", "previous", "champion"]
    assert aliases(store, NAME) == {"champion": 2, "previous": 1}


@posix
@forks
@pytest.mark.parametrize("locked", [True, False], ids=["one machine", "many machines"])
def test_of_many_promoters_with_one_observation_one_wins(
    locked: bool, ledger: Ledger, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without the file lock, which other machines do not see; looks written meanwhile get in nobody's way."""
    promote(ledger, 1, None)
    if not locked:
        monkeypatch.setattr("fer_lab.tracking.store.Store.lock", lambda self, name: contextlib.nullcontext())

    def work(i: int) -> str:
        mine = Ledger(open_store(home), NAME)
        if i >= 6:
            return f"look {mine.count_look('foreign', 'f', f'c{i}') > 0}"
        return f"won {promote(mine, 2 + i % 2, 1).version}"

    found = together(8, work)
    winners = [text for text in found[:6] if text.startswith("won")]
    assert len(winners) == 1, found
    assert all("Conflict: " in text for text in found[:6] if text not in winners), found
    assert found[6:] == ["look True"] * 2
    moves = [entry for entry in ledger.verify() if entry.kind == "promote"]
    assert f"won {aliases(open_store(home), NAME)['champion']}" == winners[0] == f"won {moves[1].version}"
    assert aliases(open_store(home), NAME)["previous"] == 1


STEPS = ("claim", "claimed", "tag", "previous", "champion", "done", "after")


def promote_and_die_at(step: str, home: Path) -> None:
    """Promote version 2 in a process that kills itself (SIGKILL) at one step."""
    store = open_store(home)
    ledger = Ledger(store, NAME)

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    log_param, set_alias = store.client.log_param, store.client.set_registered_model_alias

    def param(run_id: str, key: str, value: str, **rest: object) -> None:
        moment = {"claim": "entry", "claimed": "entry", "done": "done", "after": "done"}.get(step)
        hit = moment is not None and key.startswith(moment)
        if hit and step in ("claim", "done"):
            die()
        log_param(run_id, key, value, **rest)
        if hit:
            die()

    def alias(name: str, which: str, version: str) -> None:
        if which == step:
            die()
        set_alias(name, which, version)

    store.client.log_param = param
    store.client.set_registered_model_alias = alias
    if step == "tag":
        store.client.set_model_version_tag = die
    promote(ledger, 2, 1)


@posix
@forks
@pytest.mark.parametrize("step", STEPS)
def test_a_promoter_killed_at_any_step_leaves_a_champion(step: str, ledger: Ledger, store, home: Path) -> None:  # type: ignore[no-untyped-def]
    """The old one or the new one, and the next command makes the ledger agree with it."""
    promote(ledger, 1, None)
    process = get_context("fork").Process(target=promote_and_die_at, args=(step, home))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert aliases(store, NAME)["champion"] in (1, 2)
    finished = ledger.recover()
    champion = aliases(store, NAME)["champion"]
    assert champion == (1 if step == "claim" else 2)
    assert (finished is not None) == (step not in ("claim", "after"))
    assert ledger.verify()[-1].version == champion
    assert ledger.drift() is None
    assert ledger.recover() is None
    promote(ledger, 3, champion)
    assert aliases(store, NAME) == {"champion": 3, "previous": champion}


def test_a_late_promoter_puts_right_what_it_overwrote(ledger: Ledger, store, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Held up between its claim and its move while another machine finishes that move and makes the next one."""
    promote(ledger, 1, None)
    monkeypatch.setattr("fer_lab.tracking.store.Store.lock", lambda self, name: contextlib.nullcontext())
    late = Ledger(store, NAME)
    finish = late._finish

    def held_up(entry):  # type: ignore[no-untyped-def]
        monkeypatch.setattr(late, "_finish", finish)
        other = Ledger(store, NAME)
        other.recover()
        promote(other, 3, 2)
        finish(entry)

    monkeypatch.setattr(late, "_finish", held_up)
    promote(late, 2, 1)
    assert aliases(store, NAME) == {"champion": 3, "previous": 2}
    assert ledger.drift() is None
