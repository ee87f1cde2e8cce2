"""How long a client of the page may keep the server waiting."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from fer_lab.live.web import connections

PATIENCE_S = 1.5
CHUNK = bytes(180_000)


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server whose answer never ends and is written faster than any of these clients reads."""
    monkeypatch.setattr(connections, "PATIENCE_S", PATIENCE_S)
    app = FastAPI()

    @app.get("/")
    def stream() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            while True:
                yield CHUNK
                await asyncio.sleep(0.005)

        return StreamingResponse(chunks())

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", lifespan="off", http=connections.Connection, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(10)
    listener.close()


def read_for(client: socket.socket, seconds: float, pause_s: float) -> bool:
    """Take 64 kB at a time with pauses; whether the server still sends at the end."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if not client.recv(65_536):
                return False
        except ConnectionError:
            return False
        time.sleep(pause_s)
    return True


def test_a_client_that_reads_without_pause_is_served_however_slow_its_link(port: int) -> None:
    """Slower than the film, for three times the patience."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_for(client, 3 * PATIENCE_S, 0.02)


def test_a_client_that_stops_reading_is_dropped(port: int) -> None:
    """After the patience, and a little for the server to look."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        client.recv(1000)
        time.sleep(2 * PATIENCE_S + 2)
        assert not read_for(client, 10, 0.0)
