"""What every request goes through first and last: id, key, size, and its line in the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from specplug.library_errors import is_panic
from specplug.serving import tracing
from specplug.serving.answers import ClientGoneError, SlowReaderError
from specplug.serving.door import PUBLIC, Door, refuse_other, route_path
from specplug.serving.errors import ApiError, internal_error
from specplug.serving.intake import Intake
from specplug.serving.logs import Record
from specplug.serving.replies import event, json_reply
from specplug.serving.service import Service

_log = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9_.:/+=-]{1,128}")
_QUIET = ("/health", "/ready", "/metrics")


class Gate:
    """Middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service, tracer: tracing.Tracer | None) -> None:
        self._app = app
        self._service = service
        self._tracer = tracer
        self._door = Door(service.settings)
        self._intake = Intake(service.settings)
        service.on_abort.append(self._intake.end)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; whatever fails, the answer has OpenAI's shape and the log a line."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await refuse_other(scope, receive, send)
            return
        path = route_path(scope)  # the router changes the scope
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        record = Record(
            id=given if _ID.fullmatch(given) else uuid.uuid4().hex,
            method=scope["method"],
            path=scope["path"],
        )
        scope.setdefault("state", {})["record"] = record

        async def noting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                if record.status >= 400 and record.outcome == "ok":
                    record.outcome = "refused"
                MutableHeaders(scope=message)["X-Request-Id"] = record.id
            await send(message)

        service = self._service
        service.in_flight += 1
        service.metrics.in_flight.inc()
        try:
            await self._guarded(scope, headers, receive, noting_send, record)
        finally:
            service.in_flight -= 1
            service.metrics.in_flight.dec()
            record.seconds = time.perf_counter() - record.started
            route = getattr(scope.get("route"), "path", "other")
            service.metrics.ended_request(record, route)
            if path not in _QUIET or record.status >= 400:
                record.write()
                if self._tracer is not None:
                    self._tracer.span(record, route, headers)

    async def _guarded(
        self, scope: Scope, headers: Headers, receive: Receive, send: Send, record: Record
    ) -> None:
        try:
            record.key = self._door.admit(scope, headers)
            if scope["method"] != "POST" or route_path(scope) in PUBLIC:  # nothing reads a body
                await self._app(scope, receive, send)
                return
            self._check_state()
            with self._intake.holding(headers, record.key) as hold:
                body = await self._intake.read(receive, headers, hold)
                await self._app(scope, _again(body, receive), send)
            return
        except ApiError as error:
            failure = error
            record.outcome = error.outcome
        except ClientGoneError:
            record.outcome, record.status = "client_gone", record.status or 499
            return
        except SlowReaderError:
            record.outcome, record.status = "slow_reader", record.status or 499
            return
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            _log.exception("request %s failed", record.id)
            record.outcome = "failed"
            failure = internal_error(record.id)
        if record.status:  # a stream has begun
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._service.settings.send_timeout):
                    await send({"type": "http.response.body", "body": event(failure.body)})
        else:
            reply = json_reply(failure.body, failure.status, failure.headers)
            await reply(scope, receive, send)

    def _check_state(self) -> None:
        if self._service.draining:
            retry_after = max(1, int(self._service.settings.shutdown_timeout))
            raise ApiError(503, "the server is shutting down", retry_after=retry_after)
        if self._service.trouble is not None:
            raise ApiError(503, "the server cannot answer now: its engine does not respond")


def _again(body: bytes, receive: Receive) -> Receive:
    """Receives a body that was read, and then what comes after it."""
    waiting = [body]

    async def again() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return again
