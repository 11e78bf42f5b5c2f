"""What clients talk to: an ASGI application that hands every request to some replica.

A request is read whole before it is sent, and nothing of an answer is passed on before it has
text. A replica that is lost until then costs time alone: another one is asked, and gives the same
text, since that depends on the seed and the request has one.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from specplug.serving.cluster.metrics import Counts, merged
from specplug.serving.cluster.requests import Forwarded, prepared
from specplug.serving.errors import ApiError, internal_error

_log = logging.getLogger(__name__)


class ReplicaLostError(Exception):
    """The replica died, or cannot be reached, before its answer was complete."""


Call = Callable[[Forwarded], AsyncGenerator[Message, None]]
"""Sends a request to a replica and yields its ASGI messages.

Raises:
    ReplicaLostError: the replica is gone.
    ApiError: no replica takes the request.
"""


class Ingress:
    """See the module; knows nothing of Ray.

    Args:
        call: how a request gets to a replica.
        replicas: the replicas that can be called now, with the latest metrics of each.
        retries: how many further replicas a request may be sent to.
        prefix_characters: how much of the prompt requests must share to go to one replica.
        max_body_bytes: longer bodies are refused.
        body_timeout: seconds for a request's body to arrive.
    """

    def __init__(
        self,
        call: Call,
        replicas: Callable[[], Mapping[str, str]],
        *,
        retries: int,
        prefix_characters: int,
        max_body_bytes: int,
        body_timeout: float,
    ) -> None:
        self._call = call
        self._replicas = replicas
        self._retries = retries
        self._prefix_characters = prefix_characters
        self._max_body_bytes = max_body_bytes
        self._body_timeout = body_timeout
        self.counts = Counts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
        elif scope["method"] in ("GET", "HEAD") and scope["path"] in ("/health", "/ready"):
            if self._replicas() or scope["path"] == "/health":
                await _send_json(send, 200, {"status": "ok"})
            else:
                await _Relay(send).fail(ApiError(503, "no replica is ready yet", retry_after=1))
        elif scope["method"] == "GET" and scope["path"] == "/metrics":
            text = merged(self._replicas(), self.counts)
            await _send(send, 200, text.encode(), b"text/plain; version=0.0.4; charset=utf-8")
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.counts.requests += 1
        relay = _Relay(send)
        try:
            body = await self._read(receive)
            request = Forwarded(
                method=scope["method"],
                path=scope["path"],
                query=scope["query_string"],
                headers=tuple((bytes(name), bytes(value)) for name, value in scope["headers"]),
                body=body,
            )
            await self._send_until_answered(
                prepared(request, prefix_characters=self._prefix_characters), relay
            )
        except ClientDisconnect:
            return  # nobody is there to be told
        except ApiError as error:
            await relay.fail(error)
        except Exception:
            request_id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
            _log.exception("request %s failed", request_id)
            await relay.fail(internal_error(request_id))

    async def _send_until_answered(self, request: Forwarded, relay: _Relay) -> None:
        for attempt in range(self._retries + 1):
            try:
                async with aclosing(self._call(request)) as messages:
                    async for message in messages:
                        await relay.send(message)
                await relay.flush()
            except ReplicaLostError as lost:
                if relay.begun:
                    self.counts.lost += 1
                    raise ApiError(
                        503, "the replica that wrote this answer was lost: ask again",
                        code="replica_lost",
                    ) from lost  # fmt: skip
                relay.forget()
                self.counts.retries += attempt < self._retries
            else:
                return
        self.counts.lost += 1
        raise ApiError(
            503, f"{self._retries + 1} replicas were lost over this request: ask again later",
            code="replica_lost", retry_after=5,
        )  # fmt: skip

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_timeout):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    body += message.get("body", b"")
                    if len(body) > self._max_body_bytes:
                        raise ApiError(
                            413, f"the body has more than {self._max_body_bytes} bytes, the limit"
                        )
                    more = message.get("more_body", False)
        except TimeoutError:
            raise ApiError(
                408, f"the body did not arrive within {self._body_timeout:g} seconds"
            ) from None
        return bytes(body)


class _Relay:
    """Passes an answer on, once it has text; until then nothing of it has happened."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: list[Message] = []
        self._events = False
        self.begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            self._events = kind.startswith(b"text/event-stream")
        self._held.append(message)
        if self.begun or self._has_text(message):
            await self.flush()

    def _has_text(self, message: Message) -> bool:
        if not message.get("body"):
            return False
        return not self._events or any(map(_says_something, message["body"].split(b"\n")))

    async def flush(self) -> None:
        held, self._held = self._held, []
        for message in held:
            self.begun = True
            await self._send(message)

    def forget(self) -> None:
        self._held.clear()

    async def fail(self, error: ApiError) -> None:
        """Tell the client, in whatever way is left."""
        if not self.begun:
            headers = [
                (name.lower().encode(), value.encode())
                for name, value in (error.headers or {}).items()
            ]
            await _send_json(self._send, error.status_code, error.body, headers)
        elif self._events:
            event = b"data: " + json.dumps(error.body).encode() + b"\n\n"
            await self._send({"type": "http.response.body", "body": event})
        else:
            raise error  # the server cuts the connection, so that the body is seen to be broken


def _says_something(line: bytes) -> bool:
    """Whether a line of a stream has more than the beginning of a chat message."""
    if not line.startswith(b"data: "):
        return False
    try:
        event = json.loads(line.removeprefix(b"data: "))
        return any(
            choice.get("finish_reason")
            or choice.get("text")
            or choice.get("delta", {}).get("content")
            for choice in event["choices"]
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return True  # an error, [DONE], or what is not known here


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _send_json(
    send: Send, status: int, content: object, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    await _send(send, status, json.dumps(content).encode(), b"application/json", headers)


async def _send(
    send: Send,
    status: int,
    body: bytes,
    kind: bytes,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", kind),
                (b"content-length", str(len(body)).encode()),
                *(headers or []),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
