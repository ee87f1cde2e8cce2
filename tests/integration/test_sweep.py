"""The main job from its command line: a tiny study on drawn faces, its second start, its refusals."""

from __future__ import annotations

import json
import shlex
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundle

from fer_lab import sweep
from fer_lab.core.config import load_sweep_config
from fer_lab.data.faces import FaceDataset

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "data.subset=64", "train.batch_size=16", "train.epochs=2", "train.image_size=32", "train.device=cpu", "train.threads=1",
    "sweep.trials=2", "sweep.confirm.top=1", "sweep.confirm.seeds=1", "sweep.pruner.name=none", "sweep.workers=1",
]  # fmt: skip


@pytest.fixture
def prepared(home: Path, drawn: FaceDataset) -> Path:
    """A store root with 240 drawn faces."""
    rows = np.concatenate([drawn.indices("train")[:200], drawn.indices("valid")[:40]])
    drawn.take(rows).save(home / "data" / "synthetic")
    return home


def _result(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], dict[str, Any]]:
    lines = capsys.readouterr().out.splitlines()
    return lines, json.loads(lines[-1])


def test_the_quickstart_ends_with_a_registered_challenger_and_a_second_start_trains_nothing(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No argument but a smaller size: the same study, the same JSON line, the line for MLflow, the next command."""
    from fer_lab.tracking import registry
    from fer_lab.tracking.store import open_store

    assert sweep.main(TINY) == 0
    lines, result = _result(capsys)
    assert lines[0].startswith("experiments/quickstart.yaml on the synthetic sample")
    assert "prepare ferplus" in lines[0]
    assert result["trials"] == {"complete": 2, "pruned": 0, "failed": 0}
    assert result["registered"] == {**result["registered"], "name": "fer-synthetic-8", "version": 1, "alias": "challenger"}
    assert lines[-2] == "next: python -m fer_lab.export models:/fer-synthetic-8@challenger"
    assert "MLFLOW_TRACKING_URI=" in lines[-3]
    store = open_store(prepared)
    assert registry.aliases(store, "fer-synthetic-8") == {"challenger": 1}
    resolved = registry.resolve("models:/fer-synthetic-8@challenger", store)
    assert resolved.run_id == result["best"]["run_id"]
    children = store.children(result["parent_run_id"])
    assert Counter(child["name"].partition("-")[0] for child in children) == {"trial": 2, "confirm": 1}
    assert {child["status"] for child in children} == {"FINISHED"}

    assert sweep.main(TINY) == 0
    again, same = _result(capsys)
    assert same == result
    assert "nothing was trained" in "\n".join(again)
    [more] = [line.partition("More trials: ")[2] for line in again if "More trials: " in line]
    assert "experiments/quickstart.yaml data.subset=64 " in more
    assert more.endswith(" sweep.trials=4")
    assert "sweep.trials=2" not in more

    assert sweep.main([*TINY, "--status"]) == 0
    _, status = _result(capsys)
    assert status["finished"]
    assert status["trials"]["complete"] == 2

    assert sweep.main([*TINY, "train.epochs=3", "--study", result["study"]]) == 5
    assert "exists with another train.epochs" in capsys.readouterr().err


def test_bad_input_is_refused_before_anything_trains(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 and one sentence each; no study is left behind."""
    cases = {
        "no such configuration": ["absent.yaml"],
        "did you mean 'train.epochs'": ["train.epoch=3"],
        "batch": ["train.batch_size=0"],
        "unknown protocol": ["data.protocol=ferplus9"],
        "is not prepared": ["data.dataset=ferplus"],
        "no search space": ["space={}"],
        "max_hours": ["--max-hours", "0"],
        "put the URL into FER_LAB_STORAGE": ["--storage", "postgresql://u:secret@h/d"],
    }
    for text, arguments in cases.items():
        quick = arguments if arguments[0].endswith(".yaml") else [str(ROOT / "experiments/quickstart.yaml"), *arguments]
        if text == "no search space":
            (prepared / "plain.yaml").write_text("data: {dataset: synthetic}\n")
            quick = ["plain.yaml"]
        assert sweep.main(quick) == 2, text
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
        assert "secret" not in error


def test_what_would_fail_every_trial_is_refused_before_one_is_claimed(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error or another host's device uses up no slot: put right, the same study has them all."""
    cases = {
        "sweep.metric: unknown metric 'val/acc'": ["sweep.metric=val/acc"],
        "torch finds no cuda:9 on this host": ["train.device=cuda:9"],
        "did you mean 'adamw'": ["train.optimizer=adamww"],
        "no label joy": ["train.class_weights={joy: 2.0}"],
        "the network would be shipped": [
            "space={train.image_size: {choices: [32, 48]}}",
            "train.stages=[{from_epoch: 0, size: 32}]",
        ],
        "absent": ["train.teachers=[absent]"],
    }
    for text, arguments in cases.items():
        assert sweep.main([str(ROOT / "experiments/quickstart.yaml"), *TINY, *arguments]) == 2, text
        assert text in capsys.readouterr().err
    with closing(sqlite3.connect(prepared / "mlruns" / "optuna.db")) as connection:
        assert connection.execute("SELECT DISTINCT status, fence FROM fer_jobs").fetchall() == [("free", 0)]


def test_a_study_keeps_its_teachers_when_an_alias_moves(
    prepared: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By version, for its workers and for more trials later: the study's own winner may become the challenger."""
    from fer_lab.tracking import registry
    from fer_lab.tracking.store import open_store

    def champion(content: str) -> None:
        bundle = tiny_bundle.write(tmp_path / content, [content])
        registry.set_alias(store, "mentor", "champion", registry.register(store, bundle, run_id=None, name="mentor").version)

    store = open_store(prepared)
    champion("openvino")
    given: list[Any] = []
    monkeypatch.setattr(sweep, "_run", lambda args, path, overrides, config, *rest: given.append((overrides, config)) or {})
    command = [str(ROOT / "experiments/quickstart.yaml"), "train.teachers=[models:/mentor@champion]"]
    assert sweep.main(command) == 0
    assert "teachers: models:/mentor/1" in capsys.readouterr().err
    ((overrides, config),) = given
    champion("onnx")
    assert config.train.teachers == ("models:/mentor/1",)
    assert load_sweep_config(command[0], overrides).train.teachers == ("models:/mentor/1",)
    assert sweep.main(command) == 0
    assert given[1][1].train.teachers == ("models:/mentor/2",)


def test_the_command_for_more_trials_goes_on_with_the_same_study(home: Path) -> None:
    """With the overrides that make it the study, its name and its database, quoted for a shell."""
    import argparse

    args = argparse.Namespace(study="mine", storage="postgresql://ann@db/optuna")
    overrides = ["train.stages=[{from_epoch: 0, size: 32}]", "sweep.trials=6"]
    command = sweep._extended(args, Path("my sweep.yaml"), overrides, 12)
    assert shlex.split(command) == [
        "python", "-m", "fer_lab.sweep", "my sweep.yaml", overrides[0], "sweep.trials=12", "--study", "mine",
        "--storage", "postgresql://ann@db/optuna",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["experiments/quickstart.yaml", "experiments/sweeps/ferplus8.yaml"])
def test_the_shipped_studies_load(name: str) -> None:
    """Each searched key exists and takes its extremes; the first trial is the configuration itself."""
    from fer_lab.search.space import starting_point

    config = load_sweep_config(ROOT / name)
    assert starting_point(config) is not None
    assert config.sweep.confirm.seeds >= 2


def test_ferplus_is_chosen_when_it_is_prepared(home: Path, drawn: FaceDataset) -> None:
    """The choice looks at what is prepared, and its line names the other command."""
    import argparse

    drawn.take(np.arange(4)).save(home / "data" / "ferplus-2016")
    path, overrides, line = sweep._choose(argparse.Namespace(config="sweep.trials=3", overrides=[]), home)
    assert path.as_posix().endswith("experiments/sweeps/ferplus8.yaml")
    assert overrides == ["sweep.trials=3"]
    assert "experiments/quickstart.yaml" in line
