"""Read FERPlus, or draw the synthetic sample, and audit it.

    python -m fer_lab.prepare ferplus --fer2013 fer2013.csv --labels fer2013new.csv
    python -m fer_lab.prepare ferplus --images FER2013-png.zip
    python -m fer_lab.prepare ferplus --images FER2013-png.zip --labels fer2013new.csv
    python -m fer_lab.prepare ferplus
    python -m fer_lab.prepare synthetic

FERPlus is the faces of FER2013 (`fer2013.csv` or `icml_face_data.csv`, or PNGs in Microsoft's folders, read straight from
a zip) with ten crowd votes each. Two official label files disagree on 1 601 faces, so the result carries its label
source: `ferplus-2016` with the folders' three `label.csv`, `ferplus-2017` with `fer2013new.csv`. `--labels` takes either,
or both. Without options the known file names are looked for in `data/` and the current folder.

Everything is checked before anything is written: a dataset that was prepared before stays as it is when the new files are
refused. The result is `data/<name>/faces.npz` with `audit.json`: faces, votes, classes per protocol and split, pictures
that stand twice inside and across splits, the test faces that have no twin in train or valid. Lists of image names in a
folder `slices` beside the data become named slices. `--preview` writes sheets of faces to look at.

Prints the counts as tables, and as its last line a JSON object: dataset, label_source, fingerprint, faces, protocols,
duplicates.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.core import console
from fer_lab.core.errors import InputError

if TYPE_CHECKING:
    from fer_lab.data.faces import FaceDataset

_NEEDED_MB = 200  # an 83 MB dataset is written beside the old one before it replaces it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns its exit code."""
    from fer_lab.data.datasets import readers

    found = readers()
    parser = argparse.ArgumentParser(
        prog="python -m fer_lab.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = parser.add_subparsers(dest="name", required=True, metavar=f"{{{','.join(found)}}}")
    for reader in found.values():
        one = names.add_parser(reader.name, help=reader.help)
        reader.arguments(one)
        one.add_argument("--preview", action="store_true", help="write sheets of faces with votes and of augmented faces")
    return console.run(parser, _prepare, argv)


def _prepare(args: argparse.Namespace) -> Mapping[str, Any]:
    from fer_lab.data.audit import save_audited
    from fer_lab.data.datasets import readers
    from fer_lab.data.faces import home

    target = home() / "data"
    _check_room(target)
    reader = readers()[args.name]
    reading = reader.read(args)
    for remark in reading.remarks:
        console.say(remark)
    report = save_audited(
        reading.dataset, target / reading.dataset.name,
        repeated_names=reading.repeated_names, disagreements=reading.disagreements,
    )  # fmt: skip
    _print_report(report)
    folder = target / report["dataset"]
    if args.preview:
        for path in _preview(reading.dataset, folder):
            console.say(f"preview: {path}")
    console.say(f"prepared: {folder}")
    console.next_command(reader.then)
    return {
        "dataset": report["dataset"],
        "label_source": report["label_source"],
        "fingerprint": report["fingerprint"],
        "faces": report["faces"],
        "protocols": {
            name: {split: sum(labels.values()) for split, labels in splits.items()} for name, splits in report["protocols"].items()
        },
        "duplicates": report["duplicates"],
        "clean_test": len(report["clean_test"]),
        "slices": report["slices"],
        "label_sources_disagree": report.get("label_sources_disagree", {}).get("faces"),
        "folder": str(folder),
    }


def _check_room(target: Path) -> None:
    """Refuse a full or unwritable place before reading for half a minute."""
    import os

    there = next(folder for folder in (target, *target.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{there} cannot be written; set FER_LAB_HOME to a folder that can")
    free_mb = shutil.disk_usage(there).free // 10**6
    if free_mb < _NEEDED_MB:
        raise InputError(f"{there} has {free_mb} MB free, {_NEEDED_MB} MB are needed; set FER_LAB_HOME to a disk with room")


def _print_report(report: Mapping[str, Any]) -> None:
    for name, splits in report["protocols"].items():
        labels = list(next(iter(splits.values())))
        rows: list[list[object]] = [[label, *(splits[split][label] for split in splits)] for label in labels]
        rows.append(["kept", *(sum(splits[split].values()) for split in splits)])
        rows.append(["of faces", *(report["faces"][split] for split in splits)])
        console.table(f"{report['dataset']}, protocol {name}", ["label", *splits], rows)
    exact, near = report["duplicates"]["exact"], report["duplicates"]["near"]
    kept = exact["kept"]["ferplus8"]
    rows = [
        ["exact: repeated inside train / valid / test", " / ".join(str(n) for n in exact["repeated_inside"].values())],
        ["exact: valid faces that stand in train", exact["valid_in_train"]],
        ["exact: test faces that stand in train", exact["test_in_train"]],
        ["exact: test faces that stand in train or valid", exact["test_in_train_or_valid"]],
        ["exact, kept by ferplus8: valid in train (with another label / of twins kept)",
         f"{kept['valid_in_train']} ({kept['valid_other_label']} / {kept['valid_twin_kept']})"],
        ["exact, kept by ferplus8: test in train (with another label / of twins kept)",
         f"{kept['test_in_train']} ({kept['test_other_label']} / {kept['test_twin_kept']})"],
        ["exact, kept by ferplus8: test in train or valid", kept["test_in_train_or_valid"]],
        [f"near: pairs ({near['by']})", " ".join(f"{where} {n}" for where, n in near["pairs"].items())],
        ["test faces without an exact twin in train or valid", len(report["clean_test"])],
    ]  # fmt: skip
    console.table("pictures that stand more than once (named in audit.json)", ["what", "faces"], rows)
    said = f"{report['without_majority']} faces have no majority, {report['without_emotion_vote']} no vote for an expression"
    if report["slices"]:
        said += "; slices: " + ", ".join(f"{name} {n}" for name, n in report["slices"].items())
    console.say(said)


def _preview(dataset: FaceDataset, folder: Path) -> list[Path]:
    """Sheets of faces with votes and of augmented faces (the default augmentation)."""
    import numpy as np

    from fer_lab.core.config import AugmentConfig
    from fer_lab.core.errors import MissingPart
    from fer_lab.core.labels import PROTOCOLS
    from fer_lab.data import preview

    written = [preview.votes_sheet(dataset, PROTOCOLS["ferplus8"], folder / "preview-votes.png")]
    if not len(dataset.indices("train")):
        return written
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingPart("torch", "train", "the sheet of augmented faces") from None
    from fer_lab.training.augment import COLUMNS, augment

    rng = np.random.default_rng(0)
    faces, versions = 8, 8
    rows = rng.permutation(dataset.indices("train"))[:faces]
    pixels = dataset.pixels[rows]
    repeated = torch.from_numpy(np.repeat(pixels, versions, axis=0)[:, None])
    uniforms = torch.from_numpy(rng.random((len(repeated), len(COLUMNS)), np.float32))
    changed = augment(repeated, uniforms, 96, AugmentConfig()).round().clamp(0, 255).to(torch.uint8)
    shaped = changed.numpy().reshape(len(pixels), versions, 96, 96)
    return [*written, preview.changed_sheet(pixels, shaped, folder / "preview-augmented.png")]


if __name__ == "__main__":
    sys.exit(main())
