"""The bodies of answers, as the OpenAPI description and the tests have them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length"]


class _Body(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class PromptTokensDetails(_Body):
    """Where the prompt's tokens came from."""

    cached_tokens: int
    """Found in the prefix cache."""


class CompletionTokensDetails(_Body):
    """What became of the prediction's tokens."""

    accepted_prediction_tokens: int
    """That the answer has, where following the prediction led to them."""
    rejected_prediction_tokens: int
    """The others."""


class Usage(_Body):
    """Tokens of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class SpeculativeDecoding(_Body):
    """vLLM's fields; a step is a round."""

    mean_acceptance_length: float
    draft_acceptance_rate: float
    acceptance_histogram: list[int]
    acceptance_histogram_by_draft_length: dict[str, list[int]]
    num_spec_steps: int
    num_accepted_draft_tokens: int
    num_draft_tokens: int
    num_spec_tokens: int
    per_step_accepted: list[int]
    per_step_drafted: list[int]


class ResponseMetrics(_Body):
    """What speculation did for this request."""

    speculative_decoding: SpeculativeDecoding


class TopLogprob(_Body):
    """A token and how likely it was, natural logarithm, -9999 at least."""

    token: str
    logprob: float
    bytes: list[int] | None
    """Of the text, perhaps a part of a character; None: a special or a stop token, not shown."""


class TokenLogprob(TopLogprob):
    """A chosen token, and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Body):
    """Of a choice."""

    content: list[TokenLogprob]
    refusal: None


class PromptLogprob(_Body):
    """A token of the prompt, or a likely one in its place."""

    logprob: float
    rank: int
    """Among all tokens; 1: the likeliest."""
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""By token ids, an item a token of the prompt; None: the first token."""


class AssistantMessage(_Body):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Body):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class _Whole(_Body):
    id: str
    created: int
    """Seconds since 1970."""
    model: str
    system_fingerprint: str | None
    usage: Usage
    metrics: ResponseMetrics


class ChatResponse(_Whole):
    """The answers to a conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_logprobs: PromptLogprobs | None = None
    """If asked for."""


class CompletionLogprobs(_Body):
    """Of a choice, an item a token."""

    tokens: list[str]
    """A part of a character is ``bytes:`` and the bytes, ``\\x…`` each."""
    token_logprobs: list[float | None]
    """None: the first token of an echoed prompt."""
    top_logprobs: list[dict[str, float] | None]
    """The likeliest first, the chosen token's own included; of those with one text the likeliest
    has it, and the others are named ``token_id:…``.
    """
    text_offset: list[int]
    """Characters of the text before the token."""


class CompletionChoice(_Body):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    prompt_logprobs: PromptLogprobs | None = None
    """If asked for."""


class CompletionResponse(_Whole):
    """The continuations of prompts: those of the first, then those of the second, …"""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class Model(_Body):
    """A model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    """Tokens of prompt and answer together."""


class ModelList(_Body):
    """All there are."""

    object: Literal["list"]
    data: list[Model]


class Health(_Body):
    """Whether the server is alive, or ready."""

    status: Literal["ok"]
