"""Images of every kind become upright BGR uint8, or one sentence."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_lab.core.errors import InputError
from fer_lab.live.stills import decode, read_image


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    """The picture as bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def halves(size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Left red, right blue."""
    picture = Image.new("RGB", size, (255, 0, 0))
    picture.paste((0, 0, 255), (size[0] // 2, 0, size[0], size[1]))
    return picture


def test_colours_arrive_as_bgr() -> None:
    """Red is the last channel."""
    assert decode(saved(halves(), "PNG"), "x")[5, 5].tolist() == [0, 0, 255]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_rotated_photo_is_turned_upright(kind: str) -> None:
    """EXIF orientation 6: the stored left edge is the top."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode(saved(halves(), kind, exif=exif), "x")
    assert image.shape == (40, 20, 3)
    assert image[2, 10].argmax() == 2  # red on top
    assert image[37, 10].argmax() == 0


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_gray_palette_transparent_and_print_modes_are_converted(mode: str) -> None:
    """Three channels of uint8 come out."""
    picture = halves().convert(mode)
    image = decode(saved(picture, "TIFF" if mode == "CMYK" else "PNG"), "x")
    assert (image.shape, image.dtype) == ((20, 40, 3), np.uint8)


def test_sixteen_bits_keep_their_scale() -> None:
    """65535 is white, half of it gray; nothing is stretched or clipped."""
    values = np.array([[0, 32896, 65535, 257]] * 4, np.uint16)
    image = decode(saved(Image.fromarray(values), "PNG"), "x")
    assert image[0, :, 0].tolist() == [0, 128, 255, 1]


def test_an_animation_gives_its_first_picture() -> None:
    """Later pictures are not read."""
    data = saved(halves(), "GIF", save_all=True, append_images=[Image.new("RGB", (40, 20))] * 3)
    assert decode(data, "x")[5, 5].tolist() == [0, 0, 255]


def test_a_huge_image_is_refused_before_it_is_decoded() -> None:
    """20 000 × 20 000 pixels: one sentence, no memory."""
    for side, expected in ((20000, "too many pixels"), (8000, "8000×8000 pixels")):
        head = struct.pack(">II5B", side, side, 8, 2, 0, 0, 0)
        parts = ((b"IHDR", head), (b"IDAT", zlib.compress(b"0" * 1000)), (b"IEND", b""))
        chunks = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts]
        with pytest.raises(InputError, match=f"{expected}, at most 50 million"):
            decode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks), "big.png")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"), (b"hello", "not an image"), (b"<!DOCTYPE html><html>", "a web page"), (b"<svg xmlns='x'/>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), (saved(halves(), "PNG")[:60], "not an image"),
        (b"\xff\xd8\xff\xe0garbage", "not an image"), (saved(halves((40, 1)), "PNG"), "40×1 pixels is too small"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_named(data: bytes, why: str) -> None:
    """The message says what the bytes look like."""
    with pytest.raises(InputError, match=why):
        decode(data, "x")


def test_mutated_images_never_raise_anything_else() -> None:
    """A thousand random changes: an image or an InputError."""
    rng = np.random.default_rng(0)
    originals = [np.frombuffer(saved(halves(), kind), np.uint8) for kind in ("PNG", "JPEG", "GIF", "BMP")]
    for i in range(1000):
        data = originals[i % 4].copy()
        data[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4)
        with contextlib.suppress(InputError):
            assert decode(data.tobytes(), "x").dtype == np.uint8


def test_a_file_too_heavy_is_refused(tmp_path: Path) -> None:
    """The size on disk is checked first."""
    path = tmp_path / "x.png"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    with pytest.raises(InputError, match="200 MB"):
        read_image(path)
