"""Reading bodies of requests: none too long, none for ever, and not too many of them at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import Receive

from specplug.arguments import shown
from specplug.serving.answers import ClientGoneError
from specplug.serving.errors import ApiError
from specplug.serving.settings import ServerSettings

_DISCARDED = 16  # times the limit: what of a body that is too long is read
_LONGEST_HEAD = 1 << 17  # bytes; servers take half of it
_OVERHEAD = 1 << 12  # bytes that a request counts beside its body and headers


class Hold:
    """What one request holds: bytes of its headers and body. Of :meth:`Intake.holding`."""

    def __init__(self, intake: Intake, owner: str) -> None:
        self._intake, self._owner = intake, owner
        self.size = 0

    def add(self, size: int) -> None:
        """Hold more.

        Raises:
            ApiError: status 503: all requests together, or those of this key, hold too much.
        """
        self._intake.take(self._owner, size)
        self.size += size


class Intake:
    """Reads bodies, within the settings' limits.

    While requests of ``max_held_bytes`` are held, others are refused; one key's may have half of
    that. Two of the longest always fit.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._longest = settings.max_body_bytes
        self._timeout = settings.body_timeout
        self._most = max(settings.max_held_bytes, 2 * (self._longest + _LONGEST_HEAD))
        self._most_each = self._most if settings.keys is None else self._most // 2
        self.held = 0
        """Bytes, of all requests that are being answered."""
        self._held_by: Counter[str] = Counter()  # the keys' owners
        self._reading: set[asyncio.Timeout] = set()
        self._ended = False

    @contextmanager
    def holding(self, headers: Headers, owner: str | None) -> Iterator[Hold]:
        """For as long as a request is answered.

        Raises:
            ApiError: status 503: too much is held.
        """
        hold = Hold(self, owner or "")
        try:
            hold.add(_OVERHEAD + sum(len(name) + len(value) for name, value in headers.raw))
            yield hold
        finally:
            self.give_back(owner or "", hold.size)

    def take(self, owner: str, size: int) -> None:
        """See :meth:`Hold.add`."""
        if self.held + size > self._most or self._held_by[owner] + size > self._most_each:
            raise _closing(
                ApiError(
                    503, "this server holds as many requests as it may: try again", retry_after=1
                )
            )
        self.held += size
        self._held_by[owner] += size

    def give_back(self, owner: str, size: int) -> None:
        """What a request held, once it is answered."""
        self.held -= size
        self._held_by[owner] -= size
        if not self._held_by[owner]:
            del self._held_by[owner]

    async def read(self, receive: Receive, headers: Headers, hold: Hold) -> bytes:
        """The body of a POST.

        Raises:
            ApiError: it is not JSON by its type (415), too long (413), does not arrive (408), or
                there are too many, or the server ends (503).
            ClientGoneError: the client went away.
        """
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, f"the body is {kind or 'of no type'}: send application/json")
        encoding = ", ".join(headers.getlist("content-encoding")).strip().lower()
        if encoding not in ("", "identity"):
            raise ApiError(
                415,
                f"the body's Content-Encoding is {shown(encoding)}: send it as it is, without one",
            )
        try:
            async with asyncio.timeout(self._timeout) as limit:
                self._reading.add(limit)
                try:
                    return await self._body(receive, headers, hold)
                finally:
                    self._reading.discard(limit)
        except TimeoutError:
            if self._ended:
                raise _closing(ApiError(503, "the server is shutting down")) from None
            raise _closing(ApiError(408, "the body did not arrive in time")) from None

    def end(self) -> None:
        """Bodies that have not arrived are not waited for any more."""
        self._ended = True
        for limit in self._reading:
            limit.reschedule(asyncio.get_running_loop().time())

    async def _body(self, receive: Receive, headers: Headers, hold: Hold) -> bytes:
        """The body; what is too long is read a while, so that its sender reads the answer."""
        most = self._longest
        too_long = _closing(ApiError(413, f"the body may have {most} bytes here at most"))
        claimed = headers.get("content-length", "0")
        if claimed.isascii() and claimed.isdigit() and int(claimed) > most * _DISCARDED:
            raise too_long
        pieces: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            piece, more = message.get("body", b""), message.get("more_body", False)
            size += len(piece)
            if size <= most:
                hold.add(len(piece))
                pieces.append(piece)
            else:
                pieces.clear()
            if size > most * _DISCARDED:
                raise too_long
        if size > most:
            raise too_long
        return b"".join(pieces)


def _closing(error: ApiError) -> ApiError:
    """The rest of the body is not wanted."""
    error.headers["Connection"] = "close"
    return error
