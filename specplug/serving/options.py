"""From a request to what is asked of the decoder: here, and nowhere else."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from pydantic import BaseModel

from specplug.generation import GenerationOptions, Prompt
from specplug.sampling import SamplingParams
from specplug.serving.errors import ApiError
from specplug.serving.requests import (
    ChatRequest,
    CompletionRequest,
    Content,
    GenerateRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
)
from specplug.serving.settings import ServerSettings
from specplug.types import EngineSpec

COMPLETION_TOKENS = 16
"""New tokens of ``/v1/completions`` where a request does not say; OpenAI's number."""

_COLDEST = 1e-4  # below it logits divided by the temperature leave what 32 bits can tell apart

_UNSUPPORTED = {
    "tools": "tools are not supported",
    "tool_choice": "tools are not supported",
    "functions": "functions are not supported",
    "function_call": "functions are not supported",
    "tool_calls": "tools are not supported",
    "audio": "audio is not supported",
    "modalities": "only text is supported",
    "web_search_options": "web search is not supported",
    "moderation": "moderation is not supported",
    "suffix": "text before a suffix is not supported",
}
_HARMLESS: dict[str, Sequence[object]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "tool_calls": ([],),
    "modalities": (["text"],),
    "suffix": ("",),
}


def refuse_unsupported(request: GenerateRequest) -> None:
    """Refuse what would change the answer and cannot be done; other unknown fields are ignored.

    Raises:
        ApiError: status 400.
    """
    if isinstance(request, CompletionRequest) and request.best_of not in (None, request.n or 1):
        raise ApiError(
            400, f"best_of {request.best_of}: only n ({request.n or 1}) is supported",
            param="best_of", code="unsupported_parameter",
        )  # fmt: skip
    bodies: list[tuple[str, BaseModel]] = [("", request)]
    if isinstance(request, ChatRequest):
        bodies += [(f"messages.{i}.", message) for i, message in enumerate(request.messages)]
    for where, body in bodies:
        for name, value in (body.model_extra or {}).items():
            if name in _UNSUPPORTED and value is not None and value not in _HARMLESS.get(name, ()):
                raise ApiError(
                    400, _UNSUPPORTED[name], param=where + name, code="unsupported_parameter"
                )


def chat_prompt(request: ChatRequest) -> Prompt:
    """The messages, as a template takes them."""
    return [
        {
            "role": "system" if message.role == "developer" else message.role,
            "content": _text(message.content, "\n"),
        }
        for message in request.messages
    ]


def completion_prompts(request: CompletionRequest) -> list[Prompt]:
    """The prompts, of which a request may have several."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


def generation_options(request: GenerateRequest, *, tenant: str) -> GenerationOptions:
    """All but ``max_tokens`` and ``sample``, which differ between a request's answers.

    Raises:
        ValueError: an option out of its range.
    """
    options: GenerationOptions = {
        "sampling": _sampling(request),
        "stop": request.stop or (),
        "tenant": tenant,
        "logprobs": _logprobs(request),
        "speculation": request.speculation is not False,
    }
    if request.prediction is not None:
        options["prediction"] = _text(request.prediction.content, "")
    if isinstance(request, CompletionRequest):
        options["echo"] = bool(request.echo)
    return options


def max_tokens(
    request: GenerateRequest, prompt_tokens: int, spec: EngineSpec, settings: ServerSettings
) -> int:
    """New tokens that an answer may have.

    Raises:
        ApiError: status 400: more than the server allows, or than the context has room for.
    """
    prompt = "messages" if isinstance(request, ChatRequest) else "prompt"
    param, asked = "max_tokens", request.max_tokens
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        param, asked = "max_completion_tokens", request.max_completion_tokens
    room = spec.context_limit - prompt_tokens
    if room >= 1 and prompt_tokens > (settings.max_prompt_tokens or prompt_tokens):
        raise ApiError(
            400,
            f"the prompt has {prompt_tokens} tokens; this server takes "
            f"{settings.max_prompt_tokens} at most",
            param=prompt,
            code="prompt_too_long",
        )
    if room < (asked or 1):
        raise ApiError(
            400,
            f"the model's context is {spec.context_limit} tokens, and {prompt_tokens} of prompt and"
            f" {asked or 1} of answer were asked for: shorten the prompt or the answer",
            param=prompt,
            code="context_length_exceeded",
        )
    most = min(room, settings.max_tokens or room)
    if asked is None:
        return min(most, COMPLETION_TOKENS) if isinstance(request, CompletionRequest) else most
    if asked > most:
        raise ApiError(400, f"{param} {asked}: this server gives {most} at most", param=param)
    return asked


def _sampling(request: GenerateRequest) -> SamplingParams:
    temperature = 1.0 if request.temperature is None else request.temperature
    if temperature < _COLDEST:
        temperature = 0.0
    seed = secrets.randbits(63) if request.seed is None else request.seed % (1 << 64)
    schema = None
    if isinstance(request.response_format, JsonObjectFormat):
        schema = {"type": "object"}
    elif isinstance(request.response_format, JsonSchemaFormat):
        schema = request.response_format.json_schema.schema_
    return SamplingParams(
        temperature=temperature,
        top_p=request.top_p or 1.0,
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias={int(token): bias for token, bias in (request.logit_bias or {}).items()},
        json_schema=schema,
        seed=seed,
    )


def _logprobs(request: GenerateRequest) -> int | None:
    if isinstance(request, CompletionRequest):
        return request.logprobs
    assert isinstance(request, ChatRequest)
    if request.top_logprobs and not request.logprobs:
        raise ApiError(400, "top_logprobs: it needs logprobs to be true", param="top_logprobs")
    return (request.top_logprobs or 0) if request.logprobs else None


def _text(content: Content, between: str) -> str:
    return content if isinstance(content, str) else between.join(part.text for part in content)
