"""Give a shipped bundle its training weights back, so that a run can go on from them (`model.weights_file`).

    python experiments/recover_weights.py experiments/models/ferplus8-b0 --out weights.safetensors
    python experiments/recover_weights.py experiments/models/ferplus8-b0 --out weights.safetensors --protocol ferplus5

A slim bundle keeps only what runs: an IR whose batch normalisations were folded into the convolutions. This reads the
IR's convolutions in order, puts them into timm's network, and unfolds: each normalisation takes its statistics from
2 048 training faces at the size the network was trained at, and the gain and offset that undo them. The answers stay
those of the IR (checked on the validation faces, off by less than 0.002); the weights differ from the lost ones by a
factor per output channel, chosen so that each has the length timm draws it with. With --protocol, the classifier keeps that
protocol's labels alone, so that a run with fewer classes begins with this network's logits. Needs the prepared dataset.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import openvino
import torch
from torch import nn

from fer_lab.backends.bundle import open_bundle
from fer_lab.backends.session import Predictor
from fer_lab.core.labels import protocol
from fer_lab.data import datasets, faces
from fer_lab.measure.host import usable_cores
from fer_lab.models import backbones
from fer_lab.models.deployable import Deployable, enlarge, normalise, save_weights

FACES = 2048
BATCH = 256
ANSWERS_WITHIN = 2e-3  # of the IR's own: its weights are rounded to 16 bits, ours come from there


def main() -> None:
    """Write the weights file; exit with a message where the IR is not the network that its card names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="a folder with card.json and openvino-fp16/")
    parser.add_argument("--dataset", default="ferplus-2016", help="the prepared dataset of the statistics")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--protocol", help="whose labels the classifier keeps (the card's)")
    options = parser.parse_args()

    bundle = open_bundle(options.bundle)
    card = bundle.card
    wanted = protocol(options.protocol or card.protocol).label_set.labels
    if missing := set(wanted) - set(card.labels):
        raise SystemExit(f"{options.bundle} knows no {', '.join(sorted(missing))}, which {options.protocol} asks for")
    dataset = datasets.resolve(options.dataset, faces.home())
    network = backbones.build(card.backbone, classes=len(card.labels)).eval()
    constants = _constants(openvino.Core().read_model(bundle.folder / "openvino-fp16" / "model.xml"))
    constants[0] = (constants[0][0] * np.float32(card.std), constants[0][1])  # the division by std was folded into the stem
    pairs = _fill(network, constants)
    drawn = np.random.default_rng(0).permutation(dataset.indices("train"))[:FACES]
    _unfold(network, pairs, _inputs(dataset.pixels[drawn, None], card.image_size, card.mean, card.std))

    pixels = dataset.pixels[dataset.indices("valid")]
    with Predictor.open(bundle, "openvino-fp16", threads=usable_cores()) as predictor:
        theirs = predictor.predict(pixels)
    graph = Deployable(network, card.image_size, card.mean, card.std, card.temperature).eval()
    with torch.no_grad():
        ours = torch.cat([graph(part) for part in torch.from_numpy(pixels[:, None]).split(BATCH)]).numpy()
    off = float(np.abs(ours - theirs).max())
    print(f"{len(pixels)} validation faces: largest difference from the IR {off:.1e}, "
          f"{(ours.argmax(1) != theirs.argmax(1)).sum()} other labels", flush=True)  # fmt: skip
    if off > ANSWERS_WITHIN:
        raise SystemExit(f"not this network: expected less than {ANSWERS_WITHIN}")
    rows = [card.labels.index(label) for label in wanted]
    network.classifier.weight = nn.Parameter(network.classifier.weight[rows])
    network.classifier.bias = nn.Parameter(network.classifier.bias[rows])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(network, options.out)


def _constants(ir: openvino.Model) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (weight, bias) of each convolution and of the classifier, float32, in the order they run."""
    found = []
    for operation in ir.get_ordered_ops():
        if operation.get_type_name() not in ("Convolution", "GroupConvolution", "MatMul"):
            continue
        following, divided = _next(operation), np.float32(1)
        if following.get_type_name() == "Multiply":  # the classifier's temperature, which divides its bias too
            following, divided = _next(following), _value(following.input_value(1)).ravel()
        found.append((_value(operation.input_value(1)), _value(following.input_value(1)).ravel() / divided))
    return found


def _next(node: openvino.Node) -> openvino.Node:
    (target,) = node.output(0).get_target_inputs()
    return target.get_node()


def _value(output: openvino.Output) -> np.ndarray:
    node = output.get_node()
    if node.get_type_name() == "Convert":  # from the 16 bits that it is stored in
        node = node.input_value(0).get_node()
    return np.asarray(node.data, np.float32)


def _fill(network: nn.Module, constants: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Put the constants into the layers, in order; return the convolutions that a normalisation follows.

    There the folded offset waits in the normalisation's bias.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d)]
    waiting = iter(constants)
    pairs = []
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, nn.BatchNorm2d):
            continue
        weight, bias = (torch.from_numpy(part) for part in next(waiting))
        with torch.no_grad():
            layer.weight.copy_(weight.reshape(layer.weight.shape))
            if isinstance(after, nn.BatchNorm2d):
                after.bias.copy_(bias)
                pairs.append((layer, after))
            else:
                layer.bias.copy_(bias)
    return pairs


def _inputs(pixels: np.ndarray, size: int, mean: float, std: float) -> list[torch.Tensor]:
    return [normalise(enlarge(part, size), mean, std) for part in torch.from_numpy(pixels).split(BATCH)]


@torch.no_grad()
def _unfold(network: nn.Module, pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]], inputs: list[torch.Tensor]) -> None:
    """Split each folded convolution into a convolution of usual length and the normalisation that undoes it."""
    for _, norm in pairs:  # first the folded network as it runs: normalisations that only add their bias
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        norm.weight.fill_(1)
    seen = {conv: [torch.zeros(conv.out_channels, dtype=torch.float64) for _ in range(2)] for conv, _ in pairs}

    def note(conv: nn.Module, _: object, out: torch.Tensor) -> None:
        seen[conv][0] += out.double().mean((0, 2, 3)) / len(inputs)
        seen[conv][1] += out.double().square().mean((0, 2, 3)) / len(inputs)

    hooks = [conv.register_forward_hook(note) for conv, _ in pairs]
    for part in inputs:
        network(part)
    for hook in hooks:
        hook.remove()
    for conv, norm in pairs:
        mean, square = seen[conv]
        variance = (square - mean.square()).clamp_min(1e-8)
        fan_out = conv.out_channels * math.prod(conv.kernel_size) // conv.groups
        length = math.sqrt(2 / fan_out * conv.weight[0].numel())
        scale = length / conv.weight.flatten(1).norm(dim=1).clamp_min(1e-6).double()
        conv.weight.mul_(scale[:, None, None, None].float())
        norm.running_mean.copy_(mean * scale)
        norm.running_var.copy_(variance * scale.square())
        gain = (norm.running_var + norm.eps).sqrt() / scale
        norm.weight.copy_(gain)
        norm.bias.add_(mean.float())


if __name__ == "__main__":
    main()
