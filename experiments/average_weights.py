"""Average the weights of networks of which one was trained on from the other (or all from the same start).

    python experiments/average_weights.py first/weights.safetensors second/weights.safetensors --out mean.safetensors

The mean is one network as large and as quick as each; where training did not leave the valley that it began in, it is often better
than each (Wortsman et al., "Model soups", ICML 2022). Whether it is here, validation says: `experiments/ferplus8_calibrated.yaml`
with `model.weights_file=mean.safetensors` trains nothing and calibrates. Every tensor is averaged, running statistics included.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file

from fer_lab.models.weights import write_tensors


def main() -> None:
    """Write the mean; exit with a message where the files are not of one architecture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "weights", type=Path, nargs="+", help="two or more safetensors files, as a run or recover_weights.py writes them"
    )
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    options = parser.parse_args()
    if len(options.weights) < 2:
        parser.error("the mean of one network is the network; name two or more")

    states = [load_file(path) for path in options.weights]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    for path, other in zip(options.weights, shapes, strict=True):
        if other != shapes[0]:
            differing = sorted(name for name in other.keys() | shapes[0].keys() if other.get(name) != shapes[0].get(name))
            raise SystemExit(
                f"{path} is another architecture than {options.weights[0]}: {len(differing)} tensors differ, {differing[0]} first"
            )
    mean = {name: torch.stack([state[name].double() for state in states]).mean(0).to(states[0][name].dtype) for name in states[0]}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(mean, options.out)
    print(f"{options.out}: the mean of {len(states)} networks")


if __name__ == "__main__":
    main()
