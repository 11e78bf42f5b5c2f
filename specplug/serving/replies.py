"""Answers on the wire: JSON, and server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from specplug.serving.answers import SlowReaderError

DONE = b"data: [DONE]\n\n"
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
    """Sends events as they come. Until the first one is there, failures still have a status.

    Args:
        events: closed when the stream ends, however it ends.
        send_timeout: seconds that the reader may take for each piece.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], send_timeout: float) -> None:
        super().__init__(headers=_NO_BUFFERS)
        del self.headers["content-length"]
        self._events = events
        self._send_timeout = send_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them all.

        Raises:
            SlowReaderError: the reader took too long.
        """
        async with aclosing(self._events) as events:
            piece = await anext(events)
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            await self._send(send, piece, more=True)
            async for piece in events:
                await self._send(send, piece, more=True)
            await self._send(send, b"", more=False)

    async def _send(self, send: Send, piece: bytes, *, more: bool) -> None:
        message: dict[str, Any] = {"type": "http.response.body", "body": piece, "more_body": more}
        try:
            async with asyncio.timeout(self._send_timeout):
                await send(message)
        except TimeoutError:
            raise SlowReaderError from None
