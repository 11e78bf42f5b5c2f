"""An ASGI application, called as a server would call it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from specplug.serving.keys import KeyRing, hash_key

KEYS = KeyRing({"anna": hash_key("a key of anna's")})
BEARER = (b"authorization", b"Bearer a key of anna's")
JSON = (b"content-type", b"application/json")


class Answer:
    """What an application sent, and what its router did to the scope."""

    def __init__(self, scope: Scope, sent: list[Message], body_read: bool) -> None:
        self.status: int = sent[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        self.body = b"".join(message.get("body", b"") for message in sent[1:])
        self.endpoint: str = getattr(scope.get("endpoint"), "__name__", "")
        self.body_read = body_read

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


def ask(
    app: ASGIApp,
    path: str,
    method: str = "GET",
    *headers: tuple[bytes, bytes],
    body: bytes = b"{}",
    host: bytes | None = b"127.0.0.1:8000",
    **fields: Any,
) -> Answer:
    """Call an application as a server would, with a path that it has decoded."""
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [*([] if host is None else [(b"host", host)]), *headers],
        "client": ("127.0.0.1", 9),
        "server": ("127.0.0.1", 8000),
        **fields,
    }
    sent: list[Message] = []
    read = False

    async def receive() -> Message:
        nonlocal read
        if read:
            await asyncio.sleep(60)
        read = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    async def call() -> None:
        async with asyncio.timeout(20):
            await app(scope, receive, send)

    asyncio.run(call())
    return Answer(scope, sent, read)
