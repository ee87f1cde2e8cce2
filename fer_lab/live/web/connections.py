"""How many connections may stand open at the page, and how long one may keep the server waiting.

uvicorn waits without end for a first request or for the rest of a body, and its `limit_concurrency` answers 503 to everybody
as soon as that many connections are open, so that a handful of silent ones lock the honest page out. Here a connection
that waits for its client makes room for the next one, and none waits longer than `PATIENCE_S`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 64
PATIENCE_S = 10.0  # for a whole request to arrive, or for an answer to be read


class Connection(H11Protocol):
    """One connection of uvicorn's, which is dropped when its client keeps it waiting."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Take the connection; beyond the limit the one that waits longest for its client goes, never-answered ones first."""
        super().connection_made(transport)
        self._answered = False
        self._since_s = self.loop.time()
        self._watch = self.loop.call_later(PATIENCE_S, self._look)
        connections: Any = self.connections  # uvicorn's type names every protocol it knows
        if len(connections) > MOST_CONNECTIONS:
            waiting = [other for other in connections if other is not self and other._waits]
            (min(waiting, key=lambda other: (other._answered, other._since_s)) if waiting else self).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; a new request has time of its own."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._since_s = self.loop.time()

    def pause_writing(self) -> None:
        """Note when the client stopped taking what is sent to it: a long answer is read for longer than the patience."""
        self._since_s = self.loop.time()
        super().pause_writing()

    def on_response_complete(self) -> None:
        """Note when the client got its answer."""
        self._answered, self._since_s = True, self.loop.time()
        super().on_response_complete()

    @property
    def _waits(self) -> bool:
        """Whether it is the client's turn: to ask, to send the rest of a body, to read an answer."""
        cycle: Any = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body or self.flow.write_paused

    def _look(self) -> None:
        left_s = PATIENCE_S - (self.loop.time() - self._since_s)
        if self._waits and left_s <= 0:
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(max(left_s, 1.0), self._look)
