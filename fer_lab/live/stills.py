"""Images from files and from the browser, as upright BGR uint8, with limits that hold before anything is decoded."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from fer_lab.core.errors import InputError
from fer_lab.live.frames import Image

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"))
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "MPO", "PPM")
MOST_PIXELS = 50_000_000
MOST_BYTES = 100_000_000


def is_image_file(path: Path) -> bool:
    """Say whether Pillow knows the file's head."""
    from PIL import Image as Pictures

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Pictures.open(path, formats=FORMATS):
                return True
    except Exception:  # whatever a damaged file provokes: it is no image
        return False


def read_image(path: Path, most_pixels: int = MOST_PIXELS) -> Image:
    """Return an image file as BGR uint8 [H, W, 3], upright, the first picture of an animation.

    Raises InputError naming the file, what it is and the limit.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise InputError(f"{path}: {size // 1_000_000} MB, an image has at most {MOST_BYTES // 1_000_000} MB")
    return decode(path.read_bytes(), str(path), most_pixels)


def decode(data: bytes, where: str, most_pixels: int = MOST_PIXELS) -> Image:
    """Return image bytes as BGR uint8 [H, W, 3]. Gray, palette, RGBA, CMYK and 16-bit images are converted.

    Raises InputError.
    """
    from PIL import Image as Pictures

    if not data:
        raise InputError(f"{where} is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is checked below, before pixels are decoded
            with Pictures.open(io.BytesIO(data), formats=FORMATS) as picture:
                width, height = picture.size
                if width * height > most_pixels:
                    raise InputError(
                        f"{where}: {width}×{height} pixels, at most {most_pixels // 1_000_000} million. Make it smaller first"
                    )
                if min(width, height) < 2:
                    raise InputError(f"{where}: {width}×{height} pixels is too small for a face")
                if picture.format == "JPEG" and picture.mode in ("RGB", "L"):
                    return _jpeg(data, where)
                rgb = _rgb(picture)
    except InputError:
        raise
    except Pictures.DecompressionBombError:
        raise InputError(f"{where}: too many pixels, at most {most_pixels // 1_000_000} million. Make it smaller first") from None
    except Exception as error:  # Pillow's plug-ins raise whatever a damaged file provokes
        what = _looks_like(data)
        raise InputError(f"{where} is not an image that can be read ({what or type(error).__name__})") from None
    return np.ascontiguousarray(rgb[:, :, ::-1])


def _jpeg(data: bytes, where: str) -> Image:
    """The quick way for what cameras and browsers send; OpenCV turns by EXIF itself. The size was checked before."""
    import cv2

    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"{where} is not an image that can be read (damaged JPEG)")
    return np.asarray(image, np.uint8)


def _rgb(picture: Any) -> Any:
    from PIL import ImageOps

    picture.seek(0)
    picture.load()
    turned = picture.getexif().get(0x0112, 1) != 1
    upright = ImageOps.exif_transpose(picture) if turned else picture  # a copy costs as much memory as the picture
    if upright.mode.startswith("I") or upright.mode == "F":
        values = np.asarray(upright, np.float64)
        # 16-bit data keeps its scale (65535 is white); 32-bit integers and floats have none, so their own range is used.
        if upright.mode.startswith("I;16") or (
            upright.mode == "I" and 255 < values.max(initial=0) <= 65535 and values.min(initial=0) >= 0
        ):
            gray = values / 257
        else:
            low, high = float(np.nanmin(values)), float(np.nanmax(values))
            gray = (np.nan_to_num(values, nan=low) - low) / (high - low or 1.0) * 255
        return np.repeat(np.clip(gray + 0.5, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        from PIL import Image as Pictures

        rgba = upright.convert("RGBA")
        canvas = Pictures.new("RGBA", rgba.size, (128, 128, 128, 255))
        return np.asarray(Pictures.alpha_composite(canvas, rgba).convert("RGB"))
    return np.asarray(upright if upright.mode == "RGB" else upright.convert("RGB"))


def _looks_like(data: bytes) -> str | None:
    head = data[:200].lstrip()
    if head.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer: run git lfs pull"
    if head[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if head.startswith((b"<?xml", b"<svg")):
        return "SVG or XML"
    return None
