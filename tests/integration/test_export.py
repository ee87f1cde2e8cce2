"""export, from the command to the registry: what passes is registered, what fails changes nothing."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundle

from fer_lab import export
from fer_lab.backends.bundle import open_bundle, write_manifest
from fer_lab.backends.session import Predictor
from fer_lab.convert import graph, parity, publish, record
from fer_lab.convert.export import check_dataset, check_runtimes, export_bundle
from fer_lab.core.errors import InputError, Refused
from fer_lab.core.types import SPLITS

QUICK = ("onnx", "openvino", "openvino-fp16", "openvino-bf16")


@pytest.fixture(scope="module")
def source(drawn: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a random B0 at 32 px: these tests ask how an export goes, not how good the network is."""
    import torch

    from fer_lab.models import backbones, deployable

    folder = tmp_path_factory.mktemp("source") / "bundle"
    folder.mkdir()
    torch.manual_seed(0)
    network = backbones.build("tf_efficientnetv2_b0", classes=8)
    with torch.no_grad():
        network.classifier.weight.mul_(100)  # away from 1/8 for every label, where rounding alone flips
    deployable.save_weights(network, folder / "weights.safetensors")
    card = tiny_bundle.card(backbone="tf_efficientnetv2_b0", image_size=32, fingerprint=drawn.fingerprint, name="untrained")
    (folder / "card.json").write_text(card.to_json(), encoding="utf-8")
    write_manifest(folder)
    return folder


@pytest.fixture
def fast_graph(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace the network once for all tests of this file; everything after it is real."""
    to_onnx = graph.to_onnx

    def once(deployable: Any, card: Any) -> Any:
        if "proto" not in _TRACED:
            _TRACED["proto"] = to_onnx(deployable, card)
        copy = type(_TRACED["proto"])()
        copy.CopyFrom(_TRACED["proto"])
        graph.describe(copy, card)
        return copy

    monkeypatch.setattr(graph, "to_onnx", once)


_TRACED: dict[str, Any] = {}


@pytest.fixture
def prepared(home: Path, drawn: Any) -> Path:
    """A store root with the drawn dataset prepared."""
    drawn.save(home / "data" / "synthetic")
    return home


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.usefixtures("fast_graph")
def test_the_challenger_becomes_a_new_version_with_every_runtime(
    source: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Version 1 → version 2, tagged exported_from=1, @challenger moves along, and the bundle verifies again."""
    from fer_lab.tracking import registry
    from fer_lab.tracking.store import open_store

    store = open_store()
    first = registry.register(store, source, run_id=None)
    registry.set_alias(store, first.name, "challenger", first.version)

    assert export.main(["--runtimes", "onnx,openvino,openvino-fp16", "openvino-bf16"]) == 0
    answer = last_line(capsys)
    assert (first.name, 2) == (answer["name"], answer["version"])
    assert registry.aliases(store, first.name) == {"challenger": 2}
    assert registry.version_tags(store, first.name, 2)["exported_from"] == "1"
    for runtime in ("onnx", "openvino"):
        row = answer["runtimes"][runtime]
        assert row["flips"] <= 1
        assert row["max_dp"] <= 1e-4
        assert row["refused"] is None
        assert row["size_mb"] > 20

    bundle = registry.resolve(f"models:/{first.name}@challenger", store).bundle
    assert bundle.card.exported_from == "models:/fer-synthetic-8/1"
    content = record.read(bundle)
    assert content["dataset"]["split"] == "valid"
    assert content["runtimes"]["onnx"]["batch_invariant"] is True
    text = (bundle.folder / "parity.json").read_text(encoding="utf-8")
    assert str(prepared) not in text
    for path in ("onnx/model.onnx", "openvino/model.xml"):
        raw = (bundle.folder / path).read_bytes()
        assert not any(trace in raw for trace in (b"/home", b"/tmp", b"site-packages", b".py"))  # searched for, not used

    assert export.main(["--check", str(bundle.folder)]) == 0
    assert last_line(capsys)["runtimes"]["openvino"]["state"] == "verified"
    # The same model again: the same bytes, so the same version.
    assert export.main([f"models:/{first.name}/1", "--runtimes", "onnx,openvino,openvino-fp16,openvino-bf16"]) == 0
    again = last_line(capsys)
    assert (2, answer["digest"]) == (again["version"], again["digest"])


@pytest.mark.usefixtures("fast_graph")
def test_a_slim_bundle_leaves_the_weights_out_and_still_verifies(
    source: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is shipped: no torch weights, the artifacts byte for byte those of the full bundle; it cannot be exported again."""
    assert export.main([str(source), "--runtimes", "openvino-fp16", "--out", "full"]) == 0
    full = open_bundle(Path(last_line(capsys)["bundle"]))
    assert export.main([str(source), "--runtimes", "openvino-fp16", "--out", "slim", "--slim"]) == 0
    slim = open_bundle(Path(last_line(capsys)["bundle"]))
    assert set(full.files) - set(slim.files) == {"weights.safetensors"}
    assert slim.runtimes == ("openvino-fp16",)
    assert (slim.folder / "openvino-fp16/model.bin").read_bytes() == (full.folder / "openvino-fp16/model.bin").read_bytes()
    assert export.main(["--check", str(slim.folder)]) == 0
    assert last_line(capsys)["runtimes"]["openvino-fp16"]["state"] == "verified"
    assert export.main([str(slim.folder), "--runtimes", "onnx"]) == 2
    assert "has no weights.safetensors" in capsys.readouterr().err


@pytest.mark.usefixtures("fast_graph")
def test_the_test_split_is_never_read(source: Path, drawn: Any, tmp_path: Path) -> None:
    """Its faces are replaced by noise and nothing changes."""
    from fer_lab.data.faces import FaceDataset

    pixels, votes = drawn.pixels.copy(), drawn.votes.copy()
    test = drawn.split == SPLITS.index("test")
    pixels[test], votes[test] = 7, 0
    spoilt = FaceDataset(drawn.name, drawn.label_source, pixels, votes, drawn.split, drawn.names, drawn.slices)
    spoilt.__dict__["fingerprint"] = drawn.fingerprint  # the one thing that may tell them apart
    one, other = (export_bundle(open_bundle(source), data, ["onnx"], tmp_path) for data in (drawn, spoilt))
    assert one.digest == other.digest


@pytest.mark.usefixtures("fast_graph")
def test_a_refused_runtime_is_left_out_and_the_others_are_kept(
    source: Path, drawn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded weights in the runtime called openvino: out, with its reason; onnx stays."""
    from fer_lab.convert import ir

    save = ir.save

    def rounded(model: Any, xml: Path, facts: Any, *, fp16: bool = False) -> None:
        """An IR whose constants were scaled: what a broken converter leaves."""
        from openvino import opset13

        copy = model.clone()
        result = copy.get_results()[0]
        value = result.input_value(0)
        turned = opset13.gather(value, opset13.constant(np.array([1, 0, 2, 3, 4, 5, 6, 7])), opset13.constant(np.int64(1)))
        result.input(0).replace_source_output(turned.output(0))
        copy.validate_nodes_and_infer_types()
        save(copy, xml, facts, fp16=fp16)

    monkeypatch.setattr(ir, "save", rounded)
    result = export_bundle(open_bundle(source), drawn, ["onnx", "openvino", "openvino-bf16"], tmp_path)
    assert sorted(result.refused) == ["openvino", "openvino-bf16"]
    assert open_bundle(result.folder).runtimes == ("torch", "onnx")
    assert record.read(open_bundle(result.folder))["runtimes"]["openvino"]["state"] == "refused"
    with pytest.raises(Refused, match="no runtime passed"):
        export_bundle(open_bundle(source), drawn, ["openvino"], tmp_path / "none")
    assert list((tmp_path / "none").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
@pytest.mark.usefixtures("fast_graph")
def test_a_full_disk_leaves_the_old_bundle(source: Path, drawn: Any, tmp_path: Path) -> None:
    """The real fault: no file may grow beyond 10 MB, so the weights do not fit."""
    import resource

    before = export_bundle(open_bundle(source), drawn, ["onnx"], tmp_path).folder
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            export_bundle(open_bundle(source), drawn, ["openvino"], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert before == publish.current(tmp_path)
    open_bundle(before)
    assert {"CURRENT", before.name} == {path.name for path in tmp_path.iterdir()}


def test_an_unknown_runtime_lists_the_known_ones(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is loaded."""
    assert export.main(["--runtimes", "openvin"]) == 2
    assert "unknown runtime 'openvin'; known: onnx, onnx-int8, openvino" in capsys.readouterr().err
    assert check_runtimes(["openvino-bf16"]) == ("openvino", "openvino-bf16")
    assert export.main(["--runtimes", "onnx openvino", "models:/fer-ferplus-8/3"]) == 2
    assert "--runtimes took models:/fer-ferplus-8/3 for a runtime; put the model before" in capsys.readouterr().err


def test_a_bundle_without_weights_is_refused(drawn: Any, tmp_path: Path) -> None:
    """Only a trained network can be exported."""
    bundle = open_bundle(tiny_bundle.write(tmp_path / "bundle", ["onnx"], fingerprint=drawn.fingerprint))
    with pytest.raises(InputError, match=r"has no weights\.safetensors"):
        export_bundle(bundle, drawn, ["onnx"], tmp_path / "out")


def test_a_dataset_that_does_not_fit_the_card_is_refused(drawn: Any) -> None:
    """Other labels, or another label source; another fingerprint is only said."""
    assert check_dataset(tiny_bundle.card(fingerprint=drawn.fingerprint), drawn) is None
    assert "is not the data of tiny" in (check_dataset(tiny_bundle.card(), drawn) or "")
    with pytest.raises(InputError, match="has the labels"):
        check_dataset(tiny_bundle.card(labels=("a", "b")), drawn)
    with pytest.raises(InputError, match="not comparable"):
        check_dataset(tiny_bundle.card(label_source="ferplus-2016"), drawn)


def test_a_split_without_faces_is_bad_input(source: Path, drawn: Any, tmp_path: Path) -> None:
    """Nothing can be verified on no face."""
    only_train = drawn.take(drawn.indices("train"))
    with pytest.raises(InputError, match="keeps none of the 0 valid faces"):
        export_bundle(open_bundle(source), only_train, ["onnx"], tmp_path)


def test_a_run_that_did_not_finish_is_refused_before_it_is_exported(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As register refuses it."""
    from fer_lab.tracking.store import open_store

    store = open_store()
    run = store.start_run("s", "r")
    store.log_bundle(run, tiny_bundle.write(home / "bundle", ["onnx"]))
    run.end("FAILED")
    assert export.main([f"runs:/{run.id}"]) == 3
    assert f"run {run.id} is FAILED; only a FINISHED run is registered" in capsys.readouterr().err


def test_no_challenger_says_what_to_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty store."""
    assert export.main([]) == 2
    assert "no @challenger" in capsys.readouterr().err


def test_check_needs_no_dataset_and_tells_what_changed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A never exported bundle, a changed answer, an altered file: 2, 3, 4."""
    folder = tiny_bundle.write(home / "bundle", ["onnx", "openvino"])
    assert export.main(["--check", str(folder)]) == 2
    assert "never exported" in capsys.readouterr().err

    bundle = open_bundle(folder)
    probes = record.probes(bundle.card)
    with Predictor.open(bundle, "onnx") as predictor:
        expected = predictor.predict(probes)
    for turned, code in ((False, 0), (True, 3)):
        answers = {"onnx": expected, "openvino": np.roll(expected, 1, axis=1) if turned else expected, "torch": expected}
        record.write(folder, {"schema": 1, "runtimes": {}, "probes": record.encode_probes(probes, answers)})
        write_manifest(folder)
        assert code == export.main(["--check", str(folder)])
        assert ("refused" if turned else "verified") == last_line(capsys)["runtimes"]["openvino"]["state"]
    assert export.main(["--check", str(folder), "--threads", "-1"]) == 2
    assert "--threads are at least 1" in capsys.readouterr().err
    (folder / "onnx" / "model.onnx").write_bytes(b"x")
    assert export.main(["--check", str(folder)]) == 4


def test_a_runtime_that_answers_nan_is_refused_by_check(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last line is JSON all the same, which knows no NaN."""
    import onnx
    from onnx import numpy_helper

    folder = tiny_bundle.write(home / "bundle", ["onnx"])
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "weight")
    weight.CopyFrom(numpy_helper.from_array(np.full((16, 8), np.nan, np.float32), "weight"))
    onnx.save(model, path)
    probes = record.probes(tiny_bundle.card())
    answers = {"onnx": np.full((len(probes), 8), 1 / 8, np.float32)}
    record.write(folder, {"schema": 1, "runtimes": {}, "probes": record.encode_probes(probes, answers)})
    write_manifest(folder)
    assert export.main(["--check", str(folder)]) == 3
    row = last_line(capsys)["runtimes"]["onnx"]
    assert (row["state"], row["max_dp"], row["reason"]) == ("refused", None, "it answers with NaN or infinity")


def test_int8_that_loses_too_much_is_refused_when_its_time_is_up(
    source: Path, drawn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other runtime is kept, and what plain INT8 showed stays in the record, with both reasons."""
    judge, said = parity.refusal, []

    def strict(entry: Any, tolerance: Any) -> str | None:
        return "too far" if entry["precision"] == "int8" else judge(entry, tolerance)

    monkeypatch.setattr(parity, "refusal", strict)
    result = export_bundle(
        open_bundle(source), drawn, ["onnx", "onnx-int8"], tmp_path / "out", calibration_faces=8, int8_minutes=1e-6,
        progress=said.append,
    )  # fmt: skip
    assert result.runtimes["onnx"].state == "verified"
    refused = result.runtimes["onnx-int8"]
    assert refused.refused is not None
    assert refused.refused.startswith("ptq: too far; accuracy-control: not done after 1e-06 min")
    assert (refused.state, refused.method) == ("refused", "ptq")
    assert refused.accuracy is not None
    assert "onnx-int8: 0 networks tried, at most 0 min left" in said
    entry = record.read(open_bundle(result.folder))["runtimes"]["onnx-int8"]
    assert (entry["method"], entry["accuracy"]) == ("ptq", refused.accuracy)


@pytest.mark.slow
def test_int8_is_calibrated_verified_and_reproducible(trained_bundle: Path, drawn: Any, tmp_path: Path) -> None:
    """Both INT8 runtimes, twice, in two places: the same digest. Minutes on two cores."""
    copies = [Path(shutil.copytree(trained_bundle, tmp_path / name)) for name in ("one", "two")]
    results = [
        export_bundle(open_bundle(copy), drawn, ["onnx-int8", "openvino-int8"], copy.with_name(f"{copy.name}-out"), max_drop=1.0)
        for copy in copies
    ]
    assert results[0].digest == results[1].digest
    content = record.read(open_bundle(results[0].folder))
    assert {"verified"} == {entry["state"] for entry in content["runtimes"].values()}
    assert content["calibration"]["split"] == "train"
