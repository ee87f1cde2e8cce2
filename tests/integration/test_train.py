"""The verb train: what a run leaves, what several seeds leave, what is refused before anything exists."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_backbone import build_tiny, register_tiny

from fer_lab import train
from fer_lab.core.config import load_run_config
from fer_lab.models import backbones
from fer_lab.models.weights import save_weights

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SMALL = [
    "model.backbone=tiny", "data.dataset=synthetic", "data.subset=200", "train.epochs=2", "train.image_size=32",
    "train.batch_size=32", "train.device=cpu", "train.threads=1", "train.precision=float32", "train.stages=[]",
]  # fmt: skip

RECIPES = [*sorted(EXPERIMENTS.glob("seed/*.yaml")), *sorted(EXPERIMENTS.glob("ferplus8_*.yaml"))]


@pytest.fixture
def lab(home: Path, drawn: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store root with the drawn dataset prepared and the tiny backbone known."""
    register_tiny(monkeypatch)
    drawn.save(home / "data" / "synthetic")
    return home


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the four pictures of a run, which take most of the time of so small a one; one test looks at them."""
    from fer_lab.measure import plots

    for name in ("curves", "confusion_matrix", "reliability", "worst_mistakes"):
        monkeypatch.setattr(plots, name, lambda *arguments, **options: None)


def written(path: Path, classes: int = 8) -> Path:
    """A weights file of the tiny backbone."""
    save_weights(build_tiny("tiny", classes=classes), path)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, last line of stdout as JSON, and stderr."""
    code = train.main(list(arguments))
    out, err = capsys.readouterr()
    lines = out.strip().splitlines()
    return code, json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}, err


def test_a_run_leaves_its_evidence_in_the_store(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parameters, curves, pictures, the command that reproduces it, and a bundle that opens and predicts."""
    from fer_lab.backends.session import Predictor
    from fer_lab.data.faces import load
    from fer_lab.tracking.registry import resolve
    from fer_lab.tracking.store import open_store

    code, result, err = run(capsys, *SMALL, "train.keep=[val/nll]")
    assert code == 0, err
    assert {"accuracy", "macro_recall", "macro_f1", "f1_of_macro_pr", "nll", "ece", "kl_to_votes"} <= set(result["val"])
    store = open_store()
    info = store.run_info(result["run_id"])
    assert info["status"] == "FINISHED"
    assert info["params"]["model.backbone"] == "tiny"
    assert info["metrics"]["best/accuracy"] == pytest.approx(result["val"]["accuracy"])
    assert {"val/accuracy", "val/nll", "train/loss", "train/faces_per_s", "lr"} <= set(info["metrics"])
    assert info["tags"]["fer.command"].startswith("python -m fer_lab.train model.backbone=tiny")
    assert info["tags"]["fer.command"] in info["tags"]["mlflow.note.content"]
    artifacts = {p.name for p in store.download_run_folder(result["run_id"], "plots", lab / "plots").iterdir()}
    assert artifacts == {"curves.png", "confusion.png", "reliability.png", "worst_mistakes.png"}
    assert store.download_run_folder(result["run_id"], "checkpoints", lab / "kept").is_dir()
    assert not (lab / "mlruns" / "work" / result["run_id"]).exists()

    bundle = resolve(f"runs:/{result['run_id']}", store).bundle
    assert bundle.digest == result["bundle_digest"]
    assert bundle.card.validation["accuracy"] == pytest.approx(result["val"]["accuracy"])
    dataset = load(lab / "data" / "synthetic")
    with Predictor.open(bundle, "torch") as predictor:
        probs = predictor.predict(dataset.pixels[dataset.indices("valid")])
    from fer_lab.core.labels import protocol

    labels = protocol("ferplus8").labels(dataset.votes[dataset.indices("valid")])
    assert (probs.argmax(axis=1) == labels)[labels >= 0].mean() == pytest.approx(result["val"]["accuracy"])


@pytest.mark.usefixtures("no_pictures")
def test_the_card_names_the_weights_that_were_started_from_by_content(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not by their place: it means nothing elsewhere, tells of the machine, and would make two digests of one network."""
    from fer_lab.tracking.registry import resolve
    from fer_lab.tracking.store import open_store

    weights = written(lab / "started.safetensors")
    code, result, err = run(capsys, *SMALL, "train.epochs=1", f"model.weights_file={weights}")
    assert code == 0, err
    card = resolve(f"runs:/{result['run_id']}", open_store()).bundle.card
    assert card.config["model"]["weights_file"] == f"sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()}"


@pytest.mark.usefixtures("no_pictures")
def test_weights_are_calibrated_as_they_are_without_an_epoch(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run like any other, with a bundle of the same weights, the classifier's biases apart."""
    from safetensors.torch import load_file

    from fer_lab.tracking.registry import resolve
    from fer_lab.tracking.store import open_store

    weights = written(lab / "given.safetensors")
    arguments = [*SMALL, "train.epochs=0", "train.calibration=bias"]
    assert train.main([*arguments, f"model.weights_file={weights}"]) == 0
    out, _ = capsys.readouterr()
    assert "the weights as they were given; accuracy 0." in out
    result = json.loads(out.splitlines()[-1])
    assert (result["epochs_run"], result["best_epoch"]) == (0, 0)
    assert {"accuracy", "accuracy_raw", "nll", "nll_raw"} <= set(result["val"])
    given = load_file(weights)
    shipped = load_file(resolve(f"runs:/{result['run_id']}", open_store()).bundle.folder / "weights.safetensors")
    assert [name for name in given if not given[name].equal(shipped[name])] == ["6.bias"]


@pytest.mark.parametrize(
    ("classes", "arguments", "words"),
    [
        (None, [], "give model.weights_file"),
        (5, [], "holds no classifier of ferplus8's classes"),
        (8, ["train.teachers=[runs:/x]"], "leave out train.teachers"),
        (8, ["train.stages=[{from_epoch: 0, size: 32}]"], "leave out train.stages"),
        (8, ["--seeds", "0..1"], "every seed would be the same run"),
    ],
)
def test_what_cannot_be_calibrated_without_an_epoch_is_refused(
    lab: Path, capsys: pytest.CaptureFixture[str], classes: int | None, arguments: list[str], words: str
) -> None:
    """Before a run exists: a classifier drawn at random would be registered as if somebody had trained it."""
    given = [] if classes is None else [f"model.weights_file={written(lab / 'given.safetensors', classes)}"]
    code, _, err = run(capsys, *SMALL, "train.epochs=0", *given, *arguments)
    assert code == 2
    assert words in err
    assert not (lab / "mlruns").exists()


@pytest.mark.usefixtures("no_pictures")
def test_several_seeds_are_children_of_one_run_with_a_mean(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The parent carries mean and standard deviation."""
    from fer_lab.tracking.store import open_store

    code, result, err = run(capsys, *SMALL, "train.epochs=1", "--seeds", "0..1")
    assert code == 0, err
    store = open_store()
    children = store.children(result["run_id"])
    assert [child["run_id"] for child in children] == result["runs"]
    assert [child["tags"]["fer.seed"] for child in children] == ["0", "1"]
    assert {child["status"] for child in children} == {"FINISHED"}
    scores = [child["metrics"]["best/accuracy"] for child in children]
    assert result["val"]["accuracy"] == pytest.approx(sum(scores) / 2)
    assert store.run_info(result["run_id"])["metrics"]["mean/accuracy"] == pytest.approx(sum(scores) / 2)


@pytest.mark.usefixtures("no_pictures")
def test_one_seed_has_no_spread(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A standard deviation of 0 would say that all seeds agree."""
    from fer_lab.tracking.store import open_store

    assert train.main([*SMALL, "train.epochs=1", "--seeds", "3"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert result["sd"] is None
    assert f"{result['val']['accuracy']:.4f} ± –" in out
    assert not [name for name in open_store().run_info(result["run_id"])["metrics"] if name.startswith("sd/")]


@pytest.mark.usefixtures("no_pictures")
def test_the_card_says_who_taught_by_content(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the reference, which may name another model tomorrow."""
    from fer_lab.tracking.registry import resolve
    from fer_lab.tracking.store import open_store

    _, teacher, _ = run(capsys, *SMALL, "train.epochs=1")
    ref = f"runs:/{teacher['run_id']}"
    code, result, err = run(capsys, *SMALL, "train.epochs=1", f"train.teachers=[{ref}]")
    assert code == 0, err
    card = resolve(f"runs:/{result['run_id']}", open_store()).bundle.card
    assert card.config["train"]["teachers"] == [f"{ref} sha256:{teacher['bundle_digest']}"]


def test_a_teacher_that_is_not_there_is_said_before_a_run_exists(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fer_lab.tracking.store import open_store

    code, _, err = run(capsys, *SMALL, "train.teachers=[models:/mentor@champion]", "--seeds", "0,1")
    assert (code, "mentor" in err) == (2, True)
    assert open_store().client.search_experiments(filter_string="name = 'synthetic'") == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model.backbone=efficientnetv2_b0"], "did you mean 'tf_efficientnetv2_b0'"),
        (["train.epoch=3"], "did you mean 'train.epochs'"),
        (["train.image_size=31"], "image_size"),
        (["train.stages=[{from_epoch: 0, size: 16},{from_epoch: 1, size: 32}]"], "at least 32 px"),
        (["data.protocol=ferplus9"], "unknown protocol"),
        (["data.dataset=ferplus"], "fer_lab.prepare"),
        (["model.weights_file=none.safetensors"], "no such file"),
        (["train.class_weights={joy: 1.0}"], "no label joy"),
        (["train.optimizer=adafactorbv"], "does not fit a checkpoint"),
        (["--seeds", "4..0"], "neither a range"),
        (["--seeds", "1,1"], "neither a range"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    lab: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    """Exit code 2, and no store was created."""
    code, _, err = run(capsys, *SMALL, *arguments)
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (lab / "mlruns").exists()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_is_loaded(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And fits its backbone and protocol, also on a host without the bf16 that some ask for."""
    from fer_lab.training import recipe

    monkeypatch.setattr(recipe, "_computes_bf16", lambda device: True)
    config = load_run_config(path)
    if config.train.epochs == 0:
        save_weights(backbones.build(config.model.backbone, classes=8), tmp_path / "w.safetensors")
        config = load_run_config(path, [f"model.weights_file={tmp_path / 'w.safetensors'}"])
    recipe.check_config(config)


@pytest.mark.usefixtures("no_pictures")
def test_a_cut_down_seed_recipe_runs(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keras' RMSprop, plateau, class weights, majority targets, early stopping, the four checkpoints."""
    from fer_lab.tracking.store import open_store

    code, result, err = run(capsys, str(EXPERIMENTS / "seed" / "ferplus8_b0.yaml"), *SMALL)
    assert code == 0, err
    kept = {p.name for p in open_store().download_run_folder(result["run_id"], "checkpoints", lab / "kept").iterdir()}
    assert kept == {f"best-{name}.safetensors" for name in ("nll", "accuracy", "macro_precision", "macro_recall")}
