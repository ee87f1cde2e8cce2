"""Artifacts that try to run code or to reach outside their folder: none succeeds, each is refused with a sentence.

Each plants a canary: a file that appears when its code runs. The first test lets careless loaders open the same artifacts, so
that a canary that never appears is known to be able to.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import ferplus_files
import numpy as np
import pytest
import tiny_bundle
import yaml
from fault_figures import publish
from test_mutations import tree
from tracking_store import fresh_store
from tracking_store import tiny_bundle as registrable

from fer_lab import compare, demo, export, prepare, promote, register, sweep, train
from fer_lab.backends.bundle import MANIFEST, write_manifest
from fer_lab.data.faces import FaceDataset

pytestmark = pytest.mark.skipif(os.name != "posix", reason="plants links and /etc/passwd")
MLMODEL = "flavors:\n  python_function:\n    loader_module: canary_module\n    code: code\n    python_version: 3.11.0\n"
SAMPLE = ("--source", "sample", "--view", "none")


class Canary:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.path),)


@dataclass
class Nest:
    """Where artifacts are planted: the store root, and the file that must not appear."""

    home: Path
    drawn: FaceDataset

    @property
    def canary(self) -> Path:
        return self.home / "canary"

    @property
    def tag(self) -> str:
        """YAML that creates the canary when a careless loader constructs it."""
        return f"!!python/object/apply:os.mknod ['{self.canary}']"

    def bundle(self, runtime: str = "onnx") -> Path:
        return tiny_bundle.write(self.home / "bundle", [runtime])

    def code(self, folder: Path) -> Path:
        """An MLflow model whose loader and whose `code` folder are a module that creates the canary when imported."""
        (folder / "code").mkdir(parents=True, exist_ok=True)
        (folder / "MLmodel").write_text(MLMODEL)
        (folder / "code" / "canary_module.py").write_text(
            f"open({str(self.canary)!r}, 'w').close()\nclass Model:\n    predict = print\ndef _load_pyfunc(path): return Model()\n"
        )
        return folder


@pytest.fixture
def nest(home: Path, drawn: FaceDataset) -> Nest:
    return Nest(home, drawn)


Call = tuple[ModuleType, list[str]]


def timed(model: Path, runtime: str = "onnx") -> Call:
    options = ["--latency-only", "--runtimes", runtime, "--batches", "1", "--seconds", "0.01", "--no-cold-start", "--out", "p.json"]
    return compare, [str(model), *options]


# ------------------------------------------------------------------------------------------------------- the artifacts


def weights(nest: Nest, save: Callable[[Any, Path], None]) -> Call:
    prepare.main(["synthetic", "--count", "200"])
    path = nest.home / "weights.pth"
    save({"conv_stem.weight": Canary(nest.canary)}, path)
    return train, ["data.dataset=synthetic", f"model.weights_file={path}", "train.device=cpu", "train.image_size=32"]


def dump(tree: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(tree))


def torch_save(tree: Any, path: Path) -> None:
    import torch

    torch.save(tree, path)


def pickle_for_safetensors(nest: Nest) -> Call:
    folder = nest.bundle()
    dump(Canary(nest.canary), folder / "weights.safetensors")
    card = json.loads((folder / "card.json").read_text()) | {"backbone": "tf_efficientnetv2_b0"}
    (folder / "card.json").write_text(json.dumps(card))
    write_manifest(folder)
    return timed(folder, "torch")


def pickle_in_npz(nest: Nest) -> Call:
    folder = nest.home / "data" / "evil"
    nest.drawn.take(np.arange(100)).save(folder)
    with np.load(folder / "faces.npz") as arrays:
        np.savez(folder / "faces.npz", **{**arrays, "pixels": np.array([Canary(nest.canary)], object)})
    return train, ["data.dataset=evil"]


def stray_code(nest: Nest) -> Call:
    folder = nest.bundle()
    (folder / "sitecustomize.py").write_text(f"open({str(nest.canary)!r}, 'w').close()\n")
    return timed(folder)


def link(nest: Nest) -> Call:
    folder = nest.bundle()
    file = folder / "onnx" / "model.onnx"
    shutil.move(file, nest.home / "elsewhere")
    file.symlink_to(nest.home / "elsewhere")
    return timed(folder)


def path_in_manifest(nest: Nest, path: str) -> Call:
    folder = nest.bundle()
    (nest.home / "outside").write_bytes(b"x")
    record = json.loads((folder / MANIFEST).read_text())
    record["files"][path.format(home=nest.home)] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(record))
    return timed(folder)


def external(nest: Nest, location: str, *, foreign: bool) -> Call:
    """An ONNX file whose weights lie elsewhere."""
    from onnx import TensorProto

    model = tiny_bundle.proto()
    kernel = model.graph.initializer[1]
    kernel.ClearField("raw_data")
    kernel.data_location = TensorProto.EXTERNAL
    kernel.external_data.add(key="location", value=location)
    return planted(nest, model.SerializeToString(), foreign=foreign)


def external_link(nest: Nest) -> Call:
    call = external(nest, "weights.data", foreign=True)
    (nest.home / "weights.data").symlink_to("/etc/passwd")
    return call


def planted(nest: Nest, raw: bytes, *, foreign: bool, suffix: str = "onnx") -> Call:
    """A graph as a foreign file with its card, or in a bundle that lists it."""
    if foreign:
        path = nest.home / f"net.{suffix}"
        path.write_bytes(raw)
        path.with_suffix(".bin").write_bytes(b"")
        card = {"labels": list(tiny_bundle.LABELS), "height": 48, "width": 48, "dtype": "uint8", "output": "probabilities"}
        path.with_suffix(".card.json").write_text(json.dumps(card))
        return timed(path, "onnx" if suffix == "onnx" else "openvino")
    runtime = "onnx" if suffix == "onnx" else "openvino"
    folder = nest.bundle(runtime)
    (folder / runtime / f"model.{suffix}").write_bytes(raw)
    write_manifest(folder)
    return timed(folder, runtime)


def own_operator(nest: Nest) -> Call:
    return planted(nest, tiny_bundle.proto(domain="canary.ops").SerializeToString(), foreign=True)


def extension(nest: Nest, *, foreign: bool) -> Call:
    """An IR with an operator that only an extension library could bring."""
    folder = tiny_bundle.write(nest.home / "sound", ["openvino"])
    xml = (folder / "openvino" / "model.xml").read_text()
    assert 'type="Convolution" version="opset1"' in xml
    changed = xml.replace('type="Convolution" version="opset1"', f'type="Canary" version="{nest.home}/libcanary.so"')
    return planted(nest, changed.encode(), foreign=foreign, suffix="xml")


def tag_in(nest: Nest, verb: ModuleType, *options: str) -> Call:
    path = nest.home / "evil.yaml"
    path.write_text(f"schema: 1\nname: {nest.tag}\n")
    return verb, [*(str(path) if option == "FILE" else option for option in options)]


def policy(nest: Nest) -> Call:
    store = fresh_store(nest.home)
    register.main([str(registrable(nest.home / "one"))])
    return tag_in(nest, promote, f"models:/{store.client.search_registered_models()[0].name}/1", "--policy", "FILE")


def mlflow_model(nest: Nest, verb: ModuleType, *options: str) -> Call:
    """A version that MLflow registered by itself, with a loader and code of its own."""
    store = fresh_store(nest.home)
    store.client.create_registered_model("evil")
    store.client.create_model_version("evil", source=nest.code(nest.home / "model").as_uri())
    return verb, ["models:/evil/1", *options]


def loader_beside_a_bundle(nest: Nest) -> Call:
    """A version of fer_lab's whose MLmodel, which lies outside the bundle, was replaced: the bundle is used, that is not."""
    store = fresh_store(nest.home)
    assert register.main([str(nest.bundle("openvino")), "--name", "ours"]) == 0
    source = store.client.get_model_version_download_uri("ours", "1")
    nest.code(Path(url2pathname(urlsplit(source).path)))
    return demo, ["models:/ours/1", *SAMPLE, "--seconds", "0.2"]


def path_in_zip(nest: Nest) -> Call:
    files = ferplus_files.write(nest.drawn, nest.home / "in")
    with zipfile.ZipFile(files.archive, "a") as archive:
        archive.writestr("FER2013Train/../../../canary", b"x")
        archive.writestr(str(nest.canary), b"x")
    return prepare, ["ferplus", "--images", str(files.archive), "--strict"]


# name, how it is planted, exit code, what the sentence says
CASES: list[tuple[str, Callable[[Nest], Call], int, str]] = [
    ("weights_file, a pickle", lambda n: weights(n, dump), 2, "model.weights_file"),
    ("weights_file, saved by torch", lambda n: weights(n, torch_save), 2, "model.weights_file"),
    ("weights.safetensors, a pickle", pickle_for_safetensors, 4, "does not fit"),
    ("faces.npz with a pickled object", pickle_in_npz, 2, "not a dataset"),
    ("bundle with code", stray_code, 4, "sitecustomize.py is not in the manifest"),
    ("bundle with a link", link, 4, "is a link"),
    ("manifest: a path upwards", lambda n: path_in_manifest(n, "../outside"), 4, "../outside"),
    ("manifest: an absolute path", lambda n: path_in_manifest(n, "{home}/outside"), 4, "outside"),
    ("ONNX data upwards, foreign", lambda n: external(n, "../../../../../../etc/passwd", foreign=True), 2, "external data"),
    ("ONNX data upwards, in a bundle", lambda n: external(n, "../../../../../../etc/passwd", foreign=False), 2, "external data"),
    ("ONNX data, absolute", lambda n: external(n, "/etc/passwd", foreign=True), 2, "external data"),
    ("ONNX data, a link", external_link, 2, "external data"),
    ("ONNX with an operator of its own", own_operator, 2, "canary.ops"),
    ("IR with an extension, foreign", lambda n: extension(n, foreign=True), 2, "OpenVINO cannot"),
    ("IR with an extension, in a bundle", lambda n: extension(n, foreign=False), 1, "OpenVINO cannot"),
    ("YAML tag in a run", lambda n: tag_in(n, train, "FILE"), 2, "tags are not allowed"),
    ("YAML tag in a sweep", lambda n: tag_in(n, sweep, "FILE"), 2, "tags are not allowed"),
    ("YAML tag in an override", lambda n: (train, [f"name={n.tag}"]), 2, "override"),
    ("YAML tag in a policy", policy, 2, "tags are not allowed"),
    ("MLmodel with code, demo", lambda n: mlflow_model(n, demo, *SAMPLE), 2, "not registered by fer_lab"),
    ("MLmodel with code, compare", lambda n: mlflow_model(n, compare), 2, "not registered by fer_lab"),
    ("MLmodel with code, export", lambda n: mlflow_model(n, export), 2, "not registered by fer_lab"),
    ("MLmodel with code, a folder", lambda n: (register, [str(n.code(n.home / "model"))]), 2, "no MANIFEST.json"),
    ("MLmodel with code beside a bundle", loader_beside_a_bundle, 0, ""),
    ("zip with paths upwards, nothing is unpacked", path_in_zip, 0, ""),
]  # fmt: skip
TRIED: list[str] = []
RAN: list[str] = []
# Those that import torch and timm to be refused take their time.
PARAMETERS = [
    pytest.param(*case[1:], id=case[0], marks=[pytest.mark.faults] if case[0].startswith("weights_file") else []) for case in CASES
]


@pytest.mark.parametrize(("plant", "code", "says"), PARAMETERS)
def test_no_artifact_runs_code(
    plant: Callable[[Nest], Call], code: int, says: str, nest: Nest, capfd: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """The verb ends with its code and one sentence; the canary is not there."""
    verb, options = plant(nest)
    before = tree(nest.home / "data")
    capfd.readouterr()
    found = verb.main(options)
    out, err = capfd.readouterr()
    TRIED.append(request.node.callspec.id)
    if nest.canary.exists():
        RAN.append(request.node.callspec.id)
    assert not nest.canary.exists(), err
    assert (found, "Traceback" in out + err, "internal error" in err) == (code, False, False), err
    assert says in err
    assert code == 0 or err.splitlines()[-1].startswith("error: "), err
    assert code == 0 or tree(nest.home / "data") == before
    assert "root:" not in out + err  # of /etc/passwd


def test_the_figure() -> None:
    """How many ran, of how many."""
    publish("code_in_artifacts", artifacts=len(TRIED), ran=len(RAN), which=RAN)
    assert RAN == []


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore::UserWarning:mlflow", "ignore::FutureWarning:mlflow")
def test_the_canaries_sing_for_careless_loaders(nest: Nest) -> None:
    """pickle, torch, numpy, PyYAML and MLflow run the same artifacts when they are let."""
    import mlflow
    import torch

    torch_save(Canary(nest.canary), nest.home / "w.pth")
    np.savez(nest.home / "a.npz", a=np.array([Canary(nest.canary)], object))
    for careless in (
        lambda: pickle.loads(pickle.dumps(Canary(nest.canary))),
        lambda: torch.load(nest.home / "w.pth", weights_only=False),
        lambda: np.load(nest.home / "a.npz", allow_pickle=True)["a"],
        lambda: yaml.unsafe_load(nest.tag),
        lambda: mlflow.pyfunc.load_model(str(nest.code(nest.home / "model"))),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", sys.path[:])
            careless()
        assert nest.canary.exists()
        nest.canary.unlink()
