"""Where frames come from: camera, device path, video file, network stream, image, folder of images, the drawn sample.

One interface: `read(timeout_s)` gives the next frame or None; `ended` says whether more will come. Live sources keep
only the newest frame in a capture thread and come back by themselves when the camera does; files give every frame.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from fer_lab.core.console import note
from fer_lab.core.errors import InputError, NotFound
from fer_lab.live.frames import Frame, Image
from fer_lab.live.stills import IMAGE_SUFFIXES, is_image_file, read_image

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".mjpeg", ".mjpg", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".y4m")
)
URL = re.compile(r"^(rtsp|rtsps|rtmp|http|https|udp|tcp|srt)://", re.IGNORECASE)
LARGEST_VIDEO_SIDE = 8192
LONGEST_STEP_S = 60.0  # between two frames of a file; beyond, its clock is not believed
SILENT_AFTER_S = 2.0  # without a frame for this long, a camera counts as lost
OPENING_S = 30.0  # some drivers need so long to open a device that is there
LONGEST_PATIENCE_S = 300.0  # with a driver that hangs again and again: each leaves a thread behind
BACK_OFF_S = (0.5, 1.0, 2.0, 4.0, 5.0)


class Source(Protocol):
    """Frames of one origin."""

    name: str
    live: bool  # True: only the newest frame counts
    stills: bool  # True: each frame is a picture of its own, there are no tracks
    fps: float | None  # of a file
    ended: bool
    status: str  # what a person should know now, e.g. "camera lost, trying again"; empty when all is well
    bad_frames: int  # frames that could not be used

    def read(self, timeout_s: float = 0.5) -> Frame | None:
        """The next frame; None when none came in time or the source has ended."""

    def close(self) -> None:
        """Free the device or file."""


class Capture(Protocol):
    """The part of cv2.VideoCapture that is used."""

    def read(self) -> tuple[bool, Any]:
        """(True, BGR image) or (False, None)."""

    def release(self) -> None:
        """Free the device."""


def usable(image: Any) -> bool:
    """Say whether a decoded frame is a BGR uint8 picture of sane size."""
    import numpy as np

    return (
        isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        and min(image.shape[:2]) >= 2 and max(image.shape[:2]) <= LARGEST_VIDEO_SIDE
    )  # fmt: skip


def open_source(text: str, *, loop: bool = False, backend: str = "auto") -> Source:
    """Open what `--source` names. Raises NotFound or InputError saying what it is and what would work."""
    if text == "sample":
        from fer_lab.live.sample import SampleSource

        return SampleSource(loop=loop)
    if re.fullmatch(r"\d+", text):
        return CameraSource(int(text), backend)
    if URL.match(text):
        return StreamSource(text)
    path = Path(text)
    if not path.exists():
        raise NotFound(
            f"no such source: {text}. Give a camera number (see --list-cameras), a video file, an image, a folder of images, "
            "a stream URL, or `sample`"
        )
    if path.is_dir():
        return FolderSource(path)
    if path.is_char_device():
        return CameraSource(text, backend)
    if not path.is_file():
        raise InputError(f"{text} is neither a file, a folder nor a camera")
    if path.suffix.lower() in IMAGE_SUFFIXES or (path.suffix.lower() not in VIDEO_SUFFIXES and is_image_file(path)):
        return FolderSource(path)
    return VideoSource(path, loop=loop)


class VideoSource:
    """Every frame of a video file, in order; over and over with `loop`."""

    live = False
    stills = False

    def __init__(self, path: Path, *, loop: bool = False) -> None:
        import cv2

        self.name = path.name
        self.ended = False
        self.status = ""
        self.bad_frames = 0
        self._path = path
        self._loop = loop
        self._capture = self._open()
        self.fps: float | None = float(self._capture.get(cv2.CAP_PROP_FPS))
        if not 0.5 <= self.fps < 1000:  # 0, NaN and 90000 stand in broken headers, 1000 in those that name no rate
            self.fps = 25.0
        self._count = int(max(0, self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self._index = 0
        self._time_s = 0.0
        self._position_s: float | None = None  # of the frame before, by the file's own clock
        self._in_pass = 0
        self._good_in_pass = 0
        self._first = self.read()
        if self._first is None:
            raise InputError(f"{path} holds no readable picture ({path.stat().st_size} bytes). Give a video file, e.g. .mp4")

    def _open(self) -> Any:
        import cv2

        quiet_opencv()
        if _is_text(self._path):  # FFmpeg would play a text file as a terminal
            raise InputError(f"{self._path} is text, not a video. Give a video file, e.g. .mp4")
        # FFmpeg only: other back ends would read the digits of a name as a numbered series of images.
        capture = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise InputError(f"{self._path} is not a video that OpenCV can read ({self._path.stat().st_size} bytes)")
        return capture

    def read(self, timeout_s: float = 0.5) -> Frame | None:
        """The next frame, or None at the end."""
        first: Frame | None = getattr(self, "_first", None)
        self._first = None
        if first is not None:
            return first
        misses = 0
        while not self.ended:
            born_s = time.perf_counter()
            ok, image = self._capture.read()
            if ok:
                self._in_pass += 1
                if usable(image):
                    self._good_in_pass += 1
                    frame = Frame(self._index, self._clock(), image, born_s)
                    self._index += 1
                    return frame
                self.bad_frames += 1
                continue
            misses += 1
            if self._in_pass + misses < self._count and misses < 5:  # a torn frame in mid-stream, not the end
                self.bad_frames += 1
                continue
            if self._loop and self._good_in_pass:
                self._capture.release()
                self._capture = self._open()
                self._in_pass = self._good_in_pass = misses = 0
                self._position_s = None
                continue
            self.ended = True
        return None

    def _clock(self) -> float:
        """Seconds since the first frame, for the frame just read. Browsers and phones write films without a steady rate."""
        import cv2

        before, self._position_s = self._position_s, self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
        step_s = self._position_s - before if before is not None else 0.0
        if not 0 < step_s <= LONGEST_STEP_S:  # a file without a clock, a new pass, a torn frame
            step_s = 1 / (self.fps or 25.0)
        if self._index:
            self._time_s += step_s
        return self._time_s

    def close(self) -> None:
        """Close the file."""
        self.ended = True
        self._capture.release()


class FolderSource:
    """One image file, or the image files of a folder in order of name."""

    live = False
    stills = True
    fps: float | None = 1.0  # a recorded film shows each picture for a second

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.ended = False
        self.status = ""
        self.bad_frames = 0
        self._alone = path.is_file()
        self._files = [path] if self._alone else sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not self._files:
            raise InputError(f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        self._next = 0
        self._index = 0
        if self._alone:
            read_image(path)  # a bad image is told before anything opens

    def read(self, timeout_s: float = 0.5) -> Frame | None:
        """The next image, or None after the last. Unreadable images of a folder are told and counted."""
        while self._next < len(self._files):
            file = self._files[self._next]
            self._next += 1
            born_s = time.perf_counter()
            try:
                image = read_image(file)
            except (InputError, OSError) as error:  # a broken link, a folder named like a picture
                if self._alone:
                    raise
                self.bad_frames += 1
                note(f"left out: {error}")
                continue
            self.name = file.name
            self._index += 1
            return Frame(self._index - 1, float(self._index - 1), image, born_s)
        self.ended = True
        return None

    def close(self) -> None:
        """Nothing is held open."""
        self.ended = True


class LiveSource:
    """A device or stream: a thread keeps the newest frame; a lost device is opened again with growing pauses.

    `opener` returns an open Capture or raises OSError. The first opening happens in the caller's thread (macOS asks for
    the camera permission only there).
    """

    live = True
    stills = False
    fps: float | None = None

    def __init__(self, name: str, opener: Callable[[], Capture], *, silent_after_s: float = SILENT_AFTER_S) -> None:
        self.name = name
        self.ended = False
        self.status = ""
        self.bad_frames = 0
        self._opener = opener
        self._silent_after_s = silent_after_s
        self._patience_s = 3 * silent_after_s  # with a driver that does not answer; doubled each time
        self._opening = False
        self._fresh = threading.Condition()
        self._newest: tuple[Image, float] | None = None
        self._last_s = self._alive_s = self._start_s = time.perf_counter()  # of a frame; of a driver that answered
        self._index = 0
        self._generation = 0
        self._begin(opener())

    def _begin(self, capture: Capture | None) -> None:
        self._generation += 1
        self._opening = False
        self._alive_s = time.perf_counter()
        thread = threading.Thread(target=self._capture_loop, args=(capture, self._generation), name="capture", daemon=True)
        thread.start()

    def _capture_loop(self, capture: Capture | None, generation: int) -> None:
        attempt = 0
        misses = 0
        while not self.ended and generation == self._generation:
            self._alive_s = time.perf_counter()
            if capture is None:
                pause_s = BACK_OFF_S[min(attempt, len(BACK_OFF_S) - 1)]
                attempt += 1
                self.status = f"{self.name}: no signal, trying again (attempt {attempt})"
                if self._wait(pause_s, generation):
                    return
                self._opening = True
                with suppress(OSError):
                    capture = self._opener()
                self._opening = False
                continue
            born_s = time.perf_counter()
            try:
                ok, image = capture.read()
            except Exception:  # a driver may throw anything; the device is opened again
                ok, image = False, None
            if generation != self._generation or self.ended:
                break
            if ok and usable(image):
                attempt = misses = 0
                with self._fresh:
                    self._newest = (image, born_s)
                    self._last_s = time.perf_counter()
                    self._patience_s = 3 * self._silent_after_s
                    self.status = ""
                    self._fresh.notify_all()
                continue
            self.bad_frames += 1
            misses += not ok
            if misses >= 5:
                capture.release()
                capture, misses = None, 0
            else:
                time.sleep(0.02)  # a driver that fails at once must not spin
        if capture is not None:
            capture.release()

    def _wait(self, pause_s: float, generation: int) -> bool:
        """Sleep in small steps; True when the source was closed meanwhile."""
        until = time.perf_counter() + pause_s
        while time.perf_counter() < until:
            if self.ended or generation != self._generation:
                return True
            self._alive_s = time.perf_counter()
            time.sleep(0.05)
        return False

    def read(self, timeout_s: float = 0.5) -> Frame | None:
        """The newest frame not yet read, or None when none came within `timeout_s`; then `status` says why."""
        with self._fresh:
            if self._newest is None:
                self._fresh.wait(timeout_s)
            if self._newest is not None:
                (image, born_s), self._newest = self._newest, None
                frame = Frame(self._index, born_s - self._start_s, image, born_s)
                self._index += 1
                return frame
        now_s = time.perf_counter()
        if now_s - self._last_s > self._silent_after_s and not self.status:
            self.status = f"{self.name}: no signal for {now_s - self._last_s:.0f} s"
        if now_s - self._alive_s > (max(self._patience_s, OPENING_S) if self._opening else self._patience_s):
            self._patience_s = min(2 * self._patience_s, LONGEST_PATIENCE_S)
            self._begin(None)  # the driver hangs: leave that thread, open anew
        return None

    def close(self) -> None:
        """Stop the thread; a hanging driver is left behind as a daemon."""
        self.ended = True
        self._generation += 1
        with self._fresh:
            self._fresh.notify_all()


BACKENDS = {"auto": "CAP_ANY", "v4l2": "CAP_V4L2", "dshow": "CAP_DSHOW", "msmf": "CAP_MSMF", "avfoundation": "CAP_AVFOUNDATION"}


class CameraSource(LiveSource):
    """A camera by number or device path."""

    def __init__(self, device: int | str, backend: str = "auto") -> None:
        name = f"camera {device}" if isinstance(device, int) else device

        def opener() -> Capture:
            capture: Capture | None = open_camera(device, backend)
            if capture is None:
                raise OSError(f"{name} does not open")
            return capture

        try:
            super().__init__(name, opener)
        except OSError:
            raise NotFound(_no_camera(device)) from None


class StreamSource(LiveSource):
    """A network stream by URL."""

    def __init__(self, url: str) -> None:
        shown = without_secrets(url)

        def opener() -> Capture:
            import cv2

            quiet_opencv()
            options = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 5000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 5000]
            capture: Capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, options)
            if not capture.isOpened():  # type: ignore[attr-defined]  # only the two methods used later are in Capture
                raise OSError(f"{shown} does not open")
            return capture

        try:
            super().__init__(shown, opener)
        except OSError:
            raise NotFound(f"the stream {shown} does not open within 5 s. Check the address, and that the camera is on") from None


def without_secrets(url: str) -> str:
    """A stream's address as it may be shown: no user, no password, no query.

    >>> without_secrets("rtsp://admin:p@ss/word@10.0.0.5:554/live?channel=1&pwd=secret")
    'rtsp://…@10.0.0.5:554/live?…'
    """
    scheme, _, rest = url.partition("://")
    before, query, _ = rest.partition("?")
    user, at, place = before.rpartition("@")
    return f"{scheme}://{'…@' if user or at else ''}{place}{'?…' if query else ''}"


def open_camera(device: int | str, backend: str = "auto") -> Any:
    """Return an open cv2.VideoCapture, or None. Raises InputError for an unknown backend."""
    import cv2

    quiet_opencv()
    if backend not in BACKENDS:
        raise InputError(f"unknown camera backend {backend!r}; known: {', '.join(BACKENDS)}")
    if sys.platform.startswith("linux") and isinstance(device, int) and not Path(f"/dev/video{device}").exists():
        return None
    capture = cv2.VideoCapture(device, getattr(cv2, BACKENDS[backend]))
    if not capture.isOpened():
        return None
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return capture


def list_cameras(backend: str = "auto", most: int = 10) -> list[dict[str, Any]]:
    """Return `{index, size, works}` of the cameras that open."""
    found = []
    for index in range(most):
        capture = open_camera(index, backend)
        if capture is None:
            continue
        ok, image = capture.read()
        size = f"{image.shape[1]}×{image.shape[0]}" if ok and usable(image) else "–"
        capture.release()
        found.append({"index": index, "size": size, "works": bool(ok)})
    return found


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"YUV4MPEG2"):  # a line of text before the pictures
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return b"\0" not in head and error.start > 4000  # a letter cut in two at the end
    return b"\0" not in head


def quiet_opencv() -> None:
    """Keep OpenCV's and FFmpeg's own chatter off the terminal; our message says what happened."""
    import os

    import cv2

    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _no_camera(device: int | str) -> str:
    devices = sorted(str(p) for p in Path("/dev").glob("video*")) if sys.platform.startswith("linux") else []
    where = f"camera {device}" if isinstance(device, int) else device
    path = f"/dev/video{device}" if isinstance(device, int) else device
    if path in devices:
        return (
            f"{where} is there but does not open: it is busy in another program, or not permitted. "
            "Close the other program, or try --source sample"
        )
    known = f"found: {', '.join(devices)}" if devices else "none found"
    return f"{where} is not there ({known}). Plug one in, or try: python -m fer_lab.demo --source sample"
