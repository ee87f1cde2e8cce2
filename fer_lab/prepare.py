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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.core import console
from fer_lab.core.errors import InputError, NotFound

if TYPE_CHECKING:
    from fer_lab.data.faces import FaceDataset
    from fer_lab.data.ferplus import Reading

_NEEDED_MB = 200  # an 83 MB dataset is written beside the old one before it replaces it

_WHERE_FROM = (
    ("fer2013.csv", "Kaggle, “Challenges in Representation Learning: Facial Expression Recognition Challenge” (an account, and "
     "its rules accepted: research use), about 300 MB, MD5 f8428a1edbd21e88f42c73edd2a14f95; icml_face_data.csv of the same page "
     "also serves (MD5 b114b9e04e6949e5fe8b6a98b3892b1d)"),
    ("fer2013new.csv", "https://github.com/microsoft/FERPlus (MIT licence), 1.6 MB, MD5 413eba86d6e454536b99705b8c7fc5c5; "
     "the three label.csv are in its data/ folder"),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fer_lab.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{ferplus,synthetic}")
    ferplus = kinds.add_parser("ferplus", help="faces of FER2013 with the votes of FER+")
    ferplus.add_argument("--fer2013", type=Path, metavar="CSV", help="fer2013.csv or icml_face_data.csv")
    ferplus.add_argument("--images", type=Path, metavar="DIR_OR_ZIP", help="PNG faces in FER2013Train, FER2013Valid, FER2013Test")
    ferplus.add_argument(
        "--labels", type=Path, action="append", default=[], metavar="CSV_OR_DIR",
        help="fer2013new.csv, or the folder with Microsoft's three label.csv; may be given twice",
    )  # fmt: skip
    ferplus.add_argument("--slices", type=Path, metavar="DIR", help="folder of *.txt with image names (default: beside the data)")
    ferplus.add_argument("--strict", action="store_true", help="refuse pictures that no label file names")
    synthetic = kinds.add_parser("synthetic", help="drawn faces with simulated votes, to learn and test the tool on")
    synthetic.add_argument("--count", type=int, default=4000, metavar="N", help="faces to draw (default 4000)")
    synthetic.add_argument("--seed", type=int, default=0)
    for kind in (ferplus, synthetic):
        kind.add_argument("--preview", action="store_true", help="write sheets of faces with votes and of augmented faces")
    return console.run(parser, _prepare, argv)


def _prepare(args: argparse.Namespace) -> Mapping[str, Any]:
    from fer_lab.data.faces import home

    target = home() / "data"
    _check_room(target)
    report = _synthetic(args, target) if args.kind == "synthetic" else _ferplus(args, target)
    _print_report(report)
    folder = target / report["dataset"]
    if args.preview:
        from fer_lab.data.faces import load

        for path in _preview(load(folder), folder):
            console.say(f"preview: {path}")
    console.say(f"prepared: {folder}")
    console.next_command(
        "python -m fer_lab.sweep" if args.kind == "synthetic" else "python -m fer_lab.train experiments/ferplus8_b0.yaml"
    )
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


def _synthetic(args: argparse.Namespace, target: Path) -> dict[str, Any]:
    from fer_lab.data import audit, synthetic

    if not 100 <= args.count <= 100_000:
        raise InputError(f"--count {args.count}: between 100 and 100000 faces can be drawn")
    if args.seed < 0:
        raise InputError(f"--seed {args.seed}: a whole number from 0 on is needed")
    dataset = synthetic.draw(args.count, args.seed)
    return audit.save_audited(dataset, target / dataset.name)


def _ferplus(args: argparse.Namespace, target: Path) -> dict[str, Any]:
    from fer_lab.data import audit, ferplus

    files = _files(args)
    slices = _slices_folder(args.slices, files)
    if files.images is not None:
        reading = ferplus.read_images(files.images, files.labels, strict=args.strict)
    else:
        assert files.fer2013 is not None
        reading = ferplus.read_csv(files.fer2013, files.labels)
    dataset = reading.dataset
    remarks = list(reading.remarks)
    if slices is not None:
        lists, more = ferplus.read_slices(slices, dataset.names)
        dataset, remarks = replace(dataset, slices=lists), remarks + more
    for remark in [*remarks, *_what_it_is(reading, dataset)]:
        console.say(remark)
    return audit.save_audited(
        dataset, target / dataset.name, repeated_names=reading.repeated_names, disagreements=reading.disagreements
    )


@dataclass(frozen=True)
class _Files:
    fer2013: Path | None
    images: Path | None
    labels: tuple[Path, ...]


def _files(args: argparse.Namespace) -> _Files:
    """What to read: what was named, else what stands under a known name in data/ or the current folder."""
    if args.fer2013 and args.images:
        raise InputError("--fer2013 and --images both name the faces; give one of them")
    if args.images:
        return _Files(None, args.images, tuple(args.labels))
    fer2013 = args.fer2013 or _first_of("fer2013.csv", "fer2013/fer2013.csv", "icml_face_data.csv")
    if not args.fer2013:
        images = _found_images()
        if images is not None:
            return _Files(None, images, tuple(args.labels))
    if fer2013 is not None and not fer2013.exists():
        raise NotFound(f"{fer2013} does not exist. {_origin('fer2013.csv')}")
    labels = tuple(args.labels) or _found_labels(fer2013)
    if fer2013 is not None and labels:
        return _Files(fer2013, None, labels)
    _say_what_is_missing(fer2013, labels)
    lacking = [name for name, there in (("fer2013.csv", fer2013), ("fer2013new.csv", labels)) if not there]
    emotions = _emotion_folders()
    if emotions is not None:
        raise NotFound(
            f"{emotions} holds folders per emotion (train/happy/…): their order is lost, so they cannot be joined to the votes of "
            f"FER+; {' and '.join(lacking)} not found in data/ or the current folder"
        )
    raise NotFound(
        f"FERPlus is not here: {' and '.join(lacking)} not found in data/ or the current folder (nor PNGs in FER2013Train)"
    )


_PLACES = ("data", ".")


def _first_of(*names: str) -> Path | None:
    return next((path for place in _PLACES for name in names if (path := Path(place) / name).is_file()), None)


def _found_images() -> Path | None:
    for place in map(Path, _PLACES):
        for folder in (place, place / "FERPlus/data", place / "FERPlus-master/data", place / "FERPlus"):
            if any((folder / "FER2013Train").glob("*.png")):
                return folder
        for name in ("FER2013-png.zip", "FERPlus.zip", "ferplus.zip"):
            if (place / name).is_file():
                return place / name
    return None


def _found_labels(fer2013: Path | None) -> tuple[Path, ...]:
    near = [fer2013.parent] if fer2013 is not None else []
    for place in [*near, *map(Path, _PLACES)]:
        for base in (place, place / "FERPlus", place / "FERPlus-master"):
            if (base / "fer2013new.csv").is_file():
                return (base / "fer2013new.csv",)
    return ()


def _emotion_folders() -> Path | None:
    for place in [Path(p) / sub for p in _PLACES for sub in ("train", "fer2013/train", "archive/train")]:
        if (place / "happy").is_dir() or (place / "angry").is_dir():
            return place.parent
    return None


def _origin(name: str) -> str:
    return f"Get it from {dict(_WHERE_FROM)[name]}"


def _say_what_is_missing(fer2013: Path | None, labels: Sequence[Path]) -> None:
    for name, found in (("fer2013.csv", fer2013), ("fer2013new.csv", labels)):
        console.say(f"{name}: {'found' if found else 'missing. ' + _origin(name)}")
    console.say(
        "or: PNGs in Microsoft's layout (FER2013Train, FER2013Valid, FER2013Test with label.csv), as a folder or zip: --images"
    )
    console.say("meanwhile the synthetic sample works without any download: python -m fer_lab.prepare synthetic")
    console.next_command("python -m fer_lab.sweep")


def _slices_folder(named: Path | None, files: _Files) -> Path | None:
    if named is not None:
        if not named.is_dir():
            raise NotFound(f"--slices {named}: no such folder")
        return named
    data = files.images or files.fer2013
    assert data is not None
    beside = [data.absolute().parent / "slices", *([data / "slices"] if data.is_dir() else [])]
    return next((folder for folder in beside if folder.is_dir()), None)


def _check_room(target: Path) -> None:
    """Refuse a full or unwritable place before reading for half a minute."""
    import os

    there = next(folder for folder in (target, *target.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{there} cannot be written; set FER_LAB_HOME to a folder that can")
    free_mb = shutil.disk_usage(there).free // 10**6
    if free_mb < _NEEDED_MB:
        raise InputError(f"{there} has {free_mb} MB free, {_NEEDED_MB} MB are needed; set FER_LAB_HOME to a disk with room")


def _what_it_is(reading: Reading, dataset: FaceDataset) -> list[str]:
    from fer_lab.core.labels import PROTOCOLS
    from fer_lab.data import ferplus

    said = []
    if reading.nameless:
        said.append(f"{reading.nameless} rows have no image name (not a face) and are left out")
    if reading.repeated_names:
        listed = ", ".join(reading.repeated_names)
        said.append(f"{len(reading.repeated_names)} names stand twice and count once, by their first row: {listed}")
    if reading.disagreements is not None:
        said.append(f"the two label sources disagree on {len(reading.disagreements)} faces (listed in the audit)")
    if len(dataset) != ferplus.FACES:
        said.append(f"{reading.rows} of FERPlus' 35 887 rows: {len(dataset)} faces, a part of it")
        return said
    kept = tuple(
        int(((dataset.split == split) & (PROTOCOLS["ferplus8"].labels(dataset.votes) >= 0)).sum()) for split in range(3)
    )  # fmt: skip
    known = ferplus.KEPT[dataset.label_source]
    if kept == known:
        said.append(f"this is the complete FERPlus ({ferplus.FACES} faces), with the known counts of {dataset.label_source}")
    else:
        said.append(f"complete FERPlus, but ferplus8 keeps {kept} faces instead of the known {known}: its votes were changed")
    return said


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
