"""What each part of the recipe is worth: the recipe shortened, then again with one part changed, all on the validation split.

    python experiments/ablation.py [--jobs N] [key=value …]      # e.g. train.precision=float32 where the CPU has no bf16

Trains `ferplus8_b0_scratch.yaml` for 8 epochs at the faces' own 48 px once as it is and once per row of `CHANGES`, then
`compare`s them on the validation faces (the test split stays closed): each row's difference from the whole recipe, paired over
the faces, with its interval. Finished runs stand in ablation/runs.json below the store root, by their arguments, and are not
trained again; a key=value holds for every run. On a CPU, one run per core, each with one thread (`--jobs 2 train.threads=1` on
two cores), is done sooner than one run after the other with all of them. The interval is that of the faces, not of the training's
luck: `another-seed` shows one draw of that. A run this short still underfits, so what fights overfitting (erasing, drop path,
mixup) may look worse here than at full length.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from fer_lab.data.faces import home

CONFIG = Path(__file__).parent / "ferplus8_b0_scratch.yaml"
SHORT = ("train.epochs=8", "train.image_size=48", "train.stages=[]")
CHANGES = {
    "whole": (),
    "another-seed": ("seed=1",),
    "majority-targets": ("data.targets=majority",),
    "twins-kept": ("data.drop_twins=false",),  # flatters itself: it trains on twins of validation faces
    "no-ema": ("train.ema_decay=null",),
    "constant-rate": ("train.schedule=constant",),
    "no-class-weights": ("train.class_weights=null",),
    "no-drop-path": ("model.drop_path_rate=0",),
    "no-erasing": ("augment.erasing=0",),
    "no-warp": ("augment.rotation_deg=0", "augment.shift=0", "augment.zoom=0", "augment.shear=0"),
    "with-mixup": ("augment.mixup=0.2",),
    "with-a-teacher": ("train.teachers=[experiments/models/candidates/ferplus8-b0-s0]", "train.teacher_weight=0.3"),
}
OUT = home() / "ablation"  # beside the store whose runs it names


def main() -> None:
    """Train what is missing, compare, write ablation.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run, as `train` takes them")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs that train at a time (default 1)")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: expected 1 or more")

    OUT.mkdir(exist_ok=True)
    record = OUT / "runs.json"
    finished: dict[str, str] = json.loads(record.read_text()) if record.is_file() else {}
    arguments = {row: (*SHORT, *options.overrides, *changes) for row, changes in CHANGES.items()}
    words = {row: " ".join(given) for row, given in arguments.items()}
    recording = Lock()

    def train(row: str) -> None:
        run_id = _verb("train", str(CONFIG), *arguments[row], f"name=ablation-{row}")["run_id"]
        with recording:
            finished[words[row]] = run_id
            record.write_text(json.dumps(finished, indent=1))
            print(f"{row}: done, {sum(key in finished for key in words.values())} of {len(CHANGES)}", file=sys.stderr)

    with ThreadPoolExecutor(options.jobs) as pool:
        # when one fails, those that train end and are recorded, and no other starts
        list(pool.map(train, [row for row in CHANGES if words[row] not in finished]))
    models = {row: f"runs:/{finished[words[row]]}" for row in CHANGES}
    compared = _verb(
        "compare", *models.values(), "--split", "valid", "--runtimes", "torch", "--no-latency", "--no-cold-start",
        "--no-robustness", "--no-faces",
    )  # fmt: skip
    (OUT / "ablation.md").write_text(_table(models, compared), encoding="utf-8")
    print(f"{OUT / 'ablation.md'}; its report: {compared['report']}")


def _table(models: dict[str, str], compared: dict[str, Any]) -> str:
    """Each row's accuracy on validation and its difference from the whole recipe, in points, as Markdown."""
    accuracy = {row["model"]: 100 * row["accuracy"] for row in compared["rows"]}
    verdicts = {v["model"]: v for v in compared["verdicts"] if v["aspect"] == "accuracy"}
    lines = [f"| n = {compared['n']} | validation % | points (95 %) | verdict |", "|---|---:|---:|---|"]
    for row, model in models.items():
        v = verdicts.get(model)
        judged = f"{100 * v['change']:+.2f} ({100 * v['low']:+.2f} to {100 * v['high']:+.2f}) | {v['verdict']}" if v else "– | –"
        lines.append(f"| {row}{''.join(f' `{change}`' for change in CHANGES[row])} | {accuracy[model]:.2f} | {judged} |")
    return "\n".join(lines) + "\n"


def _verb(name: str, *arguments: str) -> dict[str, Any]:
    """Run `python -m fer_lab.NAME`, show what it says, and return the last line that it prints."""
    command = [sys.executable, "-m", f"fer_lab.{name}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    print(done.stdout)
    if done.returncode:
        raise SystemExit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
