"""Who may talk to the page: Host, Origin, token, sizes. A page of another site must not reach the local server.

Host is checked because of DNS rebinding, Origin because browsers send cross-site POSTs without asking.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

MOST_BODY_BYTES = 8_000_000
MOST_HELD_BYTES = 16_000_000  # of all bodies that are being received or looked at
WELCOME_BYTES = 300_000  # a body up to here is taken even then: the page's own frames have a third of it
OPEN_PATHS = frozenset({"/health"})
LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})  # what only this machine can reach
STATIC = "/static/"

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cache-control": "no-store",
}

CLOSE = (b"connection", b"close")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def host_of(header: str) -> str:
    """The name without the port: `[::1]:80` → `::1`.

    >>> host_of("localhost:8765"), host_of("[::1]:80")
    ('localhost', '::1')
    """
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def place_of(origin: str) -> str:
    """Name and port of an origin, empty for what is none.

    >>> place_of("https://Demo.example.org:443"), place_of("null"), place_of("http://[")
    ('demo.example.org:443', '', '')
    """
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def allowed_hosts(bound: str) -> frozenset[str] | None:
    """Names under which a server bound to this address may be asked for; None: any address literal or own name."""
    return LOCAL if bound in LOCAL else None


class Guard:
    """ASGI middleware that turns away what does not belong here, before any handler runs."""

    def __init__(self, app: Any, *, bound: str, token: str | None, names: Iterable[str] = ()) -> None:
        self._app = app
        self._hosts = allowed_hosts(bound)
        self._names = {name.lower() for name in names}
        self._own = {socket.gethostname().lower(), bound.lower(), "localhost"}
        self._token = token
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, take the whole body, then pass on; security headers are added to the answer.

        The application sees a request only when all of it is here: a slow body costs it nothing.
        """
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        body = bytearray()
        given = False

        async def received() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {k.lower() for k, _ in message["headers"]}
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in names]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        try:
            refusal = self._refusal(scope, headers) or await self._take(receive, body)
            if refusal is not None:
                await _answer(send, *refusal)
                return
            await self._app(scope, received, dressed)
        finally:
            self._held -= len(body)

    async def _take(self, receive: Receive, body: bytearray) -> tuple[int, str] | None:
        """Read the body; status and reason when it is refused."""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return 400, "the request did not arrive"  # nobody reads this
            part = message.get("body", b"")
            body += part
            self._held += len(part)
            if len(body) > MOST_BODY_BYTES:
                return 413, _too_large()
            if self._held > MOST_HELD_BYTES and len(body) > WELCOME_BYTES:
                return 503, "too many large frames at once; send it again"
            more = message.get("more_body", False)
        return None

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._host_is_ours(host_of(host)):
            return 400, f"this server does not answer to the name {host_of(host)[:100]!r}; start it with --allow-host NAME"
        origin = headers.get("origin")
        if origin is not None and not self._origin_is_ours(place_of(origin), host.lower()):
            return 403, "another site's page may not use this server"
        if headers.get("sec-fetch-site") == "cross-site" and (
            scope["method"] != "GET" or headers.get("sec-fetch-mode") != "navigate"
        ):
            return 403, "another site's page may not use this server"
        length = headers.get("content-length")
        if length is not None and (not length.isdigit() or int(length) > MOST_BODY_BYTES):
            return 413, _too_large()
        path = scope["path"]
        if self._token is not None and path not in OPEN_PATHS and not path.startswith(STATIC):
            given = headers.get("x-token") or parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if not hmac.compare_digest(given.encode(), self._token.encode()):
                return 401, "the token is missing or wrong: open the page with ?token=…"
        return None

    def _origin_is_ours(self, origin: str, host: str) -> bool:
        """A proxy that was named with --allow-host may ask for its own page under the server's name."""
        return origin == host or host_of(origin) in self._names

    def _host_is_ours(self, host: str) -> bool:
        if host in self._names:
            return True
        if self._hosts is not None:
            return host in self._hosts
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return host in self._own
        return True


def _too_large() -> str:
    return f"a frame has at most {MOST_BODY_BYTES // 1_000_000} MB"


async def _answer(send: Send, status: int, text: str) -> None:
    import json

    body = json.dumps({"error": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [CLOSE]  # a body that was refused is not read either
    headers += [(k.encode(), v.encode()) for k, v in HEADERS.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
