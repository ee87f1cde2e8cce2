"""Grow a trained network into a deeper one of its family that gives the same answers (`model.weights_file` of its run).

    python experiments/deepen_weights.py B0.safetensors --backbone tf_efficientnetv2_b0 \\
        --into tf_efficientnetv2_b1 --out B1.safetensors

EfficientNetV2 B0 and B1 have the same widths; B1 has one more block in each stage. Each stage keeps its blocks, and the
blocks it gains are copies of its last one whose branch is closed (the gain of its last normalisation is zero), so that
only the skip connection is left until training opens it (Net2DeeperNet, Chen et al., ICLR 2016; the closed branch as in
Goyal et al., 2017). Where the last block has other widths, the new one stays as timm drew it, and closed too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from fer_lab.models import backbones
from fer_lab.models.deployable import save_weights

SAME_WITHIN = 1e-4  # of a logit, in evaluation mode


def main() -> None:
    """Write the weights file; exit with a message where the deeper network is not that one made deeper."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="safetensors of the shallow network, as recover_weights.py writes them")
    parser.add_argument("--backbone", default="tf_efficientnetv2_b0", help="the shallow network's name")
    parser.add_argument("--into", default="tf_efficientnetv2_b1", help="the deeper network's name")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    options = parser.parse_args()

    state = load_file(options.weights)
    shallow = backbones.build(options.backbone, classes=len(state["classifier.bias"])).eval()
    shallow.load_state_dict(state)
    torch.manual_seed(0)
    deep = backbones.build(options.into, classes=len(state["classifier.bias"])).eval()
    deepen(shallow, deep)

    values = torch.randn(8, 1, 96, 96)
    with torch.no_grad():
        off = float((deep(values) - shallow(values)).abs().max())
    blocks = [sum(len(stage) for stage in network.blocks) for network in (shallow, deep)]
    print(f"{blocks[0]} blocks → {blocks[1]}: largest difference of a logit {off:.1e}")
    if off > SAME_WITHIN:
        raise SystemExit(f"the answers are not the same: expected less than {SAME_WITHIN}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(deep, options.out)


def deepen(shallow: nn.Module, deep: nn.Module) -> None:
    """Give `deep` the weights of `shallow`, in place, and close the blocks that only `deep` has.

    Raises SystemExit where the two differ in more than the number of blocks.
    """
    for name, part in shallow.named_children():
        if name != "blocks":
            _copy(part, getattr(deep, name), name)
    if len(shallow.blocks) != len(deep.blocks):
        raise SystemExit(f"expected networks with the same stages, got {len(shallow.blocks)} and {len(deep.blocks)}")
    for stage, (old, new) in enumerate(zip(shallow.blocks, deep.blocks, strict=True)):
        if len(new) < len(old):
            raise SystemExit(f"stage {stage}: the second network has fewer blocks ({len(new)}) than the first ({len(old)})")
        for index, block in enumerate(new):
            last = old[min(index, len(old) - 1)]
            if index < len(old):
                _copy(last, block, f"stage {stage}, block {index}")
                continue
            if not block.has_skip:
                raise SystemExit(f"stage {stage}, block {index} has no skip connection: it cannot start closed")
            if _shapes(last) == _shapes(block):
                block.load_state_dict(last.state_dict())
            final = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)][-1]
            nn.init.zeros_(final.weight)
            nn.init.zeros_(final.bias)


def _copy(old: nn.Module, new: nn.Module, where: str) -> None:
    if _shapes(old) != _shapes(new):
        raise SystemExit(f"{where}: the two networks have other widths there; only the depth may differ")
    new.load_state_dict(old.state_dict())


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


if __name__ == "__main__":
    main()
