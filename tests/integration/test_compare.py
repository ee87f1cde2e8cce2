"""The compare verb from the command line: what it prints, what it leaves, how it fails, how it goes on after an interruption."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from fer_lab import compare
from fer_lab.backends.bundle import open_bundle
from fer_lab.backends.foreign import card_path
from fer_lab.backends.session import backends
from fer_lab.core.errors import FerLabError
from fer_lab.core.labels import EIGHT
from fer_lab.core.lock import LOCK
from fer_lab.core.types import Host, LatencyProfile, LatencySpec
from fer_lab.measure import comparison as comparisons
from fer_lab.measure import conduct, profiles, record, report
from fer_lab.measure.candidates import Candidate, of_seeds
from fer_lab.measure.conduct import Request
from fer_lab.measure.stats import Interval
from fer_lab.tracking import comparisons as in_store
from fer_lab.tracking.entrants import Entrants
from tests import linear_bundle
from tests.gate_records import good_comparison, good_row

QUICK = ["--no-latency", "--no-robustness", "--no-log"]
BF16 = ("openvino-bf16",) if backends()["openvino-bf16"].unavailable("CPU") is None else ()  # what this host adds
ROWS = [("a", "onnx"), *(("a", name) for name in ("openvino", *BF16)), *(("b", name) for name in ("openvino", *BF16))]


@pytest.fixture
def lab(home, drawn):
    """A store root with the drawn faces prepared and two bundles, b worse than a."""
    drawn.save(home / "data" / "synthetic")
    linear_bundle.write(home / "a", drawn)
    linear_bundle.write(home / "b", drawn, noise=3.0, runtimes=("openvino",))
    return home


def run(capsys, *argv):
    """Exit code, last JSON line, everything on stderr."""
    code = compare.main([str(word) for word in argv])
    out = capsys.readouterr()
    lines = out.out.strip().splitlines()
    return code, json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None, out.err


def test_two_models_end_in_a_table_a_report_and_a_verdict(lab, capsys):
    """The last line holds rows and verdicts; every file of the folder is there; a replay gives the same comparison."""
    code, result, _ = run(capsys, "a", "b", *QUICK)
    assert code == 0
    assert {(row["model"], row["runtime"]) for row in result["rows"]} == set(ROWS)
    for row in result["rows"]:
        assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
        assert row["n"] == result["n"] > 50
    assert result["reference"] == {"model": "a", "runtime": "openvino"}
    words = {(v["model"], v["runtime"]): v["verdict"] for v in result["verdicts"] if v["aspect"] == "accuracy"}
    assert words["a", "onnx"] in ("non-inferior", "undecided")
    folder = lab / "comparisons" / result["id"]
    for name in (
        "comparison.json",
        "report.html",
        "leaderboard.csv",
        "leaderboard.md",
        "leaderboard.tex",
        "methods.md",
        "plan.json",
        "faces.npz",
    ):
        assert (folder / name).stat().st_size > 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http://www.w3.org", "")  # opens offline
    assert "data:image/png" in page
    before = (folder / "comparison.json").read_bytes()
    shutil.rmtree(lab / "a")
    shutil.rmtree(lab / "b")
    code, again, _ = run(capsys, "--replay", folder)
    assert (code, again["rows"]) == (0, result["rows"])
    assert before == (folder / "comparison.json").read_bytes()


def test_one_look_serves_two_label_sources(lab, drawn, capsys, monkeypatch):
    """What a replay says on other votes is what a comparison on them would have said; no model is run, no look is counted."""
    looks = []
    monkeypatch.setattr(Entrants, "count_look", lambda self, c, d, identity: looks.append(identity) or len(looks))
    votes = drawn.votes[np.random.default_rng(0).permutation(len(drawn))]
    replace(drawn, name="other", label_source="other", votes=votes).save(lab / "data" / "other")
    _, first, _ = run(capsys, "a", "b", "--out", "first", *QUICK)
    _, direct, _ = run(capsys, "a", "b", "--dataset", "other", "--out", "direct", *QUICK)
    for name in ("a", "b"):
        shutil.rmtree(lab / name)
    code, again, _ = run(capsys, "--replay", "first", "--dataset", "other", "--no-faces")
    assert code == 0
    assert looks == [first["id"], direct["id"]]
    assert (again["folder"], again["label_source"], again["looks"]) == ("first-other", "other", 1)
    assert again["n"] == direct["n"] != first["n"]
    before, derived, measured = (comparisons.read(lab / folder) for folder in ("first", "first-other", "direct"))
    for row in measured.rows:
        twin = derived.row(row.model, row.runtime)
        assert (twin.confusion, twin.slices, twin.clean_accuracy) == (row.confusion, row.slices, row.clean_accuracy)
        assert twin.kl_to_votes == pytest.approx(row.kl_to_votes, abs=1e-6)
        assert twin.audit.test_faces_in_training == before.row(row.model, row.runtime).audit.test_faces_in_training is not None
    code, _, _ = run(capsys, "--replay", "first-other")
    assert (code, "data:image" in (lab / "first-other" / "report.html").read_text(encoding="utf-8")) == (0, False)
    code, _, _ = run(capsys, "--replay", "first-other", "--dataset", "synthetic", "--out", "back")
    assert code == 0
    for row in comparisons.read(lab / "back").rows:
        origin = before.row(row.model, row.runtime)
        assert (row.accuracy, row.audit.same_data, row.audit.test_faces_in_training) == (
            origin.accuracy, origin.audit.same_data, origin.audit.test_faces_in_training,
        )  # fmt: skip


def test_other_pictures_share_no_look(lab, drawn, capsys):
    """Names are not enough, the same votes too few, an occupied folder is kept; nothing is written. Each says what to do."""
    pixels = drawn.pixels.copy()
    pixels[drawn.indices("test")] ^= 1
    replace(drawn, name="strange", label_source="strange", pixels=pixels).save(lab / "data" / "strange")
    run(capsys, "a", "--out", "first", *QUICK)
    for words, said in (
        (["--dataset", "strange"], "other pictures"),
        (["--dataset", "synthetic"], "leave --dataset out"),
        (["--dataset", "strange", "--out", "a"], "new or empty folder"),
    ):
        code, _, err = run(capsys, "--replay", "first", *words)
        assert (code, said in err, (lab / "first-strange").exists()) == (2, True, False)


def test_without_faces_there_is_no_picture_and_no_pixel(lab, capsys):
    """--no-faces leaves the report without a face, also where it is derived again; stored arrays never hold pixels."""
    code, result, _ = run(capsys, "a", "--no-faces", "--out", "out", *QUICK)
    assert code == 0
    assert "data:image" not in (lab / "out" / "report.html").read_text(encoding="utf-8")
    code, _, _ = run(capsys, "--replay", "out")
    assert code == 0
    assert "data:image" not in (lab / "out" / "report.html").read_text(encoding="utf-8")
    for path in (lab / "out").rglob("*.npz"):
        with np.load(path) as arrays:
            assert all(arrays[name].ndim < 3 for name in arrays.files)
    assert result["folder"] == "out"


def test_an_interrupted_comparison_goes_on_per_row(lab, capsys, monkeypatch):
    """Stopped in the second row, it asks only for that one and those after it; the look is not counted again.

    What the last start said about pictures of faces holds, also where the report is derived again.
    """
    asked, looks = [], []
    real = conduct._ask

    def ask(candidate, runtime, *rest):
        asked.append((candidate.shown, runtime))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(candidate, runtime, *rest)

    monkeypatch.setattr(conduct, "_ask", ask)
    monkeypatch.setattr(Entrants, "count_look", lambda self, c, d, identity: looks.append(identity) or len(looks))
    code, _, _ = run(capsys, "a", "b", *QUICK)
    assert code == 130
    code, result, err = run(capsys, "a", "b", "--no-faces", *QUICK)
    assert code == 0
    assert "going on" in err
    assert asked == ROWS[:2] + ROWS[1:]
    assert looks == [result["id"]]
    assert result["looks"] == 1
    assert run(capsys, "--replay", result["folder"])[0] == 0
    assert "data:image" not in (lab / result["folder"] / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def looks(monkeypatch):
    """The ids under which the test split was looked at."""
    ids = []
    monkeypatch.setattr(Entrants, "count_look", lambda self, c, d, identity: ids.append(identity) or len(ids))
    return ids


def contents(folder):
    """Every file of a folder with its bytes."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("first", "second"), [(["a"], ["a"]), (["a", "--out", "out"], ["b", "--out", "out"])], ids=["same command", "same folder"]
)
def test_two_processes_share_no_folder(lab, capsys, monkeypatch, looks, first, second):
    """The same command twice at once, or another model with the same --out: exit 5, nothing is asked, no look is counted."""
    told = []
    count = Entrants.count_look

    def meanwhile(*rest):
        told.append(run(capsys, *second, *QUICK))
        return count(*rest)

    monkeypatch.setattr(Entrants, "count_look", meanwhile)
    code, result, _ = run(capsys, *first, *QUICK)
    assert (code, {row["model"] for row in result["rows"]}) == (0, {"a"})
    ((code, _, err),) = told
    assert (code, looks) == (5, [result["id"]])
    assert "another process makes the comparison in" in err
    assert result["folder"] in err
    assert len(list(lab.rglob(record.PLAN))) == 1
    assert not list(lab.rglob(LOCK))


def test_a_comparison_is_not_written_over(lab, capsys, monkeypatch, looks):
    """--out with a finished one, be it the very same, or with another unfinished one: exit 2, told what to do, all is kept."""
    _, first, _ = run(capsys, "a", "--out", "done", *QUICK)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(conduct, "_ask", interrupted)
        assert run(capsys, "a", "--out", "begun", *QUICK)[0] == 130
    before = contents(lab / "done"), contents(lab / "begun")
    for model, out, says in (
        ("a", "done", f"holds comparison {first['id']}; give another folder, or show that one again: python -m fer_lab.compare"),
        ("b", "done", f"holds comparison {first['id']}"),
        ("b", "begun", "not finished, of other models or rules; give another folder"),
        ("b", "a", "holds other files"),
    ):  # fmt: skip
        code, _, err = run(capsys, model, "--out", out, *QUICK)
        assert (code, says in err) == (2, True), err
    assert before == (contents(lab / "done"), contents(lab / "begun"))
    assert len(looks) == 2
    code, second, _ = run(capsys, "a", "--out", "begun", *QUICK)
    assert (code, [second["id"]]) == (0, looks[1:])


def test_interrupted_before_the_report_is_one_look(lab, capsys, monkeypatch, looks):
    """comparison.json is the last file: without the report nothing is finished, and the same command goes on."""
    real = report.write
    stops = [KeyboardInterrupt]

    def write(*rest):
        if stops:
            raise stops.pop()
        return real(*rest)

    monkeypatch.setattr(report, "write", write)
    assert run(capsys, "a", *QUICK)[0] == 130
    code, result, err = run(capsys, "a", *QUICK)
    assert (code, "going on with" in err) == (0, True)
    assert looks == [result["id"]]


def test_what_could_not_be_logged_is_not_lost(lab, capsys, monkeypatch):
    """The error names the command that shows the comparison."""

    def away(*_):
        raise FerLabError("the server is away")

    monkeypatch.setattr(Entrants, "__init__", lambda self: setattr(self, "store", object()))
    monkeypatch.setattr(in_store, "log", away)
    code, _, err = run(capsys, "a", "--out", "out", *QUICK[:-1])
    assert code == 1
    assert err.endswith("nothing is lost: python -m fer_lab.compare --replay out\nerror: the server is away\n"), err
    assert run(capsys, "--replay", "out")[0] == 0


def test_damaged_parts_are_no_dead_end(lab, capsys, monkeypatch, looks):
    """While it is unfinished the faces are written again, and answers are removed and asked again; else a copy is needed."""
    real = report.write

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "write", interrupted)
    assert run(capsys, "a", "--out", "out", "--runtimes", "openvino", *QUICK)[0] == 130
    faces, answers = lab / "out" / record.FACES, record.row_path(lab / "out", 0)
    faces.write_bytes(faces.read_bytes()[:100])
    answers.write_bytes(answers.read_bytes()[:100])
    code, _, err = run(capsys, "a", "--out", "out", "--runtimes", "openvino", *QUICK)
    assert (code, "remove 00.npz and give the same fer_lab.compare again" in err) == (2, True), err
    answers.unlink()
    monkeypatch.setattr(report, "write", real)
    assert run(capsys, "a", "--out", "out", "--runtimes", "openvino", *QUICK)[0] == 0
    assert len(looks) == 1
    faces.unlink()
    code, _, err = run(capsys, "--replay", "out")
    assert (code, "bring back a copy of faces.npz" in err) == (2, True), err


def edge(path, host, *timed, batch=1):
    """Write profiles as another host takes them of (digest, runtime) pairs."""
    rounds = tuple((2.0, 2.1) for _ in range(20))
    taken = tuple(
        LatencyProfile("there", digest, LatencySpec(runtime, 2, batch), rounds, 5.0, 2.0, None, 1.0) for digest, runtime in timed
    )
    group = profiles.Group(2, batch, False, 0.02, Interval(1.0, 0.99, 1.01), rounds, None, None, taken)
    profiles.Profiles(Host(host, "Linux", "An Edge Processor", 4, ()), "2026-01-01T00:00:00Z", (group,)).write(path)


def test_profiles_of_other_artifacts_are_refused(lab, capsys, looks):
    """By name, before the test split is looked at; in a replay the latency that is there stays."""
    edge(lab / "edge.json", "edge", ("0123456789abcdef", "openvino"))
    code, _, err = run(capsys, "a", "--profiles", "edge.json", *QUICK)
    assert (code, "edge.json measured other artifacts than are compared here: there · openvino (0123456789ab)" in err) == (2, True)
    assert (looks, (lab / "comparisons").exists()) == ([], False)
    run(capsys, "a", "--out", "out", *QUICK)
    before = contents(lab / "out")
    assert run(capsys, "--replay", "out", "--profiles", "edge.json")[0] == 2
    assert before == contents(lab / "out")


def test_the_first_of_several_profiles_gives_the_figures(lab, capsys):
    """The others are in the record too; a row that it did not time has none, which is noted."""
    _, result, _ = run(capsys, "a", "--out", "out", *QUICK, "--runtimes", "onnx,openvino")
    digest = {row["runtime"]: row["digest"] for row in result["rows"]}
    edge(lab / "one.json", "one", (digest["openvino"], "openvino"), batch=8)
    edge(lab / "two.json", "two", *((digest[runtime], runtime) for runtime in digest))
    code, again, _ = run(capsys, "--replay", "out", "--profiles", "one.json", "--profiles", "two.json")
    assert code == 0
    assert {row["runtime"]: row["host"] for row in again["rows"]} == {"onnx": None, "openvino": "one"}
    found = comparisons.read(lab / "out")
    shown = found.row("a", "openvino")
    assert shown.faces_per_s == pytest.approx(8 * 1000 / 2.05)
    assert (shown.samples, shown.p99_ms) == (40, None)  # too few for it
    assert [profile.host.name for profile in found.profiles] == ["one", "two", "two"]
    assert "one timed 1 of 2 rows; nothing is known about the speed of the others" in found.notes
    page = (lab / "out" / "report.html").read_text(encoding="utf-8")
    assert "median latency per call of 8 faces in ms" in page
    assert "<span>median per call of 8 faces;" in page or again["recommended"]["runtime"] == "onnx"
    assert "a · openvino against itself" in page


def test_bundles_of_one_name_are_told_apart(lab, drawn, capsys):
    """On the screen and in the report, by the folder above."""
    for folder, noise in (("x", 0.0), ("y", 3.0)):
        linear_bundle.write(lab / folder / "net", drawn, noise=noise, runtimes=("onnx",))
    assert compare.main(["x/net", "y/net", "--out", "out", *QUICK]) == 0
    out = capsys.readouterr().out
    page = (lab / "out" / "report.html").read_text(encoding="utf-8")
    for name in ("x/net", "y/net"):
        assert f"{name} " in out
        assert f">{name}<" in page


def test_the_keys_of_metrics_are_mlflow_s():
    """Letters that MLflow refuses become dashes, parts of dots only go, and no two models share a key."""
    from mlflow.utils.validation import _validate_metric_name

    models = ["a@b", "a#b", "a b.c/d", "../x/net", "net", "models:/fer/3", "/", "..", "ärger"]
    rows = tuple(good_row(model, runtime="openvino:GPU") for model in models)
    found = in_store._metrics(good_comparison(rows=rows))
    assert len(found) == 5 * len(models)
    for key in found:
        _validate_metric_name(key)
    assert {"test/a-b/openvino-GPU/accuracy", "test/a-b/openvino-GPU-/accuracy", "test/fer/3/openvino-GPU/ece"} <= set(found)


def test_next_is_a_command_that_can_work(home):
    """Promote what can be promoted, by a name under which its comparison is found; of all else the report."""
    comparison = good_comparison()
    row = comparison.rows[1]
    promote = f"python -m fer_lab.promote {row.model} --runtime openvino --comparison"
    seeds = comparisons.Seeds(("runs:/1", "runs:/2"), (0.8, 0.9), 0.85, 0.07, 0.2, 1.0)
    champion = (row.model, "openvino")
    look = f"python -m webbrowser {(home / 'out' / 'report.html').as_uri()}"
    assert compare._next(comparison, row, home / "out", logged=True, in_office={champion}) == look
    for change, split, folder, logged, expected in (
        ({}, "test", home / "comparisons" / "c1", False, f"{promote} c1"),
        ({}, "test", home / "out", False, f"{promote} {home / 'out'}"),
        ({}, "test", home / "out", True, f"{promote} c1"),
        ({}, "valid", home / "out", True, look),
        ({"foreign": True}, "test", home / "out", True, look),
        ({"seeds": seeds}, "test", home / "out", True, look),
    ):
        said = compare._next(replace(comparison, split=split), replace(row, **change), folder, logged=logged)
        assert said == expected


def test_latency_only_needs_the_core_install_and_joins_by_digest(lab, capsys):
    """On the target: no registry, dataset, torch, pandas or scipy; here the profiles give the rows their latency."""
    program = (
        "import sys; from fer_lab import compare; code = compare.main(sys.argv[1:]);"
        "heavy = {'mlflow', 'torch', 'pandas', 'scipy', 'matplotlib', 'optuna', 'timm'} & set(sys.modules);"
        "sys.exit(code or (f'imported {heavy}' if heavy else 0))"
    )
    words = ["a", "b", "--latency-only", "--out", "edge.json", "--seconds", "0.1", "--batches", "1", "--no-cold-start"]
    bare = {"PATH": "/usr/bin", "FER_LAB_HOME": str(lab / "nowhere")}
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=lab, capture_output=True, text=True, env=bare)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout.splitlines()[-1])["rows"]) == 2 * len(ROWS)  # face and crop
    edge = profiles.read(lab / "edge.json")
    assert all(len(p.latency.samples_ms) >= 30 for p in edge.flat())
    code, result, _ = run(capsys, "a", "b", "--profiles", "edge.json", "--no-robustness", "--no-log")
    assert code == 0
    assert {row["host"] for row in result["rows"]} == {edge.host.name}
    assert all(row["p50_ms"] > 0 for row in result["rows"])
    assert {v["model"] for v in result["verdicts"] if v["aspect"] == "latency"} == {"a", "b"}
    (lab / "edge.json").unlink()
    code, again, _ = run(capsys, "--replay", result["folder"])  # the record keeps the profiles
    assert (code, again["rows"], again["verdicts"]) == (0, result["rows"], result["verdicts"])


def test_latency_is_measured_with_a_control_and_robustness_once_per_model(lab, capsys):
    """Floor, memory, load time and curves are in the record; an exact copy of the reference is never called slower by name."""
    code, result, _ = run(capsys, "a", "--no-log", "--seconds", "0.2", "--batches", "1")
    assert code == 0
    record = comparisons.read(lab / "comparisons" / result["id"])
    assert record.noise_floor is not None
    row = record.row("a", "openvino")
    assert row.peak_memory_mb > 10
    assert row.load_ms > 0
    assert row.samples >= 30
    assert row.end_to_end_p50_ms > 0
    assert set(row.robustness) == {"crop jitter", "rotation", "blur", "darkness", "noise", "jpeg", "occlusion"}
    assert record.row("a", "onnx").robustness == {}
    assert all(0 <= curve.area <= 1 for curve in row.robustness.values())
    latency = next(v for v in record.verdicts if v.aspect == "latency")
    assert record.noise_floor <= 0.05 or (latency.verdict == "undecided" and "noisy" in latency.reason)


def test_what_was_not_timed_to_its_end_is_not_replayed(lab, capsys, monkeypatch, looks):
    """The same command goes on, in the same look; the noise floor is that of the samples, whatever stands beside them."""
    real = profiles.take

    def killed(*arguments, save, **rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(profiles, "take", killed)
    words = ("a", "--no-log", "--seconds", "0.2", "--batches", "1", "--runtimes", "openvino,onnx", "--no-robustness")
    assert run(capsys, *words)[0] == 130
    (folder,) = (lab / "comparisons").iterdir()
    code, _, err = run(capsys, "--replay", folder)
    assert (code, "0 of 2 groups of latency are there" in err) == (2, True), err
    assert not (folder / "comparison.json").exists()
    monkeypatch.setattr(profiles, "take", real)
    code, result, _ = run(capsys, *words)
    assert (code, looks) == (0, [result["id"]])
    stored = json.loads((folder / record.LATENCY).read_text())
    for group in stored["groups"]:
        group["floor"] = 0.0
    (folder / record.LATENCY).write_text(json.dumps(stored))
    code, again, _ = run(capsys, "--replay", folder)
    assert (code, again["noise_floor"]) == (0, pytest.approx(result["noise_floor"], abs=1e-3))
    assert again["noise_floor"] > 0


def test_what_nobody_timed_is_not_dominated_by_its_speed(lab, capsys):
    """With the latency of one of two rows known, neither lies before the other."""
    digest = open_bundle(lab / "a").runtime_digest("openvino")
    edge(lab / "edge.json", "edge", (digest, "openvino"))
    words = ("--runtimes", "openvino", "--profiles", "edge.json")
    code, result, _ = run(capsys, "a", "b", *words, *QUICK)
    assert code == 0
    assert {row["model"]: row["p50_ms"] is None for row in result["rows"]} == {"a": False, "b": True}
    assert all(row["on_front"] and row["dominated_by"] is None for row in result["rows"])


def test_a_model_that_looks_at_its_neighbours_is_caught(lab, drawn, capsys):
    """The batch audit names it, and it is not recommended."""
    linear_bundle.write(lab / "mixes", drawn, runtimes=("openvino",), answer="neighbours")
    _, result, _ = run(capsys, "a", "mixes", *QUICK)
    rows = {row["model"]: row for row in result["rows"]}
    assert rows["mixes"]["batch_invariant"] is False
    assert rows["a"]["batch_invariant"] is True
    assert result["recommended"]["model"] == "a"
    _, result, _ = run(capsys, "mixes", *QUICK)
    assert result["recommended"] is None


def test_a_foreign_model_competes_on_the_same_faces(lab, capsys):
    """An IR with a card in another label order gets a row, the faces, the verdicts; its training data are unknown."""
    shutil.copy(lab / "a" / "openvino" / "model.xml", lab / "net.xml")
    shutil.copy(lab / "a" / "openvino" / "model.bin", lab / "net.bin")
    card = {"schema": 1, "labels": list(EIGHT.labels), "height": 48, "width": 48, "dtype": "uint8", "output": "probabilities"}
    card_path(lab / "net.xml").write_text(json.dumps(card), encoding="utf-8")
    code, result, _ = run(capsys, "a", "net.xml", "--runtimes", "openvino", *QUICK)
    assert code == 0
    rows = {row["model"]: row for row in result["rows"]}
    assert rows["a"]["accuracy"] == rows["net.xml"]["accuracy"]
    record = comparisons.read(lab / "comparisons" / result["id"])
    assert record.row("net.xml", "openvino").audit.test_faces_in_training is None


def test_seeds_of_one_configuration_are_one_row(lab, drawn):
    """Mean ± sd over the runs with a seed-level interval, next to the per-face interval."""
    members = []
    for seed in range(3):
        bundle = linear_bundle.write(lab / f"seed{seed}", drawn, noise=1.0, seed=seed, runtimes=("openvino",))
        members.append(Candidate(f"runs:/{seed}", bundle))
    request = Request(runtimes=("openvino",), timed=False, robustness=False)
    record, folder = conduct.conduct([of_seeds("runs:/parent", tuple(members))], drawn, request, home=lab)
    (row,) = record.rows
    assert row.seeds.runs == ("runs:/0", "runs:/1", "runs:/2")
    assert row.accuracy == pytest.approx(np.mean(row.seeds.accuracies), abs=1e-12)
    assert row.seeds.sd == pytest.approx(np.std(row.seeds.accuracies, ddof=1), abs=1e-12)
    assert row.seeds.low <= row.seeds.mean <= row.seeds.high
    assert "seeds" in (compare.__doc__ or "")
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("answer", "says"), [("nan", "NaN or infinity"), ("raw", "not probabilities")], ids=["nan", "rows that do not sum to one"]
)
def test_a_model_that_answers_nonsense_is_an_error(lab, drawn, capsys, answer, says):
    """No row, no figure: exit 1 and the fault."""
    linear_bundle.write(lab / "bad", drawn, runtimes=("openvino",), answer=answer)
    code, _, err = run(capsys, "bad", *QUICK)
    assert code == 1
    assert says in err


def test_bad_input_is_one_line_and_exit_two(lab, drawn, capsys):
    """Usage, absent things, another protocol: each says what to do."""
    linear_bundle.write(lab / "five", drawn, runtimes=("openvino",), protocol_name="ferplus5")
    cases = {
        (): "name at least one model",
        ("nothing",): "no such bundle",
        ("a", "--runtimes", "onyx"): "did you mean 'onnx'",
        ("b", "--runtimes", "onnx"): "fer_lab.export",
        ("a", "five"): "Different protocols are never compared as one",
        ("a", "--dataset", "ferplus"): "not prepared",
        ("a", "--batches", "0"): "--batches",
        ("a", "--threads", "two"): "--threads",
        ("a", "--margin", "0"): "--margin",
        ("a", "--seconds", "nan"): "--seconds",
        ("a", "--latency-only"): "--out FILE",
        ("a", "--latency-only", "--out", "a"): "a is a folder",
        ("models:/x/1", "--latency-only", "--out", "e.json"): "takes paths",
        ("a", "--profiles", "absent.json"): "no profiles",
        ("--replay", "a"): "no comparison to replay",
        ("--init-card", "a"): "foreign model",
        ("a", "--against-runtime", "torch"): "was not measured in torch",
    }
    for words, says in cases.items():
        code, _, err = run(capsys, *words, *QUICK)
        assert (code, len(err.strip().splitlines())) == (2, 1), err
        assert says in err
    assert not (lab / "comparisons").exists()


def test_a_test_split_that_lacks_a_class_is_refused_before_a_look(lab, drawn, capsys):
    """A mean over the classes would leave it out in silence."""
    votes, rows = drawn.votes.copy(), drawn.indices("test")
    votes[rows, 3] = 0
    votes[rows, 0] += 1  # somebody voted
    replace(drawn, name="lacking", votes=votes).save(lab / "data" / "lacking")
    code, _, err = run(capsys, "a", "--dataset", "lacking", *QUICK)
    assert code == 2
    assert "no sadness face in the test split under ferplus8" in err
    assert not (lab / "comparisons").exists()


def test_a_tampered_bundle_is_refused_before_it_is_run(lab, capsys):
    """A flipped byte in an artifact: exit 4, nothing measured."""
    path = lab / "a" / "openvino" / "model.bin"
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    code, _, err = run(capsys, "a", *QUICK)
    assert code == 4
    assert "model.bin was altered" in err


def test_profiles_that_are_none_are_refused(lab, capsys):
    """A truncated or foreign file says so."""
    (lab / "edge.json").write_text('{"schema": 1, "host"', encoding="utf-8")
    code, _, err = run(capsys, "a", "--profiles", "edge.json", *QUICK)
    assert code == 2
    assert "not profiles" in err


def test_registered_models_are_compared_against_the_champion_and_looks_are_counted(lab, capsys):
    """By alias; the reference is the champion; each comparison of the test split is one look; the run is logged."""
    from fer_lab.tracking import registry
    from fer_lab.tracking.store import open_store

    store = open_store(lab)
    first = registry.register(store, lab / "a", run_id=None)
    second = registry.register(store, lab / "b", run_id=None)
    registry.set_alias(store, first.name, "champion", first.version)
    registry.set_alias(store, first.name, "challenger", second.version)
    shown = ["--no-latency", "--no-robustness", "--runtimes", "openvino"]
    challenger = f"models:/{first.name}@challenger"
    code, result, err = run(capsys, challenger, "--against", "champion", *shown)
    assert code == 0, err
    assert result["reference"]["model"] == first.uri
    assert result["looks"] == 1
    assert store.run_info(result["run_id"])["status"] == "FINISHED"
    code, again, _ = run(capsys, challenger, "--against", "champion", "--no-log", *shown)
    assert (code, again["looks"]) == (0, 2)
    code, valid, _ = run(capsys, challenger, "--split", "valid", "--no-log", *shown)
    assert (code, valid["looks"]) == (0, None)
    code, _, err = run(capsys, challenger, "--against", "nobody", *shown)
    assert code == 2
    assert "no alias @nobody" in err
    registry.set_version_tags(store, first.name, first.version, {"champion_runtime": "onnx"})
    code, shipped, err = run(capsys, challenger, "--against", "champion", "--no-log", *shown[:-2])
    assert code == 0, err
    assert shipped["reference"]["runtime"] == "onnx"  # a challenger must replace what ships
