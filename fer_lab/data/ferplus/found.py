"""Where the files of FERPlus lie: what was named, else what stands under a known name in data/ or the current folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fer_lab.core import console
from fer_lab.core.errors import InputError, NotFound

_WHERE_FROM = (
    ("fer2013.csv", "Kaggle, “Challenges in Representation Learning: Facial Expression Recognition Challenge” (an account, and "
     "its rules accepted: research use), about 300 MB, MD5 f8428a1edbd21e88f42c73edd2a14f95; icml_face_data.csv of the same page "
     "also serves (MD5 b114b9e04e6949e5fe8b6a98b3892b1d)"),
    ("fer2013new.csv", "https://github.com/microsoft/FERPlus (MIT licence), 1.6 MB, MD5 413eba86d6e454536b99705b8c7fc5c5; "
     "the three label.csv are in its data/ folder"),
)  # fmt: skip
_PLACES = ("data", ".")


@dataclass(frozen=True)
class Files:
    """What to read: a CSV of faces with labels, or PNG faces (a folder or zip) with labels or their own."""

    fer2013: Path | None
    images: Path | None
    labels: tuple[Path, ...]

    @property
    def faces(self) -> Path:
        """Whichever of the two holds the faces."""
        path = self.images or self.fer2013
        assert path is not None
        return path


def files(fer2013: Path | None, images: Path | None, named_labels: Sequence[Path]) -> Files:
    """Return the files that are named, or found under known names.

    Raises InputError when two name the faces, NotFound when they are not there, after saying where each comes from.
    """
    if fer2013 and images:
        raise InputError("--fer2013 and --images both name the faces; give one of them")
    if images:
        return Files(None, images, tuple(named_labels))
    csv = fer2013 or _first_of("fer2013.csv", "fer2013/fer2013.csv", "icml_face_data.csv")
    if not fer2013:
        found = _found_images()
        if found is not None:
            return Files(None, found, tuple(named_labels))
    if csv is not None and not csv.exists():
        raise NotFound(f"{csv} does not exist. {_origin('fer2013.csv')}")
    labels = tuple(named_labels) or _found_labels(csv)
    if csv is not None and labels:
        return Files(csv, None, labels)
    _say_what_is_missing(csv, labels)
    lacking = [name for name, there in (("fer2013.csv", csv), ("fer2013new.csv", labels)) if not there]
    emotions = _emotion_folders()
    if emotions is not None:
        raise NotFound(
            f"{emotions} holds folders per emotion (train/happy/…): their order is lost, so they cannot be joined to the votes of "
            f"FER+; {' and '.join(lacking)} not found in data/ or the current folder"
        )
    raise NotFound(
        f"FERPlus is not here: {' and '.join(lacking)} not found in data/ or the current folder (nor PNGs in FER2013Train)"
    )


def slices_folder(named: Path | None, faces: Path) -> Path | None:
    """The folder of named lists: what was named, else `slices` beside or inside the faces; None without one."""
    if named is not None:
        if not named.is_dir():
            raise NotFound(f"--slices {named}: no such folder")
        return named
    beside = [faces.absolute().parent / "slices", *([faces / "slices"] if faces.is_dir() else [])]
    return next((folder for folder in beside if folder.is_dir()), None)


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
