"""Configuration: the file, then the overrides, one validation; faults are named so that they can be mended."""

from __future__ import annotations

from pathlib import Path

import pytest

from fer_lab.core.config import dump_yaml, flatten, load_run_config, load_sweep_config, read_yaml, run_config_of, with_values
from fer_lab.core.errors import InputError, NotFound


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    """key=value is applied after the file and checked by the same schema."""
    config = load_run_config(written(tmp_path, "train: {epochs: 9, lr: 1e-3}\n"), ["train.epochs=3", "seed=1"])
    assert (config.train.epochs, config.train.lr, config.seed) == (3, 1e-3, 1)


@pytest.mark.parametrize("text", ["val/nll,val/ece", "val/nll val/ece", "val/nll, val/ece", "[val/nll, val/ece]"])
def test_a_list_takes_commas_or_spaces(text: str) -> None:
    """As every list on the command line; one word is a list of one."""
    assert load_run_config(None, [f"train.keep={text}"]).train.keep == ("val/nll", "val/ece")
    assert load_run_config(None, ["train.keep=val/nll"]).train.keep == ("val/nll",)
    assert load_sweep_config(None, ["sweep.objectives=accuracy,latency"]).sweep.objectives == ("accuracy", "latency")


def test_a_dumped_configuration_loads_equal(tmp_path: Path) -> None:
    """config.yaml of a run reproduces the run."""
    config = load_run_config(None, ["train.stages=[{from_epoch: 0, size: 64}]", "train.class_weights={anger: 2.0}"])
    assert load_run_config(written(tmp_path, dump_yaml(config))) == config
    assert flatten(config)["train.image_size"] == "96"


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("train: {learning_rat: 1}", [], "unknown key 'train.learning_rat'"),
        ("train: {epoch: 1}", [], "did you mean 'train.epochs'"),
        ("train: {epochs: -1}", [], "train.epochs"),
        ("train: {lr: -1.0}", [], "train.lr"),
        ("train: {epochs: 1\n", [], "config.yaml:2"),
        ("train:\n\tepochs: 1\n", [], "config.yaml:2:1"),
        ("seed: 1\nseed: 2\n", [], "duplicate key 'seed', first on line 1, again on line 2"),
        ("seed: !!python/object/apply:os.getcwd []", [], "tags are not allowed"),
        ("a: &x [1]\nb: *x\n", [], "aliases are not allowed"),
        ("", [], "empty"),
        ("- 1\n", [], "expected a mapping"),
        ("seed: 1", ["train.epochs"], "not of the form key=value"),
        ("seed: 1", ["train.epochs=many"], "train.epochs"),
        ("seed: true", [], "seed: Input should be a valid integer, got True"),
        ("train: {lr: true}", [], "train.lr: Input should be a valid number, got True"),
        ("seed: '3'", [], "seed: Input should be a valid integer, got '3'"),
        ("seed: 1", ["seed=010"], "seed: Input should be a valid integer, got '010'"),  # YAML 1.1 has 8, and 750 for the next
        ("seed: 1", ["data.subset=12:30"], "data.subset: Input should be a valid integer, got '12:30'"),
        ("seed: 1", ["train.stages=[{"], "overrides train.stages=[{"),
        ("train: {stages: [{from_epoch: 3, size: 64}]}", [], "stages must start at epoch 0"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    """Bad YAML, unknown keys and wrong values are refused in one sentence with the place."""
    with pytest.raises(InputError) as caught:
        load_run_config(written(tmp_path, text), overrides)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path that does not exist is a thing not found."""
    with pytest.raises(NotFound, match=r"no such file: .*nowhere\.yaml"):
        read_yaml(tmp_path / "nowhere.yaml")


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    """A gigabyte of YAML is not a configuration."""
    with pytest.raises(InputError, match="at most"):
        read_yaml(written(tmp_path, "#" * 1_000_001))


def test_every_searched_key_must_exist(tmp_path: Path) -> None:
    """A typing error in the search space is found before the first trial."""
    with pytest.raises(InputError, match=r"train\.lrr"):
        load_sweep_config(written(tmp_path, "space: {train.lrr: {low: 0.1, high: 1.0}}"))
    with pytest.raises(InputError, match="low < high"):
        load_sweep_config(written(tmp_path, "space: {train.lr: {low: 1.0, high: 0.1}}"))


def test_a_range_of_fractions_for_a_key_of_whole_numbers_is_refused(tmp_path: Path) -> None:
    """Its ends are whole numbers; what a study would draw between them is not."""
    for space in ("{low: 32, high: 256}", "{low: 32, high: 256, log: true}", "{low: 32, high: 33, step: 0.5}"):
        with pytest.raises(InputError, match=r"space\.train\.batch_size: takes whole numbers.*add integer: true"):
            load_sweep_config(written(tmp_path, f"space: {{train.batch_size: {space}}}"))
    with pytest.raises(InputError, match="integer needs whole numbers"):
        load_sweep_config(written(tmp_path, "space: {train.batch_size: {low: 32, high: 64, step: 0.5, integer: true}}"))
    for space in ("{low: 32, high: 256, integer: true}", "{low: 32, high: 96, step: 16}"):
        load_sweep_config(written(tmp_path, f"space: {{train.batch_size: {space}}}"))


def test_a_trial_is_the_base_with_its_values(tmp_path: Path) -> None:
    """run_config_of applies a trial's parameters to the run part of the sweep."""
    sweep = load_sweep_config(written(tmp_path, "space: {train.lr: {low: 0.001, high: 0.1, log: true}}\nseed: 4\n"))
    run = run_config_of(sweep, {"train.lr": 0.01})
    assert (run.train.lr, run.seed) == (0.01, 4)
    assert with_values(run, {"seed": 5}).seed == 5


CONFIGS = sorted(p for p in (Path(__file__).parents[3] / "experiments").rglob("*.yaml") if "policies" not in p.parts)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_committed_configuration_loads(path: Path) -> None:
    """No example rots."""
    load_sweep_config(path)


@pytest.mark.parametrize("key", ["data.dataset", "data.protocol", "seed", "name"])
def test_what_a_study_cannot_vary_is_refused(key: str) -> None:
    """Its trials would be ranked on other faces or labels than they say."""
    with pytest.raises(InputError, match=rf"space\.{key}: a"):
        load_sweep_config(None, [f"space={{{key}: {{choices: [1, 2]}}}}"])
