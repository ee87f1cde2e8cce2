"""A private PostgreSQL for a test: this machine's programs, a fresh folder, a free port, no password."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compose_processes import postgres_programs
from tracking_store import free_port

START_S = 60.0


@contextmanager
def postgres(*databases: str) -> Iterator[str]:
    """A running server with these empty databases; yields `postgresql+psycopg://postgres@127.0.0.1:PORT`.

    Skips where PostgreSQL is not installed. Durability is as installed: fsync stays on.
    """
    programs, port = postgres_programs(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="fer-postgres-"))  # not below pytest's folder: PostgreSQL's account must reach it
    account: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses root
        shutil.chown(folder, "postgres", "postgres")
        account = {"user": "postgres", "group": "postgres", "extra_groups": []}
    data = folder / "data"
    quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, **account}
    initdb = [programs / "initdb", "--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "-D", data]
    subprocess.run(initdb, check=True, **quiet)
    command = [programs / "postgres", "-D", data, "-k", folder, "-h", "127.0.0.1", "-p", str(port), "-c", "max_connections=200"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stderr=log, start_new_session=True, **quiet)
    try:
        here = ["-h", "127.0.0.1", "-p", str(port), "-U", "postgres"]
        until = time.monotonic() + START_S
        while subprocess.run([programs / "pg_isready", "-q", *here]).returncode:
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until, "PostgreSQL did not start"
            time.sleep(0.1)
        for name in databases:
            subprocess.run([programs / "createdb", *here, name], check=True)
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}"
    finally:
        server.send_signal(2)  # SIGINT: the fast shutdown, whoever is connected
        server.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
