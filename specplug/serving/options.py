"""From a request to what is asked of the decoder: here, and nowhere else."""

from __future__ import annotations

import secrets
from collections.abc import Set
from typing import Any

from specplug.generation_options import GenerationOptions, Prompt
from specplug.prompts import PromptOptions
from specplug.sampling import SamplingParams
from specplug.serving.constraints import constraint
from specplug.serving.errors import ApiError
from specplug.serving.requests import (
    LENGTHS,
    RANDOM_SEED,
    ChatRequest,
    CompletionRequest,
    Content,
    GenerateRequest,
    Message,
)
from specplug.serving.settings import ServerSettings
from specplug.types import EngineSpec

COMPLETION_TOKENS = 16
"""New tokens of ``/v1/completions`` where a request does not say; OpenAI's number."""

MOST_LOGPROBS = 1 << 18
"""Log-probabilities in one reply that is not streamed: about 25 MB of JSON."""

_COLDEST = 1e-4  # below it logits divided by the temperature leave what 32 bits can tell apart


def chat_prompt(request: ChatRequest) -> Prompt:
    """The messages, as a template takes them."""
    return [_message(message) for message in request.messages]


def _message(message: Message) -> dict[str, str]:
    made = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _text(message.content, "\n"),
    }
    if message.name is not None:
        made["name"] = message.name
    thought = message.reasoning_content or message.reasoning
    if thought is not None:  # templates use one name or the other
        made |= {"reasoning_content": thought, "reasoning": thought}
    return made


def completion_prompts(request: CompletionRequest) -> list[Prompt]:
    """The prompts, of which a request may have several."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


def prompt_options(
    request: GenerateRequest, variables: Set[str], spec: EngineSpec, settings: ServerSettings
) -> PromptOptions:
    """How the prompt becomes token ids.

    Args:
        request: a chat or a completion.
        variables: that the chat template reads.
        spec: of the target.
        settings: of the server.

    Raises:
        ApiError: status 400: what the template cannot do, or fields that contradict one another.
    """
    made: PromptOptions = {
        "chat": isinstance(request, ChatRequest),
        "truncate_prompt_tokens": request.truncate_prompt_tokens,
    }
    if request.truncate_prompt_tokens == -1:
        room = spec.context_limit - (_length(request)[1] or COMPLETION_TOKENS)
        made["truncate_prompt_tokens"] = max(1, min(room, settings.max_prompt_tokens or room))
    if isinstance(request, ChatRequest):
        made["chat_template_kwargs"] = _template_variables(request, variables)
        made["add_generation_prompt"] = request.add_generation_prompt
        made["continue_final_message"] = bool(request.continue_final_message)
    return made


def _template_variables(request: ChatRequest, variables: Set[str]) -> dict[str, Any]:
    """Variables for the template, from all fields that are about them."""
    made = dict(request.chat_template_kwargs or {})
    effort, thinking = request.reasoning_effort, request.enable_thinking
    for name, value in (("enable_thinking", thinking), ("reasoning_effort", effort)):
        if value is not None and made.get(name, value) != value:
            raise ApiError(
                400, f"{name} {value!r}: chat_template_kwargs has {made[name]!r}: give one of them",
                param=name,
            )  # fmt: skip
    if not variables & _NO_THINKING.keys():  # then no answer is begun with thinking
        made = {name: value for name, value in made.items() if not _asks_for_none(name, value)}
    if thinking is not None:
        if "enable_thinking" in variables:
            made["enable_thinking"] = thinking
        elif thinking or variables & _NO_THINKING.keys():
            raise _no_variable("enable_thinking", variables)
    if effort is not None:
        if "reasoning_effort" in variables:
            made["reasoning_effort"] = effort
        if "enable_thinking" in variables:
            made.setdefault("enable_thinking", effort != "none")
        elif "reasoning_effort" not in variables and (
            effort != "none" or variables & _NO_THINKING.keys()
        ):
            raise _no_variable("reasoning_effort", variables)
    return made


_NO_THINKING = {"enable_thinking": False, "thinking": False, "reasoning_effort": "none"}
"""What asks a chat template for an answer without thinking."""


def _asks_for_none(name: str, value: object) -> bool:
    return name in _NO_THINKING and value == _NO_THINKING[name]


def _no_variable(name: str, variables: Set[str]) -> ApiError:
    known = ", ".join(sorted(variables & _NO_THINKING.keys()))
    return ApiError(
        400,
        f"{name}: this model's chat template does not know it"
        + (f"; it knows {known}: set it in chat_template_kwargs" if known else ""),
        param=name, code="unsupported_parameter",
    )  # fmt: skip


def generation_options(request: GenerateRequest, *, tenant: str) -> GenerationOptions:
    """All but ``max_tokens`` and ``sample``, which differ between a request's answers.

    Raises:
        ApiError, ValueError: an option out of its range.
    """
    options: GenerationOptions = {
        "sampling": _sampling(request),
        "min_tokens": request.min_tokens or 0,
        "stop": request.stop or (),
        "stop_token_ids": request.stop_token_ids or (),
        "ignore_eos": bool(request.ignore_eos),
        "include_stop_str_in_output": bool(request.include_stop_str_in_output),
        "skip_special_tokens": request.skip_special_tokens is not False,
        "bad_words": request.bad_words or (),
        "tenant": tenant,
        "logprobs": _logprobs(request),
        "prompt_logprobs": request.prompt_logprobs,
        "speculation": request.speculation is not False,
    }
    if request.prediction is not None:
        options["prediction"] = _text(request.prediction.content, "")
    if isinstance(request, CompletionRequest):
        options["echo"] = bool(request.echo)
    return options


def echoed(request: GenerateRequest) -> str:
    """The text that a chat's answer begins with."""
    if not isinstance(request, ChatRequest) or not request.echo:
        return ""
    last = request.messages[-1]
    return _text(last.content, "\n") if last.role == "assistant" else ""


def check_prompt(
    request: GenerateRequest,
    tokens: int,
    spec: EngineSpec,
    settings: ServerSettings,
    *,
    at_least: bool = False,
) -> None:
    """Refuse a prompt that is too long for the server or the context.

    Args:
        request: whose prompt it is.
        tokens: of the prompt.
        spec: of the target.
        settings: of the server.
        at_least: the prompt has so many tokens or more.

    Raises:
        ApiError: status 400.
    """
    asked = _length(request)[1] or 1
    prompt = "messages" if isinstance(request, ChatRequest) else "prompt"
    number = f"{tokens} or more" if at_least else f"{tokens}"
    room = spec.context_limit - tokens
    if room >= 1 and tokens > (settings.max_prompt_tokens or tokens):
        raise ApiError(
            400,
            f"the prompt has {number} tokens; this server takes {settings.max_prompt_tokens} at "
            "most",
            param=prompt,
            code="prompt_too_long",
        )
    if room < asked:
        raise ApiError(
            400,
            f"the model's context is {spec.context_limit} tokens, and {number} of prompt and"
            f" {asked} of answer were asked for: shorten the prompt or the answer",
            param=prompt,
            code="context_length_exceeded",
        )


def max_tokens(
    request: GenerateRequest, prompt_tokens: int, spec: EngineSpec, settings: ServerSettings
) -> int:
    """New tokens that an answer may have.

    Raises:
        ApiError: status 400: more than the server allows, or than the context has room for.
    """
    param, asked, usual = _length(request)
    check_prompt(request, prompt_tokens, spec, settings)
    room = spec.context_limit - prompt_tokens
    most = min(room, settings.max_tokens or room)
    fitting = _fitting(request, prompt_tokens)
    if fitting is not None and fitting < min(most, asked or most):
        if asked is not None:
            raise _too_many_logprobs(param, f"{asked} tokens")
        most = fitting
    if asked is None:
        return min(most, usual or most)
    if asked > most:
        raise ApiError(400, f"{param} {asked}: this server gives {most} at most", param=param)
    return asked


def _fitting(request: GenerateRequest, prompt_tokens: int) -> int | None:
    """New tokens of an answer with whose log-probabilities a reply holds ``MOST_LOGPROBS`` of them;
    None: any number, as in a stream, which holds none.

    Raises:
        ApiError: status 400: the prompt's alone are more.
    """
    if request.stream:
        return None
    prompts = len(completion_prompts(request)) if isinstance(request, CompletionRequest) else 1
    room = MOST_LOGPROBS // (prompts * (request.n or 1))
    if request.prompt_logprobs is not None:
        room -= prompt_tokens * (request.prompt_logprobs + 1)
        if room < 0:
            raise _too_many_logprobs("prompt_logprobs", f"{prompt_tokens} tokens of prompt")
    wanted = _logprobs(request)
    if wanted is None:
        return None
    room //= wanted + 1
    if isinstance(request, CompletionRequest) and request.echo:
        room -= prompt_tokens
        if room < 1:
            raise _too_many_logprobs("echo", f"{prompt_tokens} tokens of prompt")
    return room


def _too_many_logprobs(param: str, what: str) -> ApiError:
    return ApiError(
        400,
        f"{param}: the log-probabilities of {what}, in all answers, are more than the "
        f"{MOST_LOGPROBS:,} that one reply has room for: ask for fewer, or stream them",
        param=param,
    )


def _length(request: GenerateRequest) -> tuple[str, int | None, int | None]:
    """The field that says how long an answer may be, what it says, and how long the answer is if
    that is None; both None: any length.
    """
    for name in LENGTHS:
        asked: int | None = getattr(request, name)
        if asked is not None:
            return name, None if asked == -1 else asked, None
    usual = COMPLETION_TOKENS if isinstance(request, CompletionRequest) else None
    return "max_tokens", None, usual


def _sampling(request: GenerateRequest) -> SamplingParams:
    temperature = 1.0 if request.temperature is None else request.temperature
    if temperature < _COLDEST:
        temperature = 0.0
    seed = request.seed
    if seed is None or seed == RANDOM_SEED:
        seed = secrets.randbits(63)
    wanted = constraint(request)
    return SamplingParams(
        temperature=temperature,
        top_p=request.top_p or 1.0,
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        typical_p=request.typical_p or 1.0,
        repetition_penalty=request.repetition_penalty or request.repeat_penalty or 1.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        no_repeat_ngram=request.no_repeat_ngram_size or 0,
        logit_bias={int(token): bias for token, bias in (request.logit_bias or {}).items()},
        allowed_token_ids=request.allowed_token_ids,
        seed=seed % (1 << 64),
        **({} if wanted is None else {wanted.name: wanted.value}),
    )


def _logprobs(request: GenerateRequest) -> int | None:
    if isinstance(request, CompletionRequest):
        return request.logprobs
    assert isinstance(request, ChatRequest)
    return (request.top_logprobs or 0) if request.logprobs else None


def field_of(message: str, request: GenerateRequest) -> str | None:
    """The field that an error of the decoder is about; its message begins with the option's name.

    Args:
        message: of the error.
        request: whose option it was.
    """
    name = message.partition(" ")[0].rstrip(":")
    wanted = constraint(request)
    if wanted is not None and name == wanted.name:
        return wanted.field
    if name in _OTHER_NAMES:
        return _OTHER_NAMES[name]
    if name in type(request).model_fields:
        return name
    return "prompt" if message.startswith(("the prompt", "token id")) else None


_OTHER_NAMES = {"no_repeat_ngram": "no_repeat_ngram_size", "bad_words_ids": "bad_words"}


def _text(content: Content, between: str) -> str:
    return content if isinstance(content, str) else between.join(part.text for part in content)
