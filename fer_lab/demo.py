"""The realtime demo: a camera, a video or images → faces → expressions, live, from the promoted champion.

    python -m fer_lab.demo                                   # the champion on camera 0, in a window or in the browser
    python -m fer_lab.demo --source sample --view none       # drawn faces, no camera, no screen: a check in seconds
    python -m fer_lab.demo models:/fer-ferplus-8@challenger --source film.mp4 --record out.mp4 --json out.jsonl
    python -m fer_lab.demo path/to/bundle --detector yunet=face_detection_yunet.onnx --shadow runs:/RUN_ID
    python -m fer_lab.demo --view web --host 0.0.0.0 --token SECRET     # for another machine's browser (put TLS before it,
                                                                        # --allow-host NAME for the name it answers to there)

Without MODEL: FER_LAB_MODEL, else the champion of fer-ferplus-8, else of fer-ferplus-5, else the bundle shipped with the
repository. A model trained on drawings runs only when it is named, and then wears a banner. While the demo runs it
follows its alias: after `promote`, the new champion is loaded, warmed and switched in between two frames.

Keys in the window: q/Esc quit, space pause, s snapshot, r record, d next detector, m champion/challenger, i model input.
The last line of stdout is one JSON object: frames, fps, p50_ms, p95_ms, frames_with_face, label_changes_per_s, model,
runtime, and more. p50/p95 are per frame, from the start of its decoding to its labels, waiting between stages included.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.core import console
from fer_lab.core.errors import FerLabError, InputError, Interrupted
from fer_lab.core.signals import Stop

if TYPE_CHECKING:
    import socket

    from fer_lab.live.outputs import Outputs
    from fer_lab.live.pipeline import Pipeline
    from fer_lab.live.web.server import Page

LOCALHOST = "127.0.0.1"


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    text = argparse.ArgumentParser(
        prog="python -m fer_lab.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = text.add_argument
    add(
        "model",
        nargs="?",
        help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID, a bundle folder, or a foreign model with its card",
    )
    add(
        "--source", help="camera number or device, video file, image, folder of images, stream URL, or `sample` (default: camera 0)"
    )
    add("--view", choices=("auto", "window", "web", "none"), default="auto")
    add("--detector", action="append", metavar="D", help="haar, yunet=PATH, openvino-ssd=PATH or auto; repeat to switch with d")
    add("--runtime", help="instead of the promoted one, e.g. openvino-int8")
    add("--threads", type=int, default=1, help="threads of the model (default 1)")
    add("--shadow", metavar="MODEL", help="run a challenger beside the champion and count disagreements")
    add("--record", type=Path, metavar="FILE", help="annotated video, .mp4 or .avi")
    add("--json", type=Path, metavar="FILE", help="one JSON line per face")
    add("--snapshots", type=Path, default=Path("."), metavar="FOLDER", help="where snapshots and recordings go")
    add("--show-input", action="store_true", help="show exactly what the model sees")
    add("--align", action="store_true", help="turn faces so that the eyes lie level (detectors that give eyes)")
    add("--margin", type=float, help="side of the model's square over the box' side (default: matched to FERPlus per detector)")
    add("--threshold", type=float, help="smallest detector score, 0–1")
    add("--smallest", type=float, default=0.06, help="smallest face as a fraction of the frame's shorter side (default 0.06)")
    add("--search-px", type=int, help="longer side of the reduced image in which faces are searched")
    add("--uncertain-below", type=float, default=0.4, help='probability below which a label is shown as "uncertain" (default 0.4)')
    add("--loop", action="store_true", help="play a file over and over")
    add("--seconds", type=float, help="end after this long")
    add("--list-cameras", action="store_true", help="list the cameras that open, and end")
    add("--camera-backend", default="auto", help="auto, v4l2, dshow, msmf or avfoundation")
    add("--host", help="address of the web page (default 127.0.0.1); others need --token")
    add("--port", type=int, default=8765, help="port of the web page, 0 for any free one (default 8765)")
    add("--token", help="the page then asks for it; or FER_LAB_TOKEN")
    add("--allow-host", action="append", default=[], metavar="NAME", help="a name that the page answers to, as behind a TLS proxy")
    add("--no-browser", action="store_true", help="do not open the page in the browser")
    return text


def body(args: argparse.Namespace) -> Mapping[str, Any]:
    """Run the demo; returns the summary."""
    started_s = time.perf_counter()
    _check(args)
    if args.list_cameras:
        return _cameras(args.camera_backend)
    from fer_lab.live.detectors import Search, build
    from fer_lab.live.lookup import Lookup
    from fer_lab.live.models import Models, Watcher
    from fer_lab.live.outputs import Outputs, banner_of
    from fer_lab.live.pipeline import Pipeline, Settings
    from fer_lab.live.sources import open_source
    from fer_lab.live.tracks import Steadiness
    from fer_lab.live.view import choose, why_no_window

    view, reason = choose(args.view)
    if args.view == "window" and (why_not := why_no_window()) is not None:
        raise InputError(f"no window: {why_not}. Use --view web (the same in the browser) or --view none")
    finders = build(args.detector or ["auto"], Search(args.threshold, args.smallest, args.search_px))
    lookup = Lookup(_Registry(), args.runtime, args.threads)
    champion = lookup.champion(args.model)
    shadow = lookup.named(args.shadow) if args.shadow else None
    models = Models(champion, shadow)
    console.note(f"model: {champion.shown} · {champion.predictor.runtime} ({champion.predictor.precision})")
    if banner := banner_of(models):
        console.note(f"note: this model was {banner}")
    if reason:
        console.note(f"view: the page, because {reason}")
    source_text = args.source if args.source is not None else (None if view == "web" else "0")
    _check_outputs(args, source_text)
    settings = Settings(
        align=args.align, margin=args.margin, pace=view != "none", steady=Steadiness(uncertain_below=args.uncertain_below),
        known_boxes=source_text == "sample" and not args.detector,
    )  # fmt: skip
    watcher = listener = None
    try:
        source = open_source(source_text, loop=args.loop, backend=args.camera_backend) if source_text is not None else None
        pipeline = Pipeline(source, finders, models, settings) if source is not None else None
        if view == "web":
            from fer_lab.live.web.server import listen

            listener = listen(args.host or LOCALHOST, args.port)  # before a file is emptied: the port may be in use
        outputs = (
            Outputs(
                pipeline, json_path=args.json, video_path=args.record, folder=args.snapshots, show_input=args.show_input,
                begun_s=started_s,
            ) if pipeline is not None else None
        )  # fmt: skip
        identity = lookup.identity()
        if identity is not None:
            watcher = Watcher(models, identity, lambda: lookup.named(lookup.reference), first=lookup.opened)
        if listener is not None:
            return _serve(args, listener, models, finders, settings, pipeline, outputs)
        assert pipeline is not None
        assert outputs is not None
        with Stop(pipeline.stop) as stop:
            try:
                if view == "window":
                    from fer_lab.live.window import show

                    show(pipeline, outputs, seconds=args.seconds)
                else:
                    _headless(pipeline, outputs, args.seconds)
            finally:
                outputs.close()
        return _summary(outputs, stop)
    finally:
        if watcher is not None:
            watcher.close()
        if listener is not None:
            listener.close()
        models.close()


def _check(args: argparse.Namespace) -> None:
    from fer_lab.live.web.guard import LOCAL

    for name, low, high in (("threshold", 0, 1), ("smallest", 0, 1), ("uncertain_below", 0, 1), ("margin", 0.3, 4)):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise InputError(f"--{name.replace('_', '-')} {value} is not between {low} and {high}")
    if args.search_px is not None and not 64 <= args.search_px <= 4096:
        raise InputError(f"--search-px {args.search_px} is not between 64 and 4096")
    if not 1 <= args.threads <= 256:
        raise InputError(f"--threads {args.threads} is not between 1 and 256")
    if not 0 <= args.port <= 65535:
        raise InputError(f"--port {args.port} is not between 0 and 65535")
    if args.seconds is not None and not args.seconds > 0:
        raise InputError(f"--seconds is more than 0, got {args.seconds:g}")
    if not args.snapshots.is_dir():
        raise InputError(f"--snapshots {args.snapshots} is not a folder")
    args.token = args.token or os.environ.get("FER_LAB_TOKEN")
    if (args.host not in (None, *LOCAL) or args.allow_host) and not args.token:
        opens = f"--host {args.host}" if not args.allow_host else f"--allow-host {args.allow_host[0]}"
        raise InputError(f"{opens} opens the page to others; give --token SECRET (or FER_LAB_TOKEN) with it")


def _check_outputs(args: argparse.Namespace, source: str | None) -> None:
    """Files out need a source of ours, and must not be the one that is read."""
    for name, path in (("record", args.record), ("json", args.json)):
        if path is None:
            continue
        if source is None:
            raise InputError(
                f"--{name} writes what a source of the server shows; the page itself records its camera. Add --source 0"
            )
        if path.exists() and Path(source).exists() and path.samefile(source):
            raise InputError(f"--{name} {path} is the source itself and would be overwritten; give another name")
    if args.record is not None and args.json is not None and args.record.absolute() == args.json.absolute():
        raise InputError(f"--record and --json both name {args.json}; give each a file of its own")


def _cameras(backend: str) -> Mapping[str, Any]:
    from fer_lab.live.sources import list_cameras

    found = list_cameras(backend)
    if found:
        console.table(
            "cameras", ["index", "size", "works"], [[c["index"], c["size"], "yes" if c["works"] else "no"] for c in found]
        )
        console.next_command(f"python -m fer_lab.demo --source {found[0]['index']}")
    else:
        console.say("no camera opens here")
        console.next_command("python -m fer_lab.demo --source sample")
    return {"cameras": found}


class _Registry:
    """The registry for a demo: opened on first need, so that a path imports no mlflow."""

    def __init__(self) -> None:
        self._store: Any = None

    def exists(self) -> bool:
        """A tracking server is named, or the local store has its database."""
        if os.environ.get("MLFLOW_TRACKING_URI"):
            return True
        from fer_lab.data.faces import home

        return (home() / "mlruns" / "mlflow.db").is_file()

    def resolve(self, reference: str) -> tuple[Any, str | None, int | None]:
        """The verified bundle, its name and version."""
        from fer_lab.tracking.registry import resolve

        found = resolve(reference)
        return found.bundle, found.name, found.version

    def version_of(self, name: str, alias: str) -> int | None:
        """The version behind an alias."""
        from fer_lab.tracking.registry import aliases

        return aliases(self._open(), name).get(alias)

    def promoted_runtime(self, name: str, version: int) -> str | None:
        """The runtime with which the version was promoted."""
        from fer_lab.tracking.registry import version_tags

        tags = version_tags(self._open(), name, version)
        return tags.get("champion_runtime")  # tracking.ledger.RUNTIME_TAG

    def _open(self) -> Any:
        if self._store is None:
            from fer_lab.tracking.store import open_store

            self._store = open_store()
        return self._store


def _headless(pipeline: Pipeline, outputs: Outputs, seconds: float | None) -> None:
    done = threading.Event()
    teller = threading.Thread(target=_tell, args=(pipeline, outputs, seconds, done), name="teller", daemon=True)
    teller.start()
    try:
        for result in pipeline.results():
            outputs.take(result)
    finally:
        done.set()
        teller.join()


def _tell(pipeline: Pipeline, outputs: Outputs, seconds: float | None, done: threading.Event) -> None:
    """Say how it goes and end it in time, whether frames come or not."""
    until_s = time.perf_counter() + seconds if seconds is not None else None
    said_s = time.perf_counter()
    status = ""
    while not done.wait(0.1):
        now_s = time.perf_counter()
        if pipeline.source.status != status:
            status = pipeline.source.status
            console.note(status or "signal is back")
        if now_s - said_s > 5 and not status:
            said_s = now_s
            console.note(f"{outputs.summary.frames} frames · {outputs.summary.recent_fps:.1f} frames/s")
        if until_s is not None and now_s > until_s:
            pipeline.stop()
            return


def _serve(
    args: argparse.Namespace, listener: socket.socket, models: Any, finders: Any, settings: Any, pipeline: Any, outputs: Any
) -> Mapping[str, Any]:
    from fer_lab.live.web.server import Page, serve

    page = Page(
        models, finders, settings, token=args.token, pipeline=pipeline, outputs=outputs, show_input=args.show_input
    )  # fmt: skip
    with Stop(page.stop) as stop:
        serve(page, listener, args.host or LOCALHOST, names=args.allow_host, open_browser=not args.no_browser, seconds=args.seconds)
    if page.failure is not None:
        raise page.failure
    return _summary(outputs if outputs is not None else page, stop)


def _summary(outputs: Outputs | Page, stop: Stop) -> Mapping[str, Any]:
    record = outputs.result()
    console.table(
        "demo", ["frames", "frames/s", "p50 ms", "p95 ms", "with face", "label changes/s", "model", "runtime"],
        [[record["frames"], record["fps"], record["p50_ms"], record["p95_ms"], record["frames_with_face"],
          record["label_changes_per_s"], record["model"], record["runtime"]]],
    )  # fmt: skip
    if record["expressions"]:
        console.say("expressions: " + " · ".join(f"{label} {share:.0%}" for label, share in record["expressions"].items()))
    console.next_command("python -m fer_lab.promote --history")
    if stop.number is not None:
        interrupted = Interrupted(stop.number, "the demo was interrupted; its files are complete")
        interrupted.result = record
        raise interrupted
    if not record["frames"] and record["bad_frames"]:
        raise FerLabError(f"none of the {record['bad_frames']} pictures of {record['source']} could be read", result=record)
    return record


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit code."""
    return console.run(parser(), body, argv)


if __name__ == "__main__":
    sys.exit(main())
