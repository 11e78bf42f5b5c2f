"""What clients talk to: an ASGI application that hands every request to some replica.

A request is read whole before it is sent, and nothing of an answer is passed on before it has
text. A replica that is lost until then costs time alone: another one is asked, and gives the same
text, since that depends on the seed and the request has one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from specplug.serving.answers import ClientGoneError
from specplug.serving.cluster.metrics import Counts, merged
from specplug.serving.cluster.replica import REPLICA_HEADER
from specplug.serving.cluster.requests import Forwarded, prepared
from specplug.serving.errors import ApiError, internal_error
from specplug.serving.replies import event, json_reply

_log = logging.getLogger(__name__)

_ELSEWHERE = (429, 500, 503)
"""Statuses of a replica that is full, broken or ending: others may do better."""


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
        elif scope["method"] == "GET" and scope["path"] in ("/health", "/ready", "/metrics"):
            await self._status(scope["path"])(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    def _status(self, path: str) -> Response:
        replicas = self._replicas()
        if path == "/metrics":
            return Response(merged(replicas, self.counts), media_type="text/plain; version=0.0.4")
        if path == "/ready" and not replicas:
            error = ApiError(503, "no replica is ready", retry_after=1)
            return json_reply(error.body, error.status, error.headers)
        return json_reply({"status": "ok"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.counts.requests += 1
        relay = _Relay(send)
        try:
            request = Forwarded(
                method=scope["method"],
                path=scope["path"],
                query=scope["query_string"],
                headers=tuple((bytes(name), bytes(value)) for name, value in scope["headers"]),
                body=await self._read(receive),
            )
            request = prepared(request, prefix_characters=self._prefix_characters)
            await self._send_until_answered(request, relay)
            return
        except ClientGoneError:
            return
        except ApiError as error:
            failure = error
        except Exception:
            request_id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
            _log.exception("request %s failed", request_id)
            failure = internal_error(request_id)
        if not relay.begun:
            await json_reply(failure.body, failure.status, failure.headers)(scope, receive, send)
        elif relay.streams:
            await send({"type": "http.response.body", "body": event(failure.body)})
        else:
            raise failure  # the connection is cut, so that the body is seen to be broken

    async def _send_until_answered(self, request: Forwarded, relay: _Relay) -> None:
        for attempt in range(self._retries + 1):
            self.counts.retries += attempt > 0
            last = attempt == self._retries
            try:
                async with aclosing(self._call(request)) as messages:
                    async for message in messages:
                        if message.get("status") in _ELSEWHERE and not last:
                            name = dict(message["headers"])[REPLICA_HEADER].decode()
                            request = replace(request, avoid=request.avoid | {name})
                            if self._replicas().keys() - request.avoid:
                                break
                        await relay.pass_on(message)
                    else:
                        return
            except ReplicaLostError as lost:
                if relay.begun:
                    self.counts.lost += 1
                    raise ApiError(
                        503, "the replica that wrote this answer was lost: ask again",
                        code="replica_lost",
                    ) from lost  # fmt: skip
                relay.forget()
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
                        raise ClientGoneError
                    body += message.get("body", b"")
                    if len(body) > self._max_body_bytes:
                        raise ApiError(
                            413,
                            f"the body has more than {self._max_body_bytes} bytes, "
                            "which is the most here",
                        )
                    more = message.get("more_body", False)
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time") from None
        return bytes(body)


class _Relay:
    """Passes an answer on from its first piece of a body; until then nothing has happened."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self.streams = False
        self.begun = False

    async def pass_on(self, message: Message) -> None:
        """Send a message, or keep it back."""
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            self.streams = kind.startswith(b"text/event-stream")
            self._start = message
            return
        self.begun = True
        if self._start is not None:
            await self._send(self._start)
            self._start = None
        await self._send(message)

    def forget(self) -> None:
        """What was kept back is another replica's to say."""
        self._start = None


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
