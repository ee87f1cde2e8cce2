"""Cameras that vanish, files that end, things that are no video."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fer_lab.core.errors import InputError, NotFound
from fer_lab.live.sources import FolderSource, LiveSource, VideoSource, open_source, without_secrets


def film(path: Path, n: int = 12, size: tuple[int, int] = (64, 48)) -> Path:
    """A film whose frames get brighter."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, size)
    for i in range(n):
        writer.write(np.full((size[1], size[0], 3), 20 * i, np.uint8))
    writer.release()
    return path


def everything(source: Any) -> list[int]:
    """The rounded gray level of each frame to the end."""
    levels = []
    while not source.ended:
        frame = source.read()
        if frame is not None:
            levels.append(round(float(frame.image.mean()) / 20))
    return levels


def test_a_film_gives_every_frame_once_and_ends(tmp_path: Path) -> None:
    """No frame is lost, none repeated."""
    assert everything(open_source(str(film(tmp_path / "a.avi")))) == list(range(12))


def test_a_looping_film_starts_again(tmp_path: Path) -> None:
    """Frame numbers and times go on."""
    source = VideoSource(film(tmp_path / "a.avi", 5), loop=True)
    frames = [source.read() for _ in range(13)]
    assert [f.index for f in frames if f is not None] == list(range(13))
    assert [f.time_s for f in frames if f is not None] == pytest.approx([i / 25 for i in range(13)], abs=1e-3)
    source.close()
    assert source.read() is None


def element(number: str, content: bytes) -> bytes:
    """One element of a Matroska file: its number in hex, its size, its content."""
    return bytes.fromhex(number) + struct.pack(">Q", len(content) | 1 << 56) + content


def browser_film(path: Path, times_ms: list[int]) -> Path:
    """A film as a browser's recorder lays it out: each picture at its own time, no rate and no length in the header."""
    picture = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()
    head = element("1A45DFA3", element("4282", b"matroska") + element("4287", b"\4") + element("4285", b"\2"))
    scale = element("1549A966", element("2AD7B1", (1_000_000).to_bytes(3, "big")))
    size = element("E0", element("B0", b"\x40") + element("BA", b"\x30"))
    track = element("1654AE6B", element("AE", element("D7", b"\1") + element("83", b"\1") + element("86", b"V_MJPEG") + size))
    blocks = b"".join(element("A3", b"\x81" + struct.pack(">h", time_ms) + b"\x80" + picture) for time_ms in times_ms)
    path.write_bytes(head + element("18538067", scale + track + element("1F43B675", element("E7", b"\0") + blocks)))
    return path


def test_a_film_without_a_steady_rate_keeps_its_own_clock(tmp_path: Path) -> None:
    """As browsers and phones write them; a second pass goes on where the first ended."""
    times_ms = [0, 40, 75, 125, 160, 205, 1205, 1240]
    source = VideoSource(browser_film(tmp_path / "a.webm", times_ms), loop=True)
    frames = [source.read() for _ in range(2 * len(times_ms))]
    source.close()
    seen_ms = [1000 * f.time_s for f in frames if f is not None]
    assert seen_ms[: len(times_ms)] == pytest.approx(times_ms, abs=2)
    assert np.diff(seen_ms[len(times_ms) :]) == pytest.approx(np.diff(times_ms), abs=2)


def test_a_torn_film_ends_cleanly(tmp_path: Path) -> None:
    """Half a file gives the frames that are there."""
    path, rng = tmp_path / "a.avi", np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for _ in range(12):
        writer.write(rng.integers(0, 256, (48, 64, 3), np.uint8))
    writer.release()
    whole = path.read_bytes()
    (tmp_path / "b.avi").write_bytes(whole[: len(whole) * 2 // 3])
    assert 0 < len(everything(open_source(str(tmp_path / "b.avi")))) < 12


@pytest.mark.parametrize("name", ["a.mp4", "a.txt", "frames001.mp4", "noise"])
def test_what_is_no_video_is_told(tmp_path: Path, name: str) -> None:
    """A text file by any name: one sentence."""
    (tmp_path / name).write_text("this is no video\n" * 50)
    with pytest.raises(InputError, match=r"not a? ?video|no readable picture"):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize(
    ("text", "why"), [("nowhere.mp4", "no such source"), ("97", "--source sample"), ("/dev/video97", "no such source")]
)
def test_a_missing_source_is_told(text: str, why: str) -> None:
    """The message says what would work."""
    with pytest.raises(NotFound, match=why):
        open_source(text)


def test_a_folder_gives_its_images_in_order_and_counts_bad_ones(tmp_path: Path) -> None:
    """One broken image does not end the folder."""
    for name, level in (("b.png", 40), ("a.jpg", 20)):
        cv2.imwrite(str(tmp_path / name), np.full((40, 40, 3), level, np.uint8))
    (tmp_path / "aa.png").write_bytes(b"broken")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "ab.png").mkdir()
    source = FolderSource(tmp_path)
    assert everything(source) == [1, 2]
    assert source.bad_frames == 2


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    """No images: said at once."""
    with pytest.raises(InputError, match="holds no images"):
        open_source(str(tmp_path))


class FakeCamera:
    """A camera that follows a script: an image, None (a failed read), or a number of seconds to hang."""

    def __init__(self, script: list[Any]) -> None:
        self.script = script
        self.released = False

    def read(self) -> tuple[bool, Any]:
        """The next step; the last one repeats."""
        time.sleep(0.005)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, float):
            time.sleep(step)
            return False, None
        if isinstance(step, Exception):
            raise step
        return step is not None, step

    def release(self) -> None:
        """Remember it."""
        self.released = True


IMAGE = np.zeros((48, 64, 3), np.uint8)


def first_frame(source: LiveSource, within_s: float) -> Any:
    """The next frame of a live source."""
    until = time.perf_counter() + within_s
    while time.perf_counter() < until:
        frame = source.read(0.1)
        if frame is not None:
            return frame
    return None


def test_a_lost_camera_is_said_and_comes_back() -> None:
    """Unplugged: a status for the screen; plugged in again: frames."""
    cameras = [FakeCamera([IMAGE, IMAGE, None]), FakeCamera([IMAGE])]
    source = LiveSource("camera 0", lambda: cameras.pop(0) if cameras else FakeCamera([IMAGE]))
    assert first_frame(source, 2) is not None
    until = time.perf_counter() + 3
    while not source.status and time.perf_counter() < until:
        source.read(0.05)
    assert "no signal, trying again" in source.status
    assert first_frame(source, 5) is not None
    assert source.status == ""
    source.close()


def test_only_the_newest_frame_is_kept() -> None:
    """A slow reader gets the present, not a queue of the past."""
    shades = [np.full((48, 64, 3), i, np.uint8) for i in range(60)]
    source = LiveSource("camera 0", lambda: FakeCamera(shades))
    first_frame(source, 2)
    time.sleep(0.4)
    frame = source.read(0.5)
    assert frame is not None
    assert int(frame.image[0, 0, 0]) > 5
    source.close()


def test_bad_frames_in_mid_stream_are_left_out() -> None:
    """Zero-size, gray, float and missing frames; the driver's own exception."""
    bad = [np.zeros((0, 0, 3), np.uint8), np.zeros((48, 64), np.uint8), np.zeros((48, 64, 3), float), None, RuntimeError("driver")]
    source = LiveSource("camera 0", lambda: FakeCamera([*bad, IMAGE]))
    assert first_frame(source, 3) is not None
    assert source.bad_frames >= 4
    source.close()


def test_a_hanging_driver_is_left_and_the_camera_opened_anew() -> None:
    """read() that never returns: no signal within the limit, then a fresh capture."""
    opened = []

    def opener() -> FakeCamera:
        opened.append(FakeCamera([IMAGE, 60.0]) if not opened else FakeCamera([IMAGE]))
        return opened[-1]

    source = LiveSource("camera 0", opener, silent_after_s=0.2)
    assert first_frame(source, 2) is not None
    assert first_frame(source, 0.15) is None
    assert first_frame(source, 6) is not None
    assert len(opened) == 2
    source.close()


def test_a_driver_that_hangs_again_and_again_is_left_each_time() -> None:
    """The device comes back at the third opening."""
    opened = []

    def opener() -> FakeCamera:
        opened.append(FakeCamera([[IMAGE, 60.0], [60.0], [IMAGE]][min(len(opened), 2)]))
        return opened[-1]

    source = LiveSource("camera 0", opener, silent_after_s=0.2)
    assert first_frame(source, 2) is not None
    assert first_frame(source, 0.15) is None
    assert first_frame(source, 10) is not None
    assert len(opened) == 3
    source.close()


def test_a_film_of_raw_pictures_is_no_text(tmp_path: Path) -> None:
    """Y4M begins with a line of text, and dark pictures decode as text too."""
    head = b"YUV4MPEG2 W64 H48 F25:1 Ip A1:1 C420jpeg\n"
    picture = b"FRAME\n" + bytes([40] * (64 * 48)) + bytes([100] * (64 * 48 // 2))
    (tmp_path / "dark.y4m").write_bytes(head + picture * 5)
    source = open_source(str(tmp_path / "dark.y4m"))
    frame = source.read()
    assert frame is not None
    assert frame.image.shape == (48, 64, 3)
    source.close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://10.0.0.5/live", "rtsp://10.0.0.5/live"),
        ("rtsp://admin:secret@10.0.0.5/live", "rtsp://…@10.0.0.5/live"),
        ("rtsp://admin:sec@ret@10.0.0.5/live", "rtsp://…@10.0.0.5/live"),
        ("rtsp://admin:sec/ret@10.0.0.5/live", "rtsp://…@10.0.0.5/live"),
        ("http://10.0.0.5/video.cgi?usr=admin&pwd=secret", "http://10.0.0.5/video.cgi?…"),
    ],
)
def test_a_stream_is_shown_without_its_password(url: str, shown: str) -> None:
    """In messages, in the summary, on the page."""
    assert without_secrets(url) == shown


def test_closing_ends_the_capture_thread() -> None:
    """Nothing is left running."""
    camera = FakeCamera([IMAGE])
    source = LiveSource("camera 0", lambda: camera)
    source.close()
    until = time.perf_counter() + 2
    while not camera.released and time.perf_counter() < until:
        time.sleep(0.02)
    assert camera.released
