"""What the tests of the store share: a store made in milliseconds, a bundle of a kilobyte, processes that meet, a closed door."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fer_lab.backends.bundle import Card, write_manifest

LABELS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")


@functools.cache
def _template() -> Path:
    from fer_lab.tracking.database import initialise

    database = Path(tempfile.mkdtemp()) / "mlflow.db"
    initialise(database)
    return database


@contextmanager
def closed_door(status: int) -> Iterator[str]:
    """The address of a proxy that answers every request with this status and a page of its own."""

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>nginx</html>")

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as door:
        threading.Thread(target=door.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{door.server_port}"
        door.shutdown()


def fresh_store(home: Path):  # type: ignore[no-untyped-def]
    """An empty local store below `home`: a copy of one that was initialised once in this process."""
    from fer_lab.tracking.store import open_store

    (home / "mlruns").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_template(), home / "mlruns" / "mlflow.db")
    return open_store(home)


def tiny_bundle(folder: Path, content: str = "a", **card: Any) -> Path:
    """A whole, verified bundle whose weights are a few bytes."""
    folder.mkdir(parents=True)
    facts = {
        "name": "tiny", "labels": LABELS, "protocol": "ferplus8", "label_source": "synthetic", "dataset": "synthetic",
        "fingerprint": "f" * 64, "backbone": "tf_efficientnetv2_b0", "image_size": 48, "mean": 0.5, "std": 0.25,
        "config": {"seed": 3}, "validation": {"val/accuracy": 0.8123}, "parent_run_id": "p" * 32,
    } | card  # fmt: skip
    (folder / "card.json").write_text(Card(schema=1, **facts).to_json(), encoding="utf-8")
    (folder / "weights.safetensors").write_bytes(content.encode() * 100)
    write_manifest(folder)
    return folder


def signing_key(path: Path) -> Path:
    """Write a fresh Ed25519 key that `register --sign` takes."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    path.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    return path


def together(n: int, work: Callable[[int], Any]) -> list[Any]:
    """Run `work(i)` in n forked processes that start at the same moment; each result, or the exception as text."""
    context = get_context("fork")
    barrier, results = context.Barrier(n), context.SimpleQueue()

    def one(i: int) -> None:
        barrier.wait()
        try:
            results.put((i, work(i)))
        except BaseException as error:
            results.put((i, f"{type(error).__name__}: {error}"))

    processes = [context.Process(target=one, args=(i,)) for i in range(n)]
    for process in processes:
        process.start()
    found = dict(results.get() for _ in processes)
    for process in processes:
        process.join()
    return [found[i] for i in range(n)]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until_up(server: subprocess.Popen[bytes], url: str, log: Path, seconds: float = 240) -> None:
    """Wait until a server that was just started answers at `url`; fail with the end of its log when it ends before."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.5)


@contextmanager
def mlflow_server(home: Path, port: int, database: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A real MLflow server on an sqlite store below `home` (or on the database of this URL), up and answering."""
    (home / "mlruns").mkdir(parents=True, exist_ok=True)
    if database is None:
        file = home / "mlruns" / "mlflow.db"
        if not file.exists():
            shutil.copyfile(_template(), file)
        database = f"sqlite:///{file}"
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", (home / "mlruns" / "artifacts").as_uri()]
    with (home / "server.log").open("ab") as log:
        server = subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=log, start_new_session=True)
    try:
        until_up(server, f"http://127.0.0.1:{port}/health", home / "server.log")
        yield server
    finally:
        os.killpg(server.pid, 9)
        server.wait()
