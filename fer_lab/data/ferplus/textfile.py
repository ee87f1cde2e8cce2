"""Reading CSV files that people downloaded: strict about content, lenient about harmless oddities.

BOM, CRLF, blank lines at the end, spaces around fields, reordered columns are accepted; a Git-LFS pointer, a web page, an
archive, another encoding, a file that changes while it is read are refused in one sentence.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fer_lab.core.errors import InputError, NotFound


@dataclass
class TextFile:
    """One CSV file on disk or inside an archive; iterate `rows()` once.

    md5 and ends_with_newline are known after the last row; oddities lists what was accepted and deserves a remark.
    """

    shown: str  # the name that errors use
    open: Callable[[], BinaryIO]
    path: Path | None = None  # on disk, to notice changes while reading
    md5: str = ""
    ends_with_newline: bool = True
    oddities: list[str] = field(default_factory=list)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield (line number from 1, stripped fields) of every non-blank line.

        Raises InputError for content that is no UTF-8 text, OSError when unreadable.
        """
        before = self._stamp()
        with self.open() as stream:
            reader = csv.reader(self._lines(stream))
            while True:
                try:
                    fields = next(reader)
                except StopIteration:
                    break
                except csv.Error as error:
                    raise InputError(f"{self.shown}, line {reader.line_num + 1}: not CSV ({error})") from None
                if any(part.strip() for part in fields):
                    yield reader.line_num, [part.strip() for part in fields]
        if self._stamp() != before:
            raise InputError(f"{self.shown} changed while it was read; wait until it is complete and run the command again")

    def _lines(self, stream: BinaryIO) -> Iterator[str]:
        digest = hashlib.md5(usedforsecurity=False)
        position, raw = 0, b""
        for raw in stream:
            if position == 0:
                self._recognise(raw)
            digest.update(raw)
            try:
                text = raw.decode("utf-8-sig" if position == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{self.shown}: not UTF-8 text (byte {position + error.start}); save it as UTF-8") from None
            if "\0" in text:
                raise InputError(f"{self.shown}: a NUL byte at byte {position + raw.index(0)}; the file is damaged, get it again")
            position += len(raw)
            yield text
        if position == 0:
            raise InputError(f"{self.shown} is empty")
        self.md5, self.ends_with_newline = digest.hexdigest(), raw.endswith(b"\n")

    def _recognise(self, first: bytes) -> None:
        what = looks_like(first)
        if what:
            raise InputError(f"{self.shown} is {what}, not a CSV file; get the file itself")
        if first.startswith(b"\xef\xbb\xbf"):
            self.oddities.append(f"{self.shown}: starts with a byte-order mark (accepted)")
        if first.endswith(b"\r\n"):
            self.oddities.append(f"{self.shown}: Windows line ends (accepted)")

    def _stamp(self) -> tuple[int, int] | None:
        if self.path is None:
            return None
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns


def on_disk(path: Path) -> TextFile:
    """The file at `path`; raises NotFound when absent and InputError for a folder."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; a CSV file is expected")
    if not path.exists():
        raise NotFound(f"{path} does not exist")
    return TextFile(str(path), lambda: path.open("rb"), path)


def in_memory(shown: str, content: bytes) -> TextFile:
    """A file that was read from an archive."""
    return TextFile(shown, lambda: io.BytesIO(content))


def columns(file: TextFile, header: Sequence[str], needed: Sequence[str], hint: str = "") -> list[int]:
    """Positions of the needed columns in a header, by name without regard to case and spaces.

    Raises InputError listing what was found and what is missing.
    """
    found = [name.strip().casefold() for name in header]
    repeated = sorted({name for name in found if found.count(name) > 1})
    if repeated:
        raise InputError(f"{file.shown}: the header names {', '.join(repeated)} twice")
    missing = [name for name in needed if name.casefold() not in found]
    if missing:
        shown = ", ".join(name[:20] for name in header[:12])
        raise InputError(f"{file.shown}: the header lacks {', '.join(missing)} (found: {shown}){hint}")
    positions = [found.index(name.casefold()) for name in needed]
    if positions != sorted(positions):
        file.oddities.append(f"{file.shown}: columns in another order (accepted)")
    return positions


def looks_like(first: bytes) -> str | None:
    """Name what the first bytes of a file betray when it is not the data: a pointer, a web page, an archive."""
    head = first[:512].lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer (run `git lfs pull` where it came from)"
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page (a log-in or error page was saved)"
    if first.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "a zip archive (unpack it first)"
    if first.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!")):
        return "a compressed archive (unpack it first)"
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16 text (byte 0; save it as UTF-8)"
    if first.startswith(b"\x89PNG"):
        return "a PNG picture"
    return None
