"""The search space and the study's name."""

from __future__ import annotations

import optuna
import pytest

from fer_lab.core.config import Dimension, SweepConfig, with_values
from fer_lab.core.errors import FerLabError
from fer_lab.search.space import (
    corners,
    differences,
    distribution,
    finite,
    maximised,
    starting_point,
    study_name,
    study_spec,
    suggest,
)

SPACE = {
    "train.lr": Dimension(low=1e-4, high=1e-2, log=True),
    "train.image_size": Dimension(low=48, high=96, integer=True, step=16),
    "data.targets": Dimension(choices=("soft", "majority")),
    "augment.erasing": Dimension(low=0.0, high=0.4, step=0.1),
}


def test_suggestions_lie_in_the_space() -> None:
    """Each kind of dimension gives values of its type, range and step."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        trial = study.ask()
        values = suggest(trial, SPACE)
        assert set(values) == set(SPACE)
        assert 1e-4 <= values["train.lr"] <= 1e-2
        assert values["train.image_size"] in (48, 64, 80, 96)
        assert isinstance(values["train.image_size"], int)
        assert values["data.targets"] in ("soft", "majority")
        assert trial.distributions == {key: distribution(dimension) for key, dimension in SPACE.items()}


def test_the_starting_point_is_the_configuration_itself_when_the_space_holds_it() -> None:
    """Values outside a range or between two steps give no starting point."""
    config = SweepConfig(space=SPACE)
    assert starting_point(config) == {"train.lr": 2e-3, "train.image_size": 96, "data.targets": "soft", "augment.erasing": 0.2}
    assert starting_point(with_values(config, {"train.image_size": 70})) is None
    assert starting_point(with_values(config, {"train.lr": 0.5})) is None
    assert starting_point(SweepConfig()) is None


def test_the_name_changes_with_what_is_searched_and_not_with_who_runs_it() -> None:
    """trials, workers, lease and device keep the name; space, data and confirm change it."""
    config = SweepConfig(name="q", space=SPACE)
    name = study_name(config, study_spec(config, "f"))
    assert name.startswith("q-")
    for key, value in {
        "sweep.trials": 40,
        "sweep.workers": 3,
        "sweep.lease_s": 5.0,
        "train.device": "cpu",
        "train.threads": 1,
    }.items():
        other = with_values(config, {key: value})
        assert study_name(other, study_spec(other, "f")) == name
    for key, value in {"train.lr": 1e-3, "sweep.confirm.top": 1, "sweep.budget.max_parameters_m": 6.0}.items():
        other = with_values(config, {key: value})
        assert study_name(other, study_spec(other, "f")) != name
    assert study_name(config, study_spec(config, "g")) != name
    other = with_values(config, {"train.lr": 1e-3})
    assert differences(study_spec(config, "f"), study_spec(other, "g")) == [
        "fingerprint",
        "train.lr",
    ]
    named = with_values(config, {"sweep.study": "mine"})
    assert study_name(named, study_spec(named, "f")) == "mine"


def test_corners_visit_every_choice_and_extreme() -> None:
    """Backbones and sizes are checked before anything trains; a range of learning rates has no corner."""
    config = SweepConfig(space={**SPACE, "model.backbone": Dimension(choices=("a", "b"))})
    runs = list(corners(config))
    assert {(run.model.backbone, run.train.image_size) for run in runs} == {("a", 48), ("a", 96), ("b", 48), ("b", 96)}
    assert len(runs) == 16
    assert {run.train.lr for run in runs} == {config.train.lr}


def test_neither_inf_nor_nan_nor_a_missing_metric_can_win() -> None:
    """Optuna itself would accept inf as the best value."""
    assert finite({"val/accuracy": 0.5}, "val/accuracy") == 0.5
    for value in (float("inf"), float("nan")):
        with pytest.raises(FerLabError, match="nonfinite"):
            finite({"val/accuracy": value}, "val/accuracy")
    with pytest.raises(FerLabError, match="measured: val/nll"):
        finite({"val/nll": 1.0}, "val/accuracy")
    assert maximised("val/accuracy")
    assert not maximised("val/nll")
