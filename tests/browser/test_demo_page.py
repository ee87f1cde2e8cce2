"""The page in Chromium with a camera fed from a file: clicked through as a person would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

KEEPS = 60_000  # milliseconds; a busy machine is slow to start a browser


def portrait() -> np.ndarray:
    """NASA's public-domain astronaut before a blurred background, BGR 640×480."""
    face = pytest.importorskip("skimage.data").astronaut()[:400, 40:440, ::-1]
    frame = cv2.GaussianBlur(cv2.resize(face, (640, 480)), (0, 0), 30)
    frame[40:440, 120:520] = face
    return np.ascontiguousarray(frame)


def camera_film(path: Path) -> Path:
    """Motion JPEG for Chromium's fake camera."""
    with path.open("wb") as file:
        for i in range(20):
            shifted = np.roll(portrait(), 2 * i, axis=1)
            file.write(cv2.imencode(".jpg", shifted)[1].tobytes())
    return path


def opened(browser: Any, address: str, **options: Any) -> tuple[Any, list[str]]:
    """The page, and what its console complained about."""
    context = browser.new_context(permissions=["camera"], **options)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    return page, complaints


def until(page: Any, expression: str) -> None:
    """Wait for an expression; by hand, because the page's policy forbids the evaluation that Playwright's own wait needs."""
    for _ in range(KEEPS // 100):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"not in time: {expression}")


def test_the_camera_is_read_labelled_and_drawn(
    start: Callable[..., str], browser: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    """Start, bars, timeline, model input, pause by keyboard, snapshot, stop; no complaint in the console."""
    film = camera_film(tmp_path / "camera.mjpeg")
    chromium = browser(
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={film}"
    )  # fmt: skip
    page, complaints = opened(chromium, start(bundle, "--detector", "haar", "--search-px", "480"))
    page.click("#camera")
    until(page, "document.querySelector('#bars li.top') !== null")
    assert page.inner_text("#sublabel").endswith("sure")
    assert page.inner_text("#model") == "tiny"
    until(page, "parseFloat(document.querySelector('#fps').textContent) > 0")
    page.keyboard.press("i")
    page.wait_for_selector("#inputs canvas", timeout=KEEPS)
    assert page.evaluate("state.points.length") > 0
    page.keyboard.press(" ")
    assert page.get_attribute("#pause", "aria-pressed") == "true"
    with page.expect_download(timeout=KEEPS) as download:
        page.keyboard.press("s")
    assert download.value.suggested_filename.endswith(".png")
    page.click("#stop")
    page.wait_for_selector("#welcome", state="visible", timeout=KEEPS)
    assert complaints == []


def test_no_camera_stays_on_after_stop(
    start: Callable[..., str], browser: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    """Also when it was started twice, and when a file was opened before it answered."""
    film = camera_film(tmp_path / "camera.mjpeg")
    cv2.imwrite(str(tmp_path / "a.jpg"), portrait())
    chromium = browser(
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={film}"
    )  # fmt: skip
    page, complaints = opened(chromium, start(bundle, "--detector", "haar", "--search-px", "480"))
    page.evaluate("""() => {
      const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      window.streams = [];
      navigator.mediaDevices.getUserMedia = async (wanted) => {
        await new Promise((done) => setTimeout(done, 1500));
        const stream = await real(wanted);
        window.streams.push(stream);
        return stream;
      };
    }""")
    page.evaluate("() => { document.querySelector('#camera').click(); document.querySelector('#camera').click(); }")
    until(page, "window.streams.length === 2")
    until(page, "document.querySelector('#bars li.top') !== null")
    page.click("#stop")
    until(page, "window.streams.every(s => s.getTracks().every(t => t.readyState === 'ended'))")
    page.click("#camera")
    page.set_input_files("#file", str(tmp_path / "a.jpg"))
    until(page, "window.streams.length === 3")
    until(page, "window.streams[2].getTracks().every(t => t.readyState === 'ended')")
    assert page.is_visible("#still")
    assert page.evaluate("state.mode") == "image"
    assert complaints == []


def test_a_picture_is_labelled_in_every_look(
    start: Callable[..., str], browser: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    """An uploaded image in light and dark and at phone width: readable, nothing cut off sideways; then a file that is none."""
    cv2.imwrite(str(tmp_path / "a.jpg"), portrait())
    page, complaints = opened(browser(), start(bundle, "--search-px", "480"))
    page.set_input_files("#file", str(tmp_path / "a.jpg"))
    until(page, "document.querySelector('#overlay').ariaLabel.includes('face:')")
    for scheme, width, height in (("dark", 1280, 860), ("light", 1280, 860), ("light", 390, 844)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ink = page.evaluate("getComputedStyle(document.querySelector('#label')).color")
        ground = page.evaluate("getComputedStyle(document.querySelector('.panel')).backgroundColor")
        assert contrast(ink, ground) > 7
    assert complaints == []
    (tmp_path / "b.png").write_bytes(b"this is no picture")
    page.set_input_files("#file", str(tmp_path / "b.png"))
    until(page, "document.querySelector('#message').innerText.includes('not an image')")
    assert page.is_visible("#welcome")


def test_the_keyboard_reaches_every_button_and_no_camera_is_told(
    start: Callable[..., str], browser: Callable[..., Any], bundle: Path
) -> None:
    """A machine without one; before that, Tab visits each enabled button, and none is nameless."""
    page, _ = opened(browser(), start(bundle))
    until(page, "document.querySelector('#model').textContent === 'tiny'")
    enabled = set(
        page.evaluate("[...document.querySelectorAll('button:not(:disabled)')].filter(b => b.offsetParent).map(b => b.id)")
    )
    visited = set()
    for _ in range(len(enabled) + 2):
        page.keyboard.press("Tab")
        visited.add(page.evaluate("document.activeElement.id"))
    assert enabled <= visited
    assert page.evaluate("[...document.querySelectorAll('button')].every(b => b.innerText.trim() || b.offsetParent === null)")
    page.click("#camera")
    until(page, "!document.querySelector('#message').hidden")
    assert "camera" in page.inner_text("#message").lower()


def test_the_servers_own_source_is_shown_and_controlled(
    start: Callable[..., str], browser: Callable[..., Any], bundle: Path
) -> None:
    """MJPEG in the picture, bars from the state, pause on the server; a token in the address."""
    address = start(bundle, "--source", "sample", "--loop", "--token", "s3cret")
    assert address.endswith("?token=s3cret")
    page, complaints = opened(browser(), address)
    until(page, "document.querySelector('#bars li.top') !== null")
    until(page, "document.querySelector('#still').naturalWidth === 960")
    page.keyboard.press(" ")
    until(page, "document.querySelector('#pause').ariaPressed === 'true'")
    assert complaints == []


def contrast(ink: str, ground: str) -> float:
    """WCAG contrast of two `rgb(…)` colours."""

    def luminance(text: str) -> float:
        parts = [int(v) / 255 for v in text[text.index("(") + 1 : text.index(")")].split(",")[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
