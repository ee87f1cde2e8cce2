"""Training speed on this CPU: fer_lab beside the seed's Keras pipeline, in turns, on the same faces.

    python experiments/bench/train_speed.py --keras KERAS_PYTHON [--dataset ferplus] [--rounds 5] [--out FILE]

KERAS_PYTHON is the interpreter of a throw-away environment (keras_seed.py says how to make it). A round is one turn each of:
the seed's pipeline (V2B0, 96 px, batch 256), `fit` with `experiments/ferplus8_b0.yaml` at 96 px and at 64 px (its two stages;
data, augmentation, EMA, clipping and all), the bare step of the same network, optimizer and batch on a batch that is ready, and the
augmentation alone. Figures are medians over rounds; ratios are taken within a round. Both use all cores, never together.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fer_lab.core.config import RunConfig, load_run_config
from fer_lab.core.errors import Interrupted
from fer_lab.core.labels import protocol
from fer_lab.data.datasets import resolve
from fer_lab.data.faces import FaceDataset, home
from fer_lab.measure.host import load_average, this_host
from fer_lab.models import backbones
from fer_lab.training import augment, recipe
from fer_lab.training.allocator import keep_freed_memory
from fer_lab.training.fit import fit

CONFIG = Path(__file__).resolve().parents[1] / "ferplus8_b0.yaml"
STEPS = 4  # of one turn, after WARM steps
WARM = 1
KERAS_STEPS = 3


class Keras:
    """The seed's pipeline in a process of its own."""

    def __init__(self, python: str, faces: Path) -> None:
        script = Path(__file__).with_name("keras_seed.py")
        self._process = subprocess.Popen(
            [python, str(script), str(faces)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.facts = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # Keras prints "Found 25045 images …" first
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit("keras_seed.py ended early; its message is above")

    def turn(self) -> float:
        """Faces per second of some steps."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{KERAS_STEPS}\n")
        return KERAS_STEPS * self.facts["batch"] / float(self._answer()["seconds"])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def write_pictures(dataset: FaceDataset, folder: Path) -> None:
    """The training faces of the majority protocol as the seed's tool unpacks them: one PNG each, one folder per class."""
    rules = protocol("ferplus8")
    rows = dataset.indices("train")
    for row, label in zip(rows, rules.labels(dataset.votes[rows]), strict=True):
        if label >= 0:
            place = folder / rules.label_set.labels[label]
            place.mkdir(exist_ok=True)
            Image.fromarray(dataset.pixels[row]).save(place / f"{row}.png")


def turn_of_fit(config: RunConfig, dataset: FaceDataset, size: int) -> float:
    """Faces per second of the first steps of a real training run at `size` px."""
    config = config.model_copy(update={"train": config.train.model_copy(update={"image_size": size, "stages": []})})
    times: list[float] = []

    def clock(*_: int) -> None:
        times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Interrupted):
        fit(config, dataset, Path(folder), on_step=clock, should_stop=lambda: 2 if len(times) > WARM + STEPS else None)
    return STEPS * config.train.batch_size / (times[WARM + STEPS] - times[WARM])


def turn_of_bare_step(config: RunConfig, size: int) -> float:
    """Faces per second of forward, backward and optimizer on one batch that is ready."""
    torch.manual_seed(0)
    network = backbones.build(
        config.model.backbone, classes=8, drop_rate=config.model.drop_rate, drop_path_rate=config.model.drop_path_rate
    )
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = recipe.make_optimizer(config.train, network)
    values = torch.randn(config.train.batch_size, 1, size, size).contiguous(memory_format=torch.channels_last)
    wanted = torch.softmax(torch.randn(config.train.batch_size, 8), 1)
    for step in range(WARM + STEPS):
        if step == WARM:
            start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(network(values), wanted).backward()
        optimizer.step()
    return STEPS * config.train.batch_size / (time.perf_counter() - start)


def turn_of_data(config: RunConfig, dataset: FaceDataset, size: int) -> float:
    """Faces per second of picking, augmenting and mixing alone."""
    pixels = torch.from_numpy(dataset.pixels[dataset.indices("train")]).unsqueeze(1)
    batch = config.train.batch_size
    draw = augment.draw_epoch(0, 0, len(pixels), WARM + STEPS, config.augment)
    order, uniforms = torch.from_numpy(draw.order), torch.from_numpy(draw.uniforms)
    targets = torch.full((batch, 8), 1 / 8)
    for step in range(WARM + STEPS):
        if step == WARM:
            start = time.perf_counter()
        chosen = slice(step * batch, (step + 1) * batch)
        augment.mix(augment.augment(pixels[order[chosen]], uniforms[chosen], size, config.augment), targets, draw.mixes[step])
    return STEPS * batch / (time.perf_counter() - start)


def recipe_rate(config: RunConfig, at: dict[int, float]) -> float:
    """Faces per second over the whole recipe, each epoch at its size."""
    sizes = [config.train.size_at(epoch) for epoch in range(config.train.epochs)]
    return len(sizes) / sum(1 / at[size] for size in sizes)


def main() -> None:
    """Take turns and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keras", required=True, metavar="PYTHON")
    parser.add_argument("--dataset", default="ferplus")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    keep_freed_memory()  # as `train` does
    config = load_run_config(CONFIG, ["train.device=cpu", f"data.dataset={args.dataset}"])
    dataset = resolve(args.dataset, home())
    large, small = config.train.image_size, min(stage.size for stage in config.train.stages)
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(dataset, Path(folder))
        keras = Keras(args.keras, Path(folder))
        for n in range(args.rounds):
            at = {size: turn_of_fit(config, dataset, size) for size in (large, small)}
            rates = {
                "keras": keras.turn(), f"fit_{large}": at[large], f"fit_{small}": at[small], "recipe": recipe_rate(config, at),
                f"bare_{large}": turn_of_bare_step(config, large), f"data_{large}": turn_of_data(config, dataset, large),
            }  # fmt: skip
            rounds.append(rates)
            print(f"round {n + 1}/{args.rounds}  " + "  ".join(f"{k} {v:.1f}" for k, v in rates.items()) + "  faces/s", flush=True)
        keras.close()

    def middle(top: str, bottom: str) -> float:
        return round(float(np.median([r[top] / r[bottom] for r in rounds])), 3)

    host = this_host()
    record = {
        "schema": 1, "what": "train_speed", "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": f"python experiments/bench/train_speed.py --keras KERAS_PYTHON --dataset {args.dataset} --rounds {args.rounds}",
        "host": {"cpu": host.cpu, "cores": host.cores, "flags": list(host.flags), "versions": dict(host.versions)},
        "load": load_average(), "keras": keras.facts, "config": CONFIG.name, "batch": config.train.batch_size,
        "faces_per_s": {name: round(float(np.median([r[name] for r in rounds])), 1) for name in rounds[0]},
        "fit_over_keras": middle(f"fit_{large}", "keras"), "recipe_over_keras": middle("recipe", "keras"),
        "fit_over_bare": middle(f"fit_{large}", f"bare_{large}"),
        "data_share_of_step": middle(f"fit_{large}", f"data_{large}"), "rounds": rounds,
    }  # fmt: skip
    if args.out is not None:
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in record.items() if k != "rounds"}))


if __name__ == "__main__":
    main()
