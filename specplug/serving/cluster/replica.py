"""One replica: the server's own application, called without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.types import ASGIApp, Message, Scope

from specplug.serving.cluster.requests import Forwarded

REPLICA_HEADER = b"x-specplug-replica"
"""Names, in every answer, the replica that gave it."""

_REQUEST_ID = b"x-request-id"  # Ray's proxy gives it to the request, and to the answer


async def answer(app: ASGIApp, request: Forwarded, name: str) -> AsyncIterator[list[Message]]:
    """Yield the application's messages, as many at a time as there are.

    When the iterator is closed or cancelled the application sees its client go.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    gone = asyncio.Event()
    asked = False

    async def receive() -> Message:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": request.body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = (one for one in message["headers"] if one[0] != _REQUEST_ID)
            message["headers"] = [*kept, (REPLICA_HEADER, name.encode())]
        messages.put_nowait(message)

    async def run() -> None:
        try:
            await app(_scope(request), receive, send)
        finally:
            messages.put_nowait(None)

    running = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            ready = [message]
            while not messages.empty() and (message := messages.get_nowait()) is not None:
                ready.append(message)
            yield ready
            if message is None:
                break
        await running  # raises what the application raised
    finally:
        gone.set()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


def _scope(request: Forwarded) -> Scope:
    path = request.root_path + request.path
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": request.query,
        "root_path": request.root_path,
        "headers": list(request.headers),
        "client": None,
        "server": None,
        "state": {},
    }
