"""From a request's inputs and parameters to what a decoder is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from specplug import option_values as values
from specplug.generation_options import CallOptions, Prompt
from specplug.sampling import SamplingParams

_PROMPTS = ("text_input", "messages", "input_ids")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, read."""

    prompt: Prompt
    stream: bool
    options: CallOptions


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
        prompt = values.parsed_json("messages", prompt)
        if not isinstance(prompt, list) or not all(isinstance(one, dict) for one in prompt):
            raise ValueError("messages: need a JSON list of objects with role and content")
    told = values.parsed_json("sampling_parameters", inputs.get("sampling_parameters", "{}"))
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
    sampling = {name: asked.pop(name) for name in [*asked] if name in _SAMPLING}
    options: CallOptions = {"sampling": SamplingParams(**sampling), **asked}  # type: ignore[typeddict-item]
    return Asked(prompt, bool(stream), options)


_KINDS: Mapping[str, Callable[[str, Any], Any]] = {
    "max_tokens": values.whole,
    "min_tokens": values.whole,
    "temperature": values.number,
    "top_k": values.whole,
    "top_p": values.number,
    "min_p": values.number,
    "typical_p": values.number,
    "repetition_penalty": values.number,
    "presence_penalty": values.number,
    "frequency_penalty": values.number,
    "no_repeat_ngram": values.whole,
    "logit_bias": values.biases,
    "banned_tokens": values.wholes,
    "bad_words_ids": values.whole_lists,
    "bad_words": values.texts,
    "allowed_token_ids": values.wholes,
    "forced_tokens": values.positions,
    "seed": values.whole,
    "sample": values.whole,
    "acceptance": values.text,
    "json_schema": values.schema,
    "json_object": values.truth,
    "regex": values.text,
    "choice": values.texts,
    "grammar": values.text,
    "structural_tag": values.table,
    "stop": values.texts,
    "stop_token_ids": values.wholes,
    "ignore_eos": values.truth,
    "include_stop_str_in_output": values.truth,
    "skip_special_tokens": values.truth,
    "prediction": values.text,
    "tenant": values.text,
    "speculation": values.truth,
    "echo": values.truth,
    "chat": values.truth,
    "chat_template_kwargs": values.table,
    "add_generation_prompt": values.truth,
    "continue_final_message": values.truth,
    "truncate_prompt_tokens": values.whole,
    "stream": values.truth,
}
_SAMPLING = {field.name for field in fields(SamplingParams)}
