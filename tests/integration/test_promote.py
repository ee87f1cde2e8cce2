"""Promotion on a real sqlite store: gates, ledger, aliases, conflicts, rollback; the evidence is a hand-made comparison."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gate_records import HOST, good_comparison, good_row, profile
from tracking_store import fresh_store, signing_key

from fer_lab import promote
from fer_lab.backends.bundle import Bundle, Card, open_bundle, write_manifest
from fer_lab.measure.comparison import Comparison

LABELS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
NAME = "fer-synthetic-8"


def make_bundle(folder: Path, content: str) -> Bundle:
    """A bundle with an OpenVINO folder; the gates read its card and digests, nobody runs it here."""
    (folder / "openvino").mkdir(parents=True)
    (folder / "openvino" / "model.xml").write_text(f"<net>{content}</net>")
    (folder / "weights.safetensors").write_text(content)
    card = Card(
        name="b0", labels=LABELS, protocol="ferplus8", label_source="synthetic", dataset="synthetic", fingerprint="f",
        backbone="tf_efficientnetv2_b0", image_size=48, mean=0.5, std=0.25, versions={"torch": "2"},
    )  # fmt: skip
    (folder / "card.json").write_text(card.to_json())
    write_manifest(folder)
    return open_bundle(folder)


def evidence(
    home: Path, challenger: Bundle, champion: tuple[Bundle, int] | None = None, *, id: str = "c1", **changes: Any
) -> Comparison:
    """Write a comparison in which `challenger` passes every gate against `champion` (or stands alone)."""

    def measured(bundle: Bundle, model: str, **facts: Any) -> Any:
        digest = bundle.runtime_digest("openvino")
        card = bundle.card.model_dump(mode="json", by_alias=True)
        return good_row(model, digest=digest, bundle_digest=bundle.digest, card=card, signed_by=bundle.signed_by, **facts)

    row = measured(challenger, str(challenger.folder), name=None, version=None)
    rows = (row,)
    if champion is not None:
        bundle, version = champion
        rows = (measured(bundle, f"models:/{NAME}/{version}", name=NAME, version=version), row)
    record = good_comparison()
    record = replace(
        record, id=id, rows=rows, reference_model=rows[0].model, reference_runtime="openvino",
        created=f"2026-01-02T03:04:{id[1:]:0>2}Z",
        verdicts=tuple(replace(v, model=row.model) for v in record.verdicts), profiles=(profile(row.digest),),
    )  # fmt: skip
    record = replace(record, **changes)
    record.write(home / "comparisons" / id)
    return record


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, last line of stdout as JSON (empty when none), stderr."""
    code = promote.main(argv)
    out = capsys.readouterr()
    lines = out.out.strip().splitlines()
    last = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return code, last, out.err


@pytest.fixture
def root(home: Path) -> Path:
    """A store root with an empty store."""
    fresh_store(home)
    return home


def test_from_the_first_champion_to_a_rollback(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """First promotion, a refusal, a second promotion, a stale one, history, rollback: aliases and ledger agree throughout."""
    from fer_lab.tracking import registry
    from fer_lab.tracking.store import open_store

    one, two, three = (make_bundle(root / name, name) for name in ("one", "two", "three"))
    evidence(root, one)

    code, dry, _ = run(capsys, str(one.folder), "--dry-run")
    assert (code, dry["promoted"], dry["would_promote"], dry["first_promotion"]) == (0, False, True, True)
    store = open_store()
    assert registry.versions(store, NAME) == []

    code, first, _ = run(capsys, str(one.folder))
    assert code == 0
    assert {k: first[k] for k in ("promoted", "name", "version", "runtime", "previous")} == {
        "promoted": True, "name": NAME, "version": 1, "runtime": "openvino", "previous": None,
    }  # fmt: skip
    assert all(set(gate) == {"gate", "passed", "observed", "required"} and gate["passed"] for gate in first["gates"])
    assert registry.aliases(store, NAME) == {"champion": 1}

    # Evidence without the champion is of no use any more.
    evidence(root, two, id="c2")
    code, _, err = run(capsys, str(two.folder))
    assert code == 5
    assert "the champion of fer-synthetic-8 is version 1 in openvino; nothing was changed" in err

    worse = evidence(root, two, (one, 1), id="c3")
    worse = replace(worse, verdicts=(*worse.verdicts[1:], replace(worse.verdicts[0], verdict="undecided", low=-0.03, high=0.01)))
    worse.write(root / "comparisons" / "c3")
    code, refused, err = run(capsys, str(two.folder))
    assert code == 3
    assert (refused["promoted"], refused["previous"], refused["comparison"]) == (False, 1, "c3")
    assert [g["gate"] for g in refused["gates"] if not g["passed"]] == ["not_worse"]
    assert "not_worse failed: undecided, change between -3.00 points and +1.00 points" in err
    assert registry.aliases(store, NAME) == {"champion": 1}
    code, dry, _ = run(capsys, f"models:/{NAME}/2", "--dry-run")  # the same again, and the ledger hears nothing of it
    assert (code, "entry" in refused, "entry" in dry) == (3, True, False)

    evidence(root, two, (one, 1), id="c4")
    evidence(root, three, (one, 1), id="c5")
    code, second, _ = run(capsys, f"models:/{NAME}/2", "--expect", "1")
    assert (code, second["promoted"], second["version"], second["previous"]) == (0, True, 2, 1)
    assert registry.aliases(store, NAME) == {"champion": 2, "previous": 1}

    code, _, err = run(capsys, str(three.folder))
    assert code == 5
    assert "c5 is against models:/fer-synthetic-8/1 in openvino, but the champion of fer-synthetic-8 is version 2" in err
    code, _, err = run(capsys, f"models:/{NAME}/3", "--expect", "1")
    assert code == 5
    assert registry.aliases(store, NAME) == {"champion": 2, "previous": 1}

    code, back, _ = run(capsys, "--rollback")
    assert (code, back["version"], back["previous"], back["runtime"]) == (0, 1, 2, "openvino")
    assert registry.aliases(store, NAME)["champion"] == 1

    code, history, _ = run(capsys, "--history")
    assert code == 0
    assert [(e["kind"], e["version"]) for e in history["entries"]] == [
        ("promote", 1), ("refuse", 2), ("promote", 2), ("rollback", 1),
    ]  # fmt: skip
    assert (history["verified"], history["in_ledger"], history["champion"]) == (True, True, 1)
    assert all(e["policy_hash"] and e["comparison_id"] for e in history["entries"][:3])

    code, forward, _ = run(capsys, NAME, "--rollback", "--to", "2")
    assert (code, forward["version"]) == (0, 2)
    code, _, err = run(capsys, NAME, "--rollback", "--to", "3")
    assert code == 2
    assert "never was champion" in err

    registry.set_alias(store, NAME, "champion", 3)
    code, history, err = run(capsys, "--history")
    assert (code, history["in_ledger"]) == (0, False)
    assert "somebody moved it past fer_lab" in err


def test_evidence_that_was_made_elsewhere_is_fetched_from_the_store(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Compared on another machine, or with --out: by itself for a registered version, by run id or id when it is named."""
    import shutil

    from fer_lab.tracking import registry
    from fer_lab.tracking.store import open_store

    one = make_bundle(root / "one", "one")
    store = open_store()
    made = registry.register(store, one.folder, run_id=None)
    record = evidence(root, one)
    logged = store.start_run(
        "fer-comparisons", record.id, tags={"kind": "comparison", "comparison_id": record.id, "split": "test", "models": made.uri}
    )
    logged.log_file(root / "comparisons" / "c1" / "comparison.json")
    logged.end("FINISHED")
    for named in ([], ["--comparison", logged.id], ["--comparison", "c1"]):
        shutil.rmtree(root / "comparisons")
        code, passed, err = run(capsys, made.uri, "--dry-run", *named)
        assert (code, passed.get("comparison")) == (0, "c1"), err


def test_evidence_in_the_store_is_not_hidden_by_what_lies_here(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here only a comparison without the champion; in the store one whose file is lost, and the one that counts."""
    import shutil

    from fer_lab.tracking import registry
    from fer_lab.tracking.ledger import Ledger
    from fer_lab.tracking.store import open_store

    one, two = (make_bundle(root / name, name) for name in ("one", "two"))
    store = open_store()
    champion, made = (registry.register(store, bundle.folder, run_id=None) for bundle in (one, two))
    Ledger(store, NAME).promote(champion.version, expected=None, runtime="openvino")
    evidence(root, two, id="c1")
    evidence(root, two, (one, 1), id="c2")
    logged = {}
    for id in ("lost", "c2"):
        tags = {"kind": "comparison", "comparison_id": id, "split": "test", "models": made.uri}
        logged[id] = store.start_run("fer-comparisons", id, tags=tags)
        logged[id].log_file(root / "comparisons" / "c2" / "comparison.json")
        logged[id].end("FINISHED")
    shutil.rmtree(root / "comparisons" / "c2")
    kept = store.client.get_run(logged["lost"].id).info.artifact_uri
    (Path(kept.removeprefix("file://")) / "comparison.json").unlink()
    code, passed, err = run(capsys, made.uri, "--dry-run")
    assert (code, passed.get("comparison")) == (0, "c2"), err
    assert f"the comparison of run {logged['lost'].id} is left out" in err
    assert sorted(path.name for path in (root / "comparisons").iterdir()) == sorted(["c1", logged["c2"].id])


def test_a_run_that_did_not_finish_is_not_promoted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As register refuses it; in a dry run too."""
    from fer_lab.tracking import registry
    from fer_lab.tracking.store import open_store

    one = make_bundle(root / "one", "one")
    evidence(root, one)
    store = open_store()
    logged = store.start_run("s", "r")
    store.log_bundle(logged, one.folder)
    logged.end("FAILED")
    for options in (["--dry-run"], []):
        code, _, err = run(capsys, f"runs:/{logged.id}", *options)
        assert code == 3
        assert f"run {logged.id} is FAILED; only a FINISHED run is registered" in err
    assert registry.versions(store, NAME) == []


def test_the_evidence_is_against_what_the_champion_ships(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A reference in another runtime is another model; the message names the command, also for what is not registered yet."""
    from fer_lab.tracking import registry
    from fer_lab.tracking.ledger import Ledger
    from fer_lab.tracking.store import open_store

    one, two = make_bundle(root / "one", "one"), make_bundle(root / "number two", "two")
    store = open_store()
    registry.register(store, one.folder, run_id=None)
    Ledger(store, NAME).promote(1, expected=None, runtime="onnx")
    evidence(root, two, (one, 1), id="c1")
    code, _, err = run(capsys, str(two.folder), "--dry-run")
    assert code == 5
    assert "c1 is against models:/fer-synthetic-8/1 in openvino, but the champion of fer-synthetic-8 is version 1 in onnx" in err
    assert f"Compare again: python -m fer_lab.compare '{two.folder}' --against champion --against-runtime onnx" in err


def test_a_comparison_with_something_else_under_the_champions_name_is_no_evidence(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says version 1, and measured other bytes."""
    from fer_lab.tracking import registry
    from fer_lab.tracking.ledger import Ledger
    from fer_lab.tracking.store import open_store

    one, two, three = (make_bundle(root / name, name) for name in ("one", "two", "three"))
    store = open_store()
    registry.register(store, one.folder, run_id=None)
    Ledger(store, NAME).promote(1, expected=None, runtime="openvino")
    evidence(root, two, (three, 1))
    code, _, err = run(capsys, str(two.folder), "--dry-run")
    assert (code, "comparison c1 names version 1 of fer-synthetic-8, but measured another bundle" in err) == (4, True), err


BAD = {
    "no policy": (["--policy", "absent.yaml"], 2, "no such file"),
    "unknown runtime": (["--runtime", "openvin"], 2, "unknown runtime 'openvin'"),
    "runtime not in the bundle": (["--runtime", "onnx"], 2, "holds no onnx"),
    "no such comparison": (["--comparison", "c99"], 2, "no comparison 'c99'"),
    "to without rollback": (["--to", "1"], 2, "--to N goes with --rollback"),
    "half an expectation": (["--expect", "v1"], 2, "--expect takes a version number or none"),
    "expectation not met": (["--expect", "7", "--comparison", "c1"], 5, "is none, expected version 7"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_usage_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    """One line that says what is wrong, the right exit code, and no champion."""
    bundle = make_bundle(root / "one", "one")
    evidence(root, bundle)
    argv, wanted, text = BAD[case]
    code, _, err = run(capsys, str(bundle.folder), *argv, "--dry-run")
    assert code == wanted
    assert text in err
    assert len(err.strip().splitlines()) == 1


def test_an_expectation_that_is_not_met_leaves_everything_as_it_was(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No version is made; above all no evidence, which would cost minutes and a look at the sealed faces."""
    from fer_lab.tracking import registry
    from fer_lab.tracking.store import open_store

    one = make_bundle(root / "one", "one")
    code, _, err = run(capsys, str(one.folder), "--expect", "7")
    assert (code, err) == (5, f"error: the champion of {NAME} is none, expected version 7; nothing was changed\n")
    assert registry.versions(open_store(), NAME) == []


def test_evidence_for_another_artifact_or_split_does_not_count(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed byte, another split, a half-written or a foreign record: none of them is evidence."""
    one, two = make_bundle(root / "one", "one"), make_bundle(root / "two", "two")
    evidence(root, one, id="c1")
    evidence(root, two, id="c2", split="valid")
    (root / "comparisons" / "c3").mkdir()
    (root / "comparisons" / "c3" / "comparison.json").write_text('{"schema": 1, "rows": [')
    code, _, err = run(capsys, str(two.folder), "--comparison", "c1", "--dry-run")
    assert code == 2
    assert "did not measure the openvino artifact" in err
    code, refused, _ = run(capsys, str(two.folder), "--comparison", "c2", "--dry-run")
    assert code == 3
    assert [g["gate"] for g in refused["gates"] if not g["passed"]] == ["evidence"]
    code, _, err = run(capsys, str(two.folder), "--comparison", "c3", "--dry-run")
    assert code == 2
    assert "not a comparison" in err


def test_a_profile_from_another_host_fails_the_latency_gate(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A budget names the machine it is for."""
    one = make_bundle(root / "one", "one")
    elsewhere = replace(HOST, name="edge-4c-89abcdef")
    evidence(root, one, profiles=(profile(one.runtime_digest("openvino"), host=elsewhere),))
    code, _, err = run(capsys, str(one.folder), "--dry-run")
    assert code == 3
    assert "measured on another host only: edge-4c-89abcdef" in err
    policy = root / "edge.yaml"
    latency = "latency: {budget_ms: 10, host: edge-4c-89abcdef}"
    policy.write_text(f"gates: {{{latency}}}\nfirst_promotion: {{{latency}}}\n")
    code, passed, _ = run(capsys, str(one.folder), "--dry-run", "--policy", str(policy))
    assert (code, passed["would_promote"]) == (0, True)


def lenient(home: Path) -> str:
    """A policy that a hand-made graph can pass: everything but how good its answers are."""
    policy = home / "policy.yaml"
    gates = "{evidence: {}, size: {}, batch_invariance: {}, licence: {}, latency: {budget_ms: 5000}}"
    policy.write_text(f"runtime: openvino\ngates: {gates}\nfirst_promotion: {gates}\n")
    return str(policy)


def test_without_evidence_it_compares_first(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One command: registered, compared on the sealed faces (a look that the ledger counts), judged, promoted."""

    import tiny_bundle

    from fer_lab.data.synthetic import draw
    from fer_lab.tracking.ledger import Ledger
    from fer_lab.tracking.store import open_store

    faces = draw(1200, seed=3)
    faces.save(root / "data" / "synthetic")
    bundle = tiny_bundle.write(root / "bundle", ["openvino"], fingerprint=faces.fingerprint)
    code, _, err = run(capsys, str(bundle), "--policy", lenient(root), "--dry-run")
    assert code == 2
    assert "was not compared, and a dry run changes nothing" in err
    code, result, err = run(capsys, str(bundle), "--policy", lenient(root))
    assert code == 0, err
    assert (result["promoted"], result["version"], result["runtime"]) == (True, 1, "openvino")
    assert "comparing models:/fer-synthetic-8/1 with none as champion" in err
    other = tiny_bundle.write(root / "other", ["openvino"])
    code, _, err = run(capsys, str(other), "--policy", lenient(root))
    assert (code, "is not the data that" in err) == (2, True)
    assert [entry.kind for entry in Ledger(open_store(), NAME).verify()] == ["look", "promote"]


def test_the_champion_changes_its_runtime_and_changes_it_back(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is shipped is the reference: it is measured beside what is wanted, by promote itself and by the command it names."""
    import tiny_bundle

    from fer_lab import compare
    from fer_lab.data.synthetic import draw
    from fer_lab.gates import evidence as found
    from fer_lab.tracking import ledger, registry
    from fer_lab.tracking.store import open_store

    faces = draw(1200, seed=3)
    faces.save(root / "data" / "synthetic")
    bundle = tiny_bundle.write(root / "bundle", ["onnx", "openvino"], fingerprint=faces.fingerprint)
    policy = root / "policy.yaml"
    policy.write_text("gates: {evidence: {}, not_worse: {margin: 0.1}}\nfirst_promotion: {evidence: {}}\n")

    def promoted(runtime: str) -> tuple[int, dict[str, Any], str]:
        return run(capsys, f"models:/{NAME}/1", "--runtime", runtime, "--policy", str(policy))

    store = open_store()
    registry.register(store, bundle, run_id=None)
    assert promoted("openvino")[0] == 0
    code, result, err = promoted("onnx")
    assert (code, result["previous"], result["runtime"]) == (0, 1, "onnx"), err
    measured = found.read(result["comparison"], root)
    assert [row.runtime for row in measured.rows] == ["openvino", "onnx"]
    assert measured.reference_runtime == "openvino"

    code, _, err = promoted("openvino")
    assert code == 5
    command = f"python -m fer_lab.compare models:/{NAME}/1 --against champion --against-runtime onnx"
    assert f"Compare again: {command}" in err
    quick = ["--batches", "1", "--seconds", "0.2", "--no-robustness", "--no-cold-start", "--no-log"]
    assert compare.main([*command.split()[3:], *quick]) == 0
    code, result, err = promoted("openvino")
    assert (code, result["runtime"]) == (0, "openvino"), err
    assert registry.version_tags(store, NAME, 1)[ledger.RUNTIME_TAG] == "openvino"
    assert promoted("openvino")[2].endswith(f"models:/{NAME}/1 already is the champion in openvino; nothing was changed\n")


def test_a_signed_copy_of_the_champion_takes_its_place(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same files under a signature are another candidate: measured beside the unsigned one, judged, promoted."""
    import tiny_bundle

    from fer_lab import register
    from fer_lab.data.synthetic import draw
    from fer_lab.gates import evidence as found

    faces = draw(1200, seed=3)
    faces.save(root / "data" / "synthetic")
    bundle = tiny_bundle.write(root / "bundle", ["openvino"], fingerprint=faces.fingerprint)
    policy = root / "policy.yaml"
    policy.write_text("runtime: openvino\ngates: {evidence: {}, not_worse: {margin: 0.1}}\nfirst_promotion: {evidence: {}}\n")
    assert run(capsys, str(bundle), "--policy", str(policy))[0] == 0
    key = signing_key(root / "key.pem")
    assert register.main([f"models:/{NAME}/1", "--sign", str(key)]) == 0
    capsys.readouterr()
    code, result, err = run(capsys, f"models:/{NAME}/2", "--policy", str(policy))
    assert (code, result["version"], result["previous"]) == (0, 2, 1), err
    rows = found.read(result["comparison"], root).rows
    assert [(row.model, row.signed_by is None) for row in rows] == [(f"models:/{NAME}/1", True), (f"models:/{NAME}/2", False)]


def test_without_a_name_the_first_default_model_with_a_challenger_is_meant(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real faces before drawn ones; a model without the alias is passed over."""
    from fer_lab.tracking import registry
    from fer_lab.tracking.store import open_store

    bundle = make_bundle(root / "bundle", "a")
    evidence(root, bundle)
    store = open_store()
    for name in (NAME, "fer-ferplus-5", "fer-ferplus-8"):
        made = registry.register(store, bundle.folder, run_id=None, name=name)
        if name != "fer-ferplus-8":
            registry.set_alias(store, name, "challenger", made.version)
    code, result, err = run(capsys, "--dry-run")
    assert (code, result["name"]) == (0, "fer-ferplus-5"), err


def test_the_next_command_of_a_dry_run_asks_the_same_gates(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Policy and expectation again: without them it would promote under another policy."""
    store_bundle = make_bundle(root / "bundle", "a")
    evidence(root, store_bundle)
    given = ["--policy", lenient(root), "--comparison", str(root / "comparisons" / "c1"), "--expect", "none", "--dry-run"]
    assert promote.main([str(store_bundle.folder), *given]) == 0
    out = capsys.readouterr().out
    said = next(line for line in out.splitlines() if line.startswith("next: "))
    assert f"--comparison {root / 'comparisons' / 'c1'} --policy {root / 'policy.yaml'} --expect none" in said


@pytest.mark.slow
def test_without_the_runtime_it_exports_first(
    root: Path, capsys: pytest.CaptureFixture[str], trained_bundle: Path, drawn: Any
) -> None:
    """A trained network becomes champion in one command: exported, verified, compared, judged."""

    from fer_lab.tracking import registry
    from fer_lab.tracking.ledger import Ledger
    from fer_lab.tracking.store import open_store

    drawn.save(root / "data" / "synthetic")
    code, result, err = run(capsys, str(trained_bundle), "--policy", lenient(root))
    assert code == 0, err
    assert (result["promoted"], result["version"], result["runtime"]) == (True, 2, "openvino")
    store = open_store()
    assert registry.version_tags(store, NAME, 2)["exported_from"] == "1"
    assert [entry.kind for entry in Ledger(store, NAME).verify()] == ["look", "promote"]


@pytest.mark.slow
def test_of_twelve_commands_with_one_observation_exactly_one_wins(home: Path) -> None:
    """All expect "no champion", as separate processes; one wins, the others exit 5, the chain is whole."""
    from concurrent.futures import ThreadPoolExecutor

    from fer_lab.tracking.ledger import Ledger
    from fer_lab.tracking.store import open_store

    bundles = [make_bundle(home / f"b{i}", f"b{i}") for i in range(3)]
    for i, bundle in enumerate(bundles):
        evidence(home, bundle, id=f"c{i}")
    open_store()

    def one(i: int) -> int:
        command = [sys.executable, "-m", "fer_lab.promote", str(bundles[i % 3].folder), "--expect", "none"]
        return subprocess.run(command, capture_output=True, env=os.environ | {"FER_LAB_HOME": str(home)}).returncode

    with ThreadPoolExecutor(6) as pool:
        codes = list(pool.map(one, range(12)))
    assert sorted(codes) == [0] + [5] * 11
    entries = Ledger(open_store(), NAME).verify()
    assert [entry.kind for entry in entries] == ["promote"]
