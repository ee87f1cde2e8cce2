"""Look at the runs in the browser: MLflow's UI on the store that the other verbs use.

    python -m fer_lab.ui
    python -m fer_lab.ui --no-browser --port 5000

Serves the local store at 127.0.0.1 (this machine only), or opens the server that MLFLOW_TRACKING_URI names. Prints the
address, the line that points MLflow's own commands at the same store, and serves until Ctrl-C; the last line is
{"url": …, "store": …}. Opens at the newest study: its trials stand below it, the chart button compares them.
The same by hand: mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.core import console
from fer_lab.core.browser import open_page
from fer_lab.core.errors import FerLabError, InputError, Interrupted
from fer_lab.core.signals import Stop

if TYPE_CHECKING:
    from fer_lab.tracking.store import Store

OPENS_S = 5.0  # until the browser has the address, where nothing else keeps this process alive
START_S = 180.0  # a slow machine needs half a minute to import the server


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m fer_lab.ui", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, help="a free one when not given")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")
    return console.run(parser, body, argv)


def body(args: argparse.Namespace) -> dict[str, Any]:
    """Serve until interrupted. Raises InputError when the port is taken or the remote server does not answer."""
    from fer_lab.tracking.store import export_line, open_store

    store = open_store()
    remote = store.uri.startswith(("http://", "https://"))
    base = store.shown_uri if remote else f"http://127.0.0.1:{_port(args.port)}"
    url = base + _newest_study(store)
    if remote:
        _show(url, export_line(store), args.no_browser, wait_s=OPENS_S)
        return {"url": url, "store": store.shown_uri}
    with Stop() as stop:  # the server has a session of its own and would outlive us
        server = _start(store, base)
        try:
            _wait(server, base, _log(store), stop)
            _show(url, export_line(store), args.no_browser)
            console.say("stop with Ctrl-C")
            while server.poll() is None:
                stop.wait(0.5)
            raise FerLabError(f"the server ended by itself (exit code {server.returncode})")
        except Interrupted:  # how it is meant to end
            return {"url": url, "store": store.shown_uri}
        finally:
            _end(server)


def _newest_study(store: Store) -> str:
    from fer_lab.tracking.store import newest_study

    found = newest_study(store)
    return f"/#/experiments/{found}/runs?workflowType=machine_learning" if found else "/"


def _show(url: str, line: str, no_browser: bool, wait_s: float = 0.0) -> None:
    console.say(f"MLflow UI: {url}")
    console.say(f"for MLflow's own commands: export {line}")
    if not no_browser:
        open_page(url, wait_s=wait_s)


def _port(wanted: int | None) -> int:
    with socket.socket() as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted or 0))
        except (OSError, OverflowError) as error:
            raise InputError(f"port {wanted} of 127.0.0.1 cannot be used ({error}); leave --port out for a free one") from None
        port: int = probe.getsockname()[1]
        return port


def _start(store: Store, base: str) -> subprocess.Popen[bytes]:
    """Start the server: one worker, no job runner; the URI goes by the environment since it may hold a password."""
    host = base.removeprefix("http://")
    port = host.rpartition(":")[2]
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": store.uri,
        "MLFLOW_TRACKING_URI": store.uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"{host},localhost:{port}",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    if store.artifacts:
        command += ["--artifacts-destination", store.artifacts.as_uri()]
    with _log(store).open("wb") as log:
        return subprocess.Popen(command, env=environment, cwd=store.home, start_new_session=True, stdout=log, stderr=log)


def _log(store: Store) -> Path:
    folder = store.home / "mlruns"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "ui.log"


def _wait(server: subprocess.Popen[bytes], base: str, log: Path, stop: Stop) -> None:
    from fer_lab.tracking.address import reachable

    console.note("starting the server …")
    deadline = time.monotonic() + START_S
    while not reachable(base):
        if server.poll() is not None:
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise FerLabError(f"the server did not start: {said[-1] if said else 'it said nothing'} (see {log})")
        if time.monotonic() > deadline:
            raise FerLabError(f"the server did not answer within {START_S:.0f} s")
        stop.wait(0.5)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and its worker, at once when it hangs or a second signal comes: the worker would keep the port."""
    if server.poll() is not None:
        return
    if os.name != "posix":
        server.kill()
        return
    os.killpg(server.pid, signal.SIGTERM)
    try:
        with suppress(subprocess.TimeoutExpired):
            server.wait(10)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
