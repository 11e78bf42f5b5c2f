"""Connections that send too slowly, take too slowly, or are too many."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Iterable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from specplug.serving.errors import ApiError
from specplug.serving.replies import to_json
from specplug.serving.settings import ServerSettings

_log = logging.getLogger(__name__)

_REFUSED = 64  # connections, beside the limit, that may be told that they are too many
_LEAVE = 2.0  # seconds for a client to read why its connection ends, before it is broken
_READ = 1 << 14  # bytes that are read and parsed at once; asyncio would take 16 times as much
_CHUNKS, _SMALL = 100, 64  # chunks of a body that may be smaller than so many bytes on average
_SILENCE = 60.0  # seconds between two lines of the log about refused connections


class _Parser(h11.Connection):
    """Reads requests, and gives up bodies in very many very small chunks: a byte in a chunk of its
    own costs ten microseconds, with or without a key.
    """

    def next_event(self) -> Any:
        """As h11's.

        Raises:
            h11.RemoteProtocolError: the client sent no HTTP, or too many chunks.
        """
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._pieces += event.chunk_start
            self._bytes += len(event.data)
            if self._pieces > _CHUNKS and self._bytes < (self._pieces - 1) * _SMALL:
                raise h11.RemoteProtocolError("too many small chunks")
        return event


class Connection(H11Protocol):
    """Uvicorn's HTTP connection, with a bound on everything that a client can keep it waiting for.

    :func:`sweep` has to be called now and then, such as every half second. Times are those of the
    event loop's clock.
    """

    limits = ServerSettings()
    """Of a server, in a class of its own: see :func:`with_limits`."""
    _quiet_until = 0.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = _Parser(h11.SERVER)

    def connection_made(self, transport: Any) -> None:
        """Take a connection; if there are too many, end the one that has waited longest, or it."""
        self.last_event = self.loop.time()
        """When it was made, or its last request was answered, or the next one began to come."""
        self.header_began = True  # a new connection has something to say
        self.freed = False
        """Whether it was ended for another one's sake, so that it counts no more."""
        self._leaves: float | None = None
        self._stuck: float | None = None
        everybody = [one for one in self.connections if isinstance(one, Connection)]
        transport.max_size = _READ
        super().connection_made(transport)
        most = self.limits.max_connections
        if len(everybody) < most:
            return
        crowd = [one for one in everybody if not one.freed]
        if len(crowd) < most:
            return
        patient = _most_patient(crowd)
        if patient is not None:
            patient.free()
        else:
            self._refuse(len(everybody) - len(crowd))

    @property
    def waiting(self) -> bool:
        """Whether it is the client's turn, to send a request's head."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def answering(self) -> bool:
        """Whether the client has sent a whole request and its answer has not been given."""
        return not (self.waiting or self.cycle.more_body or self.transport.is_closing())

    @property
    def address(self) -> str:
        """Whose it is."""
        return self.client[0] if self.client else ""

    def data_received(self, data: bytes) -> None:
        """The first piece of a request's head starts its time; the next ones do not prolong it."""
        if self._leaves is not None:
            return  # read only since closing would lose what the client has yet to read
        if self.waiting and not self.header_began:
            self.header_began, self.last_event = True, self.loop.time()
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Say that it was no HTTP, unless an answer has begun already: then just end it."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def on_response_complete(self) -> None:
        """The client may send its next request, or has in part."""
        self.header_began, self.last_event = False, self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client takes less than it is sent."""
        self._stuck = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client has taken most of it."""
        self._stuck = None
        super().resume_writing()

    def check(self, now: float) -> None:
        """End it if its time is over."""
        limits, transport = self.limits, self.transport
        if self._leaves is None and transport.is_closing():
            self._leaves = now + limits.send_timeout
        if self._leaves is not None:
            if now > self._leaves:
                transport.abort()
        elif self._stuck is not None and now > self._stuck + 2 * limits.send_timeout:
            transport.abort()  # the application would have given it up before, if it still sent
        elif self.waiting:
            allowed = limits.header_timeout if self.header_began else limits.idle_timeout
            if now > self.last_event + allowed:
                self.leave()

    def leave(self) -> None:
        """Close it while it waits, with a word if a request has begun to come."""
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self._say(ApiError(408, "the request's head did not arrive in time"))
        else:
            self.timeout_keep_alive_handler()

    def free(self) -> None:
        """End it at once, without a word."""
        self.freed = True
        if self.waiting and not self.transport.get_write_buffer_size():
            self.timeout_keep_alive_handler()  # in good order: the client may just be idle
        else:
            self.transport.abort()

    def _refuse(self, refused: int) -> None:
        self.freed = True
        if self.loop.time() > Connection._quiet_until:
            Connection._quiet_until = self.loop.time() + _SILENCE
            _log.warning("all %d connections are taken: refusing", self.limits.max_connections)
        if refused > _REFUSED:
            self.transport.abort()
        else:
            self._say(ApiError(503, "the server has too many connections", retry_after=1))

    def _say(self, error: ApiError) -> None:
        """Answer without a request, and end; a client that is still sending reads the answer."""
        self._leaves = self.loop.time() + _LEAVE
        body = to_json(error.body)
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **error.headers,
        }
        reason = HTTPStatus(error.status).phrase.encode()
        for event in (
            h11.Response(status_code=error.status, headers=list(headers.items()), reason=reason),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        if self.transport.can_write_eof():
            self.transport.write_eof()


def _most_patient(crowd: Collection[Connection]) -> Connection | None:
    """Of those that wait for their client, the one to end; None: all are being answered.

    Whoever has most connections loses one, so nobody can take others' places by opening many.
    """
    counts = Counter(one.address for one in crowd)
    return max(
        (one for one in crowd if not one.answering),
        key=lambda one: (counts[one.address], -one.last_event),
        default=None,
    )


def sweep(connections: Iterable[object], now: float) -> None:
    """End the connections whose time is over.

    Args:
        connections: of a server; those of other kinds are left alone.
        now: of the event loop's clock.
    """
    for one in list(connections):
        if isinstance(one, Connection):
            one.check(now)


def with_limits(settings: ServerSettings) -> type[asyncio.Protocol]:
    """The kind of connection of a server."""
    return type("Connection", (Connection,), {"limits": settings})
