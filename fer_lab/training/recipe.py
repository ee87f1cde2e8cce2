"""The parts of a training step that the configuration names: device, precision, optimiser, schedule, selection."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fer_lab.core.config import RunConfig, TrainConfig
from fer_lab.core.errors import InputError, NotFound, nearest
from fer_lab.core.labels import protocol
from fer_lab.models.weights import shape_in
from fer_lab.training import checkpoint

LOWER_IS_BETTER = ("val/nll", "val/brier", "val/ece", "val/kl_to_votes", "val/js_to_votes")
HIGHER_IS_BETTER = (
    "val/accuracy", "val/macro_recall", "val/balanced_accuracy", "val/macro_precision", "val/macro_f1",
    "val/f1_of_macro_pr", "val/weighted_f1",
)  # fmt: skip
KERAS_RMSPROP = "keras_rmsprop"


def check_metric(name: str, where: str) -> None:
    """Raise InputError when `name` is not a validation metric."""
    if name not in LOWER_IS_BETTER + HIGHER_IS_BETTER:
        known = (*HIGHER_IS_BETTER, *LOWER_IS_BETTER)
        raise InputError(f"{where}: unknown metric {name!r}{nearest(name, known) or '.'} Known: {', '.join(known)}")


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether `value` improves on `best`."""
    if best is None:
        return True
    return value < best if metric in LOWER_IS_BETTER else value > best


def pick_device(name: str) -> torch.device:
    """Return the device: `auto` is CUDA, then Apple's, then the CPU. Raises InputError when it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"train.device: {name!r} is not a device; use auto, cpu, cuda, cuda:1 or mps") from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }.get(device.type, False)
    if not there:
        raise InputError(f"train.device: torch finds no {name} on this host; use train.device=auto")
    return device


def pick_precision(setting: str, device: torch.device) -> torch.dtype | None:
    """Return the autocast type, or None for plain float32: bf16 only where the device computes it natively.

    auto: bf16 on a GPU, float32 on a CPU. With AVX-512 and bf16, V2B0 runs at 1.25 times float32's rate at 64 px and at 1.29
    times at 96 px (experiments/results/cpu_step.json); whether it learns as well was not compared, so bf16 has to be asked for.
    """
    native = _computes_bf16(device)
    if setting == "bf16" and not native:
        raise InputError(f"train.precision=bf16: {device} does not compute bf16 natively; use train.precision=auto")
    wanted = setting == "bf16" or (setting == "auto" and device.type != "cpu")
    return torch.bfloat16 if wanted and native else None


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8  # Ampere; older cards emulate it
    if device.type == "cpu":
        # The public is_bf16_supported counts emulation, which is several times slower than float32.
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(bool(getattr(torch.cpu, probe)()) for probe in probes if hasattr(torch.cpu, probe))
    return False


class KerasRMSprop(torch.optim.Optimizer):
    """RMSprop as Keras 3 computes it: no initial average, epsilon inside the root.

    torch adds epsilon outside the root (1e-7 there is far smaller than 1e-7 inside) and timm's `rmsproptf` starts the
    average at one, which damps the first hundred steps; the seed's recipe has neither.
    """

    def __init__(self, params: Any, lr: float, rho: float = 0.9, eps: float = 1e-7, momentum: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "rho": rho, "eps": eps, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure: the loop never gives one
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            for p in parameters:
                if not self.state[p]:
                    self.state[p]["velocity"] = torch.zeros_like(p)
                    if group["momentum"]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
            velocity = [self.state[p]["velocity"] for p in parameters]
            torch._foreach_mul_(velocity, group["rho"])
            torch._foreach_addcmul_(velocity, gradients, gradients, 1 - group["rho"])
            root = torch._foreach_add(velocity, group["eps"])
            torch._foreach_sqrt_(root)
            if group["momentum"]:
                moving = [self.state[p]["momentum"] for p in parameters]
                torch._foreach_mul_(moving, group["momentum"])
                torch._foreach_addcdiv_(moving, gradients, root, group["lr"])
                torch._foreach_add_(parameters, moving, alpha=-1.0)
            else:
                torch._foreach_addcdiv_(parameters, gradients, root, -group["lr"])


def make_optimizer(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Return timm's optimiser of that name (or `keras_rmsprop`). Weight decay spares biases and norms.

    Raises InputError for an unknown name or option, for one that does not work on this host, and for one whose state a
    checkpoint cannot hold (kron's lists, for instance): an epoch would be trained before that shows.
    """
    from timm.optim import create_optimizer_v2, list_optimizers

    options: dict[str, Any] = dict(config.optimizer_options)
    if config.momentum is not None:
        options["momentum"] = config.momentum
    name = config.optimizer.lower()
    known = [*list_optimizers(), KERAS_RMSPROP]
    if name not in known:
        raise InputError(f"train.optimizer: unknown optimiser {config.optimizer!r}{nearest(name, known)}")
    try:
        if name == KERAS_RMSPROP:
            if config.weight_decay:
                raise InputError(f"train.optimizer={name} has no weight decay, as in Keras: set train.weight_decay=0")
            return KerasRMSprop(network.parameters(), config.lr, **options)
        created: torch.optim.Optimizer = create_optimizer_v2(
            network, name, lr=config.lr, weight_decay=config.weight_decay, **options
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"train.optimizer_options do not fit {config.optimizer}: {error}") from None
    except (AssertionError, ImportError) as error:  # timm asserts that there is a GPU
        raise InputError(f"train.optimizer={config.optimizer} does not work here: {error}. Use another, e.g. adamw") from None
    try:
        checkpoint.pack_optimizer(created)
    except InputError as error:
        raise InputError(f"train.optimizer={config.optimizer}: {error}") from None
    return created


class Schedule:
    """The learning rate: per step for cosine and constant, per epoch for plateau; a linear warm-up before each.

    A plateau follows Keras: the rate falls after `plateau_patience` epochs in which val/nll did not improve by 1e-4.
    (timm's plateau keeps only a part of its state, so that a resumed run would differ.)
    """

    def __init__(self, config: TrainConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> None:
        from timm.scheduler import create_scheduler_v2

        self._optimizer = optimizer
        warmup = min(config.warmup_epochs, config.epochs / 4)  # a short run is not all warm-up
        self._warmup_steps = round(warmup * steps_per_epoch) if config.schedule == "plateau" else 0
        self._timm: Any = None
        self._plateau: torch.optim.lr_scheduler.ReduceLROnPlateau | None = None
        self._base = [float(group["lr"]) for group in optimizer.param_groups]
        if config.epochs == 0:
            return
        if config.schedule == "plateau":
            self._plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer,
                mode="min",
                factor=config.plateau_factor,
                patience=config.plateau_patience - 1,  # torch reduces after patience + 1 bad epochs, Keras after patience
                threshold=1e-4,
                threshold_mode="abs",
                min_lr=config.min_lr,
            )
            self._warm(0)
            return
        constant = {"sched": "step", "decay_epochs": config.epochs + 1, "decay_rate": 1.0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self._timm, _ = create_scheduler_v2(
                optimizer,
                **({"sched": "cosine", "min_lr": config.min_lr} if config.schedule == "cosine" else constant),
                num_epochs=config.epochs - warmup,
                warmup_epochs=warmup,
                warmup_lr=config.lr / 100,
                warmup_prefix=True,
                step_on_epochs=False,
                updates_per_epoch=steps_per_epoch,
            )

    def step(self, done_steps: int) -> None:
        """Set the rate for the next step, after `done_steps` of the whole run."""
        if self._timm is not None:
            self._timm.step_update(done_steps)
        elif done_steps <= self._warmup_steps:
            self._warm(done_steps)

    def epoch_end(self, done_steps: int, nll: float) -> None:
        """Tell a plateau what the epoch reached."""
        if self._plateau is not None and done_steps > self._warmup_steps:
            self._plateau.step(nll)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides the step number (the rates are part of the optimiser's state)."""
        if self._plateau is None:
            return {}
        return {key: getattr(self._plateau, key) for key in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        for key, value in state.items():
            setattr(self._plateau, key, value)

    def _warm(self, done_steps: int) -> None:
        for group, base in zip(self._optimizer.param_groups, self._base, strict=True):
            group["lr"] = base * min(1.0, (done_steps + 1) / (self._warmup_steps + 1))


def soft_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Return the mean over faces of −Σ_k w_k · t_k · log p_k.

    logits, targets: [N, K]; weights: [K]. Divided by N as Keras does, not by the summed weights. Smoothing mixes the
    targets with 1/K (Szegedy et al., CVPR 2016).
    """
    if smoothing > 0:
        targets = targets * (1 - smoothing) + smoothing / targets.shape[1]
    loss: Tensor = -(targets * weights * torch.log_softmax(logits.float(), dim=1)).sum(dim=1).mean()
    return loss


def check_config(config: RunConfig) -> None:
    """Raise InputError for what the schema cannot see: backbone, sizes, metric names, optimiser, the last stage."""
    from fer_lab.models import backbones

    for size in {config.train.image_size, *(stage.size for stage in config.train.stages)}:
        backbones.check(config.model.backbone, size)
    if config.model.weights_file is not None and not config.model.weights_file.is_file():
        raise NotFound(f"model.weights_file: no such file {config.model.weights_file}")
    if config.train.epochs == 0:
        _check_without_epochs(config)
    last = config.train.size_at(config.train.epochs - 1)
    if last != config.train.image_size:
        raise InputError(
            f"train.stages end at {last} px but train.image_size is {config.train.image_size}: the network would be shipped "
            f"at a size it never trained at. Make them equal"
        )
    check_metric(config.train.select, "train.select")
    for name in config.train.keep:
        check_metric(name, "train.keep")
    if config.train.early_stopping is not None:
        check_metric(config.train.early_stopping.metric, "train.early_stopping.metric")
    pick_precision(config.train.precision, pick_device(config.train.device))
    make_optimizer(config.train, nn.BatchNorm2d(1))  # any parameters do; these take no random numbers


def _check_without_epochs(config: RunConfig) -> None:
    from fer_lab.models import backbones

    if config.model.weights_file is None:
        raise InputError("train.epochs=0 calibrates weights as they are, and there are none: give model.weights_file")
    for key, given in (("train.teachers", config.train.teachers), ("train.stages", config.train.stages)):
        if given:
            raise InputError(f"train.epochs=0 trains nothing: leave out {key} ({key}=[])")
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        network = backbones.build(config.model.backbone, classes=len(protocol(config.data.protocol).label_set.labels))
    if not _comes_with(config.model.weights_file, *classifier(network)):
        raise InputError(
            f"train.epochs=0: {config.model.weights_file} holds no classifier of {config.data.protocol}'s classes, as the "
            f"safetensors file of such a {config.model.backbone} does; train it for an epoch or more"
        )


def start_classifier(network: nn.Module, std: float | None, weights_file: Path | None = None) -> None:
    """Draw the classifier's first weights from N(0, std²) and zero its bias; None leaves them as the library drew them.

    timm and Keras draw uniformly within ±1/√classes whatever the number of features: with 8 classes and 1 280 features the
    first loss is about 4 instead of ln 8 = 2.08, and a short run spends its first epochs unlearning that. A classifier of as
    many classes that came with `weights_file` stays: the run goes on from that network's answers.
    """
    name, layer = classifier(network)
    if std is None or (weights_file is not None and _comes_with(weights_file, name, layer)):
        return
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)


def classifier(network: nn.Module) -> tuple[str, nn.Linear]:
    """Return name and layer of what gives the logits: the last linear one."""
    return [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]


def _comes_with(weights_file: Path, name: str, layer: nn.Linear) -> bool:
    return shape_in(weights_file, f"{name}.weight") == tuple(layer.weight.shape)
