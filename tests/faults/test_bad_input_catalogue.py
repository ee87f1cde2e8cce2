"""Bad input that no other test hands in: each verb ends with its code and one sentence, and leaves the store root as it was.

The label files and pictures are in tests/unit/data/test_bad_input.py, videos and cameras in tests/unit/live/test_sources.py, the
page in tests/unit/live/test_web.py, connections in test_secrets.py.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType

import live_bundle
import numpy as np
import pytest
from test_mutations import tree
from tracking_store import fresh_store, tiny_bundle

from fer_lab import compare, demo, export, register, sweep, train
from fer_lab.data.faces import FaceDataset
from fer_lab.tracking import registry

Call = tuple[ModuleType, list[str]]
Plant = Callable[[Path, FaceDataset], Call]
SAMPLE = ["--source", "sample", "--view", "none"]


def config(text: str, verb: ModuleType = train) -> Plant:
    """A configuration file with this text."""

    def plant(home: Path, drawn: FaceDataset) -> Call:
        (home / "config.yaml").write_text(text, encoding="utf-8")
        return verb, [str(home / "config.yaml")]

    return plant


def override(text: str) -> Plant:
    def plant(home: Path, drawn: FaceDataset) -> Call:
        drawn.save(home / "data" / "synthetic")
        return train, ["data.dataset=synthetic", text]

    return plant


def space(text: str) -> Plant:
    """A sweep over one dimension."""
    return config(f"data: {{dataset: synthetic}}\nspace:\n  train.lr: {text}\n", sweep)


def faces(keep: Callable[[FaceDataset], np.ndarray]) -> Plant:
    """A dataset of some of the drawn faces."""

    def plant(home: Path, drawn: FaceDataset) -> Call:
        drawn.take(np.flatnonzero(keep(drawn))).save(home / "data" / "part")
        return train, ["data.dataset=part", "train.image_size=32", "train.class_weights=balanced"]

    return plant


def folder(name: str, verb: ModuleType, *options: str) -> Plant:
    """A folder where a file is due."""

    def plant(home: Path, drawn: FaceDataset) -> Call:
        (home / name).mkdir()
        return verb, [str(home / name) if option == "FOLDER" else option for option in options]

    return plant


def registered(home: Path) -> Path:
    """A version of the model `m`; returns where its files lie."""
    store = fresh_store(home)
    registry.register(store, tiny_bundle(home / "bundle"), run_id=None, name="m")
    assert store.artifacts is not None
    (manifest,) = store.artifacts.rglob("MANIFEST.json")
    return manifest.parent


def version_without_files(home: Path, drawn: FaceDataset) -> Call:
    shutil.rmtree(registered(home))
    return demo, ["models:/m/1", *SAMPLE]


def version_with_no_file(home: Path, drawn: FaceDataset) -> Call:
    place = registered(home)
    shutil.rmtree(place)
    place.mkdir()
    return export, ["models:/m/1"]


def run_that_goes_on(home: Path, drawn: FaceDataset) -> Call:
    store = fresh_store(home)
    run = store.start_run("e", "r")
    store.log_bundle(run, tiny_bundle(home / "bundle"))
    return register, [f"runs:/{run.id}"]


def store_of_another_release(home: Path, drawn: FaceDataset) -> Call:
    fresh_store(home / "elsewhere")  # MLflow looks at a database once per process
    (home / "mlruns").mkdir()
    shutil.copy(home / "elsewhere" / "mlruns" / "mlflow.db", home / "mlruns")
    with closing(sqlite3.connect(home / "mlruns" / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    return register, [str(tiny_bundle(home / "bundle"))]


def source(name: str) -> Plant:
    """The demo with this source; a file of that name is empty."""

    def plant(home: Path, drawn: FaceDataset) -> Call:
        (home / "empty.avi").touch()
        return demo, [str(live_bundle.write(home / "live")), "--view", "none", "--source", name]

    return plant


# row of the catalogue, how it is planted, exit code, what the sentence says
CASES: list[tuple[str, Plant, int, str]] = [
    ("23 split empty", faces(lambda d: d.split != 1), 2, "valid"),
    ("35 folder as configuration", folder("c.yaml", train, "FOLDER"), 2, "c.yaml"),
    ("35 folder as model", folder("net.onnx", compare, "FOLDER", "--latency-only", "--out", "p.json"), 2, "net.onnx"),
    ("43 a word for a number", config("seed: no"), 2, "seed"),
    ("43 base sixty", config("seed: 12:30:00"), 2, "seed"),
    ("43 more digits than Python takes", config(f"seed: {'9' * 5000}"), 2, "config.yaml"),
    ("44 a tag that PyYAML knows", config("seed: !!int ''"), 2, "tags are not allowed"),
    ("45 nested too deep", config("a: " + "[" * 5000), 2, "nested deeper"),
    ("46 low above high", space("{low: 1.0, high: 0.1}"), 2, "low < high"),
    ("46 a step that does not divide", space("{low: 0.1, high: 1.0, step: 0.4}"), 2, "does not divide"),
    ("46 no choice", space("{choices: []}"), 2, "choices"),
    ("46 a logarithm of zero", space("{low: 0.0, high: 1.0, log: true}"), 2, "log needs low > 0"),
    ("46 batch of one", override("train.batch_size=1"), 2, "train.batch_size"),
    ("46 infinite", override("train.lr=.inf"), 2, "train.lr"),
    ("49 backbone from the hub", override("model.backbone=hf-hub:evil/x"), 2, "hf-hub:evil/x"),
    ("49 backbone as a path", override("model.backbone=../../x"), 2, "../../x"),
    ("52 version without its files", version_without_files, 2, "models:/m/1 are gone"),
    ("52 version with an empty folder", version_with_no_file, 2, "no MANIFEST.json"),
    ("53 run that is not finished", run_that_goes_on, 3, "RUNNING"),
    ("61 store of another release", store_of_another_release, 2, "mlflow"),
    ("67 source of another scheme", source("gopher://x/y"), 2, "gopher://x/y"),
    ("68 film without a frame", source("empty.avi"), 2, "empty.avi"),
]  # fmt: skip


def left(home: Path) -> dict[str, str]:
    """Everything below the store root but locks, sqlite's working files and the cache of downloads."""
    working = (".lock", "-shm", "-wal")
    return {path: digest for path, digest in tree(home).items() if "/.cache/" not in path and not path.endswith(working)}


@pytest.mark.parametrize(("plant", "code", "says"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_is_refused_in_one_sentence(
    plant: Plant, code: int, says: str, home: Path, drawn: FaceDataset, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code, one line that names it, nothing changed below the store root (locks and the cache of downloads aside)."""
    verb, options = plant(home, drawn)
    before = left(home)
    capfd.readouterr()
    found = verb.main(options)
    err = capfd.readouterr().err
    assert (found, "Traceback" in err, "internal error" in err) == (code, False, False), err
    assert err.splitlines()[-1].startswith("error: "), err
    assert says in err
    assert left(home) == before


def test_numbers_in_every_notation_are_numbers(tmp_path: Path) -> None:
    """42: PyYAML alone reads 1e-3 as text."""
    from fer_lab.core.config import load_run_config

    for text in ("1e-3", "1.0e-3", "0.001", "1E-3"):
        (tmp_path / "c.yaml").write_text(f"train: {{lr: {text}}}")
        assert load_run_config(tmp_path / "c.yaml").train.lr == 0.001
