"""Attacks on a real demo page server while an honest client keeps sending frames: what it answers, what it costs.

    FER_LAB_FAULTS=long python -m pytest -m faults tests/faults/test_demo_server_attacks.py

The honest client sends one frame after the other, as the page does; its rate is taken in turns without and with the attack.
The server's peak of resident memory is read from the kernel (VmHWM) and held against its memory before the first attack.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import select
import socket
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import pytest
from fault_figures import LONG, count, publish
from PIL import Image

from fer_lab.core.labels import EIGHT

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, forks"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
BUNDLE = Path(__file__).parents[2] / "experiments" / "models" / "ferplus8-b0"
MB = 1_000_000
ATTACKS_PER_S = 10.0
LARGE_PER_S = 2.0  # of 100 MB
CROWD_LOOKS_PER_S = 2.0
REOPENED_PER_S = 100  # of the connections that were dropped
FLOOR = 0.8 if LONG else 0.5  # of the honest client's rate; the quick variant sees too few frames for more
TURN_S = 4.0 if LONG else 1.5


@dataclass
class Server:
    """A running page."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def memory_mb(self, name: str) -> float:
        """VmRSS (now) or VmHWM (peak since `forget_peak`)."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024 / MB
        raise KeyError(name)

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The shipped network behind the page; it is still up and has complained of nothing when the last attack is over."""
    folder = tmp_path_factory.mktemp("page")
    command = [sys.executable, "-m", "fer_lab.demo", str(BUNDLE), "--view", "web", "--port", "0", "--no-browser"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    address = process.stdout.readline().decode()
    assert address.startswith("page: "), (folder / "log").read_text()
    running = Server(process, int(address.split()[1].rstrip("/").rpartition(":")[2]), folder / "log")
    honest(running.port, 3.0)  # allocators and caches have their size afterwards
    yield running
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=20)
    assert "Traceback" not in running.log.read_text()


def frame() -> bytes:
    """A 640×480 JPEG with one drawn face, as a camera page sends it."""
    import numpy as np

    from fer_lab.data.synthetic import draw_large

    picture = np.full((480, 640), 90, np.uint8)
    picture[100:364, 180:444] = draw_large(EIGHT.labels[1], 264, np.random.default_rng(0))
    return cv2.imencode(".jpg", picture)[1].tobytes()


def honest(port: int, seconds: float) -> tuple[int, int]:
    """Frames answered and frames refused or lost within `seconds`, one in flight, reconnecting where it must."""
    body, until = frame(), time.monotonic() + seconds
    good = bad = 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    while time.monotonic() < until:
        try:
            connection.request("POST", "/api/frame", body, {"X-Stream": "honest"})
            answer = connection.getresponse()
            answer.read()
            good, bad = (good + 1, bad) if answer.status == 200 else (good, bad + 1)
        except (OSError, http.client.HTTPException):
            connection.close()
            bad += 1
    connection.close()
    return good, bad


# ---------------------------------------------------------------- the attacks: each gives back what the server answered


def asked(port: int, head: str, body: Iterator[bytes] | bytes = b"", wait_s: float = 20.0) -> int | str:
    """Send a request, reading while sending; the status, or how the connection ended."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as link, contextlib.suppress(TimeoutError):
        try:
            link.sendall(f"{head}\r\n\r\n".encode())
            for part in [body] if isinstance(body, bytes) else body:
                if select.select([link], [], [], 0)[0]:
                    break
                link.sendall(part)
        except (ConnectionError, BrokenPipeError):
            pass
        try:
            first = link.recv(64)
        except ConnectionError:
            return "closed"
        return int(first.split()[1]) if first else "closed"
    return "kept waiting"


def posted(port: int, body: bytes, **headers: str) -> int | str:
    """POST /api/frame with these headers (underscores stand for hyphens)."""
    fields = {"Host": f"127.0.0.1:{port}", "Content-Length": str(len(body))} | headers
    lines = "".join(f"\r\n{name.replace('_', '-')}: {value}" for name, value in fields.items())
    return asked(port, f"POST /api/frame HTTP/1.1{lines}", body)


def hundred_mb_announced(port: int) -> int | str:
    head = f"POST /api/frame HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {100 * MB}"
    return asked(port, head, (b"x" * MB for _ in range(100)))


def hundred_mb_in_chunks(port: int) -> int | str:
    head = f"POST /api/frame HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nTransfer-Encoding: chunked"
    return asked(port, head, (b"%x\r\n%s\r\n" % (MB, b"x" * MB) for _ in range(100)))


def encoded(kind: str, width: int, height: int, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("L" if kind == "JPEG" else "1", (width, height)).save(buffer, kind, **options)
    return buffer.getvalue()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, with right checksums."""
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def deflated(size_mb: int) -> bytes:
    """Zeros that inflate to that much."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(MB)) for _ in range(size_mb)) + packer.flush()


def bombs() -> dict[str, tuple[bytes, int]]:
    """Pictures that are small on the wire, and the status for each."""
    header = (b"IHDR", struct.pack(">IIBBBBB", 100, 100, 8, 0, 0, 0, 0))
    film = io.BytesIO()
    still = Image.new("L", (8, 8))
    still.save(film, "GIF", save_all=True, append_images=[Image.new("L", (8, 8), i % 256) for i in range(count(500, 10_000))])
    return {
        "65 megapixels, PNG": (encoded("PNG", 8192, 8000), 422),
        "65 megapixels, JPEG": (encoded("JPEG", 8192, 8000, quality=10), 422),
        "PNG whose text inflates to 500 MB": (png(header, (b"zTXt", b"a\0\0" + deflated(500))), 422),
        "PNG whose profile inflates to 500 MB": (png(header, (b"iCCP", b"a\0\0" + deflated(500))), 422),
        "PNG whose 100×100 pixels inflate to 500 MB": (png(header, (b"IDAT", deflated(500)), (b"IEND", b"")), 200),
        "GIF of many pictures": (film.getvalue(), 200),  # the first counts
        "30 000 × 30 000 in the header": (png((b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0))), 422),
    }


@dataclass
class Crowd:
    """Connections that are held open; each call opens some of those that were dropped and does a little with each."""

    most: int
    greeting: bytes = b""  # sent once
    drip: bytes = b""  # sent on every call
    links: list[socket.socket] = field(default_factory=list)

    def __call__(self, port: int) -> int | str:
        dropped = 0
        for link in self.links[:]:
            try:
                link.send(self.drip)
                closed = not link.recv(1)
            except BlockingIOError:  # neither an answer nor an end
                closed = False
            except OSError:
                closed = True
            if closed:
                self.links.remove(link)
                link.close()
                dropped += 1
        first = not self.links and not dropped
        for _ in range(min(self.most - len(self.links), self.most if first else int(REOPENED_PER_S / CROWD_LOOKS_PER_S))):
            link = socket.socket()
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # an answer that is not read soon fills it
            link.settimeout(5)
            try:
                link.connect(("127.0.0.1", port))
                self.links.append(link)
                link.setblocking(False)
                link.send(self.greeting)
            except OSError:
                break
        return "dropped" if dropped else "waits"


def crowds(port: int) -> dict[str, Crowd]:
    post = f"POST /api/frame HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: ".encode()
    get = f"GET /static/app.js HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    return {
        "1 000 silent connections": Crowd(1000),
        "slow headers": Crowd(200, b"GET /model HTTP/1.1\r\n", b"X"),
        "slow bodies": Crowd(200, post + b"1000\r\n\r\n", b"x"),
        "bodies that stop at 7 MB of 8": Crowd(16, post + b"8000000\r\n\r\n" + b"x" * 7 * MB),
        "answers that nobody reads": Crowd(20, get * 30),
    }


def attacker(attack: Callable[[int], int | str], port: int, per_s: float, begun: Any, stop: Any, found: Any) -> None:
    """The forked attacker: attack until told to stop; `begun` after the first one, when a crowd stands there."""
    os.nice(5)  # it stands for another machine; this one's two cores are the server's and the honest client's
    answers: Counter[int | str] = Counter()
    while not stop.is_set():
        began = time.monotonic()
        answers[attack(port)] += 1
        begun.set()
        stop.wait(max(0.0, 1 / per_s - (time.monotonic() - began)))
    found.put(dict(answers))


@dataclass
class Outcome:
    """answers: what the attacker got. ratio: the honest client's rate during the attack over its rate without."""

    answers: Counter[int | str]
    ratio: float
    fps: float
    refused: int  # honest frames
    peak_mb: float


def under(attack: Callable[[int], int | str], server: Server, per_s: float = ATTACKS_PER_S) -> Outcome:
    """Take turns without, with, without … the attack.

    The ratio is the median over the attacked turns, each held against the mean of the quiet ones before and after it, so that
    neither a drift nor one burst of other work on the machine decides.
    """
    context = get_context("fork")
    honest(server.port, 0.5)
    before = server.memory_mb("VmRSS")
    server.forget_peak()
    answers: Counter[int | str] = Counter()
    quiet, attacked, refused = [honest(server.port, TURN_S)[0]], [], 0
    for _ in range(count(2, 5)):
        begun, stop, found = context.Event(), context.Event(), context.SimpleQueue()
        process = context.Process(target=attacker, args=(attack, server.port, per_s, begun, stop, found))
        process.start()
        assert begun.wait(60)
        good, bad = honest(server.port, TURN_S)
        attacked.append(good)
        refused += bad
        stop.set()
        answers.update(found.get())
        process.join()
        quiet.append(honest(server.port, TURN_S)[0])
    ratios = [2 * frames / (one + other) for frames, one, other in zip(attacked, quiet, quiet[1:], strict=False)]
    rate = statistics.fmean(quiet) / TURN_S
    return Outcome(answers, statistics.median(ratios), rate, refused, server.memory_mb("VmHWM") - before)


def publish_outcomes(name: str, outcomes: dict[str, Outcome]) -> None:
    """Write what was measured."""
    rows = {
        what: {
            "answers": {str(k): v for k, v in o.answers.items()}, "honest_rate_ratio": round(o.ratio, 3),
            "honest_fps_without": round(o.fps, 1), "honest_frames_refused": o.refused, "peak_growth_mb": round(o.peak_mb, 1),
        }
        for what, o in outcomes.items()
    }  # fmt: skip
    publish(
        name, attacks=rows, smallest_honest_rate_ratio=min(row["honest_rate_ratio"] for row in rows.values()),
        largest_peak_growth_mb=max(row["peak_growth_mb"] for row in rows.values()),
    )  # fmt: skip


def withstood(name: str, outcomes: dict[str, Outcome]) -> None:
    """Memory, the honest client's rate, and that none of its frames was refused."""
    publish_outcomes(name, outcomes)
    for what, outcome in outcomes.items():
        assert outcome.refused == 0, what
        assert outcome.ratio >= FLOOR, (what, outcome.ratio)
        assert outcome.peak_mb < 50, (what, outcome.peak_mb)


def test_requests_that_do_not_belong_here(server: Server) -> None:
    """Wrong Host 400, wrong Origin and cross-site fetches 403, too large a body 413: announced, and found out."""
    body = frame()
    attacks: dict[str, tuple[Callable[[int], int | str], int]] = {
        "wrong Host": (lambda port: posted(port, body, Host="evil.example"), 400),
        "wrong Origin": (lambda port: posted(port, body, Origin="http://evil.example"), 403),
        "Origin: null": (lambda port: posted(port, body, Origin="null"), 403),
        "no Origin, but cross-site": (lambda port: posted(port, body, Sec_Fetch_Site="cross-site"), 403),
        "100 MB announced": (hundred_mb_announced, 413),
        "100 MB in chunks": (hundred_mb_in_chunks, 413),
        "no picture": (lambda port: posted(port, b"x" * 1000), 422),
    }
    outcomes = {
        what: under(attack, server, LARGE_PER_S if status == 413 else ATTACKS_PER_S) for what, (attack, status) in attacks.items()
    }  # fmt: skip
    for what, (_, status) in attacks.items():
        assert set(outcomes[what].answers) == {status}, (what, outcomes[what].answers)
    withstood("demo_server_requests", outcomes)


def test_pictures_that_are_bombs(server: Server) -> None:
    """Small on the wire, huge when decoded: 422 with a sentence, before memory is taken."""
    outcomes = {}
    for what, (body, status) in bombs().items():
        outcomes[what] = under(lambda port, body=body: posted(port, body), server)
        assert set(outcomes[what].answers) == {status}, (what, outcomes[what].answers)
    withstood("demo_server_bombs", outcomes)


def test_clients_that_keep_the_server_waiting(server: Server) -> None:
    """1 000 connections, slow ones, ones that never read: they make room, the honest client never waits for them."""
    outcomes = {}
    for what, crowd in crowds(server.port).items():
        outcomes[what] = under(crowd, server, CROWD_LOOKS_PER_S)
    withstood("demo_server_waiting", outcomes)


def test_a_newcomer_gets_in_through_a_thousand_silent_connections(server: Server) -> None:
    """Not only who was there before: a page that is opened now is answered at once."""
    crowd = Crowd(1000)
    crowd(server.port)
    began = time.monotonic()
    good, bad = honest(server.port, 1.0)
    assert good > 0
    assert bad == 0
    assert asked(server.port, f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{server.port}") == 200
    assert time.monotonic() - began < 5
    for link in crowd.links:
        link.close()


def test_silence_ends_within_the_servers_patience(server: Server) -> None:
    """A connection that says nothing, and one that stops in mid-body, are closed after ten seconds."""
    post = f"POST /api/frame HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: 1000\r\n\r\nx"
    links = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
    links[1].send(post.encode())
    began = time.monotonic()
    for link in links:
        link.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            assert link.recv(10) == b""
        link.close()
    assert 8 < time.monotonic() - began < 14
