"""The window on a private display: keys, pictures, huge and lost sources."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageGrab

from fer_lab.backends.session import Predictor
from fer_lab.live.detectors import Search, build
from fer_lab.live.frames import Frame, colour_rgb
from fer_lab.live.models import Models, Named
from fer_lab.live.outputs import Outputs
from fer_lab.live.pipeline import Pipeline, Settings
from fer_lab.live.sample import SampleSource


def looked_at(display: str) -> np.ndarray:
    """The screen, RGB."""
    return np.asarray(ImageGrab.grab(xdisplay=display).convert("RGB"))


def shown(
    display: str, bundle: Path, folder: Path, script: list[Any], source: Any = None, shadow: Path | None = None, seconds: float = 30
) -> tuple[Outputs, list[np.ndarray]]:
    """Run the window, press the keys of `script` one after another, take a picture after each; then q."""
    from fer_lab.live.window import show

    models = Models(
        Named("tiny", 3, Predictor.open(bundle)), Named("other", 4, Predictor.open(shadow)) if shadow is not None else None
    )  # fmt: skip
    pipeline = Pipeline(
        source or SampleSource(loop=True), build(["haar"], Search()) * 2, models, Settings(known_boxes=True, pace=True)
    )
    outputs = Outputs(pipeline, folder=folder)
    pictures: list[np.ndarray] = []

    def ready(window: Any) -> None:
        def step(i: int) -> None:
            if window.latest is None and source is None and i == 0:
                window.root.after(100, step, 0)
                return
            if i > 0:
                window.root.update_idletasks()
                pictures.append(looked_at(display))
            if i == len(script):
                window.root.after(50, window.close)
                return
            what = script[i]
            if callable(what):
                what(window)
            else:
                window.root.event_generate(what)
            window.root.after(900, step, i + 1)

        window.root.focus_force()
        window.root.after(300, step, 0)

    show(pipeline, outputs, seconds=seconds, on_ready=ready)
    outputs.close()
    return outputs, pictures


def share_of(picture: np.ndarray, rgb: tuple[int, int, int]) -> float:
    """The share of pixels within a few levels of a colour."""
    return float((np.abs(picture.astype(int) - rgb).max(axis=2) < 12).mean())


def test_the_window_shows_boxes_and_bars_and_its_keys_work(display: str, bundle: Path, tmp_path: Path) -> None:
    """Snapshot, record, pause, model input, challenger; the picture has the label's colour in box and bar."""
    from live_bundle import write

    keys = ["<s>", "<r>", "<i>", "<m>", "<d>", "<r>", "<space>"]
    outputs, pictures = shown(display, bundle, tmp_path, keys, shadow=write(tmp_path / "other", turn=1))
    labels = outputs.pipeline.models.front.predictor.labels
    assert max(share_of(pictures[0], colour_rgb(label)) for label in labels) > 0.002
    assert len(list(tmp_path.glob("fer-*.png"))) == 1
    assert len(list(tmp_path.glob("fer-*.mp4"))) == 1
    assert outputs.show_input
    assert outputs.pipeline.models.front.name == "other"
    assert outputs.pipeline.paused
    assert outputs.summary.frames > 10
    with Image.open(next(tmp_path.glob("fer-*.png"))) as snapshot:
        assert snapshot.size == (960, 540)


def test_the_window_is_resized_down_to_small(display: str, bundle: Path, tmp_path: Path) -> None:
    """Small and large; nothing raises in Tk."""
    sizes = ["560x340", "1270x780"]
    outputs, pictures = shown(display, bundle, tmp_path, [lambda w, s=s: w.root.geometry(s) for s in sizes])
    assert len(pictures) == 2
    assert outputs.summary.frames > 5


class HugeSource(SampleSource):
    """4K frames."""

    name = "4K"

    image = np.zeros((2160, 3840, 3), np.uint8)

    def read(self, timeout_s: float = 0.5) -> Frame | None:
        """The same 4K frame, 30 times a second."""
        frame = super().read()
        return Frame(frame.index, frame.time_s, self.image, frame.born_s, ()) if frame is not None else None


def test_the_window_answers_while_frames_are_4k(display: str, bundle: Path, tmp_path: Path) -> None:
    """The main loop is never blocked for long: its ticks come in time."""
    gaps: list[float] = []

    def watch(window: Any) -> None:
        last = [time.perf_counter()]

        def tick() -> None:
            now = time.perf_counter()
            gaps.append(now - last[0])
            last[0] = now
            window.root.after(20, tick)

        tick()

    sizes: list[tuple[int, int, int]] = []

    def measure(window: Any) -> None:
        sizes.append((window._photo.width(), window._photo.height(), window.view.winfo_width()))

    shown(display, bundle, tmp_path, [watch, lambda w: None, measure, lambda w: None], source=HugeSource(loop=True))
    assert np.median(gaps) < 0.5
    (width, height, room) = sizes[0]
    assert width == room  # the whole width of the window, as a small picture would have
    assert height == round(room * 2160 / 3840)


class DyingSource(SampleSource):
    """A camera that is lost after a second."""

    name = "camera 0"
    live = True

    def read(self, timeout_s: float = 0.5) -> Frame | None:
        """Thirty frames, then none."""
        time.sleep(0.03)
        if self._index < 30:
            return super().read()
        self.status = "camera 0: no signal, trying again (attempt 1)"
        return None


def test_a_camera_that_is_lost_leaves_no_face_behind(display: str, bundle: Path, tmp_path: Path) -> None:
    """Neither its picture nor its bars stay up."""
    wait = [lambda w: None] * 3
    outputs, pictures = shown(display, bundle, tmp_path, [lambda w: None, *wait], source=DyingSource())
    labels = outputs.pipeline.models.front.predictor.labels
    assert outputs.summary.frames == 30
    assert max(share_of(pictures[-1], colour_rgb(label)) for label in labels) < 0.0005


class SilentSource(SampleSource):
    """A camera that is gone."""

    name = "camera 0"
    live = True

    def read(self, timeout_s: float = 0.5) -> Frame | None:
        """Never a frame."""
        self.status = "camera 0: no signal, trying again (attempt 2)"
        time.sleep(0.05)
        return None


def test_a_lost_camera_is_shown_and_the_window_closes(display: str, bundle: Path, tmp_path: Path) -> None:
    """It says so and does not hang."""
    texts: list[str] = []
    shown(display, bundle, tmp_path, [lambda w: None, lambda w: texts.append(w.status.cget("text"))], source=SilentSource())
    assert "no signal" in texts[0]
    assert not [t for t in threading.enumerate() if t.name == "decode" and t.is_alive()]


def test_a_model_of_drawings_wears_its_banner_in_the_window(display: str, tmp_path: Path) -> None:
    """Above the picture, all the time."""
    from live_bundle import write

    texts: list[str] = []
    bundle = write(tmp_path / "drawn", label_source="synthetic")
    shown(display, bundle, tmp_path, [lambda w: None, lambda w: texts.append(w.banner.cget("text"))])
    assert "trained on drawings, not for real faces" in texts[0]
