"""The desktop window: Tk and Pillow, the frame left, one bar per expression right, figures below.

The pipeline runs in a thread of its own; the window only shows its newest result, so that it answers at any source
size and speed. Keys: q/Esc quit, space pause, s snapshot, r record, d detector, m champion/challenger, i model input.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as Pictures
from PIL import ImageTk

from fer_lab.core.errors import InputError
from fer_lab.live.draw import annotated
from fer_lab.live.frames import UNCERTAIN, Result, colour_rgb
from fer_lab.live.models import BANNER
from fer_lab.live.outputs import Outputs
from fer_lab.live.pipeline import KNOWN, Pipeline

if TYPE_CHECKING:
    import tkinter as tk

GROUND, CARD, LINE, INK, SOFT, TRACK = "#0e1118", "#161b26", "#283143", "#eef1f7", "#9aa6bb", "#252d3c"
PANEL_WIDTH = 300
EVERY_MS = 15
HELP = "q quit   space pause   s snapshot   r record   d detector   m champion/challenger   i model input"


def show(
    pipeline: Pipeline, outputs: Outputs, *, seconds: float | None = None, on_ready: Callable[[Window], None] | None = None
) -> None:
    """Show the pipeline until the window is closed, the source ends, or `seconds` passed. Errors of the source are raised."""
    window = Window(pipeline, outputs, seconds)
    if on_ready is not None:
        window.root.after(0, lambda: on_ready(window))
    try:
        window.run()
    finally:
        window.release()
    if window.error is not None:
        raise window.error


class Window:
    """The widgets and the thread behind them."""

    def __init__(self, pipeline: Pipeline, outputs: Outputs, seconds: float | None = None) -> None:
        self.pipeline = pipeline
        self.outputs = outputs
        self.latest: Result | None = None
        self.error: BaseException | None = None
        self.said = ""
        self._said_until_s = 0.0
        self._until_s = time.perf_counter() + seconds if seconds is not None else None
        self._shown: Result | None = None
        self._dirty = True
        self._photo: Any = None  # Tk keeps no reference of its own
        self._input_photo: Any = None
        self._finished = False
        import tkinter as tk  # absent from slim images; `view.why_no_window` says so before

        self.root = tk.Tk()
        self.root.title("fer_lab · live")
        self.root.configure(bg=GROUND)
        self.root.geometry(f"{self._first_size()}+0+0")
        self.root.minsize(560, 340)
        self._build()
        for key, action in self.keys().items():
            self.root.bind(key, lambda event, action=action: action())  # type: ignore[misc]  # Tk's callbacks
        self.root.protocol("WM_DELETE_WINDOW", self.close)
        self.root.bind("<Configure>", lambda event: self._resized())
        self._thread = threading.Thread(target=self._work, name="pipeline", daemon=True)

    def keys(self) -> dict[str, Callable[[], None]]:
        """Key → what it does."""
        return {
            "q": self.close, "<Escape>": self.close, "<space>": self.pause, "s": self.snapshot, "r": self.record,
            "d": self.next_detector, "m": self.turn, "i": self.toggle_input,
        }  # fmt: skip

    def run(self) -> None:
        """Start the pipeline and the main loop."""
        self._thread.start()
        self.root.after(EVERY_MS, self._tick)
        self.root.mainloop()
        self.pipeline.stop()
        self._thread.join(timeout=5)

    def close(self) -> None:
        """End the window."""
        self.pipeline.stop()
        self.root.destroy()

    def release(self) -> None:
        """Drop everything of Tk here: collected later in another thread, it would abort the process."""
        for name in ("root", "view", "panel", "hud", "status", "banner", "_photo", "_input_photo"):
            setattr(self, name, None)
        gc.collect()

    def pause(self) -> None:
        """Stop or continue."""
        self.pipeline.pause(not self.pipeline.paused)
        self.say("paused" if self.pipeline.paused else "goes on")

    def snapshot(self) -> None:
        """Save the picture."""
        if self.latest is not None:
            self._try(lambda: f"saved {self.outputs.snapshot(self.latest).name}" if self.latest is not None else "")

    def record(self) -> None:
        """Start or stop recording."""
        self._try(self.outputs.toggle_recording)

    def next_detector(self) -> None:
        """Use the next detector."""
        self.say(f"detector: {self.pipeline.next_finder().name}")

    def turn(self) -> None:
        """Put the challenger in front, or the champion again."""
        turned = self.pipeline.models.turn()
        self.say(f"in front: {self.pipeline.models.front.shown}" if turned else "there is no challenger; start with --shadow MODEL")

    def toggle_input(self) -> None:
        """Show or hide what the model sees."""
        self.outputs.show_input = not self.outputs.show_input
        self._dirty = True

    def say(self, text: str, seconds: float = 3.0) -> None:
        """Show a sentence below for a while."""
        self.said, self._said_until_s = text, time.perf_counter() + seconds
        self._dirty = True

    def _try(self, action: Callable[[], str]) -> None:
        try:
            self.say(action())
        except (InputError, OSError) as error:
            self.say(str(error), 6)

    def _first_size(self) -> str:
        width = min(1180, self.root.winfo_screenwidth() - 60)
        height = min(640, self.root.winfo_screenheight() - 100)
        return f"{max(560, width)}x{max(340, height)}"

    def _build(self) -> None:
        import tkinter as tk

        self.banner = tk.Label(self.root, text="", bg="#3a2a08", fg="#fde68a", font=("TkDefaultFont", 11, "bold"), pady=5)
        self.hud = tk.Label(self.root, text="", bg=CARD, fg=SOFT, font=("TkFixedFont", 10), anchor="w", padx=14, pady=6)
        self.hud.pack(side="bottom", fill="x")
        self.status = tk.Label(self.root, text=HELP, bg=CARD, fg=SOFT, font=("TkDefaultFont", 10), anchor="w", padx=14, pady=6)
        self.status.pack(side="bottom", fill="x")
        self.panel = tk.Canvas(self.root, width=PANEL_WIDTH, bg=GROUND, highlightthickness=0)
        self.panel.pack(side="right", fill="y", padx=(0, 14), pady=14)
        self.view = tk.Canvas(self.root, bg="#05070b", highlightthickness=0)
        self.view.pack(side="left", fill="both", expand=True, padx=14, pady=14)

    def _resized(self) -> None:
        self._dirty = True

    def _work(self) -> None:
        try:
            for result in self.pipeline.results():
                self.outputs.take(result)
                self.latest = result
        except BaseException as error:  # raised again by `show`
            self.error = error
        self._finished = True

    def _tick(self) -> None:
        now_s = time.perf_counter()
        stills = self.pipeline.source.stills
        ended = self._finished and (self.error is not None or not stills)  # a picture stays until it is closed
        if ended or self.pipeline.told_to_stop or (self._until_s is not None and now_s > self._until_s):
            self.close()
            return
        if self.said and now_s > self._said_until_s:
            self.said, self._dirty = "", True
        status = self.pipeline.source.status
        if self.latest is not self._shown or self._dirty or status:
            self._dirty = False
            self._shown = self.latest
            self._paint(status)
        self.root.after(EVERY_MS, self._tick)

    def _paint(self, status: str) -> None:
        models = self.pipeline.models
        if models.front.is_synthetic:
            self.banner.configure(text=f"{models.front.shown}: {BANNER}")
            self.banner.pack(side="top", fill="x", before=self.hud)
        else:
            self.banner.pack_forget()
        if self._shown is not None and not status:
            self._paint_picture(self._shown)
            self._paint_panel(self._shown)
            self.hud.configure(text=self._figures(self._shown))
        else:  # what was seen before the camera went is not what is there now
            self.view.delete("all")
            self.panel.delete("all")
            self._wait_sign()
        trouble = models.trouble
        text = self.said or status or trouble or HELP
        self.status.configure(text=text, fg="#fde68a" if (status or trouble) and not self.said else INK if self.said else SOFT)

    def _wait_sign(self) -> None:
        self.view.create_text(
            self.view.winfo_width() / 2, self.view.winfo_height() / 2, text=f"waiting for {self.pipeline.source.name} …", fill=SOFT,
            font=("TkDefaultFont", 14),
        )  # fmt: skip

    def _paint_picture(self, result: Result) -> None:
        import cv2

        width, height = max(2, self.view.winfo_width()), max(2, self.view.winfo_height())
        image = result.frame.image
        factor = min(width / image.shape[1], height / image.shape[0])
        size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
        if factor < 0.34:  # far too large: every second or third pixel is more than enough for the average below
            step = int(0.68 / factor)
            image = np.ascontiguousarray(image[::step, ::step])
        # Reduced first, drawn on after: the work depends on the window's size, not on the source's.
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
        picture = annotated(result, bars=False, canvas=small, factor=factor)
        rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        self._photo = ImageTk.PhotoImage(Pictures.fromarray(rgb), master=self.root)
        self.view.delete("all")
        self.view.create_image(width / 2, height / 2, image=self._photo)
        if self.outputs.recording:
            x, y = (width - size[0]) / 2 + 18, (height - size[1]) / 2 + 18
            self.view.create_oval(x - 7, y - 7, x + 7, y + 7, fill="#ef4444", outline="")
            self.view.create_text(x + 14, y, text="REC", fill="#ffffff", anchor="w", font=("TkDefaultFont", 10, "bold"))

    def _paint_panel(self, result: Result) -> None:
        panel = self.panel
        panel.delete("all")
        face = result.faces[0] if result.faces else None
        colour = _hex(face.label) if face is not None else SOFT
        panel.create_rectangle(0, 8, 5, 52, fill=colour, outline="")
        title = face.label if face is not None else "no face"
        panel.create_text(18, 4, text=title.capitalize(), fill=INK, anchor="nw", font=("TkDefaultFont", 20, "bold"))
        if face is not None:
            more = f" · largest of {len(result.faces)} faces" if len(result.faces) > 1 else ""
            under = f"{face.confidence:.0%} sure{more}"
        else:
            under = "come closer, or turn on a light" if self.outputs.summary.frames > 60 else "looking for a face"
        panel.create_text(18, 40, text=under, fill=SOFT, anchor="nw", font=("TkDefaultFont", 10))
        top, row = 78, 34
        best = int(face.probs.argmax()) if face is not None else -1
        for i, label in enumerate(result.labels):
            y = top + i * row
            p = float(face.probs[i]) if face is not None else 0.0
            weight = "bold" if i == best else "normal"
            panel.create_text(0, y, text=label, fill=INK if i == best else SOFT, anchor="w", font=("TkDefaultFont", 11, weight))
            left, right = 92, PANEL_WIDTH - 48
            _pill(panel, left, y - 7, right, y + 7, TRACK)
            if p > 0.004:
                _pill(panel, left, y - 7, max(left + 14, left + (right - left) * p), y + 7, _hex(label))
            value = f"{p:.0%}" if face is not None else "–"
            panel.create_text(
                PANEL_WIDTH - 2, y, text=value, fill=INK if i == best else SOFT, anchor="e", font=("TkDefaultFont", 11, weight)
            )
        if self.outputs.show_input and face is not None:
            side = min(144, panel.winfo_height() - (top + len(result.labels) * row) - 26)
            if side >= 48:
                y = top + len(result.labels) * row + 4
                panel.create_text(0, y, text="what the model sees", fill=SOFT, anchor="w", font=("TkDefaultFont", 10))
                big = Pictures.fromarray(face.crop).resize((side, side), Pictures.Resampling.NEAREST)
                self._input_photo = ImageTk.PhotoImage(big, master=self.root)
                panel.create_image(0, y + 14, image=self._input_photo, anchor="nw")

    def _figures(self, result: Result) -> str:
        summary, models = self.outputs.summary, self.pipeline.models
        known = self.pipeline.settings.known_boxes and result.frame.known is not None
        detector = KNOWN.name if known else self.pipeline.finder.name
        parts = [
            result.model, f"{result.runtime}", f"{summary.recent_fps:.0f} frames/s",
            f"{detector} {summary.recent_ms('detect', 50):.1f} · p95 {summary.recent_ms('detect', 95):.1f} ms",
            f"classify {summary.recent_ms('classify', 50):.1f} · p95 {summary.recent_ms('classify', 95):.1f} ms",
        ]  # fmt: skip
        if models.shadow is not None:
            parts.append(f"{models.shadow.shown} differs {models.disagreements}/{models.compared}")
        return "   ".join(parts)


def _hex(label: str) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour_rgb(label if label != UNCERTAIN else ""))


def _pill(canvas: tk.Canvas, x0: float, y0: float, x1: float, y1: float, fill: str) -> None:
    """A bar with round ends."""
    r = (y1 - y0) / 2
    canvas.create_oval(x0, y0, x0 + 2 * r, y1, fill=fill, outline="")
    canvas.create_oval(x1 - 2 * r, y0, x1, y1, fill=fill, outline="")
    canvas.create_rectangle(x0 + r, y0, x1 - r, y1, fill=fill, outline="")
