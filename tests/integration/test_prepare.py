"""`prepare` from files to dataset, in miniature always and on the real FERPlus where it is at hand."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ferplus_files import write

from fer_lab import prepare
from fer_lab.data import faces
from fer_lab.data.faces import FaceDataset
from fer_lab.data.ferplus import fer2013, join, textfile, votefile


def run(capfd: pytest.CaptureFixture[str], *options: object) -> dict[str, Any]:
    """Run the verb, expect success, return its last line."""
    capfd.readouterr()
    code = prepare.main([str(option) for option in options])
    said = capfd.readouterr()
    assert code == 0, said.err
    result: dict[str, Any] = json.loads(said.out.splitlines()[-1]) | {"said": said.out}
    return result


def test_a_small_pair_is_accepted_and_named(drawn: FaceDataset, home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """60 of FERPlus' rows are prepared and called what they are."""
    files = write(drawn, home / "in")
    result = run(capfd, "ferplus", "--fer2013", files.fer2013, "--labels", files.new_labels)
    assert result["faces"] == {"train": 40, "valid": 10, "test": 10}
    assert (result["dataset"], result["label_source"]) == ("ferplus-2017", "ferplus-2017")
    assert "60 of FERPlus' 35 887 rows" in result["said"]
    assert "next: python -m fer_lab." in result["said"]
    assert faces.load(home / "data" / "ferplus-2017").fingerprint == result["fingerprint"]


def test_known_names_are_found_in_data(
    drawn: FaceDataset, home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`prepare ferplus` alone takes the csv pair from data/, with the slices beside it."""
    files = write(drawn, home / "data")
    (home / "data" / "slices").mkdir()
    (home / "data" / "slices" / "turned.txt").write_text("fer0000001.png\n")
    result = run(capfd, "ferplus")
    assert (result["dataset"], result["slices"]) == ("ferplus-2017", {"turned": 1})
    files.fer2013.unlink()
    files.archive.rename(home / "FER2013-png.zip")
    assert run(capfd, "ferplus")["dataset"] == "ferplus-2016"


def test_nothing_there_says_where_it_comes_from(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without data: source, licence, size and MD5 of each file, and what works meanwhile."""
    assert prepare.main(["ferplus"]) == 2
    said = capfd.readouterr()
    for part in ("Kaggle", "300 MB", "f8428a1edbd21e88f42c73edd2a14f95", "MIT", "413eba86d6e454536b99705b8c7fc5c5", "synthetic"):
        assert part in said.out
    assert said.err.startswith("error: FERPlus is not here: fer2013.csv and fer2013new.csv not found")
    assert not (home / "data").exists()


def test_folders_per_emotion_are_recognised(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """train/happy/*.jpg cannot be joined to votes, and that is said."""
    (home / "data" / "train" / "happy").mkdir(parents=True)
    assert prepare.main(["ferplus"]) == 2
    assert "their order is lost" in capfd.readouterr().err


def test_synthetic_with_preview(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The sample is drawn, audited and shown."""
    result = run(capfd, "synthetic", "--count", 300, "--seed", 5, "--preview")
    assert (result["dataset"], sum(result["faces"].values())) == ("synthetic", 300)
    sheets = [cv2.imread(str(home / "data" / "synthetic" / f"preview-{kind}.png"), 0) for kind in ("votes", "augmented")]
    assert all(sheet is not None and sheet.std() > 20 for sheet in sheets)


def test_a_part_without_training_faces_is_shown_as_well(drawn: FaceDataset, home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Augmentation is for training faces alone: there is no sheet of it."""
    files = write(drawn, home / "in")
    for path, lines in ((files.fer2013, files.csv_lines()), (files.new_labels, files.new_lines())):
        path.write_text("\n".join(line for line in lines if "Training" not in line) + "\n")
    result = run(capfd, "ferplus", "--fer2013", files.fer2013, "--labels", files.new_labels, "--preview")
    assert (result["faces"]["train"], "no faces in train" in result["said"]) == (0, True)
    assert [path.name for path in (home / "data" / "ferplus-2017").glob("*.png")] == ["preview-votes.png"]


@pytest.mark.parametrize("options", [("--count", "10"), ("--count", "1000000"), ("--seed", "-1")])
def test_impossible_samples_are_refused(options: tuple[str, str], home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The limits are named."""
    assert prepare.main(["synthetic", *options]) == 2
    assert options[0] in capfd.readouterr().err


COUNTS_2016 = {"ferplus8": {"train": 25045, "valid": 3191, "test": 3137}, "ferplus5": {"train": 24273, "valid": 3090, "test": 3020}}
COUNTS_2017 = {"ferplus8": {"train": 25057, "valid": 3199, "test": 3153}, "ferplus5": {"train": 24287, "valid": 3100, "test": 3036}}


def rebuilt_csv(archive: Path, labels: Path, target: Path) -> Path:
    """fer2013.csv from the PNGs: each named row of fer2013new.csv gets its picture, nameless rows any."""
    rows = votefile.read_new(textfile.on_disk(labels))
    where = {0: "Train", 1: "Valid", 2: "Test"}
    with zipfile.ZipFile(archive) as packed, target.open("w") as file:
        file.write("emotion,pixels,Usage\n")
        for name, usage in zip(rows.names, rows.usage.tolist(), strict=True):
            face = np.full((48, 48), 128, np.uint8)
            if name:
                face = cv2.imdecode(np.frombuffer(packed.read(f"FER2013{where[usage]}/{name}"), np.uint8), cv2.IMREAD_UNCHANGED)
            file.write(f"0,{' '.join(map(str, face.ravel().tolist()))},{fer2013.USAGES[usage]}\n")
    return target


@pytest.mark.slow
def test_the_real_ferplus_from_every_layout(
    ferplus_folder: Path, ferplus_zip: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """PNGs, PNGs with the 2017 labels, and the rebuilt csv file give the known counts, and equal ones equal fingerprints."""
    labels = ferplus_folder / "fer2013new.csv"
    with_own = run(capfd, "ferplus", "--images", ferplus_zip)
    assert with_own["protocols"] == COUNTS_2016
    exact = with_own["duplicates"]["exact"]
    assert (exact["repeated_inside"]["train"], exact["valid_in_train"], exact["test_in_train"]) == (1224, 279, 288)
    kept = exact["kept"]["ferplus8"]
    assert (kept["test_in_train"], kept["test_in_train_or_valid"], kept["valid_in_train"]) == (244, 267, 245)
    assert (kept["test_other_label"], kept["test_twin_kept"], kept["valid_other_label"], kept["valid_twin_kept"]) == (
        16,
        232,
        12,
        231,
    )
    audit = json.loads((home / "data" / "ferplus-2016" / "audit.json").read_text())
    assert (audit["label_sources_disagree"]["faces"], audit["label_sources_disagree"]["with_exact_twin"]) == (1601, 1601)
    assert with_own["slices"] == {"occlusion": 605, "pose30": 1170, "pose45": 633}

    with_new = run(capfd, "ferplus", "--images", ferplus_zip, "--labels", labels)
    assert with_new["protocols"] == COUNTS_2017

    csv_file = rebuilt_csv(ferplus_zip, labels, home / "fer2013.csv")
    from_csv = run(capfd, "ferplus", "--fer2013", csv_file, "--labels", labels)
    assert from_csv["fingerprint"] == with_new["fingerprint"]
    folders = home / "labels"
    with zipfile.ZipFile(ferplus_zip) as packed:
        packed.extractall(folders, [name for name in packed.namelist() if name.endswith("label.csv")])
    assert run(capfd, "ferplus", "--fer2013", csv_file, "--labels", folders)["fingerprint"] == with_own["fingerprint"]
    both = run(capfd, "ferplus", "--fer2013", csv_file, "--labels", labels, "--labels", folders)
    assert (both["fingerprint"], both["label_sources_disagree"]) == (with_own["fingerprint"], 1601)


def test_the_label_files_of_the_real_ferplus(ferplus_folder: Path, ferplus_zip: Path) -> None:
    """Both label files keep the known numbers of faces (pictures are not read)."""
    from fer_lab.core.labels import PROTOCOLS
    from fer_lab.core.types import SPLITS
    from fer_lab.data.ferplus import pictures

    with pictures.open_shelf(ferplus_zip) as shelf:
        folders = {split: file for split in SPLITS if (file := shelf.labels(split)) is not None}
        old = votefile.read_folders(folders)
    new = votefile.read_new(textfile.on_disk(ferplus_folder / "fer2013new.csv"))
    for rows, counts in ((old, COUNTS_2016), (new, COUNTS_2017)):
        first = np.array(list(rows.first_rows().values()))
        assert len(first) == join.FACES
        for name, expected in counts.items():
            labels = PROTOCOLS[name].labels(rows.votes[first])
            kept = [int(((rows.usage[first] == split) & (labels >= 0)).sum()) for split in range(3)]
            assert list(expected.values()) == kept
    assert (len(new.names), new.names.count(""), len(new.repeated())) == (35887, 173, 4)
    # The 2016 votes have no rows: they are joined by order alone, to the rows that the file of 2017 names.
    csv = fer2013.Pictures("fer2013.csv", np.zeros((len(new.usage), 0), np.uint8), new.usage, (), (), None)
    assert join._rows_by_order(csv, old) == new.first_rows()
