"""What clients talk to: an ASGI application that hands every request to some replica.

Its key, its names and its size are checked before anything of it is read, or sent to a replica. It
is read whole before it is sent, and nothing of an answer is passed on before it has
text. A replica that is lost until then costs time alone: another one is asked, and gives the same
text, since that depends on the seed and the request has one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from specplug.library_errors import is_panic
from specplug.serving.answers import ClientGoneError
from specplug.serving.cluster.metrics import Counts, merged
from specplug.serving.cluster.replica import REPLICA_HEADER
from specplug.serving.cluster.requests import Forwarded, prepared
from specplug.serving.door import PUBLIC, Door, is_public, refuse_other, route_path
from specplug.serving.errors import ApiError, internal_error
from specplug.serving.intake import Hold, Intake
from specplug.serving.replies import event, json_reply
from specplug.serving.settings import ServerSettings

_log = logging.getLogger(__name__)

_LONG = 1 << 16  # bytes of a body that is looked at beside the event loop
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
        settings: keys, names, and the limits of bodies; those of answers are the replicas'.
        pages: answers ``GET /`` and ``GET /openapi.json``, which no replica is needed for.
    """

    def __init__(
        self,
        call: Call,
        replicas: Callable[[], Mapping[str, str]],
        *,
        retries: int,
        prefix_characters: int,
        settings: ServerSettings,
        pages: ASGIApp,
    ) -> None:
        self._call = call
        self._replicas = replicas
        self._retries = retries
        self._prefix_characters = prefix_characters
        self._door = Door(settings)
        self._intake = Intake(settings)
        self._pages = pages
        self.counts = Counts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] != "http":
            await refuse_other(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        relay = _Relay(send)
        headers = Headers(scope=scope)
        try:
            owner = self._door.admit(scope, headers)
            if is_public(scope):
                await self._public(scope)(scope, receive, send)
                return
            self.counts.requests += 1
            with self._intake.holding(headers, owner) as hold:
                request = await self._read(scope, headers, receive, hold)
                await self._send_until_answered(request, relay)
            return
        except ClientGoneError:
            return
        except ApiError as error:
            failure = error
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            request_id = headers.get("x-request-id", "")
            _log.exception("request %s failed", request_id)
            failure = internal_error(request_id)
        if not relay.started:
            await json_reply(failure.body, failure.status, failure.headers)(scope, receive, send)
        elif relay.streams:
            await send({"type": "http.response.body", "body": event(failure.body)})
        else:
            raise failure  # the connection is cut, so that the body is seen to be broken

    def _public(self, scope: Scope) -> ASGIApp:
        """What answers a request that no replica is asked for."""
        path = route_path(scope)
        if path in ("/", "/openapi.json"):
            return self._pages
        if scope["method"] != "GET":
            error = ApiError(405, "Method Not Allowed")
            error.headers = {"Allow": "GET"}
            raise error
        replicas = self._replicas()
        if path == "/metrics":
            return Response(merged(replicas, self.counts), media_type="text/plain; version=0.0.4")
        if path == "/ready" and not replicas:
            raise ApiError(503, "no replica is ready", retry_after=1)
        return json_reply({"status": "ok"})

    async def _read(
        self, scope: Scope, headers: Headers, receive: Receive, hold: Hold
    ) -> Forwarded:
        """The whole request, as it is sent to replicas."""
        path = route_path(scope)
        body = b""
        if scope["method"] == "POST" and path not in PUBLIC:
            body = await self._intake.read(receive, headers, hold)
        request = Forwarded(
            method=scope["method"],
            path=path,
            root_path=scope["path"].removesuffix(path),
            query=scope["query_string"],
            # Pages were let in, or not, by the ingress; it also sends them their headers.
            headers=tuple(pair for pair in headers.raw if pair[0] != b"origin"),
            body=body,
        )
        make = partial(prepared, request, prefix_characters=self._prefix_characters)
        return make() if len(body) < _LONG else await asyncio.to_thread(make)

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


class _Relay:
    """Passes an answer on from its first piece of text; until then another replica may give it.

    Comments of a stream are passed on at once. Then its status is sent, and a replica that is asked
    after that can only go on with events.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._refused = False
        self.streams = False
        self.started = False
        """Whether a status was sent."""
        self.begun = False
        """Whether any of an answer was."""

    async def pass_on(self, message: Message) -> None:
        """Send a message, or keep it back."""
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            streams = kind.startswith(b"text/event-stream")
            self._refused = self.started and not streams
            self.streams = streams or self.started
            self._start = message
            return
        body: bytes = message.get("body", b"")
        if self._refused:
            body = b"data: " + body + b"\n\n"
            message = {**message, "body": body}
        self.begun |= not (self.streams and body.startswith(b":"))
        if self._start is not None and not self.started:
            await self._send(self._start)
            self.started = True
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
