"""Every field of a request is followed, harmless or refused by name; nothing is ignored."""

from __future__ import annotations

import json
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import chat, completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.shared_params import (
    ResponseFormatJSONObject,
    ResponseFormatJSONSchema,
    ResponseFormatText,
)
from openai.types.shared_params.response_format_json_schema import JSONSchema
from pydantic import TypeAdapter, ValidationError

from specplug.serving import requests
from specplug.serving.errors import ApiError, from_validation
from specplug.serving.requests import Body, ChatRequest, CompletionRequest

BODIES = {
    "chat": (ChatRequest, {"messages": [{"role": "user", "content": "x"}]}),
    "completion": (CompletionRequest, {"prompt": "x"}),
}
CLASSES = {
    made.__name__: made
    for made in vars(requests).values()
    if isinstance(made, type) and issubclass(made, Body) and made is not Body
}


def refusal(body: type[Body], fields: dict[str, Any]) -> ApiError | None:
    """What the server says to an object, if it refuses it."""
    try:
        TypeAdapter(body).validate_python(fields)
    except ValidationError as wrong:
        return from_validation(wrong)
    return None


def names_of(body: type[Body]) -> frozenset[str]:
    """All fields of an object that something is decided of."""
    return body.followed() | body.others.harmless.keys() | body.others.refused.keys()


def fields_of(parameters: Any) -> set[str]:
    return set(typing.get_type_hints(parameters))


# --- what others send -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (chat_create_params.CompletionCreateParamsBase, ChatRequest),
        (completion_create_params.CompletionCreateParamsBase, CompletionRequest),
        (chat.ChatCompletionAssistantMessageParam, requests.Message),
        (chat.ChatCompletionUserMessageParam, requests.Message),
        (chat.ChatCompletionSystemMessageParam, requests.Message),
        (chat.ChatCompletionDeveloperMessageParam, requests.Message),
        (chat.ChatCompletionToolMessageParam, requests.Message),
        (chat.ChatCompletionContentPartTextParam, requests.TextPart),
        (chat.ChatCompletionStreamOptionsParam, requests.StreamOptions),
        (chat.ChatCompletionPredictionContentParam, requests.Prediction),
        (ResponseFormatText, requests.TextFormat),
        (ResponseFormatJSONObject, requests.JsonObjectFormat),
        (ResponseFormatJSONSchema, requests.JsonSchemaFormat),
        (JSONSchema, requests.NamedSchema),
    ],
)
def test_every_parameter_of_the_official_client_is_decided(theirs, ours) -> None:
    assert fields_of(theirs) - names_of(ours) - {"stream"} == set()


VLLM = """
add_generation_prompt add_special_tokens allowed_token_ids bad_words cache_salt chat_template
chat_template_kwargs continue_final_message documents echo ec_transfer_params ignore_eos
include_reasoning include_stop_str_in_output kv_transfer_params length_penalty logprob_token_ids
media_io_kwargs min_p min_tokens mm_processor_kwargs priority prompt_logprobs repetition_detection
repetition_penalty request_id return_mm_kwargs return_prompt_text return_token_ids
return_token_offsets return_tokens_as_token_ids routed_experts_prompt_start session_id
skip_special_tokens spaces_between_special_tokens stop_token_ids stream_interval structured_outputs
thinking_token_budget top_k truncate_prompt_tokens truncation_side use_beam_search vllm_xargs
watermarking guided_json guided_regex guided_choice guided_grammar structural_tag
guided_decoding_backend guided_whitespace_pattern logits_processors
"""
LLAMA = """
adaptive_decay adaptive_target backend_sampling cache_prompt dry_allowed_length dry_base
dry_multiplier dry_penalty_last_n dry_sequence_breakers dynatemp_exponent dynatemp_range
frequency_penalty grammar grammar_lazy grammar_triggers id_slot ignore_eos json_schema logit_bias
lora min_keep min_p mirostat mirostat_eta mirostat_tau n_cache_reuse n_cmpl n_discard n_indent
n_keep n_predict n_probs post_sampling_probs presence_penalty preserved_tokens
reasoning_budget_tokens reasoning_format repeat_last_n repeat_penalty response_fields
return_progress return_tokens samplers seed sse_ping_interval t_max_predict_ms timings_per_token
top_k top_n_sigma top_p typical_p verbose xtc_probability xtc_threshold
"""
SGLANG = """
bootstrap_host bootstrap_port bootstrap_room cache_salt custom_labels custom_params
data_parallel_rank disagg_prefill_dp_rank ebnf extra_key ignore_eos images_config lora_path min_p
min_tokens ngram_corpus_id no_stop_trim priority regex repetition_penalty
return_cached_tokens_details return_hidden_states return_routed_experts return_token_ids rid
routed_dp_rank routed_experts_start_len session_id session_params skip_special_tokens stop_regex
stop_token_ids top_k
"""


@pytest.mark.parametrize("body", [ChatRequest, CompletionRequest])
@pytest.mark.parametrize("names", [VLLM, LLAMA, SGLANG], ids=["vllm", "llama.cpp", "sglang"])
def test_every_parameter_of_other_servers_is_decided(body, names) -> None:
    """As their sources have them in 2026."""
    there = names_of(body)
    only_chats = {"media_io_kwargs", "mm_processor_kwargs", "documents"}
    missing = set(names.split()) - there
    assert missing <= (only_chats if body is CompletionRequest else set())


# --- what becomes of them -------------------------------------------------------------------------


def test_nothing_is_decided_twice() -> None:
    for body in CLASSES.values():
        harmless, refused = body.others.harmless.keys(), body.others.refused.keys()
        assert not body.followed() & harmless
        assert not body.followed() & refused, body
        assert not harmless & refused
        for name, refusal in body.others.refused.items():
            assert refusal.reason, name


OFF = [
    (endpoint, name, off)
    for endpoint, (body, _) in BODIES.items()
    for name, rule in body.others.refused.items()
    for off in (None, *rule.off)
]


@pytest.mark.parametrize(("endpoint", "name", "off"), OFF)
def test_values_that_ask_for_nothing_are_accepted(endpoint, name, off) -> None:
    body, least = BODIES[endpoint]
    assert refusal(body, {**least, name: off}) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("endpoint", BODIES)
@given(data=st.data())
@settings(max_examples=150)
def test_what_is_refused_is_refused_by_name(endpoint, data) -> None:
    body, least = BODIES[endpoint]
    name = data.draw(st.sampled_from(sorted(body.others.refused)))
    value = data.draw(JSON.filter(lambda value: value is not None))
    rule = body.others.refused[name]
    off = json.dumps(value) in map(json.dumps, rule.off) or (
        isinstance(value, float) and value in rule.off
    )
    error = refusal(body, {**least, name: value})
    if off:
        assert error is None
    else:
        assert error is not None
        assert (error.status, error.param) == (400, name)
        assert error.code == "unsupported_parameter"
        assert rule.reason in error.message


@pytest.mark.parametrize("endpoint", BODIES)
@given(data=st.data())
@settings(max_examples=60)
def test_what_is_harmless_may_be_anything(endpoint, data) -> None:
    body, least = BODIES[endpoint]
    name = data.draw(st.sampled_from(sorted(body.others.harmless)))
    assert refusal(body, {**least, name: data.draw(JSON)}) is None


@given(data=st.data())
@settings(max_examples=200)
def test_a_misspelt_field_is_refused_with_the_nearest_name(data) -> None:
    """A letter that is left out, doubled or another: the field that was meant is named, or one that
    is as near."""
    body, least = BODIES[data.draw(st.sampled_from(sorted(BODIES)))]
    meant = data.draw(st.sampled_from(sorted(name for name in names_of(body) if len(name) > 5)))
    place = data.draw(st.integers(1, len(meant) - 1))
    instead = data.draw(st.sampled_from(["", "q", meant[place] * 2]))
    written = meant[:place] + instead + meant[place + 1 :]
    if written in names_of(body):
        return
    error = refusal(body, {**least, written: None})
    assert error is not None
    assert (error.status, error.param, error.code) == (400, written, "unknown_parameter")
    assert "did you mean" in error.message


@pytest.mark.parametrize(
    ("fields", "param", "near"),
    [
        ({"max_tokenz": 5}, "max_tokenz", "max_tokens"),
        ({"temprature": 0}, "temprature", "temperature"),
        ({"maxTokens": 5}, "maxTokens", "max_tokens"),
        ({"reponse_format": {"type": "json_object"}}, "reponse_format", "response_format"),
        (
            {"stream_options": {"include_usge": True}},
            "stream_options.include_usge",
            "include_usage",
        ),
        (
            {"response_format": {"type": "json_object", "shema": {}}},
            "response_format.shema",
            "schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schem": {}}}},
            "response_format.json_schema.schem",
            "schema",
        ),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp", "regex"),
        ({"prediction": {"type": "content", "contents": ""}}, "prediction.contents", "content"),
    ],
)
def test_misspelt_fields_of_objects(fields, param, near) -> None:
    error = refusal(ChatRequest, {**BODIES["chat"][1], **fields})
    assert error is not None
    assert (error.param, error.code) == (param, "unknown_parameter")
    assert f"did you mean {near!r}?" in error.message


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        ({"nmae": "Ann"}, "messages.0.nmae", "unknown_parameter"),
        ({"tool_call_id": "1"}, "messages.0.tool_call_id", "unsupported_parameter"),
        ({"prefix": True}, "messages.0.prefix", "unsupported_parameter"),
        (
            {"content": [{"type": "text", "text": "x", "txt": "y"}]},
            "messages.0.content.0.txt",
            "unknown_parameter",
        ),
    ],
)
def test_fields_of_messages(message, param, code) -> None:
    error = refusal(ChatRequest, {"messages": [{"role": "user", "content": "x", **message}]})
    assert error is not None
    assert (error.param, error.code) == (param, code)


def test_a_message_that_an_official_client_gave_may_be_sent_back() -> None:
    given = chat.ChatCompletionMessage(role="assistant", content="yes").model_dump()
    assert refusal(ChatRequest, {"messages": [*BODIES["chat"][1]["messages"], given]}) is None


UNTIL = ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "<|im_end|>"]  # of its HumanEval
DEFAULTS: dict[str, tuple[type[Body], dict[str, Any]]] = {
    "lm-eval local-completions, likelihoods": (
        CompletionRequest,
        {
            "prompt": [[1, 2]], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234,
            "echo": True,
        },
    ),
    "lm-eval local-completions, answers": (
        CompletionRequest,
        {"prompt": ["x"], "max_tokens": 256, "temperature": 0, "stop": UNTIL, "seed": 1234},
    ),
    "lm-eval local-chat-completions": (
        ChatRequest,
        {
            "messages": [{"role": "user", "content": "x", "type": "text"}],
            "max_tokens": 256, "temperature": 0, "stop": [], "seed": 1234,
        },
    ),
    "LM Studio's and Open WebUI's chats": (
        ChatRequest,
        {
            "messages": [{"role": "system", "content": ""}, {"role": "user", "content": "x"}],
            "stream": True, "stream_options": {"include_usage": True}, "temperature": 0.7,
        },
    ),
    "LangChain with everything said": (
        ChatRequest,
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
            "n": 1, "temperature": 0.7, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0,
            "logprobs": False, "stop": None, "stream": False, "parallel_tool_calls": True,
            "tool_choice": "auto", "tools": [], "response_format": {"type": "text"}, "user": "u",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("client", DEFAULTS)
def test_what_clients_send_by_default_is_taken(client: str) -> None:
    body, fields = DEFAULTS[client]
    assert refusal(body, {"model": "tiny", **fields}) is None


def test_names_that_are_too_long_are_cut() -> None:
    error = refusal(ChatRequest, {**BODIES["chat"][1], "x" * 100_000: 1})
    assert error is not None
    assert len(error.message) + len(str(error.param)) < 500


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("logit_bias", requests.MOST_IDS),
        ("stop_token_ids", requests.MOST_IDS),
        ("bad_words", requests.MOST_IDS),
        ("guided_choice", requests.MOST_IDS),
        ("allowed_token_ids", requests.MOST_ALLOWED),
    ],
)
def test_lists_are_bounded(name, bound) -> None:
    def of(count: int) -> Any:
        if name == "logit_bias":
            return {str(token): 1 for token in range(count)}
        return [f"w{n}" if name in ("bad_words", "guided_choice") else n for n in range(count)]

    body, least = BODIES["completion"]
    assert refusal(body, {**least, name: of(bound)}) is None
    error = refusal(body, {**least, name: of(bound + 1)})
    assert error is not None
    assert (error.status, error.param) == (400, name)


# --- fields that contradict one another -----------------------------------------------------------


@pytest.mark.parametrize("spellings", requests.SPELLINGS)
@pytest.mark.parametrize("endpoint", BODIES)
def test_two_spellings_agree(endpoint, spellings) -> None:
    body, least = BODIES[endpoint]
    for first in spellings:
        for second in set(spellings) - {first}:
            assert refusal(body, {**least, first: 2, second: 2}) is None
            error = refusal(body, {**least, first: 2, second: 3})
            assert error is not None
            assert error.param in (first, second)
            assert first in error.message
            assert second in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n_predict": 0}, "n_predict"),
        ({"n_predict": -2}, "n_predict"),
        ({"n_predict": -1, "max_tokens": 5}, "n_predict"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "add_generation_prompt"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"typical_p": 0}, "typical_p"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids.0"),
        ({"bad_words": [""]}, "bad_words.0"),
        ({"bad_words": "word"}, "bad_words"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_json": 5}, "guided_json"),
        ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice"),
        ({"logit_bias": [[5, 1.0]]}, "logit_bias"),
        ({"logit_bias": {"5": 1.0, "05": 2.0}}, "logit_bias.05"),  # which of the two?
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ],
)
def test_values_out_of_their_ranges(fields, param) -> None:
    error = refusal(ChatRequest, {**BODIES["chat"][1], **fields})
    assert error is not None
    assert error.status == 400
    assert error.param == (param or error.param)
    assert error.message.count(f"{param}:") <= 1
