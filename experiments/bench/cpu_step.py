"""The bare training step of V2B0 on this CPU: the allocator as it is or set by `keep_freed_memory`, float32 or bf16, 64 or 96 px.

    python experiments/bench/cpu_step.py [--rounds 5] [--out FILE]

A turn is a process of its own, for the allocator's setting cannot be taken back; the two settings take turns, all cores each.
Forward, backward and optimizer on one batch of 128 that is ready; the median of five steps after a warm-up. bf16 as `fit` runs
it, depthwise convolutions in float32, and once with all of them in bf16. Ratios are taken within a round, medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np

BATCH = 128
STEPS = 5
SIZES = (64, 96)


def turn(allocator: str) -> dict[str, float]:
    """Faces per second in this process, by size and precision, and its largest memory in MB."""
    import torch

    from fer_lab.models import backbones
    from fer_lab.training.allocator import keep_freed_memory
    from fer_lab.training.depthwise import DepthwiseInFloat32

    if allocator == "keep" and not keep_freed_memory():
        raise SystemExit("this C library has no such setting; only glibc has it")
    network = backbones.build("tf_efficientnetv2_b0", classes=8, drop_rate=0.2, drop_path_rate=0.1)
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    wanted = torch.softmax(torch.randn(BATCH, 8), 1)
    figures: dict[str, float] = {}
    for size in SIZES:
        values = torch.randn(BATCH, 1, size, size).contiguous(memory_format=torch.channels_last)
        for name in ("float32", "bf16", "all_bf16"):
            depthwise = DepthwiseInFloat32() if name == "bf16" else nullcontext()
            seconds = []
            for _ in range(1 + STEPS):
                start = time.perf_counter()
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast("cpu", torch.bfloat16, enabled=name != "float32"), depthwise:
                    loss = torch.nn.functional.cross_entropy(network(values), wanted)
                loss.backward()
                optimizer.step()
                seconds.append(time.perf_counter() - start)
            figures[f"{name}_{size}"] = round(BATCH / float(np.median(seconds[1:])), 1)
    return figures | {"max_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}


def main() -> None:
    """Take turns and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--turn", choices=("plain", "keep"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turn:
        print(json.dumps(turn(args.turn)))
        return
    from fer_lab.measure.host import load_average, this_host

    rounds = []
    for n in range(args.rounds):
        figures = {}
        for how in ("plain", "keep"):
            command = [sys.executable, __file__, "--turn", how]
            figures[how] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        rounds.append(figures)
        print(f"round {n + 1}/{args.rounds}  {figures}", flush=True)

    def middle(top: tuple[str, str], bottom: tuple[str, str]) -> float:
        return round(float(np.median([r[top[0]][top[1]] / r[bottom[0]][bottom[1]] for r in rounds])), 2)

    host = this_host()
    record = {
        "schema": 1, "what": "cpu_step", "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": f"python experiments/bench/cpu_step.py --rounds {args.rounds}",
        "host": {"cpu": host.cpu, "cores": host.cores, "flags": list(host.flags), "versions": dict(host.versions)},
        "load": load_average(), "backbone": "tf_efficientnetv2_b0", "batch": BATCH,
        "keep_over_plain": {f"float32_{size}": middle(("keep", f"float32_{size}"), ("plain", f"float32_{size}")) for size in SIZES},
        "bf16_over_float32": {f"{size}": middle(("keep", f"bf16_{size}"), ("keep", f"float32_{size}")) for size in SIZES},
        "bf16_over_all_bf16": {f"{size}": middle(("keep", f"bf16_{size}"), ("keep", f"all_bf16_{size}")) for size in SIZES},
        "rounds": rounds,
    }  # fmt: skip
    if args.out is not None:
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8", newline="\n")
    print(json.dumps({key: record[key] for key in ("keep_over_plain", "bf16_over_float32", "bf16_over_all_bf16")}))


if __name__ == "__main__":
    main()
