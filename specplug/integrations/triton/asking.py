"""From a request's inputs and parameters to what a decoder is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from specplug.generation import GenerationOptions, Prompt
from specplug.sampling import SamplingParams

_PROMPTS = ("text_input", "messages", "input_ids")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, read."""

    prompt: Prompt
    chat: bool | None
    stream: bool
    options: GenerationOptions


def read_request(inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> Asked:
    """What a request asks for.

    Args:
        inputs: those that are there: strings, a list of token ids, a truth value.
        parameters: of the request; they come before those in ``sampling_parameters``.

    Raises:
        ValueError: something is missing, unknown, or of the wrong kind; or
            :class:`SamplingParams` refuses it.
    """
    given = [name for name in _PROMPTS if name in inputs]
    if len(given) != 1:
        raise ValueError(
            f"one of {', '.join(_PROMPTS)} is needed, and {' and '.join(given) or 'none'} is given"
        )
    prompt = inputs[given[0]]
    if given[0] == "messages":
        prompt = _json("messages", prompt)
        if not isinstance(prompt, list) or not all(isinstance(one, dict) for one in prompt):
            raise ValueError("messages: need a JSON list of objects with role and content")
    told = _json("sampling_parameters", inputs.get("sampling_parameters", "{}"))
    if not isinstance(told, dict):
        raise ValueError("sampling_parameters: need a JSON object")
    asked: dict[str, Any] = {}
    for name, value in {**told, **parameters}.items():
        if name.startswith("triton_"):  # the server's own
            continue
        if name not in _KINDS:
            raise ValueError(f"parameter {name!r} is not known: have {', '.join(_KINDS)}")
        asked[name] = _KINDS[name](name, value)
    stream = asked.pop("stream", inputs.get("stream", False))
    chat = asked.pop("chat", None)
    sampling = {name: asked.pop(name) for name in [*asked] if name in _SAMPLING}
    options: GenerationOptions = {"sampling": SamplingParams(**sampling), **asked}  # type: ignore[typeddict-item]
    return Asked(prompt, chat, bool(stream), options)


# --- kinds of values; what clients cannot send otherwise, they send as text -----------------------


def _json(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"{name}: not JSON: {error}") from error


def _whole(name: str, value: Any) -> int:
    try:
        if not isinstance(value, bool) and int(value) == float(value):
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name} {value!r}: need a whole number")


def _number(name: str, value: Any) -> float:
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name} {value!r}: need a number")


def _truth(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise ValueError(f"{name} {value!r}: need true or false")


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"{name} {value!r}: need text")


def _texts(name: str, value: Any) -> list[str]:
    """One text, or a list of them, which as a parameter is JSON."""
    if isinstance(value, str) and value.startswith("["):
        value = _json(name, value)
    return [_text(name, one) for one in (value if isinstance(value, list) else [value])]


def _schema(name: str, value: Any) -> Any:
    if isinstance(value, str | bool | dict):
        return value
    raise ValueError(f"{name} {value!r}: need a JSON schema")


def _biases(name: str, value: Any) -> dict[int, float]:
    if isinstance(value, str):
        value = _json(name, value)
    if not isinstance(value, dict):
        raise ValueError(f"{name} {value!r}: need an object from token ids to numbers")
    return {_whole(name, token): _number(name, bias) for token, bias in value.items()}


def _wholes(name: str, value: Any) -> list[int]:
    if isinstance(value, str):
        value = _json(name, value)
    if not isinstance(value, list):
        raise ValueError(f"{name} {value!r}: need a list of token ids")
    return [_whole(name, one) for one in value]


_KINDS: Mapping[str, Callable[[str, Any], Any]] = {
    "max_tokens": _whole,
    "temperature": _number,
    "top_k": _whole,
    "top_p": _number,
    "min_p": _number,
    "typical_p": _number,
    "repetition_penalty": _number,
    "presence_penalty": _number,
    "frequency_penalty": _number,
    "no_repeat_ngram": _whole,
    "logit_bias": _biases,
    "banned_tokens": _wholes,
    "seed": _whole,
    "sample": _whole,
    "acceptance": _text,
    "json_schema": _schema,
    "regex": _text,
    "stop": _texts,
    "prediction": _text,
    "tenant": _text,
    "speculation": _truth,
    "echo": _truth,
    "chat": _truth,
    "stream": _truth,
}
_SAMPLING = {field.name for field in fields(SamplingParams)}
