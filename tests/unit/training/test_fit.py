"""One training run: sealed test split, exact resume, stopping, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fer_lab.core.errors import InputError, IntegrityError, Interrupted
from fer_lab.core.labels import EIGHT, protocol
from fer_lab.models import backbones
from fer_lab.models.deployable import Deployable
from fer_lab.training import checkpoint, recipe
from fer_lab.training import fit as fit_module
from fer_lab.training.calibration import fit_bias
from fer_lab.training.depthwise import DepthwiseInFloat32, depthwise_precision
from fer_lab.training.fit import NonFinite, Pruned, fit

STATEFUL = ["augment.mixup=0.2", "augment.cutmix=1.0", "model.drop_rate=0.3", "train.ema_decay=0.9"]


def state_of(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The newest checkpoint without the clock's readings."""
    saved = checkpoint.load(folder)
    assert saved is not None
    history = [{k: v for k, v in record.items() if k != "train/faces_per_s"} for record in saved.state["history"]]
    return saved.tensors, saved.state | {"history": history}


def signal_after(steps: int) -> Callable[[], int | None]:
    """SIGTERM at the given step."""
    calls = iter(range(10**6))
    return lambda: 15 if next(calls) == steps else None


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, EMA, optimiser, random state and history agree bit for bit."""
    tensors_a, state_a = state_of(a)
    tensors_b, state_b = state_of(b)
    assert tensors_a.keys() == tensors_b.keys()
    assert [name for name in tensors_a if not torch.equal(tensors_a[name], tensors_b[name])] == []
    assert state_a == state_b
    assert (a / "best.safetensors").read_bytes() == (b / "best.safetensors").read_bytes()


def test_it_returns_the_selected_checkpoint_and_its_figures(settings: Any, few: Any, tmp_path: Path) -> None:
    """Best epoch, history of every epoch, calibrated probabilities of the kept validation faces."""
    seen: list[int] = []
    config = settings("train.keep=[val/nll,val/macro_recall]")
    result = fit(config, few, tmp_path, on_epoch=lambda epoch, metrics: seen.append(epoch))
    assert seen == [0, 1, 2]
    assert result.epochs_run == 3
    best = max(result.history, key=lambda record: record["val/accuracy"])
    assert result.validation["val/accuracy"] == pytest.approx(best["val/accuracy"])
    assert result.weights == tmp_path / "best.safetensors"
    assert set(result.kept) == {"val/nll", "val/macro_recall"}
    assert all(path.is_file() for path in result.kept.values())
    assert len(result.valid_probs) == len(result.valid_targets) == len(result.valid_names)
    np.testing.assert_allclose(result.valid_probs.sum(axis=1), 1, rtol=1e-5)
    assert result.validation["val/nll"] <= result.validation["val/nll_raw"] + 1e-6
    assert result.parameters == sum(v.numel() for k, v in state_of(tmp_path)[0].items() if k in {
        "network.0.weight", "network.1.weight", "network.1.bias", "network.6.weight", "network.6.bias",
    })  # fmt: skip


@pytest.mark.parametrize(
    "override",
    [
        "train.label_smoothing=0.3", "train.class_weights={anger: 9.0}", "train.clip_norm=0.01", "model.drop_rate=0.9",
        "model.mean=0.1", "model.std=2.0", "model.head_std=1.0", "train.weight_decay=5.0", "augment.mixup=1.0",
    ],
)  # fmt: skip
def test_what_the_recipe_says_is_learnt_by(settings: Any, few: Any, tmp_path: Path, override: str) -> None:
    """A setting that nothing reads would leave the weights as they are without it."""
    plain = fit(settings("train.epochs=1"), few, tmp_path / "a")
    other = fit(settings("train.epochs=1", override), few, tmp_path / "b")
    assert plain.weights.read_bytes() != other.weights.read_bytes()


def test_the_averaged_weights_are_shipped(settings: Any, few: Any, tmp_path: Path) -> None:
    """With an EMA; the network's own without one."""
    for decay, kind in (("0.9", "ema"), ("null", "network")):
        result = fit(settings("train.epochs=1", f"train.ema_decay={decay}"), few, tmp_path / kind)
        saved, shipped = state_of(tmp_path / kind)[0], load_file(result.weights)
        assert shipped.keys() == {name.removeprefix("network.") for name in saved if name.startswith("network.")}
        assert all(torch.equal(tensor, saved[f"{kind}.{name}"]) for name, tensor in shipped.items())


def test_each_metric_has_the_weights_of_its_own_best_epoch(settings: Any, few: Any, tmp_path: Path) -> None:
    """Those of `train.select` are the run's; both kept checkpoints find all the weights that they name."""
    keep = ["val/accuracy", "val/nll", "val/ece", "val/macro_precision"]
    base = settings("train.epochs=6", f"train.keep=[{','.join(keep)}]", "train.ema_decay=null")
    chosen = set()
    for metric in keep:
        folder = tmp_path / metric.removeprefix("val/")
        result = fit(base.model_copy(update={"train": base.train.model_copy(update={"select": metric})}), few, folder)
        best = (min if metric in recipe.LOWER_IS_BETTER else max)(result.history, key=lambda record: record[metric])
        assert result.best_epoch == best["epoch"]
        assert result.weights.read_bytes() == result.kept[metric].read_bytes()
        chosen.add(result.best_epoch)
        named = [json.loads(path.read_text())["state"]["best"] for path in sorted(folder.glob("checkpoint-*.json"))]
        assert all((folder / one["file"]).is_file() for best_of in named for one in best_of.values())
    assert len(chosen) > 1
    assert len(named) == 2


@pytest.mark.parametrize("weights", ["null", "{anger: 5.0}"])
def test_biases_become_part_of_the_weights(settings: Any, few: Any, tmp_path: Path, weights: str) -> None:
    """What runs the network has them; its other weights are those of the epoch; the figures before are told."""
    recipe_of = f"train.class_weights={weights}"
    plain = fit(settings(recipe_of), few, tmp_path / "a")
    result = fit(settings(recipe_of, "train.calibration=bias"), few, tmp_path / "b")
    without, shipped = load_file(plain.weights), load_file(result.weights)
    assert [name for name in without if not torch.equal(without[name], shipped[name])] == ["6.bias"]
    assert result.validation["val/nll_raw"] == plain.validation["val/nll_raw"]
    assert result.validation["val/accuracy_raw"] == plain.validation["val/accuracy"]
    moved = (shipped["6.bias"] - without["6.bias"]).numpy()
    network = backbones.build("tiny", classes=8)
    network.load_state_dict(without)
    faces = torch.from_numpy(few.pixels[few.indices("valid")][:, None])
    logits = Deployable(network.eval(), 32, result.mean, result.std).logits(faces).detach().numpy()
    labels = protocol("ferplus8").labels(few.votes[few.indices("valid")])
    kept = labels >= 0
    of_class = np.ones(8, np.float32)
    of_class[EIGHT.labels.index("anger")] = 5 if weights != "null" else 1
    biases, temperature = fit_bias(logits[kept], labels[kept], of_class)
    np.testing.assert_allclose(moved, biases, atol=1e-5)
    assert result.temperature == pytest.approx(temperature, rel=1e-5)


def test_two_runs_with_one_seed_are_identical_and_another_seed_differs(settings: Any, few: Any, tmp_path: Path) -> None:
    """Whatever random numbers the caller used before."""
    fit(settings(*STATEFUL), few, tmp_path / "a")
    torch.rand(7)
    fit(settings(*STATEFUL), few, tmp_path / "b")
    fit(settings(*STATEFUL, "seed=1"), few, tmp_path / "c")
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a/best.safetensors").read_bytes() != (tmp_path / "c/best.safetensors").read_bytes()


@pytest.mark.parametrize(
    "extra",
    [
        (),
        ("train.optimizer=keras_rmsprop", "train.weight_decay=0", "train.schedule=plateau", "train.plateau_patience=1"),
        ("train.optimizer=lamb",),  # keeps its step in the parameter groups
    ],
)
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    settings: Any, few: Any, tmp_path: Path, extra: tuple[str, ...]
) -> None:
    """Interrupted in the middle of epochs 2 and 3, resumed twice: the same bits."""
    config = settings(*STATEFUL, *extra)
    fit(config, few, tmp_path / "whole")
    for stop_at in (9, 7):
        with pytest.raises(Interrupted) as caught:
            fit(config, few, tmp_path / "parts", resume=True, should_stop=signal_after(stop_at))
        assert caught.value.exit_code == 143
    fit(config, few, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(settings: Any, few: Any, tmp_path: Path) -> None:
    """A flipped byte in the newest costs one epoch, not the run; two flipped ones are refused."""
    config = settings(*STATEFUL)
    fit(config, few, tmp_path / "whole")
    fit(config, few, tmp_path / "parts")
    newest, older = sorted((tmp_path / "parts").glob("checkpoint-*.safetensors"), reverse=True)
    newest.write_bytes(newest.read_bytes()[:-1] + b"\xff")
    fit(config, few, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    for path in (newest, older):
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(IntegrityError, match="no whole checkpoint"):
        fit(config, few, tmp_path / "parts", resume=True)


def test_the_test_split_decides_nothing(settings: Any, few: Any, tmp_path: Path) -> None:
    """Poisoned test votes leave weights and figures as they were."""
    votes = few.votes.copy()
    votes[few.indices("test")] = np.random.default_rng(0).integers(0, 11, (len(few.indices("test")), 10), dtype=np.uint8)
    clean = fit(settings(), few, tmp_path / "a")
    poisoned = fit(settings(), replace(few, votes=votes), tmp_path / "b")
    assert clean.weights.read_bytes() == poisoned.weights.read_bytes()
    assert clean.validation == poisoned.validation
    assert not {few.names[i] for i in few.indices("test")} & set(clean.valid_names)


def test_a_resumed_run_must_be_the_same_run(settings: Any, few: Any, tmp_path: Path) -> None:
    """The differences are listed; device and threads may differ."""
    fit(settings(), few, tmp_path)
    with pytest.raises(InputError, match=r"train\.lr: 0\.01 → 0\.02"):
        fit(settings("train.lr=2e-2"), few, tmp_path, resume=True)
    with pytest.raises(InputError, match="dataset fingerprint"):
        fit(settings(), replace(few, label_source="ferplus-2016"), tmp_path, resume=True)
    fit(settings("train.threads=2", "name=other"), few, tmp_path, resume=True)


def test_a_resumed_run_has_the_same_teachers(settings: Any, few: Any, tmp_path: Path) -> None:
    """By content: an alias may name another model by now. A checkpoint that does not say who taught is believed."""
    config = settings("train.teachers=[models:/mentor@champion]")
    probs = np.full((len(few.indices("train")), 8), 1 / 8, np.float32)
    result = fit(config, few, tmp_path, teacher_probs=probs, teacher_digests=["a" * 64])
    assert result.teacher_digests == ("a" * 64,)
    fit(config, few, tmp_path, teacher_probs=probs, teacher_digests=["a" * 64], resume=True)
    with pytest.raises(InputError, match=r"teacher models:/mentor@champion: digest a{12} → b{12}"):
        fit(config, few, tmp_path, teacher_probs=probs, teacher_digests=["b" * 64], resume=True)
    saved = checkpoint.load(tmp_path)
    assert saved is not None
    del saved.state["teachers"]
    checkpoint.save(tmp_path, saved)
    fit(config, few, tmp_path, teacher_probs=probs, teacher_digests=["b" * 64], resume=True)


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_good_checkpoint(
    settings: Any, few: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says where it happened and what to try."""
    real, calls = fit_module.recipe.soft_cross_entropy, iter(range(10**6))
    monkeypatch.setattr(fit_module.recipe, "soft_cross_entropy", lambda *a: real(*a) * (float("nan") if next(calls) >= 8 else 1.0))
    with pytest.raises(NonFinite, match=r"epoch 2, step 3 .* the checkpoint of epoch 1 is kept"):
        fit(settings(), few, tmp_path)
    saved = checkpoint.load(tmp_path)
    assert saved is not None
    assert saved.epoch == 1
    assert all(torch.isfinite(t).all() for t in saved.tensors.values() if t.is_floating_point())


def test_pruning_leaves_the_loop_after_the_checkpoint(settings: Any, few: Any, tmp_path: Path) -> None:
    """on_epoch may raise; the epoch is on disk by then."""

    def prune(epoch: int, metrics: dict[str, float]) -> None:
        raise Pruned("behind")

    with pytest.raises(Pruned):
        fit(settings(), few, tmp_path, on_epoch=prune)
    saved = checkpoint.load(tmp_path)
    assert saved is not None
    assert saved.epoch == 1


@pytest.mark.parametrize("metric", ["val/accuracy", "val/macro_recall"])
def test_early_stopping_counts_epochs_without_improvement(settings: Any, few: Any, tmp_path: Path, metric: str) -> None:
    """A rate of almost zero improves nothing that is visible in accuracy; of a metric that chooses nothing, too."""
    stopping = f"train.early_stopping={{metric: {metric}, patience: 2}}"
    quiet = ("train.lr=1e-9", "train.ema_decay=null", "train.epochs=9", "train.optimizer=sgd", "train.weight_decay=0")
    result = fit(settings(*quiet, stopping, "train.warmup_epochs=0", "train.clip_norm=null"), few, tmp_path)
    assert result.epochs_run < 9
    assert result.epochs_run - 1 - result.best_epoch == 2


def test_only_epochs_at_the_final_size_are_chosen_from(settings: Any, few: Any, tmp_path: Path) -> None:
    """The shipped graph enlarges to the final size; an epoch that trained smaller is no candidate."""
    stages = "train.stages=[{from_epoch: 0, size: 32},{from_epoch: 2, size: 64}]"
    result = fit(settings("train.image_size=64", stages), few, tmp_path)
    assert result.best_epoch == 2
    assert [record["train/image_size"] for record in result.history] == [32, 32, 64]
    with pytest.raises(InputError, match="stages end at 32 px but"):
        fit(settings("train.image_size=64", "train.stages=[{from_epoch: 0, size: 32}]"), few, tmp_path / "x")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.select=val/acuracy", "unknown metric"),
        ("train.keep=[val/loss]", "unknown metric"),
        ("train.optimizer=adamv", "did you mean"),
        ("train.optimizer_options={alpha_: 1.0}", "do not fit"),
        ("train.optimizer=adafactorbv", "does not fit a checkpoint"),
        ("train.device=tpu", "device"),
        ("train.class_weights={joy: 2.0}", "no label joy"),
        ("model.backbone=tinny", "did you mean 'tiny'"),
        ("train.teachers=[runs:/x]", "teacher"),
    ],
)
def test_what_cannot_be_trained_is_refused(settings: Any, few: Any, tmp_path: Path, override: str, words: str) -> None:
    """Exit code 2 with the value at fault."""
    with pytest.raises(InputError, match=words):
        fit(settings(override), few, tmp_path)


def test_memory_format_is_a_choice(settings: Any, few: Any, tmp_path: Path) -> None:
    """The memory format changes no figure beyond rounding."""
    a = fit(settings("train.channels_last=true", "train.epochs=1"), few, tmp_path / "a")
    b = fit(settings("train.channels_last=false", "train.epochs=1"), few, tmp_path / "b")
    np.testing.assert_allclose(a.valid_probs, b.valid_probs, atol=1e-3)


@pytest.mark.parametrize(("precision", "wanted"), [("bf16", [True]), ("float32", [False])])
def test_every_step_in_bf16_on_a_cpu_spares_depthwise_convolutions(
    settings: Any, few: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, wanted: list[bool]
) -> None:
    """Where the CPU computes bf16; here it is told to."""
    monkeypatch.setattr(fit_module.recipe, "_computes_bf16", lambda device: True)
    seen: set[bool] = set()

    def watch(*args: Any) -> Any:
        entered = depthwise_precision(*args)
        seen.add(isinstance(entered, DepthwiseInFloat32))
        return entered

    monkeypatch.setattr(fit_module, "depthwise_precision", watch)
    fit(settings(f"train.precision={precision}", "train.epochs=1"), few, tmp_path)
    assert list(seen) == wanted


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile builds with a C++ compiler")
def test_compile_is_a_choice_at_every_size(settings: Any, few: Any, tmp_path: Path) -> None:
    """Compiled, two sizes one after the other, training ends where it ends without."""
    stages = "train.stages=[{from_epoch: 0, size: 32}, {from_epoch: 1, size: 48}]"
    base = ("train.epochs=2", "train.image_size=48", stages, "model.drop_rate=0")
    a = fit(settings(*base), few, tmp_path / "a")
    b = fit(settings(*base, "train.compile=true"), few, tmp_path / "b")
    np.testing.assert_allclose(a.valid_probs, b.valid_probs, atol=1e-3)
