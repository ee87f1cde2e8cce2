"""PNG faces in Microsoft's layout (FER2013Train, FER2013Valid, FER2013Test), in a folder or straight from a zip."""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fer_lab.core.errors import InputError, NotFound
from fer_lab.data.ferplus.textfile import TextFile, in_memory, looks_like, on_disk

FOLDERS = {"train": "FER2013Train", "valid": "FER2013Valid", "test": "FER2013Test"}
_MAX_PNG = 64 * 1024  # bytes; a 48×48 gray PNG has at most 2.5 kB
_MAX_LABELS = 32 * 1024 * 1024  # bytes of a label.csv; Microsoft's largest has 1.3 MB
_COLOUR = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGBA"}


class Shelf(Protocol):
    """Where the three folders stand."""

    @property
    def shown(self) -> str:
        """The name that errors use."""
        ...

    def files(self, split: str) -> list[str]:
        """Names of the PNG files of a split."""
        ...

    def read(self, split: str, name: str) -> bytes:
        """Content of one file."""
        ...

    def labels(self, split: str) -> TextFile | None:
        """The split's label.csv, or None."""
        ...


@contextmanager
def open_shelf(path: Path) -> Iterator[Shelf]:
    """Open a folder or zip; raises NotFound or InputError saying what was found instead."""
    if not path.exists():
        raise NotFound(f"{path} does not exist; --images takes the folder or zip that holds {', '.join(FOLDERS.values())}")
    if path.is_dir():
        yield _Folder(path)
        return
    with path.open("rb") as stream:
        first = stream.read(512)
    if not first.startswith(b"PK"):
        raise InputError(f"{path} is {looks_like(first) or 'not a zip archive'}; --images takes a folder or a zip of PNG faces")
    before = path.stat()
    try:
        with zipfile.ZipFile(path) as archive:
            yield _Zip(path, archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(f"{path}: the zip is damaged or incomplete ({error}); get it again") from None
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InputError(f"{path} changed while it was read; wait until it is complete and run the command again")


def decode(content: bytes, shown: str) -> npt.NDArray[np.uint8]:
    """Decode a PNG that must be 48×48, 8-bit gray, complete and undamaged: uint8 [48, 48].

    Every chunk's checksum and the end mark are checked first: image libraries accept pictures that lack their end.
    Raises InputError.
    """
    import cv2

    _check_png(content, shown)
    face = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if face is None or face.shape != (48, 48) or face.dtype != np.uint8:
        raise InputError(f"{shown}: the PNG cannot be decoded as 48×48 gray")
    return np.asarray(face, np.uint8)


def _check_png(content: bytes, shown: str) -> None:
    if not content:
        raise InputError(f"{shown} is empty, not a picture")
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise InputError(f"{shown} is {looks_like(content) or 'not a PNG picture'}")
    at, kind, data = 8, b"", b""
    while kind != b"IEND":
        length = int.from_bytes(content[at : at + 4], "big")
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        end = content[at + 8 + length : at + 12 + length]
        if len(end) != 4:
            raise InputError(f"{shown}: the PNG is cut off (no end mark)")
        if zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(end, "big"):
            raise InputError(f"{shown}: the PNG is damaged (checksum of its {kind.decode('latin-1')} part)")
        if (at == 8) != (kind == b"IHDR") or (kind == b"IHDR" and length != 13):
            raise InputError(f"{shown}: the PNG is damaged (its header is not where or what it should be)")
        if kind == b"IHDR":
            width, height, depth, colour = *(int.from_bytes(body[i : i + 4], "big") for i in (0, 4)), body[8], body[9]
            if (width, height) != (48, 48):
                raise InputError(f"{shown} is {width}×{height} pixels; faces of FERPlus are 48×48")
            if (depth, colour) != (8, 0):
                raise InputError(f"{shown} is {depth}-bit {_COLOUR.get(colour, colour)}; 8-bit gray is needed")
            plain = body[12] == 0
        elif kind == b"IDAT":
            data += body
        at += 12 + length
    try:
        stream = zlib.decompressobj()
        raw = stream.decompress(data, 48 * 49 * 4)
    except zlib.error as error:
        raise InputError(f"{shown}: the PNG is damaged ({error})") from None
    if plain and (len(raw) != 48 * 49 or not stream.eof):
        raise InputError(f"{shown}: the PNG does not hold 48×48 pixels")


@dataclass(frozen=True)
class _Folder:
    root: Path

    def __post_init__(self) -> None:
        missing = [folder for folder in FOLDERS.values() if not (self.root / folder).is_dir()]
        if missing:
            below = sorted(p.relative_to(self.root).as_posix() for p in self.root.glob("*/*") if p.is_dir())
            top = sorted(p.name for p in self.root.iterdir() if p.is_dir())
            raise InputError(_layout_message(self.shown, missing, [*top, *below], self.root))

    @property
    def shown(self) -> str:
        return str(self.root)

    def files(self, split: str) -> list[str]:
        folder = self.root / FOLDERS[split]
        return sorted(path.name for path in folder.iterdir() if path.suffix.lower() == ".png")

    def read(self, split: str, name: str) -> bytes:
        path = self.root / FOLDERS[split] / name
        if path.is_symlink():
            raise InputError(f"{path} is a link; only files are read")
        if path.stat().st_size > _MAX_PNG:
            raise InputError(f"{path} has {path.stat().st_size} bytes, too many for a 48×48 gray PNG")
        return path.read_bytes()

    def labels(self, split: str) -> TextFile | None:
        path = self.root / FOLDERS[split] / "label.csv"
        return on_disk(path) if path.is_file() else None


class _Zip:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.shown = str(path)
        self._archive = archive
        self._members: dict[str, dict[str, zipfile.ZipInfo]] = {split: {} for split in FOLDERS}
        roots = set()
        split_of = {folder: split for split, folder in FOLDERS.items()}
        others: set[str] = set()
        for info in archive.infolist():
            parts = info.filename.split("/")
            if len(parts) < 2 or info.is_dir() or parts[0] == "__MACOSX":
                continue
            split = split_of.get(parts[-2])
            if split is None:
                others.add("/".join(parts[:-1]))
                continue
            roots.add("/".join(parts[:-2]))
            if parts[-1] in self._members[split]:
                raise InputError(f"{path}: {info.filename} stands twice in the zip")
            self._members[split][parts[-1]] = info
        missing = [FOLDERS[split] for split, members in self._members.items() if not members]
        if missing:
            raise InputError(_layout_message(self.shown, missing, sorted(others), None))
        if len(roots) > 1:
            raise InputError(f"{path}: the three folders stand in different places of the zip ({', '.join(sorted(roots)[:3])})")

    def files(self, split: str) -> list[str]:
        return sorted(name for name in self._members[split] if name.lower().endswith(".png"))

    def read(self, split: str, name: str) -> bytes:
        return self._content(self._members[split][name], _MAX_PNG)

    def labels(self, split: str) -> TextFile | None:
        info = self._members[split].get("label.csv")
        return in_memory(f"{self.shown}:{info.filename}", self._content(info, _MAX_LABELS)) if info else None

    def _content(self, info: zipfile.ZipInfo, limit: int) -> bytes:
        if stat.S_ISLNK(info.external_attr >> 16):
            raise InputError(f"{self.shown}: {info.filename} is a link; only files are read")
        if info.flag_bits & 1:
            raise InputError(f"{self.shown}: {info.filename} is encrypted; unpack the zip first")
        if info.file_size > limit:
            raise InputError(f"{self.shown}: {info.filename} unpacks to {info.file_size} bytes, at most {limit} are expected")
        try:
            return self._archive.read(info)
        except (OSError, lzma.LZMAError) as error:  # bz2 and lzma: without the name of a file
            raise InputError(f"{self.shown}: the zip is damaged ({info.filename}: {error}); get it again") from None


def _layout_message(shown: str, missing: list[str], found: list[str], root: Path | None) -> str:
    names = [entry.rsplit("/", 1)[-1] for entry in found]
    if {"train", "test"} <= {name.casefold() for name in names} or any(name.casefold() in ("happy", "angry") for name in names):
        return (
            f"{shown} holds folders per emotion (train/happy/…): their order is lost, so they cannot be joined to the votes of "
            "FER+; take fer2013.csv with fer2013new.csv, or PNGs in Microsoft's layout"
        )
    for entry, name in zip(found, names, strict=True):
        if name in FOLDERS.values() and root is not None and "/" in entry:
            return f"{shown} holds the faces one level down: use {root / entry.rsplit('/', 1)[0]}"
        if name not in FOLDERS.values() and name.casefold() in {folder.casefold() for folder in missing}:
            wanted = next(folder for folder in missing if folder.casefold() == name.casefold())
            return f"{shown} lacks {wanted}, but holds {entry}: rename it to {wanted}"
    listed = ", ".join(found[:6]) or "no folders"
    return f"{shown} lacks {', '.join(missing)} (found: {listed}); a split is never made up from another one"
