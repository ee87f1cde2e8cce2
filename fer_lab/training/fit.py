"""One training run: faces in, the best weights and their validation figures out.

    result = fit(config, dataset, folder)

The dataset lives on the device as uint8. The test split is never read: only rows of train and valid are taken.
`folder` holds checkpoints (`training.checkpoint`) and the best weights; `resume=True` continues there, and on the CPU
ends with the same weights, bit for bit, as an uninterrupted run. Without an epoch (`train.epochs=0`) the weights that it
starts from are calibrated and measured as they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fer_lab.core.config import RunConfig
from fer_lab.core.errors import FerLabError, InputError, heed
from fer_lab.core.files import write_whole
from fer_lab.core.labels import protocol
from fer_lab.measure.metrics import all_metrics
from fer_lab.models import backbones
from fer_lab.models.deployable import Deployable, normalise
from fer_lab.models.weights import save_weights
from fer_lab.training import augment, checkpoint, recipe, targets
from fer_lab.training.calibration import cross_fitted, fit_bias, fit_temperature, softmax
from fer_lab.training.depthwise import depthwise_precision

if TYPE_CHECKING:
    from fer_lab.data.faces import FaceDataset

OnEpoch = Callable[[int, dict[str, float]], None]
OnStep = Callable[[int, int, int], None]
ShouldStop = Callable[[], int | None]

EVALUATION_BATCH = 256  # faces
MOVED = ("val/nll", "val/ece", "val/kl_to_votes")  # by a temperature; logged before it as well
NAN_CHECK_STEPS = 20  # on a GPU every look at the loss waits for the device; on the CPU each step is looked at


class NonFinite(FerLabError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


class Pruned(FerLabError):
    """Raised by `on_epoch` to end an unpromising run; not an error of the run."""


@dataclass(frozen=True)
class FitResult:
    """What one training run came to; every figure is of the selected checkpoint on the validation split.

    With `train.calibration=bias` they are cross-fitted: a face is calibrated by what the other faces say.
    """

    epochs_run: int
    best_epoch: int  # 0-based; 0 without an epoch
    validation: dict[str, float]  # "val/accuracy", … calibrated; "val/nll_raw", … before that
    temperature: float
    weights: Path
    kept: dict[str, Path]  # metric → weights of its best epoch
    history: list[dict[str, float]]  # one record per epoch, with "epoch"
    valid_probs: npt.NDArray[np.float32]  # [N, K], calibrated
    valid_targets: npt.NDArray[np.int64]  # [N]
    valid_names: tuple[str, ...]
    valid_votes: npt.NDArray[np.uint8]  # [N, 10]
    parameters: int
    image_size: int
    mean: float
    std: float
    labels: tuple[str, ...]
    teacher_digests: tuple[str, ...]  # of the bundles that taught, in the order of train.teachers
    wall_s: float  # of this process, an earlier one's epochs not counted


def fit(
    config: RunConfig,
    dataset: FaceDataset,
    folder: Path,
    *,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    should_stop: ShouldStop | None = None,
    resume: bool = False,
    teacher_probs: npt.NDArray[np.float32] | None = None,
    teacher_digests: Sequence[str] = (),
) -> FitResult:
    """Train `config` on the train split of `dataset`, choose by the valid split, and return what came of it.

    on_epoch(epoch, metrics) is called after that epoch's checkpoint is published; it may raise `Pruned`.
    on_step(epoch, step, steps) is called after each step. should_stop() is asked at each step and returns a signal
    number to stop: the last epoch's checkpoint is on disk, `Interrupted` is raised.
    teacher_probs: float32 [n, K] for `dataset.indices("train")`, see `targets.training_faces`. teacher_digests: of the
    bundles that they come from; a resumed run must have the same ones.
    resume: continue from the checkpoint in `folder`; without one, start at the beginning.
    Raises InputError for a configuration that does not fit, NonFinite when the loss does, IntegrityError when no
    checkpoint is whole.
    """
    recipe.check_config(config)
    if teacher_probs is None and config.train.teachers:
        raise InputError("train.teachers is set but no teacher probabilities were given to fit")
    folder.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    device = recipe.pick_device(config.train.device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # the caller's random numbers stay as they are
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        try:
            training = _Training(config, dataset, folder, device, teacher_probs, teacher_digests)
            return training.run(on_epoch, on_step, should_stop, resume)
        finally:
            torch.set_num_threads(threads)


class _Training:
    """The state of one run between its steps."""

    def __init__(
        self,
        config: RunConfig,
        dataset: FaceDataset,
        folder: Path,
        device: torch.device,
        teacher_probs: npt.NDArray[np.float32] | None,
        teacher_digests: Sequence[str],
    ) -> None:
        self.config = config
        self.settings = config.train
        self.dataset = dataset
        self.folder = folder
        self.device = device
        self.teacher_digests = tuple(teacher_digests)
        self.labels = protocol(config.data.protocol).label_set.labels
        self.train = targets.training_faces(config, dataset, teacher_probs)
        self.valid = targets.validation_faces(config, dataset)
        self.autocast = recipe.pick_precision(self.settings.precision, device)
        mean, std = backbones.statistics(config.model.backbone)
        self.mean = mean if config.model.mean is None else config.model.mean
        self.std = std if config.model.std is None else config.model.std

        torch.manual_seed(config.seed)
        self.network = backbones.build(
            config.model.backbone,
            classes=len(self.labels),
            drop_rate=config.model.drop_rate,
            drop_path_rate=config.model.drop_path_rate,
            pretrained=config.model.pretrained,
            weights_file=config.model.weights_file,
        ).to(device)
        recipe.start_classifier(self.network, config.model.head_std, config.model.weights_file)
        if self.settings.channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)
        self.parameters = sum(p.numel() for p in self.network.parameters())
        # One graph per size: with torch's default the second size sets off a search for a graph of all sizes (minutes).
        self.forward: Any = torch.compile(self.network, dynamic=False) if self.settings.compile else self.network
        self.ema = _make_ema(self.network, self.settings.ema_decay)
        self.optimizer = recipe.make_optimizer(self.settings, self.network)
        self.batch = min(self.settings.batch_size, len(self.train.rows))
        self.steps = len(self.train.rows) // self.batch  # the incomplete last batch is left out, others take its faces' place
        self.schedule = recipe.Schedule(self.settings, self.optimizer, self.steps)

        self.faces = _on_device(dataset.pixels[self.train.rows], device)
        self.targets = torch.from_numpy(self.train.targets).to(device)
        self.valid_faces = _on_device(dataset.pixels[self.valid.rows], device)
        self.weights = targets.class_weights(self.settings.class_weights, self.train, self.labels)
        self.class_weights = torch.from_numpy(self.weights).to(device)

        self.epoch = 0  # the next one to run
        self.history: list[dict[str, float]] = []
        self.best: dict[str, dict[str, Any]] = {}  # metric → epoch, value, file
        self._previously_needed: set[str] = set()  # weights that the checkpoint before the newest names

    def run(self, on_epoch: OnEpoch | None, on_step: OnStep | None, should_stop: ShouldStop | None, resume: bool) -> FitResult:
        start = time.perf_counter()
        if resume:
            self._restore()
        while self.epoch < self.settings.epochs and not self._has_stalled():
            metrics = self._one_epoch(on_step, should_stop)
            self._note_best(metrics)
            self.history.append({"epoch": float(self.epoch), **metrics})
            done, self.epoch = self.epoch, self.epoch + 1
            self._publish()
            if on_epoch is not None:
                on_epoch(done, dict(metrics))
        if self.settings.epochs == 0:  # the weights that it started from are the checkpoint
            logits = self._logits(self._shipped(), self.settings.image_size)
            if not np.isfinite(logits).all():
                raise NonFinite(f"{self.config.model.weights_file} gives logits that are not finite; take other weights")
            self._note_best(self._validation(softmax(logits)))
            heed(should_stop, "stopped before the calibration; nothing was changed")
        return self._result(time.perf_counter() - start)

    # one epoch

    def _one_epoch(self, on_step: OnStep | None, should_stop: ShouldStop | None) -> dict[str, float]:
        size = self.settings.size_at(self.epoch)
        draw = augment.draw_epoch(self.config.seed, self.epoch, len(self.train.rows), self.steps, self.config.augment)
        order = torch.from_numpy(draw.order).to(self.device)
        uniforms = torch.from_numpy(draw.uniforms).to(self.device)
        self.network.train()
        total = torch.zeros((), device=self.device)
        rate = self.optimizer.param_groups[0]["lr"]
        start = time.perf_counter()
        for step in range(self.steps):
            heed(should_stop, f"stopped in epoch {self.epoch + 1}; {self._saved()}")
            chosen = slice(step * self.batch, (step + 1) * self.batch)
            loss = self._step(order[chosen], uniforms[chosen], draw.mixes[step], size)
            total += loss
            if (self.device.type == "cpu" or step % NAN_CHECK_STEPS == 0) and not math.isfinite(float(loss)):
                self._refuse_nonfinite(float(loss), step)
            done_steps = self.epoch * self.steps + step + 1
            if self.ema is not None:
                self.ema.update(self.network, step=done_steps)
            self.schedule.step(done_steps)
            if on_step is not None:
                on_step(self.epoch, step + 1, self.steps)
        mean_loss = float(total) / self.steps  # waits for the device, so that the time below is whole
        seconds = time.perf_counter() - start
        if not math.isfinite(mean_loss):
            self._refuse_nonfinite(mean_loss, self.steps - 1)
        logits = self._logits(self._shipped(), size)
        if not np.isfinite(logits).all():
            self._refuse_nonfinite(math.nan, self.steps - 1)
        metrics = self._validation(softmax(logits))
        self.schedule.epoch_end((self.epoch + 1) * self.steps, metrics["val/nll"])
        return metrics | {
            "train/loss": mean_loss,
            "train/faces_per_s": self.steps * self.batch / seconds,
            "train/image_size": float(size),
            "lr": float(rate),
        }

    def _step(self, rows: Tensor, uniforms: Tensor, how: augment.Mix, size: int) -> Tensor:
        values = augment.augment(self.faces[rows], uniforms, size, self.config.augment)
        values, wanted = augment.mix(values, self.targets[rows], how)
        values = normalise(values, self.mean, self.std)
        if self.settings.channels_last:
            values = values.contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad(set_to_none=True)
        autocast = torch.autocast(self.device.type, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None)
        with autocast, depthwise_precision(self.device, self.autocast, self.settings.compile):
            logits = self.forward(values)
        loss = recipe.soft_cross_entropy(logits, wanted, self.class_weights, self.settings.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm, foreach=True)
        self.optimizer.step()
        return loss.detach()

    def _refuse_nonfinite(self, loss: float, step: int) -> None:
        raise NonFinite(
            f"the loss became {loss} in epoch {self.epoch + 1}, step {step + 1} (lr {self.optimizer.param_groups[0]['lr']:.2g}); "
            f"{self._saved()}. Try a lower train.lr or train.clip_norm=1"
        )

    def _saved(self) -> str:
        return f"the checkpoint of epoch {self.epoch} is kept" if self.epoch else "no epoch was finished"

    # choosing

    def _shipped(self) -> nn.Module:
        return self.ema.module if self.ema is not None else self.network

    def _logits(self, network: nn.Module, size: int) -> npt.NDArray[np.float32]:
        """Return the validation split's logits at `size` px, float32 [N, K], by the graph that ships."""
        network.eval()
        graph = Deployable(network, size, self.mean, self.std)
        with torch.no_grad():
            parts = [graph.logits(part).float().cpu() for part in torch.split(self.valid_faces, EVALUATION_BATCH)]
        logits: npt.NDArray[np.float32] = torch.cat(parts).numpy()
        return logits

    def _validation(self, probs: npt.NDArray[np.float32]) -> dict[str, float]:
        figures = all_metrics(probs, self.valid.labels, self.valid.distribution)
        return {f"val/{name}": float(value) for name, value in figures.items()}

    def _note_best(self, metrics: dict[str, float]) -> None:
        """Keep the weights of an epoch that is the best so far; only at the size that ships."""
        if self.settings.size_at(self.epoch) != self.settings.image_size:
            return
        watched = {self.settings.select, *self.settings.keep}
        if self.settings.early_stopping is not None:
            watched.add(self.settings.early_stopping.metric)
        file = f"weights-{self.epoch:06d}.safetensors"
        for metric in sorted(watched):
            best = self.best.get(metric)
            if recipe.is_better(metric, metrics[metric], best["value"] if best else None):
                self.best[metric] = {"epoch": self.epoch, "value": metrics[metric], "file": file}
        if any(self.best[m]["file"] == file for m in (self.settings.select, *self.settings.keep)):
            save_weights(self._shipped(), self.folder / file)

    def _has_stalled(self) -> bool:
        stopping = self.settings.early_stopping
        if stopping is None or stopping.metric not in self.best:
            return False
        return self.epoch - 1 - int(self.best[stopping.metric]["epoch"]) >= stopping.patience

    # state

    def _publish(self) -> None:
        optimizer_tensors, optimizer_record = checkpoint.pack_optimizer(self.optimizer)
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()} | optimizer_tensors
        if self.ema is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.module.state_dict().items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        state = {
            "config": self.config.model_dump(mode="json"),
            "fingerprint": self.dataset.fingerprint,
            "teachers": list(self.teacher_digests),
            "history": self.history,
            "best": self.best,
            "optimizer": optimizer_record,
            "schedule": self.schedule.state(),
        }
        checkpoint.save(self.folder, checkpoint.Checkpoint(self.epoch, state, tensors))
        self._sweep_weights()

    def _sweep_weights(self) -> None:
        """Delete weights that neither of the two kept checkpoints can still need."""
        needed = {str(best["file"]) for best in self.best.values()} | self._previously_needed
        self._previously_needed = {str(best["file"]) for best in self.best.values()}
        for path in self.folder.glob("weights-[0-9]*.safetensors"):
            if path.name not in needed:
                path.unlink(missing_ok=True)

    def _restore(self) -> None:
        saved = checkpoint.load(self.folder)
        if saved is None:
            return
        self._refuse_another_run(saved.state)
        named = saved.tensors
        self.network.load_state_dict({k.removeprefix("network."): v for k, v in named.items() if k.startswith("network.")})
        if self.ema is not None:
            self.ema.module.load_state_dict({k.removeprefix("ema."): v for k, v in named.items() if k.startswith("ema.")})
        checkpoint.unpack_optimizer(self.optimizer, named, saved.state["optimizer"])
        self.schedule.restore(saved.state["schedule"])
        self.history = list(saved.state["history"])
        self.best = dict(saved.state["best"])
        self._previously_needed = {str(best["file"]) for best in self.best.values()}
        self.epoch = saved.epoch
        torch.set_rng_state(named["random.cpu"])
        if self.device.type == "cuda" and "random.cuda" in named:
            torch.cuda.set_rng_state(named["random.cuda"], self.device)

    def _refuse_another_run(self, state: dict[str, Any]) -> None:
        further = []
        if state["fingerprint"] != self.dataset.fingerprint:
            further.append(f"dataset fingerprint: {str(state['fingerprint'])[:12]} → {self.dataset.fingerprint[:12]}")
        then = state.get("teachers", self.teacher_digests)  # checkpoints did not always say who taught
        for ref, old, new in zip(self.settings.teachers, then, self.teacher_digests, strict=False):
            if old != new:
                further.append(f"teacher {ref}: digest {str(old)[:12]} → {new[:12]}")
        refuse_another_run(RunConfig.model_validate(state["config"]), self.config, further)

    # result

    def _result(self, wall_s: float) -> FitResult:
        from safetensors.torch import load_file

        weights = self.folder / "best.safetensors"
        _copy(self.folder / str(self.best[self.settings.select]["file"]), weights)
        kept = {metric: self.folder / _kept_name(metric) for metric in self.settings.keep}
        for metric, target in kept.items():
            _copy(self.folder / str(self.best[metric]["file"]), target)
        network = self._shipped()
        network.load_state_dict(load_file(weights))
        logits = self._logits(network, self.settings.image_size)
        temperature, probs = self._calibrate(network, logits, weights)
        before, validation = self._validation(softmax(logits)), self._validation(probs)
        moved = MOVED if self.settings.calibration == "temperature" else ("val/accuracy", "val/macro_recall", *MOVED)
        validation |= {f"{name}_raw": before[name] for name in moved if name in before}
        names = tuple(self.dataset.names[row] for row in self.valid.rows)
        return FitResult(
            epochs_run=self.epoch,
            best_epoch=int(self.best[self.settings.select]["epoch"]),
            validation=validation,
            temperature=temperature,
            weights=weights,
            kept=kept,
            history=self.history,
            valid_probs=probs,
            valid_targets=self.valid.labels,
            valid_names=names,
            valid_votes=self.dataset.votes[self.valid.rows],
            parameters=self.parameters,
            image_size=self.settings.image_size,
            mean=self.mean,
            std=self.std,
            labels=self.labels,
            teacher_digests=self.teacher_digests,
            wall_s=wall_s,
        )

    def _calibrate(
        self, network: nn.Module, logits: npt.NDArray[np.float32], weights: Path
    ) -> tuple[float, npt.NDArray[np.float32]]:
        """Return the temperature and the calibrated probabilities of the validation faces, float32 [N, K].

        Biases become part of the classifier's, in `weights` too: whatever runs the network has them.
        """
        if self.settings.calibration == "temperature":
            temperature = fit_temperature(logits, self.valid.labels)
            return temperature, softmax(logits, temperature)
        biases, temperature = fit_bias(logits, self.valid.labels, self.weights)
        _, classifier = recipe.classifier(network)
        with torch.no_grad():
            classifier.bias.add_(torch.from_numpy(biases).to(classifier.bias))
        save_weights(network, weights)
        return temperature, cross_fitted(logits, self.valid.labels, self.weights)


def _make_ema(network: nn.Module, decay: float | None) -> Any:
    """timm's exponential moving average of weights and buffers, with its warm-up (decay rises as the run goes on)."""
    if decay is None:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(network, decay=decay, use_warmup=True)


def _on_device(pixels: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels))[:, None].to(device)


def _kept_name(metric: str) -> str:
    return f"best-{metric.removeprefix('val/')}.safetensors"


def _copy(source: Path, target: Path) -> None:
    write_whole(target, source.read_bytes())


FREE_TO_CHANGE = ("name", "train.device", "train.threads", "train.compile")
"""Settings that may differ in a resumed run: they do not decide what is learnt."""


def refuse_another_run(run: RunConfig, resumed: RunConfig, further: Sequence[str] = ()) -> None:
    """Raise InputError when a resumed run would not be the run; `further` are differences besides the configuration's."""
    from fer_lab.core.config import flatten

    then, now = flatten(run), flatten(resumed)
    changed = [
        f"{key}: {then.get(key)} → {now.get(key)}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key) and key not in FREE_TO_CHANGE
    ]
    changed += further
    if changed:
        raise InputError(f"a resumed run must be the same run; changed: {'; '.join(changed)}. Start a new one instead")
