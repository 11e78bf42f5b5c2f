"""The application: routes, middleware, and its life."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from specplug.batching import BatchDecoder
from specplug.serving import errors, routes, tracing
from specplug.serving.errors import ApiError
from specplug.serving.gate import Gate
from specplug.serving.replies import json_reply
from specplug.serving.service import Service
from specplug.serving.settings import ServerSettings


def create_app(settings: ServerSettings, decoder: BatchDecoder) -> FastAPI:
    """An ASGI application that answers with a decoder.

    While it runs (between the startup and shutdown of its lifespan) it alone steps the decoder, on
    a thread of its own, and a drafter that fails is switched off for the answer
    (``broken_drafter``). ``app.state.service`` is its :class:`Service`. Closing the decoder
    afterwards is the caller's.

    Raises:
        ValueError: the decoder has no tokenizer.
        MissingExtraError: traces are asked for and OpenTelemetry is not installed.
    """
    service = Service(settings, decoder)
    tracer = tracing.tracer_for(settings)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield
        if tracer is not None:
            tracer.close()

    app = _routes(life)
    app.state.service = service
    app.add_middleware(Gate, service=service, tracer=tracer)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, **_cors(settings))
    return app


def pages() -> FastAPI:
    """The application without a decoder: ``/`` and ``/openapi.json`` are all that it can answer."""
    app = _routes(None)
    app.add_exception_handler(ApiError, _on_api)
    return app


def with_cors(app: ASGIApp, settings: ServerSettings) -> ASGIApp:
    """An application whose answers the operator's origins may read."""
    return CORSMiddleware(app, **_cors(settings)) if settings.cors_origins else app


def _routes(life: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None) -> FastAPI:
    app = FastAPI(
        title="specplug",
        version=version("specplug"),
        lifespan=life,
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.include_router(routes.router)
    app.add_exception_handler(HTTPException, _on_http)
    return app


def _cors(settings: ServerSettings) -> dict[str, Any]:
    return {
        "allow_origins": settings.cors_origins,
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["Authorization", "Content-Type", "X-Request-Id"],
        "expose_headers": ["X-Request-Id", "Retry-After"],
    }


async def _on_api(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _reply(error)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _reply(errors.from_http(error))


def _reply(error: ApiError) -> Response:
    return json_reply(error.body, error.status, error.headers)
