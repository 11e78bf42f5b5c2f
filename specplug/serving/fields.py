"""Fields that other servers know and this one does not follow: harmless ones, and refused ones.

What is followed are the fields of the classes in :mod:`specplug.serving.requests`. Every other
name is an error: a client that misspells a field, or asks for what is not done, is told so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NoReturn

from pydantic_core import PydanticCustomError

UNKNOWN = "unknown_parameter"
UNSUPPORTED = "unsupported_parameter"

_LONGEST_NAME = 64  # of a field that is named in an error


class Refusal:
    """Why a field is refused.

    Args:
        reason: with the remedy, if there is one.
        off: values that ask for nothing, and are accepted, as null is.
    """

    def __init__(self, reason: str, *off: object) -> None:
        self.reason = reason
        self.off = off


@dataclass(frozen=True, slots=True, kw_only=True)
class Others:
    """Fields that an object may have beside those that are followed."""

    harmless: Mapping[str, str] = field(default_factory=dict)
    """Accepted, whatever the value: the answer is the same without. Why that is so, by name."""
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    """Refused unless off, by name."""

    def check(self, given: Mapping[str, Any], followed: Collection[str]) -> None:
        """Refuse fields that are neither followed nor harmless.

        Raises:
            PydanticCustomError: with the field's name as ``field`` of its context.
        """
        for name, value in given.items():
            if name in followed or name in self.harmless:
                continue
            refusal = self.refused.get(name)
            if refusal is None:
                _refuse(UNKNOWN, name, self._unknown(name, followed))
            if value is not None and not any(_equal(value, off) for off in refusal.off):
                _refuse(UNSUPPORTED, name, refusal.reason)

    def _unknown(self, name: str, followed: Collection[str]) -> str:
        short = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
        names = [*followed, *self.harmless, *self.refused]
        near = get_close_matches(short.lower(), names, n=1)
        return f"there is no field {short!r} here" + (
            f": did you mean {near[0]!r}?" if near else ""
        )


def _refuse(kind: str, name: str, why: str) -> NoReturn:
    # The library's errors are in UTF-8, which has no half of a surrogate pair; JSON has.
    named = name[:_LONGEST_NAME].encode("utf-8", "backslashreplace").decode()
    raise PydanticCustomError(kind, "{why}", {"why": why, "field": named})


def _equal(left: object, right: object) -> bool:
    """Whether two values are the same JSON: 1 is 1.0 and not true."""
    return isinstance(left, bool) == isinstance(right, bool) and left == right


_TOOLS = "tools are not supported"
_TEXT_ONLY = "only text is supported"
_BEAMS = "beam search is not supported"
_TEMPLATED = "a completion's prompt has no template: use /v1/chat/completions"
_NO_REASONING = "the answer's text is not taken apart: what the model thinks is in it"
_OWN_WEIGHTS = "adapters are not supported: a bundle has one set of weights"
_OWN_ENGINE = "it belongs to an engine that this server does not have"
_NOT_RETURNED = "the answer does not have this; see docs/SERVING.md for what it has"
_LABEL = "a label"
_WHERE_IT_RUNS = "where and how a request runs does not change its text"
_INERT = "has no effect without {}, which is refused"

REQUEST = Others(
    harmless={
        **dict.fromkeys(
            (
                "user",
                "metadata",
                "store",
                "safety_identifier",
                "request_id",
                "session_id",
                "rid",
                "custom_labels",
            ),
            _LABEL,
        ),
        **dict.fromkeys(
            (
                "service_tier",
                "priority",
                "prompt_cache_key",
                "prompt_cache_retention",
                "prompt_cache_options",
                "cache_prompt",
                "n_cache_reuse",
                "id_slot",
                "ngram_corpus_id",
                "data_parallel_rank",
                "routed_dp_rank",
                "stream_interval",
                "sse_ping_interval",
                "backend_sampling",
                "speculative.n_max",
                "speculative.n_min",
                "speculative.p_min",
            ),
            _WHERE_IT_RUNS,
        ),
        "parallel_tool_calls": "there are no tools",
        "spaces_between_special_tokens": "the tokenizer's own text has no such spaces",
        "return_mm_kwargs": "only text is supported",
        "guided_decoding_backend": "there is one",
        "separate_reasoning": _NO_REASONING,
        "stream_reasoning": _NO_REASONING,
        **dict.fromkeys(
            ("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
            _INERT.format("dry_multiplier"),
        ),
        **dict.fromkeys(("mirostat_tau", "mirostat_eta"), _INERT.format("mirostat")),
        "xtc_threshold": _INERT.format("xtc_probability"),
        "dynatemp_exponent": _INERT.format("dynatemp_range"),
        "adaptive_decay": _INERT.format("adaptive_target"),
        "routed_experts_start_len": _INERT.format("return_routed_experts"),
        "routed_experts_prompt_start": _INERT.format("return_routed_experts"),
        "early_stopping": _INERT.format("use_beam_search"),
    },
    refused={
        # OpenAI
        "verbosity": Refusal("verbosity is not supported: ask for it in the prompt", "medium"),
        # beam search, of vLLM and transformers
        "use_beam_search": Refusal(_BEAMS, False),
        "num_beams": Refusal(_BEAMS, 1),
        "length_penalty": Refusal(_BEAMS, 1),
        # other names of what there is
        "n_cmpl": Refusal("use n", 1),
        "n_probs": Refusal("use logprobs", 0),
        "min_new_tokens": Refusal("use min_tokens"),
        "max_length": Refusal("use max_tokens, which counts new tokens alone"),
        "do_sample": Refusal("use temperature, which is 0 for the likeliest token"),
        "no_stop_trim": Refusal("use include_stop_str_in_output", False),
        "typical": Refusal("use typical_p", 1),
        "extra_body": Refusal("its fields belong into the request itself", {}),
        "options": Refusal("its fields belong into the request itself", {}),
        "sampling_params": Refusal("its fields belong into the request itself", {}),
        # samplers that there are not
        "top_n_sigma": Refusal("top-n-sigma is not supported", -1),
        "top_a": Refusal("top-a is not supported", 0),
        "tfs_z": Refusal("tail-free sampling is not supported", 1),
        "mirostat": Refusal("Mirostat is not supported", 0),
        "xtc_probability": Refusal("XTC is not supported", 0),
        "dry_multiplier": Refusal("DRY is not supported: use no_repeat_ngram_size", 0),
        "dynatemp_range": Refusal("dynamic temperatures are not supported", 0),
        "adaptive_target": Refusal("adaptive-p is not supported", -1),
        "min_keep": Refusal("truncations keep what they keep", 0),
        "repeat_last_n": Refusal("repeat_penalty looks at the whole context, which is -1", -1),
        "samplers": Refusal("the order of samplers is that of transformers", []),
        "watermarking": Refusal("watermarks are not supported", False),
        "repetition_detection": Refusal("repetitions do not end an answer: use max_tokens"),
        "stop_regex": Refusal("only strings and token ids end an answer: use stop", []),
        "logits_processors": Refusal("a server takes no code from requests", []),
        "custom_logit_processor": Refusal("a server takes no code from requests"),
        "custom_params": Refusal("a server takes no code from requests", {}),
        "vllm_xargs": Refusal(_OWN_ENGINE, {}),
        # grammars that come into force in the middle of a text
        "grammar_lazy": Refusal("a grammar holds from the first token: use structural_tag", False),
        "grammar_triggers": Refusal("a grammar holds from the first token: use structural_tag", []),
        "preserved_tokens": Refusal("use skip_special_tokens", []),
        # reasoning
        "thinking_token_budget": Refusal("a budget of thinking is not supported", -1),
        "reasoning_budget": Refusal("a budget of thinking is not supported", -1),
        "reasoning_budget_tokens": Refusal("a budget of thinking is not supported", -1),
        "thinking_budget_tokens": Refusal("a budget of thinking is not supported", -1),
        "thinking_budget": Refusal("a budget of thinking is not supported"),
        "thinking": Refusal("use chat_template_kwargs, with the model's own name for it"),
        "reasoning": Refusal("use reasoning_effort, or chat_template_kwargs"),
        "include_reasoning": Refusal(_NO_REASONING, True),
        "reasoning_format": Refusal(_NO_REASONING, "none"),
        # what else an answer might have
        "return_token_ids": Refusal(
            "use stream_options.include_token_origins, or return_tokens_as_token_ids", False
        ),
        "return_tokens": Refusal("use stream_options.include_token_origins", False),
        "logprob_token_ids": Refusal("use logprobs of the likeliest tokens"),
        "post_sampling_probs": Refusal("logprobs are of the target as it is", False),
        **{
            name: Refusal(_NOT_RETURNED, False)
            for name in (
                "return_prompt_text",
                "return_prompt_token_ids",
                "return_token_offsets",
                "return_hidden_states",
                "return_routed_experts",
                "return_cached_tokens_details",
                "return_meta_info",
                "return_progress",
                "timings_per_token",
                "verbose",
            )
        },
        "response_fields": Refusal(_NOT_RETURNED, []),
        # lengths and contexts
        "n_keep": Refusal("contexts are not shifted: use truncate_prompt_tokens", 0, -1),
        "n_discard": Refusal("contexts are not shifted: use truncate_prompt_tokens", 0),
        "n_indent": Refusal("it is not supported: use regex", 0),
        "t_max_predict_ms": Refusal("a server's time limit is --request-timeout", 0, -1),
        "truncation_side": Refusal("truncate_prompt_tokens keeps the last tokens", "left"),
        # whose weights, whose caches
        "lora": Refusal(_OWN_WEIGHTS, []),
        "lora_path": Refusal(_OWN_WEIGHTS),
        "cache_salt": Refusal("prefixes are kept apart by API key: give each tenant one"),
        "extra_key": Refusal("prefixes are kept apart by API key: give each tenant one"),
        "session_params": Refusal(_OWN_ENGINE, {}),
        **{
            name: Refusal(_OWN_ENGINE)
            for name in (
                "kv_transfer_params",
                "ec_transfer_params",
                "bootstrap_host",
                "bootstrap_port",
                "bootstrap_room",
                "disagg_prefill_dp_rank",
            )
        },
        "images_config": Refusal(_TEXT_ONLY, {}),
    },
)
"""Of chats and of completions."""

CHAT = Others(
    harmless=REQUEST.harmless,
    refused={
        **REQUEST.refused,
        "prompt": Refusal("a chat has messages: use /v1/completions"),
        "best_of": Refusal("only n is supported", 1),
        "suffix": Refusal("text before a suffix is not supported", ""),
        "tools": Refusal(_TOOLS, []),
        "tool_choice": Refusal(_TOOLS, "none", "auto"),
        "functions": Refusal(_TOOLS, []),
        "function_call": Refusal(_TOOLS, "none", "auto"),
        "parse_tool_calls": Refusal(_TOOLS, False),
        "audio": Refusal("audio is not supported"),
        "modalities": Refusal(_TEXT_ONLY, ["text"]),
        "media_io_kwargs": Refusal(_TEXT_ONLY, {}),
        "mm_processor_kwargs": Refusal(_TEXT_ONLY, {}),
        "max_dynamic_patch": Refusal(_TEXT_ONLY),
        "min_dynamic_patch": Refusal(_TEXT_ONLY),
        "use_audio_in_video": Refusal(_TEXT_ONLY, False),
        "web_search_options": Refusal("web search is not supported"),
        "moderation": Refusal("moderation is not supported"),
        "documents": Refusal("use chat_template_kwargs.documents", []),
        "chat_template": Refusal("the bundle's own template is used: export it with another"),
        "add_special_tokens": Refusal("a chat has the tokens of its template", False),
        "input_ids": Refusal("a chat has messages: send token ids to /v1/completions"),
        "task": Refusal(_OWN_ENGINE),
    },
)
COMPLETION = Others(
    harmless=REQUEST.harmless,
    refused={
        **REQUEST.refused,
        "messages": Refusal(_TEMPLATED),
        "suffix": Refusal("text before a suffix is not supported", ""),
        "top_logprobs": Refusal("use logprobs, which is a number here", 0),
        "prompt_embeds": Refusal("only text and token ids are supported"),
        "add_special_tokens": Refusal("send token ids as the prompt", True),
        "tools": Refusal(_TEMPLATED, []),
        "chat_template": Refusal(_TEMPLATED),
        "chat_template_kwargs": Refusal(_TEMPLATED, {}),
        "enable_thinking": Refusal(_TEMPLATED),
        "reasoning_effort": Refusal(_TEMPLATED),
        "add_generation_prompt": Refusal(_TEMPLATED),
        "continue_final_message": Refusal(_TEMPLATED, False),
    },
)
MESSAGE = Others(
    harmless={
        "annotations": "where an earlier answer was found",
        "id": _LABEL,
        "cache_control": _WHERE_IT_RUNS,
    },
    refused={
        "refusal": Refusal("refusals are not supported: use content"),
        "audio": Refusal("audio is not supported"),
        "tool_calls": Refusal(_TOOLS, []),
        "function_call": Refusal(_TOOLS),
        "tool_call_id": Refusal(_TOOLS),
        "tools": Refusal(_TOOLS, []),
        "type": Refusal("a message is text", "text", "message"),  # of lm-eval until May 2026
        "prefix": Refusal("use continue_final_message", False),
        "partial": Refusal("use continue_final_message", False),
    },
)
PART = Others(
    harmless=dict.fromkeys(("cache_control", "prompt_cache_breakpoint"), _WHERE_IT_RUNS),
    refused={"annotations": Refusal("annotations are not supported", [])},
)
STREAM_OPTIONS = Others(
    harmless={"include_obfuscation": "nothing is added to hide lengths"},
    refused={"continuous_usage_stats": Refusal("usage comes with the last chunk", False)},
)
STRUCTURED_OUTPUTS = Others(
    harmless=dict.fromkeys(
        ("disable_fallback", "backend", "_backend", "_backend_was_auto"), "there is one backend"
    ),
)
NOTHING = Others()
