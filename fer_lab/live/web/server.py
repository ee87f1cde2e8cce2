"""The server behind the page: frames in by POST, labelled boxes out as JSON; server-side sources as MJPEG.

POST /api/frame        a JPEG (or PNG, WebP) body → faces; header X-Stream keeps the tracks of one browser together
GET  /api/stream.mjpeg the server's own source, annotated          GET /api/state  its latest result
POST /api/control      {"do": "pause" | "detector" | "turn" | "record" | "snapshot" | "input"}
GET  /model            card, version, runtime                      GET /health
"""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fer_lab.core.browser import open_page
from fer_lab.core.console import note, say
from fer_lab.core.errors import FerLabError, InputError
from fer_lab.live.detectors import Finder
from fer_lab.live.draw import annotated
from fer_lab.live.frames import UNCERTAIN_RGB, Frame, Result, colour_rgb
from fer_lab.live.models import Models
from fer_lab.live.outputs import Outputs, banner_of
from fer_lab.live.pipeline import Pipeline, Settings, label_frame
from fer_lab.live.stills import decode
from fer_lab.live.summary import Summary
from fer_lab.live.tracks import Tracker
from fer_lab.live.web.guard import LOCAL, Guard

STATIC_FOLDER = Path(__file__).parent / "static"
MOST_FRAME_PIXELS = 2560 * 2560  # what the page reduces a photo to
MOST_STREAMS = 16  # browsers whose tracks are kept
SEND_BUFFER_BYTES = 128 * 1024  # the system's own grows to 4 MB for each client that does not read
STREAM_HEIGHT = 720  # MJPEG frames are reduced to this


class Page:
    """What the handlers share."""

    def __init__(
        self, models: Models, finders: list[Finder], settings: Settings, *, token: str | None = None,
        pipeline: Pipeline | None = None, outputs: Outputs | None = None, show_input: bool = False,
    ) -> None:  # fmt: skip
        self.models = models
        self.finders = finders
        self.settings = settings
        self.token = token
        self.pipeline = pipeline
        self.outputs = outputs
        self.summary = Summary()
        self.stopping = threading.Event()
        self.latest: Result | None = None
        self.failure: Exception | None = None  # what ended the source
        self.bad_frames = 0
        self.show_input = show_input
        self._which = 0
        self._lock = threading.Lock()  # one decoded picture in memory at a time
        self._streams: OrderedDict[str, Tracker] = OrderedDict()
        self._started_s = time.perf_counter()

    @property
    def finder(self) -> Finder:
        """The detector for frames of browsers."""
        return self.finders[self._which]

    @property
    def error(self) -> str:
        """What ended the source, in words; empty when nothing did."""
        if self.failure is None or isinstance(self.failure, FerLabError):
            return str(self.failure or "")
        return f"the source failed: {type(self.failure).__name__}: {self.failure}"

    def stop(self) -> None:
        """End the server soon."""
        self.stopping.set()
        if self.pipeline is not None:
            self.pipeline.stop()

    def run_source(self) -> None:
        """Run the server-side source to its end (in a thread of its own)."""
        assert self.pipeline is not None
        assert self.outputs is not None
        try:
            try:
                for result in self.pipeline.results():
                    self.outputs.take(result)
                    self.latest = result
            finally:
                self.outputs.close()
        except Exception as error:  # shown on the page and in the terminal; the browser's own camera still works
            self.failure = error
            note(f"error: {self.error}")

    def frame(self, data: bytes, stream: str, *, still: bool, show_input: bool) -> dict[str, Any]:
        """Label one image of a browser. Raises InputError when it is none."""
        born_s = time.perf_counter()
        with self._lock:
            began_s = time.perf_counter()
            try:
                image = decode(data, "the frame", MOST_FRAME_PIXELS)
            except InputError:
                self.bad_frames += 1
                raise
            decoded_s = time.perf_counter()
            finder = self.finder
            found = finder.find(image)
            found_s = time.perf_counter()
            tracker = self._tracker(stream)
            frame = Frame(self.summary.frames, decoded_s - self._started_s, image, born_s)
            faces, labels, shown, runtime, shadow = label_frame(
                frame, found, finder, self.models, tracker, self.settings, stills=still
            )
            done_s = time.perf_counter()
            result = Result(
                frame, faces, labels, shown, runtime, (decoded_s - began_s) * 1e3, (found_s - decoded_s) * 1e3,
                (done_s - found_s) * 1e3, (done_s - born_s) * 1e3, shadow,
            )  # fmt: skip
            self.summary.add(result)
        return self.describe(result, finder.name, self.summary, show_input)

    def describe(self, result: Result, detector: str, summary: Summary, show_input: bool) -> dict[str, Any]:
        """A result for the page."""
        height, width = result.frame.image.shape[:2]
        return {
            "width": width, "height": height, "time_s": round(result.frame.time_s, 3), "labels": result.labels,
            "faces": [
                {
                    "track": face.track, "box": [round(v, 1) for v in face.box_px], "label": face.label,
                    "confidence": round(face.confidence, 4), "probs": [round(float(p), 4) for p in face.probs],
                    **({"shadow": result.shadow[i]} if result.shadow else {}),
                    **({"input": face.crop.ravel().tolist(), "input_size": face.crop.shape[::-1]} if show_input and i < 8 else {}),
                }
                for i, face in enumerate(result.faces)
            ],
            "model": result.model, "runtime": result.runtime, "detector": detector, "trouble": self.models.trouble,
            "detect_ms": [round(summary.recent_ms("detect", q), 1) for q in (50, 95)],
            "classify_ms": [round(summary.recent_ms("classify", q), 1) for q in (50, 95)],
            "total_ms": round(result.total_ms, 1), "fps": round(summary.recent_fps, 1),
            "disagreements": self.models.disagreements, "compared": self.models.compared,
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        """The latest result of the server's source."""
        base: dict[str, Any] = {"error": self.error, "banner": banner_of(self.models), "show_input": self.show_input}
        if self.pipeline is None or self.outputs is None:
            return base | {"source": None}
        base |= {
            "source": self.pipeline.source.name, "status": self.pipeline.source.status, "paused": self.pipeline.paused,
            "ended": self.pipeline.source.ended, "recording": self.outputs.recording, "frames": self.outputs.summary.frames,
        }  # fmt: skip
        if self.latest is not None and not base["status"]:  # what was seen before a camera went is not what is there now
            name = "known boxes" if self.pipeline.settings.known_boxes else self.pipeline.finder.name
            base["result"] = self.describe(self.latest, name, self.outputs.summary, self.show_input)
        return base

    def control(self, what: str) -> str:
        """Do what a key or a button asks for; returns a sentence for the screen. Raises InputError."""
        if what == "detector":
            self._which = (self._which + 1) % len(self.finders)
            if self.pipeline is not None:
                self.pipeline.next_finder()
            return f"detector: {self.finder.name}"
        if what == "turn":
            if not self.models.turn():
                return "there is no challenger; start with --shadow MODEL"
            return f"in front: {self.models.front.shown}"
        if what == "input":
            self.show_input = not self.show_input
            if self.outputs is not None:
                self.outputs.show_input = self.show_input
            return "model input shown" if self.show_input else "model input hidden"
        if self.pipeline is None or self.outputs is None:
            raise InputError(f"{what!r} needs a source of the server; start with --source")
        if what == "pause":
            self.pipeline.pause(not self.pipeline.paused)
            return "paused" if self.pipeline.paused else "goes on"
        if what == "record":
            return self.outputs.toggle_recording()
        if what == "snapshot":
            if self.latest is None:
                raise InputError("there is no frame yet")
            return f"saved {self.outputs.snapshot(self.latest).name}"
        raise InputError(f"unknown control {what!r}")

    def model(self) -> dict[str, Any]:
        """Card, version, runtime of the model in front, and its colours."""
        front, shadow = self.models.front, self.models.shadow
        card = front.predictor.bundle.card.model_dump(mode="json", by_alias=True)
        return {
            "name": front.name, "version": front.version, "shown": front.shown, "runtime": front.predictor.runtime,
            "precision": front.predictor.precision, "digest": front.predictor.bundle.digest, "card": card,
            "shadow": shadow.shown if shadow is not None else None, "banner": banner_of(self.models),
            "colours": {label: "#{:02x}{:02x}{:02x}".format(*colour_rgb(label)) for label in front.predictor.labels}
            | {"uncertain": "#{:02x}{:02x}{:02x}".format(*UNCERTAIN_RGB)},
            "detectors": [finder.name for finder in self.finders],
        }  # fmt: skip

    def result(self) -> Mapping[str, Any]:
        """The summary of the frames that browsers sent."""
        trackers = list(self._streams.values())
        return self.summary.result(trackers, self.models, self.finder.name, self.bad_frames) | {"source": "browser"}

    def _tracker(self, stream: str) -> Tracker:
        tracker = self._streams.pop(stream, None) or Tracker(self.models.front.predictor.labels, self.settings.steady)
        self._streams[stream] = tracker
        while len(self._streams) > MOST_STREAMS:
            self._streams.popitem(last=False)
        return tracker


def application(page: Page, *, bound: str = "127.0.0.1", names: Sequence[str] = ()) -> Any:
    """Return the ASGI application; `names` are host names that it answers to besides those of `bound`."""
    from fastapi import FastAPI, Request
    from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
    from fastapi.staticfiles import StaticFiles

    app = FastAPI(title="fer_lab demo", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(FerLabError)
    async def told(request: Request, error: FerLabError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=422 if isinstance(error, InputError) else 500)

    async def index() -> FileResponse:
        return FileResponse(STATIC_FOLDER / "index.html")

    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok", "model": page.models.front.shown})

    async def model() -> JSONResponse:
        return JSONResponse(page.model())

    async def state() -> JSONResponse:
        return JSONResponse(page.state())

    async def frame(request: Request) -> JSONResponse:
        data = await request.body()
        stream = request.headers.get("x-stream", "")[:64]
        options = {"still": request.headers.get("x-still") == "1", "show_input": request.headers.get("x-input") == "1"}
        return JSONResponse(await asyncio.to_thread(page.frame, data, stream, **options))

    async def control(request: Request) -> JSONResponse:
        try:
            what = (await request.json())["do"]
        except (ValueError, KeyError, TypeError):
            raise InputError('expected a JSON body such as {"do": "pause"}') from None
        return JSONResponse({"said": await asyncio.to_thread(page.control, str(what))})

    async def stream() -> StreamingResponse:
        if page.pipeline is None:
            raise InputError("the server has no source of its own; start with --source")
        return StreamingResponse(_mjpeg(page), media_type="multipart/x-mixed-replace; boundary=frame")

    # Added by hand: FastAPI cannot read the annotations of handlers that live inside a function.
    for path, handler, method in (
        ("/", index, "GET"), ("/health", health, "GET"), ("/model", model, "GET"), ("/api/state", state, "GET"),
        ("/api/frame", frame, "POST"), ("/api/control", control, "POST"), ("/api/stream.mjpeg", stream, "GET"),
    ):  # fmt: skip
        app.router.add_route(path, _taking_request(handler), methods=[method])
    app.mount("/static", StaticFiles(directory=STATIC_FOLDER))
    return Guard(app, bound=bound, token=page.token, names=names)


def _taking_request(handler: Any) -> Any:
    import inspect

    if inspect.signature(handler).parameters:
        return handler

    async def wrapped(request: Any) -> Any:
        return await handler()

    return wrapped


async def _mjpeg(page: Page) -> AsyncIterator[bytes]:
    """Annotated JPEGs of the newest results, as fast as the client takes them."""
    last: Result | None = None
    while not page.stopping.is_set():
        result = page.latest
        if result is None or result is last:
            if page.pipeline is not None and page.pipeline.source.ended and last is not None:
                return
            await asyncio.sleep(0.01)
            continue
        last = result
        data = await asyncio.to_thread(_jpeg, page, result)
        yield b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data) + data + b"\r\n"


def _jpeg(page: Page, result: Result) -> bytes:
    import cv2

    image = annotated(result, bars=False, show_input=page.show_input)
    if image.shape[0] > STREAM_HEIGHT:
        size = (max(1, round(image.shape[1] * STREAM_HEIGHT / image.shape[0])), STREAM_HEIGHT)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 82])
    return bytes(data.tobytes())


def serve(
    page: Page, listener: socket.socket, host: str, *, names: Sequence[str] = (), open_browser: bool = True,
    seconds: float | None = None,
) -> None:  # fmt: skip
    """Run the server on what `listen(host, …)` gave until `page.stop`, or for some seconds; the caller closes the listener."""
    import uvicorn

    from fer_lab.live.web.connections import Connection

    port = listener.getsockname()[1]
    config = uvicorn.Config(
        application(page, bound=host, names=names), log_level="error", access_log=False, lifespan="off", http=Connection,
        timeout_keep_alive=5, timeout_graceful_shutdown=2, ws="none", server_header=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    threads = [threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="web", daemon=True)]
    if page.pipeline is not None:
        threads.append(threading.Thread(target=page.run_source, name="source", daemon=True))
    for thread in threads:
        thread.start()
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{'localhost' if host in ('127.0.0.1', '::1', '0.0.0.0', '::') else shown}:{port}/"
    if page.token is not None:
        address += f"?token={quote(page.token, safe='')}"
    say(f"page: {address}    (Ctrl-C ends it)")
    if host not in LOCAL:
        note("note: browsers give a page their camera only on localhost or over https; put TLS before it for other machines")
    if open_browser:
        open_page(address)
    until_s = time.monotonic() + seconds if seconds is not None else math.inf
    try:
        while not page.stopping.wait(min(0.5, max(0.0, until_s - time.monotonic()))):  # in steps: Windows hears no Ctrl-C inside
            if time.monotonic() >= until_s:
                break
    finally:
        page.stop()
        server.should_exit = True
        for thread in threads:
            thread.join(timeout=5)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there, at any free port for 0. Raises InputError when the port is in use."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
    except OSError as error:
        raise InputError(f"--host {host} is no address of this machine ({error.strerror})") from None
    try:
        import sys

        if sys.platform != "win32":  # there the option would let two servers share one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # its connections inherit it
        listener.bind(address)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise InputError(
            f"port {port} of {host} cannot be used ({error.strerror}). Give another one with --port, or --port 0 for any free one"
        ) from None
    return listener
