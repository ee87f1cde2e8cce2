"""The two pictures of the demo in docs/pictures, of drawn faces.

    python experiments/bench/demo_pictures.py BUNDLE

Needs chromium (or FER_LAB_CHROMIUM) and Xvfb. BUNDLE should be a model that reads the drawn sample well: a synthetic
champion wears its banner in the picture.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image, ImageGrab

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
SHOWN_AT_S = 19.0  # into the clip: two faces, half a minute of timeline is not needed


def demo(bundle: str, *arguments: str, display: str | None = None) -> subprocess.Popen[str]:
    """The demo on the looping sample."""
    environment = os.environ | ({"DISPLAY": display} if display else {})
    command = [sys.executable, "-m", "fer_lab.demo", bundle, "--source", "sample", "--loop", "--show-input", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


def saved(picture: Image.Image, name: str) -> None:
    """Save below 300 kB."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    picture.convert("RGB").save(PICTURES / name, optimize=True)
    if (PICTURES / name).stat().st_size > 300_000:  # fewer shades of the noise in the drawn faces, the colours stay
        picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(PICTURES / name, optimize=True)
    print(PICTURES / name, (PICTURES / name).stat().st_size // 1000, "kB")


def page(bundle: str) -> None:
    """The page in Chromium."""
    from playwright.sync_api import sync_playwright

    process = demo(bundle, "--view", "web", "--port", "0", "--no-browser")
    assert process.stdout is not None
    address = process.stdout.readline().split()[1]
    try:
        with sync_playwright() as driver:
            binary = os.environ.get("FER_LAB_CHROMIUM") or shutil.which("chromium")
            browser = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1280, "height": 925}, color_scheme="dark")
            tab.goto(address)
            tab.wait_for_timeout(SHOWN_AT_S * 1000)
            tab.screenshot(path=str(PICTURES / "page.tmp.png"))
            browser.close()
    finally:
        process.terminate()
        process.communicate()
    with Image.open(PICTURES / "page.tmp.png") as picture:
        saved(picture, "demo-page.png")
    (PICTURES / "page.tmp.png").unlink()


def window(bundle: str) -> None:
    """The window on a private display."""
    display = ":97"
    server = subprocess.Popen(["Xvfb", display, "-screen", "0", "1240x740x24"], stderr=subprocess.DEVNULL)
    try:
        time.sleep(2)
        process = demo(bundle, "--view", "window", display=display)
        time.sleep(SHOWN_AT_S)
        picture = ImageGrab.grab(bbox=(0, 0, 1180, 640), xdisplay=display)
        process.terminate()
        process.communicate()
        saved(picture, "demo-window.png")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    PICTURES.mkdir(parents=True, exist_ok=True)
    for make in (page, window):
        make(sys.argv[1])
