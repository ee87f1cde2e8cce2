"""The catalogue of bad input: each is refused with exit 2 and one line that names what is wrong; nothing is written."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from ferplus_files import Files, write, zip_images

from fer_lab import prepare
from fer_lab.data.faces import FaceDataset

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def sound(drawn: FaceDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store root with a sound miniature in `in/`, and the datasets that were prepared from it."""
    root = tmp_path_factory.mktemp("sound")
    files = write(drawn, root / "in")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FER_LAB_HOME", str(root))
        assert prepare.main(["ferplus", "--images", str(files.images)]) == 0
        assert prepare.main(["ferplus", "--images", str(files.images), "--labels", str(files.new_labels)]) == 0
    return root


@pytest.fixture
def files(sound: Path, drawn: FaceDataset, home: Path) -> Files:
    """A private copy of the sound miniature and of what was prepared from it, to be spoiled."""
    shutil.copytree(sound, home, dirs_exist_ok=True)
    return Files(drawn, home / "in")


def tree(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def rewrite(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Change the lines of a text file."""
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def pixel(files: Files, row: int, value: str) -> None:
    """Put a value in place of pixel 3 of a row of fer2013.csv."""

    def change(lines: list[str]) -> list[str]:
        emotion, pixels, usage = lines[row].split(",")
        values = pixels.split(" ")
        values[2] = value
        lines[row] = ",".join([emotion, " ".join(values), usage])
        return lines

    rewrite(files.fer2013, change)


def sub(path: Callable[[Files], Path], line: int, old: str, new: str) -> Callable[[Files], None]:
    """Replace a text in one line (0 is the header)."""

    def change(lines: list[str]) -> list[str]:
        assert old in lines[line]
        lines[line] = lines[line].replace(old, new, 1)
        return lines

    return lambda files: rewrite(path(files), change)


def lines(path: Callable[[Files], Path], change: Callable[[list[str]], list[str]]) -> Callable[[Files], None]:
    return lambda files: rewrite(path(files), change)


def content(path: Callable[[Files], Path], what: bytes | Callable[[bytes], bytes]) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        target = path(files)
        target.write_bytes(what if isinstance(what, bytes) else what(target.read_bytes()))

    return change


def picture(image: np.ndarray) -> Callable[[Files], None]:  # type: ignore[type-arg]
    def change(files: Files) -> None:
        files.png().write_bytes(cv2.imencode(".png", image)[1].tobytes())

    return change


def huge_png(files: Files) -> None:
    """A header that promises 30 000 × 30 000 pixels, with a right checksum."""
    png = files.png().read_bytes()
    header = b"IHDR" + struct.pack(">II", 30000, 30000) + png[24:29]
    files.png().write_bytes(png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:])


def flipped_bit(png: bytes) -> bytes:
    at = png.index(b"IDAT") + 40
    return png[:at] + bytes([png[at] ^ 4]) + png[at + 1 :]


def linked(files: Files) -> None:
    target = files.png()
    moved = target.rename(files.folder / "elsewhere.png")
    target.symlink_to(moved)


def emotion_folders(files: Files) -> None:
    shutil.rmtree(files.images)
    for name in ("train/happy", "train/angry", "test/happy"):
        (files.images / name).mkdir(parents=True)


def swapped_rows(rows: list[str]) -> list[str]:
    rows[40], rows[41] = rows[41], rows[40]
    return rows


def twice_in_zip(files: Files) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(files.archive, "a") as packed:
        packed.writestr(f"FER2013Train/{files.png().name}", files.png().read_bytes())


def link_in_zip(files: Files) -> None:
    name = files.png().name
    files.png().unlink()
    zip_images(files.images, files.archive)
    info = zipfile.ZipInfo(f"FER2013Train/{name}")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(files.archive, "a") as packed:
        packed.writestr(info, "/etc/passwd")


def encrypted_in_zip(files: Files) -> None:
    """The first picture is marked as encrypted."""
    name = files.png().name
    raw = bytearray(files.archive.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = raw.rfind(mark, 0, raw.find(name.encode(), raw.find(mark)))
        raw[at + flags] |= 1
    files.archive.write_bytes(bytes(raw))


def two_places_in_zip(files: Files) -> None:
    """The test faces lie in another folder than the others."""
    with zipfile.ZipFile(files.archive, "w") as packed:
        for path in sorted(files.images.rglob("*")):
            if path.is_file():
                below = path.relative_to(files.images).as_posix()
                packed.write(path, f"b/{below}" if below.startswith("FER2013Test") else f"a/{below}")


def damaged_zip(files: Files) -> None:
    content = bytearray(files.archive.read_bytes())
    at = content.index(b"IDAT")
    content[at + 30] ^= 255
    files.archive.write_bytes(bytes(content))


def big_in_zip(files: Files) -> None:
    name = files.png().name
    files.png().unlink()
    zip_images(files.images, files.archive)
    with zipfile.ZipFile(files.archive, "a", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(f"FER2013Train/{name}", b"\0" * 10**7)


def csv_of(files: Files) -> Path:
    return files.fer2013


def new_of(files: Files) -> Path:
    return files.new_labels


def own_labels(files: Files) -> Path:
    return files.images / "FER2013Train" / "label.csv"


def first_png(files: Files) -> Path:
    return files.png()


PAIR = ("--fer2013", "fer2013.csv", "--labels", "fer2013new.csv")
PNGS = ("--images", "images")
ZIP = ("--images", "images.zip")

# what, how the sound files are spoiled, the options, what the message must name
CASES: list[tuple[str, Callable[[Files], object], tuple[str, ...], tuple[str, ...]]] = [
    # 1–6: the file as a whole
    ("csv missing", lambda f: f.fer2013.unlink(), PAIR, ("fer2013.csv", "Kaggle", "MD5")),
    ("labels missing", lambda f: f.new_labels.unlink(), PAIR, ("fer2013new.csv", "does not exist")),
    ("git-lfs pointer", content(csv_of, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"), PAIR, ("Git-LFS",)),
    ("web page", content(csv_of, b"<!DOCTYPE html>\n<html>log in</html>"), PAIR, ("web page",)),
    ("web page as labels", content(new_of, b"\n  <html><head>"), PAIR, ("fer2013new.csv",)),
    ("zip as csv", lambda f: shutil.copy(f.archive, f.fer2013), PAIR, ("zip archive", "unpack")),
    ("header renamed", sub(csv_of, 0, "pixels", "data"), PAIR, ("lacks pixels", "found: emotion, data, Usage")),
    ("header missing", lines(csv_of, lambda rows: rows[1:]), PAIR, ("lacks pixels, Usage",)),
    ("no usage column", sub(csv_of, 0, ",Usage", ""), PAIR, ("Usage", "train.csv")),
    ("label column missing", sub(new_of, 0, "disgust", "disgusted"), PAIR, ("lacks disgust",)),
    ("empty csv", content(csv_of, b""), PAIR, ("empty",)),
    ("header only", lines(csv_of, lambda rows: rows[:1]), PAIR, ("no rows",)),
    ("utf-16", content(csv_of, lambda raw: raw.decode().encode("utf-16")), PAIR, ("UTF-16",)),
    ("cp1251", sub(new_of, 5, "fer", "\u0444"), PAIR, ("line 6", "image name")),
    ("not utf-8", content(new_of, lambda raw: raw[:500] + b"\xff" + raw[500:]), PAIR, ("not UTF-8", "byte 500")),
    ("nul byte", content(new_of, lambda raw: raw[:500] + b"\0" + raw[500:]), PAIR, ("NUL", "byte 500")),
    # 7–11: pixels
    ("2303 pixels", sub(csv_of, 3, " ", ""), PAIR, ("line 4",)),
    ("2305 pixels", sub(csv_of, 3, " ", " 0 "), PAIR, ("line 4", "2305", "2304")),
    ("pixel 256", lambda f: pixel(f, 3, "256"), PAIR, ("line 4", "pixel 3", "'256'", "0–255")),
    ("pixel 300", lambda f: pixel(f, 3, "300"), PAIR, ("'300'",)),
    ("pixel -1", lambda f: pixel(f, 3, "-1"), PAIR, ("'-1'",)),
    ("pixel 12.5", lambda f: pixel(f, 3, "12.5"), PAIR, ("'12.5'",)),
    ("pixel empty", lambda f: pixel(f, 3, ""), PAIR, ("pixel 3", "empty")),
    ("pixel 0x1F", lambda f: pixel(f, 3, "0x1F"), PAIR, ("'0x1F'",)),
    ("pixel nan", lambda f: pixel(f, 3, "nan"), PAIR, ("'nan'",)),
    ("no pixels", lines(csv_of, lambda rows: [*rows[:3], "0,,Training", *rows[4:]]), PAIR, ("line 4", "2304")),
    ("tabs", lines(csv_of, lambda rows: [rows[0], *(row.replace(" ", "\t") for row in rows[1:])]), PAIR, ("line 2", "tabs")),
    ("commas", lines(csv_of, lambda rows: [rows[0], *(row.replace(" ", ",") for row in rows[1:])]), PAIR, ("line 2", "fields")),
    ("truncated", content(csv_of, lambda raw: raw[:-3000]), PAIR, ("ends inside a row", "line 61")),
    # 12–17: the pair
    ("row missing", lines(csv_of, lambda rows: rows[:10] + rows[11:]), PAIR, ("59 rows", "60", "row 40", "PublicTest")),
    ("usage shifted", lines(csv_of, swapped_rows), PAIR, ("row 40", "row 41", "Usage")),
    ("usage unknown", sub(csv_of, 5, "Training", "Test"), PAIR, ("line 6", "'Test'", "PrivateTest")),
    ("header in the middle", lines(csv_of, lambda rows: [*rows[:5], rows[0], *rows[5:]]), PAIR, ("line 6", "header")),
    ("header in the labels", lines(new_of, lambda rows: [*rows[:5], rows[0], *rows[5:]]), PAIR, ("line 6", "header")),
    ("votes negative", lines(new_of, lambda r: [*r[:2], "Training,fer1.png,-1,11,0,0,0,0,0,0,0,0", *r[3:]]), PAIR, ("'-1'",)),
    ("votes fractional", lines(new_of, lambda r: [*r[:2], "Training,fer1.png,9.5,0,0,0,0,0,0,0,0,0", *r[3:]]), PAIR, ("'9.5'",)),
    ("votes over ten", lines(new_of, lambda r: [*r[:2], "Training,fer1.png,11,0,0,0,0,0,0,0,0,0", *r[3:]]), PAIR, ("'11'",)),
    ("votes sum", lines(new_of, lambda r: [*r[:2], "Training,fer1.png,5,0,0,0,0,0,0,0,0,2", *r[3:]]), PAIR, ("line 3", "sum to 7")),
    ("votes missing", lines(new_of, lambda r: [*r[:2], "Training,fer1.png,10,0", *r[3:]]), PAIR, ("line 3", "4 fields")),
    ("folder as csv", lambda f: (f.fer2013.unlink(), f.fer2013.mkdir()), PAIR, ("folder",)),
    ("csv without labels", lambda f: f.new_labels.unlink(), ("--fer2013", "fer2013.csv"), ("fer2013new.csv",)),
    ("csv part with folders", lambda f: None, ("--fer2013", "fer2013.csv", "--labels", "images"),
     ("no image names", "fer2013new.csv")),
    ("both kinds of faces", lambda f: None, (*PAIR, *PNGS), ("--fer2013", "--images")),
    # 24–27: the layout
    ("images missing", lambda f: shutil.rmtree(f.images), PNGS, ("does not exist", "FER2013Train")),
    ("split missing", lambda f: shutil.rmtree(f.images / "FER2013Valid"), PNGS, ("FER2013Valid", "found: FER2013Test")),
    ("other case", lambda f: (f.images / "FER2013Train").rename(f.images / "fer2013train"), PNGS, ("rename", "FER2013Train")),
    ("one level down", lambda f: (f.images.rename(f.folder / "x"), f.images.mkdir(), (f.folder / "x").rename(f.images / "data")),
     PNGS, ("one level down", "images/data")),
    ("emotion folders", emotion_folders, PNGS, ("order is lost", "fer2013.csv")),
    ("label.csv missing", lambda f: own_labels(f).unlink(), PNGS, ("FER2013Train/label.csv", "--labels")),
    ("picture missing", lambda f: f.png().unlink(), PNGS, ("lacks 1 pictures", "fer0000000.png")),
    ("picture unnamed, strict", lambda f: shutil.copy(f.png(), f.png().with_name("fer0009999.png")), (*PNGS, "--strict"),
     ("1 pictures", "fer0009999.png")),
    # 28–34: pictures and names
    ("png empty", content(first_png, b""), PNGS, ("fer0000000.png", "empty")),
    ("png is text", content(first_png, b"hello"), PNGS, ("not a PNG",)),
    ("png is html", content(first_png, b"<html></html>"), PNGS, ("web page",)),
    ("png halved", content(first_png, lambda raw: raw[: len(raw) // 2]), PNGS, ("cut off",)),
    ("png without its end", content(first_png, lambda raw: raw[:-20]), PNGS, ("fer0000000.png",)),
    ("png bit flipped", content(first_png, flipped_bit), PNGS, ("damaged", "IDAT")),
    ("png 64x64", picture(np.zeros((64, 64), np.uint8)), PNGS, ("64×64", "48×48")),
    ("png rgb", picture(np.zeros((48, 48, 3), np.uint8)), PNGS, ("RGB", "gray")),
    ("png rgba", picture(np.zeros((48, 48, 4), np.uint8)), PNGS, ("RGBA",)),
    ("png 16 bit", picture(np.zeros((48, 48), np.uint16)), PNGS, ("16-bit",)),
    ("png bomb", huge_png, PNGS, ("30000×30000",)),
    ("png is a link", linked, PNGS, ("link",)),
    ("path in a name", sub(own_labels, 0, "fer0000000.png", "../../fer0000000.png"), PNGS, ("line 1", "plain file name")),
    ("long name", sub(own_labels, 0, "fer0000000", "f" * 300), PNGS, ("line 1", "plain file name")),
    ("newline in a name", sub(own_labels, 0, "fer0000000.png", '"fer00\n00000.png"'), PNGS, ("plain file name",)),
    ("label.csv short", sub(own_labels, 0, ",0,", ","), PNGS, ("line 1", "11 fields")),
    # the zip
    ("zip truncated", content(lambda f: f.archive, lambda raw: raw[: len(raw) // 2]), ZIP, ("images.zip", "damaged or incomplete")),
    ("zip is html", content(lambda f: f.archive, b"<html>"), ZIP, ("web page",)),
    ("zip is a pointer", content(lambda f: f.archive, b"version https://git-lfs.github.com/spec/v1"), ZIP, ("Git-LFS",)),
    ("zip empty", content(lambda f: f.archive, b""), ZIP, ("not a zip",)),
    ("zip member twice", twice_in_zip, ZIP, ("twice",)),
    ("zip with a link", link_in_zip, ZIP, ("link",)),
    ("zip encrypted", encrypted_in_zip, ZIP, ("is encrypted; unpack the zip first",)),
    ("zip in two places", two_places_in_zip, ZIP, ("stand in different places of the zip (a, b)",)),
    ("zip damaged inside", damaged_zip, ZIP, ("damaged",)),
    ("zip bomb", big_in_zip, ZIP, ("10000000 bytes",)),
    ("slices missing", lambda f: None, (*PNGS, "--slices", "nowhere"), ("no such folder",)),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "options", "named"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_is_refused_in_one_line(
    spoil: Callable[[Files], object],
    options: tuple[str, ...],
    named: tuple[str, ...],
    files: Files,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Bad input exits 2 with one line that names it, and leaves what was prepared before as it was."""
    spoil(files)
    monkeypatch.chdir(files.folder)
    before = tree(home / "data")
    capfd.readouterr()

    code = prepare.main(["ferplus", *options])

    said = capfd.readouterr().err
    assert (code, said.count("\n"), said.startswith("error: ")) == (2, 1, True), said
    assert not [part for part in named if part not in said], said
    assert "internal error" not in said
    assert tree(home / "data") == before


ACCEPTED: list[tuple[str, Callable[[Files], object], str]] = [
    ("byte-order mark", content(csv_of, lambda raw: b"\xef\xbb\xbf" + raw), "byte-order mark"),
    ("windows line ends", content(csv_of, lambda raw: raw.replace(b"\n", b"\r\n")), "Windows line ends"),
    ("trailing spaces and blank lines", content(csv_of, lambda raw: raw.replace(b"\n", b"  \n") + b"\n\n"), ""),
    ("no last newline", content(csv_of, lambda raw: raw.rstrip()), ""),
    ("quoted", content(csv_of, lambda raw: b"\n".join(_quoted(line) for line in raw.splitlines()) + b"\n"), ""),
]  # fmt: skip


def _quoted(line: bytes) -> bytes:
    emotion, pixels, usage = line.split(b",")
    return emotion + b',"' + pixels + b'",' + usage


@pytest.mark.parametrize(("change", "remark"), [case[1:] for case in ACCEPTED], ids=[case[0] for case in ACCEPTED])
def test_harmless_oddities_give_the_same_dataset(
    change: Callable[[Files], object], remark: str, files: Files, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """BOM, CRLF, blanks and quotes change nothing, and are said once."""
    from fer_lab.data import faces

    options = ["ferplus", "--fer2013", str(files.fer2013), "--labels", str(files.new_labels)]
    assert prepare.main(options) == 0
    expected = faces.load(home / "data" / "ferplus-2017").fingerprint
    capfd.readouterr()
    change(files)

    assert prepare.main(options) == 0

    assert faces.load(home / "data" / "ferplus-2017").fingerprint == expected
    assert capfd.readouterr().out.count(remark) == 1 or not remark


def test_a_picture_without_votes_is_left_out_and_said(files: Files, capfd: pytest.CaptureFixture[str]) -> None:
    """A stray picture is no reason to stop."""
    shutil.copy(files.png(), files.png().with_name("fer0009999.png"))
    capfd.readouterr()
    assert prepare.main(["ferplus", "--images", str(files.images)]) == 0
    assert "1 pictures stand in no label file" in capfd.readouterr().out


def test_a_file_that_changes_while_it_is_read_is_refused(files: Files) -> None:
    """A download that is still running must not become a dataset."""
    from fer_lab.core.errors import InputError
    from fer_lab.data.ferplus import textfile

    rows = textfile.on_disk(files.fer2013).rows()
    next(rows)
    with files.fer2013.open("ab") as file:
        file.write(b"0,")
    with pytest.raises(InputError, match="changed while it was read"):
        list(rows)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs POSIX permissions, and root has none to lack")
def test_an_unwritable_home_is_refused_before_the_work(
    files: Files, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A place that cannot be written is named at once."""
    locked = home / "locked"
    locked.mkdir(mode=0o500)
    monkeypatch.setenv("FER_LAB_HOME", str(locked))
    assert prepare.main(["ferplus", "--images", str(files.images)]) == 2
    assert "cannot be written" in capfd.readouterr().err


def test_a_full_disk_is_refused_before_the_work(
    files: Files, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Too little room is named with both figures."""
    full = shutil.disk_usage(files.folder)._replace(free=5 * 10**6)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: full)
    assert prepare.main(["ferplus", "--images", str(files.images)]) == 2
    assert "5 MB free, 200 MB are needed" in capfd.readouterr().err


def test_a_home_that_is_a_file_is_refused(files: Files, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """FER_LAB_HOME may name anything."""
    monkeypatch.setenv("FER_LAB_HOME", str(files.fer2013))
    assert prepare.main(["ferplus", "--images", str(files.images)]) == 2
    assert "cannot be written" in capfd.readouterr().err
