"""Grow a trained network into a larger one of its family that begins with its answers (`model.weights_file` of its run).

    python experiments/grow_weights.py B0.safetensors --into tf_efficientnetv2_b1 --out B1.safetensors
    python experiments/grow_weights.py B1.safetensors --backbone tf_efficientnetv2_b1 --into tf_efficientnetv2_s --out S.safetensors

Depth: a stage keeps its blocks, and the blocks it gains are copies of its last one whose branch is closed (the gain of
its last normalisation is zero), so that only the skip connection is left until training opens it (Net2DeeperNet, Chen et
al., ICLR 2016; the closed branch as in Goyal et al., 2017). Where that last one has no skip connection, the new ones stay
as timm drew them, and closed too. Width: a layer keeps its channels, and what was there does not hear the channels it
gains (their weights in the next layer are zero) until training lets it; they stay as timm drew them, so that no two are
alike. Where the larger network's front (stem and first stage) cannot hold the smaller one's, as in S, whose stem is
narrower than B1's, the front learns to give the smaller front's output on the training faces (regression on features, as
in FitNets, Romero et al., ICLR 2015); that needs the prepared dataset.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fer_lab.data import datasets
from fer_lab.data.faces import FaceDataset, home
from fer_lab.models import backbones
from fer_lab.models.deployable import enlarge, normalise, save_weights

SAME_WITHIN = 1e-4  # of a logit, in evaluation mode
BATCH = 128


def main() -> None:
    """Write the weights file; exit with a message where the second network is not the first one made larger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="safetensors of the smaller network, as a run or recover_weights.py writes them")
    parser.add_argument("--backbone", default="tf_efficientnetv2_b0", help="the smaller network's name")
    parser.add_argument("--into", default="tf_efficientnetv2_b1", help="the larger network's name")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--dataset", default="ferplus-2016", help="the prepared dataset of a front that has to learn")
    parser.add_argument("--image-size", type=int, default=96, help="pixels at which such a front learns")
    parser.add_argument("--rounds", type=int, default=3, help="how many times as many faces it sees as there are, drawn at random")
    options = parser.parse_args()

    state = load_file(options.weights)
    small = backbones.build(options.backbone, classes=len(state["classifier.bias"])).eval()
    small.load_state_dict(state)
    torch.manual_seed(0)
    large = backbones.build(options.into, classes=len(state["classifier.bias"])).eval()
    held = grow(small, large)
    off = _difference(small, large, held)
    blocks = [sum(len(stage) for stage in network.blocks) for network in (small, large)]
    weights = [sum(values.numel() for values in network.parameters()) / 1e6 for network in (small, large)]
    print(f"{blocks[0]} blocks → {blocks[1]}, {weights[0]:.1f} → {weights[1]:.1f} million parameters: "
          f"largest difference of a logit{'' if held else ' behind the first stage'} {off:.1e}", flush=True)  # fmt: skip
    if off > SAME_WITHIN:
        raise SystemExit(f"the answers are not the same: expected less than {SAME_WITHIN}")
    scales = [backbones.statistics(name) for name in (options.backbone, options.into)]
    if not held:
        learn_front(small, large, datasets.resolve(options.dataset, home()), options.image_size, scales, options.rounds)
    elif scales[0] != scales[1]:
        print(f"its runs need model.mean={scales[0][0]:.3g} model.std={scales[0][1]:.3g}, those of {options.backbone}", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(large, options.out)


def grow(small: nn.Module, large: nn.Module) -> bool:
    """Give `large` the weights of `small`, in place; what only `large` has is closed or not heard.

    Returns whether its front holds the smaller one; one that cannot stays as it is. Raises SystemExit where the two differ in kind.
    """
    if len(small.blocks) != len(large.blocks):
        raise SystemExit(f"expected networks with the same stages, got {len(small.blocks)} and {len(large.blocks)}")
    held = _holds(_front(large), _front(small))
    for name in (*(("conv_stem", "bn1") if held else ()), "conv_head", "bn2", "classifier"):
        _widen(getattr(small, name), getattr(large, name), name)
    for stage, (old, new) in enumerate(zip(small.blocks, large.blocks, strict=True)):
        if stage == 0 and not held:
            continue
        if len(new) < len(old):
            raise SystemExit(f"stage {stage}: the second network has fewer blocks ({len(new)}) than the first ({len(old)})")
        for index, block in enumerate(new):
            where = f"stage {stage}, block {index}"
            if index < len(old):
                _widen(old[index], block, where)
                continue
            if not block.has_skip:
                raise SystemExit(f"{where} has no skip connection: it cannot start closed")
            if old[-1].has_skip:
                _widen(old[-1], block, where)
            final = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)][-1]
            nn.init.zeros_(final.weight)
            nn.init.zeros_(final.bias)
    return held


def learn_front(
    small: nn.Module, large: nn.Module, dataset: FaceDataset, size: int, scales: list[tuple[float, float]], rounds: int
) -> None:
    """Train the stem and first stage of `large` until they give what those of `small` give, channel by channel.

    dataset: gray faces; the front sees `rounds` times as many as its training split has, drawn with replacement. size:
    pixels. scales: each network's (mean, standard deviation) of the input. Prints how many validation faces get another
    label from the two networks. Raises SystemExit where that makes no step.
    """
    pixels, front = dataset.pixels[dataset.indices("train")][:, None], _front(large)
    validation = dataset.pixels[dataset.indices("valid")][:, None]
    steps = rounds * (len(pixels) // BATCH)
    if steps < 1:
        raise SystemExit(f"the front has to learn: --rounds from 1 on and {BATCH} training faces are needed, got {len(pixels)}")
    optimizer = torch.optim.AdamW(front.parameters(), lr=1e-2, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    random = np.random.default_rng(0)
    front.train()
    for step in range(steps):
        faces = enlarge(torch.from_numpy(pixels[random.integers(len(pixels), size=BATCH)]), size)
        with torch.no_grad():
            wanted = _front(small)(normalise(faces, *scales[0]))
        got = front(normalise(faces, *scales[1]))[:, : wanted.shape[1]]
        spread = wanted.var((0, 2, 3), keepdim=True).clamp_min(1e-6)
        loss = ((got - wanted).square() / spread).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step + 1 == steps:
            print(f"front: step {step + 1} of {steps}, {loss:.4f} of the variance missed", flush=True)
    front.eval()
    other = _answers(small, validation, size, scales[0]) != _answers(large, validation, size, scales[1])
    print(f"{len(other)} validation faces: {int(other.sum())} get another label than from the smaller network", flush=True)


def _front(network: nn.Module) -> nn.Sequential:
    return nn.Sequential(network.conv_stem, network.bn1, network.blocks[0])


def _holds(large: nn.Module, small: nn.Module) -> bool:
    """Whether each layer that both fronts have is as wide in the large one, with the same skip connections."""
    sizes = _shapes(large)
    same_skips = large[2][0].has_skip == small[2][0].has_skip
    return same_skips and all(
        name in sizes and all(ours >= theirs for ours, theirs in zip(sizes[name], shape, strict=True))
        for name, shape in _shapes(small).items()
    )


@torch.no_grad()
def _difference(small: nn.Module, large: nn.Module, held: bool) -> float:
    """Return the largest difference of a logit on random input; behind the front where the large one's stayed as it is."""
    values = torch.randn(8, 1, 96, 96)
    features = _front(small)(values)
    if held:
        return float((large(values) - small(values)).abs().max())
    wider = torch.randn(8, large.blocks[0][-1].conv.out_channels, *features.shape[2:])  # nobody hears the further channels
    wider[:, : features.shape[1]] = features
    return float((_rest(large, wider) - _rest(small, features)).abs().max())


def _rest(network: nn.Module, features: Tensor) -> Tensor:
    for stage in network.blocks[1:]:
        features = stage(features)
    logits: Tensor = network.forward_head(network.bn2(network.conv_head(features)))
    return logits


@torch.no_grad()
def _answers(network: nn.Module, pixels: np.ndarray, size: int, scale: tuple[float, float]) -> Tensor:
    parts = torch.from_numpy(pixels).split(BATCH)
    return torch.cat([network(normalise(enlarge(part, size), *scale)).argmax(1) for part in parts])


def _widen(old: nn.Module, new: nn.Module, where: str) -> None:
    """Copy each tensor of `old` into the first places of `new`'s; what is copied does not hear the channels after them."""
    sizes = _shapes(new)
    if _shapes(old).keys() != sizes.keys():
        raise SystemExit(f"{where}: the two networks have other layers there; only depth and width may differ")
    state = new.state_dict()
    for name, values in old.state_dict().items():
        if any(ours < theirs for ours, theirs in zip(sizes[name], values.shape, strict=True)):
            raise SystemExit(
                f"{where}: the second network is narrower there ({tuple(sizes[name])}, the first {tuple(values.shape)})"
            )
        if values.ndim > 1:
            state[name][: len(values)] = 0
        state[name][tuple(slice(size) for size in values.shape)] = values  # the module's own memory


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


if __name__ == "__main__":
    main()
