"""Answers on the wire: JSON, and server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from specplug.serving.answers import SlowReaderError

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
_NO_BUFFERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def to_json(value: object) -> bytes:
    """JSON that any text fits, broken surrogates too."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def event(value: object) -> bytes:
    """A server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


def json_reply(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A whole answer."""
    return Response(to_json(value), status, headers, media_type="application/json")


class EventStream(Response):
    """Sends events as they come, and comments, which clients skip, where none comes for a while.

    Until the first of either is sent, failures still have a status.

    Args:
        events: closed when the stream ends, however it ends.
        send_timeout: seconds that the reader may take for each piece.
        comment_after: seconds without an event before a comment; proxies close silent connections.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], send_timeout: float, comment_after: float
    ) -> None:
        super().__init__(headers=_NO_BUFFERS)
        del self.headers["content-length"]
        self._events = events
        self._send_timeout = send_timeout
        self._comment_after = comment_after
        self._sending = asyncio.Lock()
        self._began = self._ended = False
        self._last = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them all.

        Raises:
            SlowReaderError: the reader took too long.
        """
        self._last = asyncio.get_running_loop().time()
        commenting = asyncio.create_task(self._comment(send))
        try:
            async with aclosing(self._events) as events:
                async for piece in events:
                    await self._send(send, piece)
            await self._send(send, b"", more=False)
        finally:
            async with self._sending:  # a comment is sent whole or not at all
                commenting.cancel()

    async def _comment(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(SlowReaderError):  # the next event will meet it, too
            while True:
                rest = self._last + self._comment_after - loop.time()
                if rest <= 0 and not self._sending.locked():
                    await self._send(send, COMMENT)
                else:
                    await asyncio.sleep(max(rest, 0.05))

    async def _send(self, send: Send, piece: bytes, *, more: bool = True) -> None:
        async with self._sending:
            if self._ended:
                return
            if not self._began:
                self._began = True
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await _in_time(send(start), self._send_timeout)
            message = {"type": "http.response.body", "body": piece, "more_body": more}
            await _in_time(send(message), self._send_timeout)
            self._ended = not more
            self._last = asyncio.get_running_loop().time()


async def _in_time(sending: Awaitable[None], seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await sending
    except TimeoutError:
        raise SlowReaderError from None
