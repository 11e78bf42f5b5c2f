"""Answers on the wire: JSON, and server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Iterable, Iterator, Mapping
from contextlib import aclosing
from itertools import islice

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from specplug.serving.answers import SlowReaderError

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
_NO_BUFFERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

_SLICE = 64  # items of a list that are encoded at once
_DEEPEST = 5  # a choice's log-probabilities: reply, choices, choice, logprobs, content
_PIECE = 1 << 16  # bytes


def to_json(value: object) -> bytes:
    """JSON that any text fits, broken surrogates too; an iterator becomes a list."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_listed)
    return text.encode("utf-8", "replace")


def _listed(value: object) -> list[object]:
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def event(value: object) -> bytes:
    """A server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


def json_reply(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A whole answer."""
    return Response(to_json(value), status, headers, media_type="application/json")


def json_pieces(value: object, depth: int = 0) -> Iterator[bytes]:
    """JSON of any size, as :func:`to_json` has it, in pieces none of which takes long to make.

    Encoding holds Python's lock, for the whole of a value at once; long lists are encoded by
    slices, and what iterators give is forgotten when it is encoded. Items of both are taken to be
    small, and so is what is nested deeper than the lists of an answer are.
    """
    if isinstance(value, Mapping) and value and depth < _DEEPEST:
        between = b"{"
        for key, item in value.items():
            yield between + to_json(key) + b":"
            yield from json_pieces(item, depth + 1)
            between = b","
        yield b"}"
    elif isinstance(value, Iterator) or (isinstance(value, list) and len(value) > _SLICE):
        between, rest = b"[", iter(value)
        while items := list(islice(rest, _SLICE)):
            yield between + to_json(items)[1:-1]
            between = b","
        yield b"[]" if between == b"[" else b"]"
    elif isinstance(value, list) and value and depth < _DEEPEST:
        for place, item in enumerate(value):
            yield b"," if place else b"["
            yield from json_pieces(item, depth + 1)
        yield b"]"
    else:
        yield to_json(value)


class PiecedReply(Response):
    """A whole answer that may be large.

    Args:
        pieces: of its JSON.
        send_timeout: seconds that the reader may take for each 64 KiB.
    """

    media_type = "application/json"

    def __init__(self, pieces: Iterable[bytes], send_timeout: float) -> None:
        whole = b"".join(pieces)
        super().__init__(headers={"Content-Length": str(len(whole))})
        self._whole = memoryview(whole)
        self._send_timeout = send_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it.

        Raises:
            SlowReaderError: the reader took too long.
        """
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        size = len(self._whole)
        for start in range(0, size, _PIECE):
            piece = bytes(self._whole[start : start + _PIECE])
            more = start + _PIECE < size
            message = {"type": "http.response.body", "body": piece, "more_body": more}
            await _in_time(send(message), self._send_timeout)


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
