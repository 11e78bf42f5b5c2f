"""The addresses."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from specplug.arguments import shown
from specplug.serving import options, playground
from specplug.serving.bodies import StrictRoute
from specplug.serving.errors import ApiError, ErrorResponse
from specplug.serving.replies import json_reply
from specplug.serving.replying import Reply
from specplug.serving.requests import ChatRequest, CompletionRequest, GenerateRequest
from specplug.serving.responses import ChatResponse, CompletionResponse, Health, Model, ModelList
from specplug.serving.service import Asked, Service
from specplug.serving.shapes import ChatShape, CompletionShape, Shape

router = APIRouter(route_class=StrictRoute)


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    named: list[int | str] = [*statuses, "default"]
    return {status: {"model": ErrorResponse} for status in named}


_ANSWERED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "Whole, or streamed."},
    **_failures(400, 401, 404, 408, 413, 415, 429, 500, 503, 504),
}


@router.post("/v1/chat/completions", response_model=ChatResponse, responses=_ANSWERED)
async def chat_completions(request: ChatRequest, http: Request) -> Response:
    """Answer a conversation."""
    service = _service(http)
    if not service.tokenizer.has_chat_template:
        raise ApiError(404, "this model has no chat template: use /v1/completions")
    shape = ChatShape(
        service.tokenizer,
        logprobs=bool(request.logprobs),
        origins=_wants_origins(request),
        as_ids=bool(request.return_tokens_as_token_ids),
        echoed=options.echoed(request),
    )
    return await _reply(http, request, [options.chat_prompt(request)], shape)


@router.post("/v1/completions", response_model=CompletionResponse, responses=_ANSWERED)
async def completions(request: CompletionRequest, http: Request) -> Response:
    """Continue texts."""
    shape = CompletionShape(
        _service(http).tokenizer,
        logprobs=request.logprobs is not None,
        origins=_wants_origins(request),
        as_ids=bool(request.return_tokens_as_token_ids),
    )
    return await _reply(http, request, options.completion_prompts(request), shape)


@router.get("/v1/models", response_model=ModelList, responses=_failures(401))
async def models(http: Request) -> Response:
    """What can be asked."""
    return json_reply({"object": "list", "data": [_model(_service(http))]})


@router.get("/v1/models/{model:path}", response_model=Model, responses=_failures(401, 404))
async def model(model: str, http: Request) -> Response:
    """One of them."""
    service = _service(http)
    _check_model(service, model)
    return json_reply(_model(service))


@router.head("/health", include_in_schema=False)
@router.get("/health", response_model=Health, responses=_failures(503))
async def health(http: Request) -> Response:
    """Whether the server is alive, and the thread that decodes, and its engine answers."""
    if (illness := _service(http).illness) is not None:
        raise ApiError(503, illness)
    return json_reply({"status": "ok"})


@router.head("/ready", include_in_schema=False)
@router.get("/ready", response_model=Health, responses=_failures(503))
async def ready(http: Request) -> Response:
    """Whether requests are taken."""
    if not _service(http).ready:
        raise ApiError(503, "the server takes no requests now")
    return json_reply({"status": "ok"})


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(http: Request) -> Response:
    """For Prometheus."""
    return Response(_service(http).metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The playground."""
    return playground.page()


async def _reply(
    http: Request, request: GenerateRequest, prompts: list[Any], shape: Shape
) -> Response:
    service = _service(http)
    if request.model is not None:
        _check_model(service, request.model)
    asked = Asked(
        request,
        prompts,
        owner=http.state.record.key or "",
        chat=isinstance(request, ChatRequest),
        deadline=asyncio.get_running_loop().time() + service.settings.request_timeout,
    )
    return await Reply(service, asked, shape, http).response()


def _service(http: Request) -> Service:
    service: Service = http.app.state.service
    return service


def _wants_origins(request: GenerateRequest) -> bool:
    return request.stream_options is not None and bool(request.stream_options.include_token_origins)


def _check_model(service: Service, name: str) -> None:
    if name != service.settings.model_name:
        raise ApiError(
            404,
            f"there is no model {shown(name)} here, but {service.settings.model_name!r}",
            param="model",
            code="model_not_found",
        )


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.settings.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "specplug",
        "max_model_len": service.decoder.target.spec.context_limit,
    }
