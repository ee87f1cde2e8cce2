"""Whatever layout the files come in, the same faces and votes are one dataset with one fingerprint."""

from __future__ import annotations

import random
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ferplus_files import Files, write

from fer_lab.data.faces import FaceDataset
from fer_lab.data.ferplus import join


@pytest.fixture
def files(drawn: FaceDataset, tmp_path: Path) -> Files:
    """A sound miniature of 60 faces."""
    return write(drawn, tmp_path)


def test_the_faces_come_back_as_they_were_written(files: Files) -> None:
    """Pixels, votes, splits and names survive the csv pair."""
    read = join.read_csv(files.fer2013, [files.new_labels]).dataset
    expected = replace(files.dataset, name="ferplus-2017", label_source="ferplus-2017")
    assert expected.fingerprint == read.fingerprint
    np.testing.assert_array_equal(expected.pixels, read.pixels)


def test_csv_folder_and_zip_are_one_dataset(files: Files) -> None:
    """Layout is no part of a dataset's identity, the label source is."""
    from_csv = join.read_csv(files.fer2013, [files.new_labels]).dataset
    from_folder = join.read_images(files.images, [files.new_labels]).dataset
    from_zip = join.read_images(files.archive, [files.new_labels]).dataset
    assert from_csv.fingerprint == from_folder.fingerprint == from_zip.fingerprint
    assert from_csv.name == from_zip.name == "ferplus-2017"
    own_labels = join.read_images(files.archive).dataset
    assert own_labels.name == own_labels.label_source == "ferplus-2016"
    assert own_labels.fingerprint != from_zip.fingerprint


def test_what_macos_puts_into_a_zip_is_no_face(files: Files) -> None:
    """Beside each file it packs another of the same name."""
    expected = join.read_images(files.archive).dataset.fingerprint
    with zipfile.ZipFile(files.archive, "a") as packed:
        for name in packed.namelist():
            packed.writestr(f"__MACOSX/{name}", b"Mac OS X")
    assert join.read_images(files.archive).dataset.fingerprint == expected


def test_the_order_of_csv_rows_does_not_matter(files: Files) -> None:
    """Both files shuffled alike give the same dataset."""
    expected = join.read_csv(files.fer2013, [files.new_labels]).dataset.fingerprint
    order = list(range(1, 61))
    random.Random(0).shuffle(order)
    for path in (files.fer2013, files.new_labels):
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], *(lines[i] for i in order)]) + "\n")
    assert expected == join.read_csv(files.fer2013, [files.new_labels]).dataset.fingerprint


def test_icml_face_data_is_read_by_its_column_names(files: Files) -> None:
    """`emotion, Usage, pixels`: another order and leading spaces."""
    expected = join.read_csv(files.fer2013, [files.new_labels]).dataset.fingerprint
    rows = [line.split(",") for line in files.csv_lines()[1:]]
    other = files.folder / "icml_face_data.csv"
    other.write_text("emotion, Usage, pixels\n" + "".join(f"{e}, {usage}, {pixels}\n" for e, pixels, usage in rows))
    read = join.read_csv(other, [files.new_labels])
    assert expected == read.dataset.fingerprint
    assert any("columns in another order" in remark for remark in read.remarks)


def test_nameless_and_repeated_rows_are_no_faces(files: Files) -> None:
    """A row without a name is dropped; a name that stands twice counts once, by its first row."""
    pixels, labels = files.csv_lines(), files.new_lines()
    pixels += [pixels[5], pixels[6]]
    votes = "0,0,0,0,0,0,0,0,0,10"
    usage = labels[6].split(",")[0]
    labels += [f"Training,,{votes}", f"{usage},{labels[6].split(',')[1]},{votes}"]
    expected = join.read_csv(files.fer2013, [files.new_labels]).dataset.fingerprint
    files.fer2013.write_text("\n".join(pixels) + "\n")
    files.new_labels.write_text("\n".join(labels) + "\n")
    read = join.read_csv(files.fer2013, [files.new_labels])
    assert expected == read.dataset.fingerprint
    assert (read.rows, read.nameless, read.repeated_names) == (62, 1, (labels[6].split(",")[1],))


def test_both_label_sources_disagree_by_name(files: Files) -> None:
    """With both files at hand, the faces on which they differ are listed; the folders' votes count when asked for."""
    label_csv = files.images / "FER2013Train" / "label.csv"
    lines = label_csv.read_text().splitlines()
    lines[3] = lines[3].split('"')[0] + '"(0, 0, 48, 48)",0,0,0,0,0,0,0,0,0,10'
    label_csv.write_text("\n".join(lines) + "\n")
    name = lines[3].split(",")[0]
    from_images = join.read_images(files.images, [files.new_labels])
    assert (from_images.dataset.name, from_images.disagreements) == ("ferplus-2017", (name,))
    from_csv = join.read_csv(files.fer2013, [files.new_labels, files.images])
    assert (from_csv.dataset.name, from_csv.disagreements) == ("ferplus-2016", (name,))
    assert from_csv.dataset.fingerprint == join.read_images(files.images).dataset.fingerprint


def test_slices_are_lists_of_names(files: Files, tmp_path: Path) -> None:
    """Names that the dataset lacks are left out and counted."""
    folder = tmp_path / "slices"
    folder.mkdir()
    (folder / "occlusion.txt").write_text("fer0000050.png\nfer0000051.png\nfer9999999.png\n\n")
    slices, remarks = join.read_slices(folder, files.dataset.names)
    assert slices == {"occlusion": ("fer0000050.png", "fer0000051.png")}
    assert remarks == ["slice occlusion: 1 of 3 names are not in the dataset"]


def test_complete_fer2013_joins_the_folders_labels_by_order() -> None:
    """The rows without a name are known; what is left are as many as distinct names."""
    assert len(join._UNNAMED_ROWS) == join.ROWS - join.FACES
    assert set(join._FIRST_ROW_ELSEWHERE.values()) <= join._UNNAMED_ROWS
