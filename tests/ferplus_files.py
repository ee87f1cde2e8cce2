"""Small files in the formats of FERPlus, made from drawn faces: what people have on disk, in miniature."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from fer_lab.core.labels import VOTE_COLUMNS
from fer_lab.core.types import SPLITS
from fer_lab.data.faces import FaceDataset
from fer_lab.data.ferplus.fer2013 import USAGES
from fer_lab.data.ferplus.join import NEW_LABELS
from fer_lab.data.ferplus.pictures import FOLDERS
from fer_lab.data.ferplus.votefile import NEW_COLUMNS


@dataclass(frozen=True)
class Files:
    """Where the miniature stands. dataset: the faces that were written, 40 / 10 / 10 in the order of the csv rows."""

    dataset: FaceDataset
    folder: Path

    @property
    def fer2013(self) -> Path:
        return self.folder / "fer2013.csv"

    @property
    def new_labels(self) -> Path:
        return self.folder / NEW_LABELS

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def archive(self) -> Path:
        return self.folder / "images.zip"

    def png(self, split: str = "train", index: int = 0) -> Path:
        """One of the PNG files."""
        return sorted((self.images / FOLDERS[split]).glob("*.png"))[index]

    def csv_lines(self) -> list[str]:
        """Lines of fer2013.csv, the header first."""
        return self.fer2013.read_text().splitlines()

    def new_lines(self) -> list[str]:
        """Lines of fer2013new.csv, the header first."""
        return self.new_labels.read_text().splitlines()


def write(dataset: FaceDataset, folder: Path) -> Files:
    """Write 60 faces as csv pair, PNG folders and zip."""
    order = np.concatenate([dataset.indices(split)[:n] for split, n in zip(SPLITS, (40, 10, 10), strict=True)])
    votes = dataset.votes[order].copy()
    renamed = tuple(f"fer{i:07d}.png" for i in range(len(order)))
    small = FaceDataset("mini", "mini", dataset.pixels[order], votes, dataset.split[order], renamed)
    files = Files(small, folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["emotion,pixels,Usage"]
    labels = [",".join(NEW_COLUMNS)]
    for i, name in enumerate(small.names):
        usage = USAGES[small.split[i]]
        rows.append(f"0,{' '.join(map(str, small.pixels[i].ravel().tolist()))},{usage}")
        labels.append(f"{usage},{name},{','.join(map(str, votes[i].tolist()))}")
    files.fer2013.write_text("\n".join(rows) + "\n")
    files.new_labels.write_text("\n".join(labels) + "\n")
    for index, split in enumerate(SPLITS):
        place = files.images / FOLDERS[split]
        place.mkdir(parents=True)
        lines = []
        for i in np.flatnonzero(small.split == index).tolist():
            done, encoded = cv2.imencode(".png", small.pixels[i])
            assert done
            (place / small.names[i]).write_bytes(encoded.tobytes())
            lines.append(f'{small.names[i]},"(0, 0, 48, 48)",{",".join(map(str, votes[i].tolist()))}')
        (place / "label.csv").write_text("\n".join(lines) + "\n")
    zip_images(files.images, files.archive)
    assert len(VOTE_COLUMNS) == votes.shape[1]
    return files


def zip_images(images: Path, archive: Path) -> None:
    """Pack the three folders as people do."""
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(images.rglob("*")):
            if path.is_file():
                packed.write(path, path.relative_to(images).as_posix())
