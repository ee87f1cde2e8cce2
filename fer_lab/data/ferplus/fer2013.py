"""The pictures of FER2013 as one CSV file: `fer2013.csv`, or `icml_face_data.csv` with its other column order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fer_lab.core.errors import InputError
from fer_lab.data.ferplus import textfile

USAGES = ("Training", "PublicTest", "PrivateTest")
"""Values of the column `Usage`, in the order of the splits train, valid, test."""

PIXELS = 48 * 48
KNOWN_MD5 = {
    # As in torchvision.datasets.FER2013.
    "f8428a1edbd21e88f42c73edd2a14f95": "fer2013.csv",
    "b114b9e04e6949e5fe8b6a98b3892b1d": "icml_face_data.csv",
}
_BYTE_OF = {str(value): value for value in range(256)}


@dataclass(frozen=True)
class Pictures:
    """The rows of the file. pixels: uint8 [N, 48, 48]. usage: uint8 [N], index into `USAGES`. line: of each row."""

    shown: str
    pixels: npt.NDArray[np.uint8]
    usage: npt.NDArray[np.uint8]
    lines: tuple[int, ...]
    oddities: tuple[str, ...]
    original: str | None  # the name of the published file whose MD5 this one has


def read(path: Path) -> Pictures:
    """Read every row; raises InputError naming the line and the value of the first thing that is wrong."""
    file = textfile.on_disk(path)
    chunks, usage, lines = bytearray(), [], []
    at_pixels = at_usage = width = -1
    for line, fields in file.rows():
        if at_pixels < 0:
            hint = "; `train.csv` and `test.csv` of the competition lack Usage: take fer2013.csv or icml_face_data.csv"
            at_pixels, at_usage = textfile.columns(file, fields, ("pixels", "Usage"), hint)
            width = len(fields)
            continue
        try:
            if len(fields) != width:
                raise InputError(f"{len(fields)} fields, {width} are needed")
            usage.append(usage_index(fields[at_usage]))
            chunks += _parsed(fields[at_pixels])
        except InputError as error:
            # Whether the file ends here is known only after looking for another line.
            cut = "the file ends inside a row: " if _is_last(file, line) else ""
            raise InputError(f"{path}, line {line}: {cut}{error}") from None
        lines.append(line)
    if not lines:
        raise InputError(f"{path} has no rows")
    pixels = np.frombuffer(bytes(chunks), np.uint8).reshape(-1, 48, 48)
    return Pictures(
        str(path), pixels, np.array(usage, np.uint8), tuple(lines), tuple(file.oddities), KNOWN_MD5.get(file.md5)
    )  # fmt: skip


def usage_index(value: str) -> int:
    """Index of a `Usage` value in `USAGES`; raises InputError for any other."""
    if value not in USAGES:
        if value.casefold() == "usage":
            raise InputError("the header stands here again; remove this line")
        raise InputError(f"Usage is {value[:30]!r}, allowed: {', '.join(USAGES)}")
    return USAGES.index(value)


def _parsed(text: str) -> bytes:
    parts = text.split(" ")
    try:
        values = bytes([_BYTE_OF[part] for part in parts])
    except KeyError:
        raise InputError(_what_is_wrong(text, parts)) from None
    if len(values) != PIXELS:
        raise InputError(f"{len(values)} pixel values, {PIXELS} are needed")
    return values


def _what_is_wrong(text: str, parts: list[str]) -> str:
    if not text:
        return f"no pixel values, {PIXELS} are needed"
    for separator, name in ((",", "commas"), ("\t", "tabs"), (";", "semicolons")):
        if text.count(separator) > 10:
            return f"pixel values are separated by {name}; single spaces are needed"
    position, bad = next((i, part) for i, part in enumerate(parts) if part not in _BYTE_OF)
    if bad == "":
        return f"pixel {position + 1} is empty (two spaces in a row); {PIXELS} values 0–255 are needed"
    return f"pixel {position + 1} is {bad[:20]!r}; whole numbers 0–255 are needed"


def _is_last(file: textfile.TextFile, line: int) -> bool:
    last, raw = 0, b""
    with file.open() as stream:
        for last, raw in enumerate(stream, start=1):  # noqa: B007
            if last > line:
                return False
    return last == line and not raw.endswith(b"\n")
