"""FERPlus as a data set: the faces of FER2013 with the crowd votes of FER+, found, joined and described."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

from fer_lab.core.labels import PROTOCOLS
from fer_lab.data.datasets import Reading
from fer_lab.data.faces import FaceDataset
from fer_lab.data.ferplus import found, join


class FerPlus:
    """The complete FERPlus, or a part of it, with one of its two label sources."""

    name = "ferplus"
    help = "faces of FER2013 with the votes of FER+"
    leaves = (join.SOURCE_2016, join.SOURCE_2017)
    drawn = False
    then = "python -m fer_lab.train experiments/ferplus8_b0.yaml"

    def arguments(self, parser: ArgumentParser) -> None:
        """Which files; without them, known names are looked for."""
        parser.add_argument("--fer2013", type=Path, metavar="CSV", help="fer2013.csv or icml_face_data.csv")
        parser.add_argument(
            "--images", type=Path, metavar="DIR_OR_ZIP", help="PNG faces in FER2013Train, FER2013Valid, FER2013Test"
        )
        parser.add_argument(
            "--labels", type=Path, action="append", default=[], metavar="CSV_OR_DIR",
            help="fer2013new.csv, or the folder with Microsoft's three label.csv; may be given twice",
        )  # fmt: skip
        parser.add_argument(
            "--slices", type=Path, metavar="DIR", help="folder of *.txt with image names (default: beside the data)"
        )
        parser.add_argument("--strict", action="store_true", help="refuse pictures that no label file names")

    def read(self, args: Namespace) -> Reading:
        """Find the files, join faces and votes, say what it is."""
        files = found.files(args.fer2013, args.images, args.labels)
        slices = found.slices_folder(args.slices, files.faces)
        if files.images is not None:
            joined = join.read_images(files.images, files.labels, strict=args.strict)
        else:
            joined = join.read_csv(files.faces, files.labels)
        dataset, remarks = joined.dataset, list(joined.remarks)
        if slices is not None:
            lists, more = join.read_slices(slices, dataset.names)
            dataset, remarks = replace(dataset, slices=lists), remarks + more
        remarks += _what_it_is(joined, dataset)
        return Reading(dataset, tuple(remarks), joined.repeated_names, joined.disagreements)


def _what_it_is(joined: join.Joined, dataset: FaceDataset) -> list[str]:
    said = []
    if joined.nameless:
        said.append(f"{joined.nameless} rows have no image name (not a face) and are left out")
    if joined.repeated_names:
        listed = ", ".join(joined.repeated_names)
        said.append(f"{len(joined.repeated_names)} names stand twice and count once, by their first row: {listed}")
    if joined.disagreements is not None:
        said.append(f"the two label sources disagree on {len(joined.disagreements)} faces (listed in the audit)")
    if len(dataset) != join.FACES:
        said.append(f"{joined.rows} of FERPlus' 35 887 rows: {len(dataset)} faces, a part of it")
        return said
    kept = tuple(
        int(((dataset.split == split) & (PROTOCOLS["ferplus8"].labels(dataset.votes) >= 0)).sum()) for split in range(3)
    )  # fmt: skip
    known = join.KEPT[dataset.label_source]
    if kept == known:
        said.append(f"this is the complete FERPlus ({join.FACES} faces), with the known counts of {dataset.label_source}")
    else:
        said.append(f"complete FERPlus, but ferplus8 keeps {kept} faces instead of the known {known}: its votes were changed")
    return said


DATASET = FerPlus()
