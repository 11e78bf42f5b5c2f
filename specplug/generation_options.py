"""What may be asked of one generation, and what is refused before any work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Literal, TypedDict, cast

from specplug.arguments import check_keywords
from specplug.logprobs import LogprobsMode
from specplug.prompts import PromptOptions
from specplug.sampling import SamplingParams
from specplug.text import Messages
from specplug.types import ContextLimitError, EngineSpec

GREEDY = SamplingParams()
DEFAULT_MAX_TOKENS = 256
"""New tokens at most where a call does not say."""
DraftTokens = int | Literal["auto"]
"""How many tokens a round may draft; ``"auto"``: as many as pay, none included."""

Prompt = str | Sequence[int] | Messages
"""Text, token ids, or chat messages (``{"role": …, "content": …}``)."""


class GenerationOptions(TypedDict, total=False):
    """What may be asked of one generation, beside its prompt."""

    max_tokens: int
    """New tokens at most, a final stop token included; 256 unless given."""
    sampling: SamplingParams
    """How tokens are chosen; greedily unless given."""
    sample: int
    """Which of several answers to the prompt: each has its own noise."""
    min_tokens: int
    """New tokens before anything ends the answer: stop tokens are withheld so long, and stop
    strings are text."""
    stop: str | Sequence[str]
    """Strings that end the answer; nothing of them is in its text."""
    stop_token_ids: Sequence[int]
    """Tokens that end the answer, beside the decoder's own."""
    ignore_eos: bool
    """The decoder's own stop tokens do not end the answer; ``stop_token_ids`` do."""
    bad_words: Sequence[str]
    """Words that are never completed, as the tokenizer spells them within a text and
    after a space; other spellings of the same text may come."""
    logprobs: int | None
    """Give each token's log-probability, and this many of the likeliest (0 or more)."""
    prompt_logprobs: int | None
    """Give the log-probability of each token of the prompt, and this many of the likeliest, in
    :attr:`Result.prompt_logprobs`; raw."""
    logprobs_mode: LogprobsMode
    """Those of the target as it is (``"raw"``), or after penalties and truncations."""
    include_stop_str_in_output: bool
    """The answer's text ends with the stop string, or with the stop token's own text."""
    skip_special_tokens: bool
    """Leave special tokens out of the text, as is done unless this is False; else they are shown by
    their names."""
    prediction: str | Sequence[int]
    """What the answer is expected to be, for drafters that make use of it."""
    tenant: str
    """On whose behalf: texts are remembered, for drafters that look there, apart by tenant."""
    speculation: bool
    """False: nothing is drafted for this generation."""
    echo: bool
    """Begin with the prompt's tokens; their log-probabilities are raw, and the first has none."""
    cancelled: Callable[[], bool]
    """Asked before every round; True ends the generation."""


class CallOptions(PromptOptions, GenerationOptions, total=False):
    """What may be asked of one generation and of how its prompt becomes token ids."""


def split_options(options: CallOptions) -> tuple[PromptOptions, GenerationOptions]:
    """The options of the prompt, and those of the generation."""
    of_prompt = {name: options[name] for name in options if name in _OF_PROMPTS}  # type: ignore[literal-required]
    rest = {name: options[name] for name in options if name not in _OF_PROMPTS}  # type: ignore[literal-required]
    return cast(PromptOptions, of_prompt), cast(GenerationOptions, rest)


_OF_PROMPTS = PromptOptions.__annotations__.keys()
ELSEWHERE = {
    one.name: f"pass sampling=SamplingParams({one.name}=…)" for one in fields(SamplingParams)
}
"""What to do with keywords that are not a generation's own."""


def stop_strings(options: GenerationOptions) -> list[str]:
    """The strings that end the answer."""
    stop = options.get("stop", ())
    return [stop] if isinstance(stop, str) else list(stop)


def check_options(options: GenerationOptions) -> None:
    """Refuse what no model can be asked for, without knowing which it is.

    Raises:
        ValueError: an option outside its range, with the range.
    """
    max_tokens = options.get("max_tokens", DEFAULT_MAX_TOKENS)
    min_tokens = options.get("min_tokens", 0)
    sample = options.get("sample", 0)
    mode = options.get("logprobs_mode", "raw")
    if max_tokens < 1:
        raise ValueError(f"max_tokens {max_tokens}: need at least 1")
    if not 0 <= min_tokens <= max_tokens:
        raise ValueError(
            f"min_tokens {min_tokens}: it must be in [0, {max_tokens}], which ends at max_tokens"
        )
    if not 0 <= sample < 1 << 64:
        raise ValueError(f"sample {sample}: it must be in [0, 2**64)")
    for text in stop_strings(options):
        if not text:
            raise ValueError("stop '': a stop string has at least one character")
        if not text.isprintable() and any("\ud800" <= one <= "\udfff" for one in text):
            raise ValueError(f"stop {text!r}: a stop string is text, without half surrogates")
    for name in ("logprobs", "prompt_logprobs"):
        top = cast(int | None, options.get(name))
        if top is not None and top < 0:
            raise ValueError(f"{name} {top}: it must be in [0, V], of a vocabulary of V tokens")
    if mode not in ("raw", "processed"):
        raise ValueError(f"logprobs_mode {mode!r}: it must be raw or processed")


def check_generation(
    spec: EngineSpec, prompt: Sequence[int], options: GenerationOptions, *, has_tokenizer: bool
) -> None:
    """Refuse, before any work, what cannot be answered.

    Args:
        spec: of the target.
        prompt: token ids.
        options: of the generation.
        has_tokenizer: whether there is text.

    Raises:
        ValueError: an argument outside its range, with the range.
        ContextLimitError: the prompt leaves no room for a new token.
    """
    for name in ("logprobs", "prompt_logprobs"):
        top = cast(int | None, options.get(name))
        if top is not None and not 0 <= top <= spec.vocab_size:
            raise ValueError(f"{name} {top}: it must be in [0, {spec.vocab_size}]")
    check_keywords("a generation", options, GenerationOptions.__annotations__, elsewhere=ELSEWHERE)
    check_options(options)
    for token in options.get("stop_token_ids", ()):
        if not 0 <= token < spec.vocab_size:
            raise ValueError(f"stop_token_ids: token id {token} is not in [0, {spec.vocab_size})")
    if (stop := stop_strings(options)) and not has_tokenizer:
        raise ValueError(f"stop {stop[0]!r}: stop strings need a tokenizer")
    if not len(prompt):
        raise ValueError("the prompt is empty: at least one token is needed")
    outside = [token for token in prompt if not 0 <= token < spec.vocab_size]
    if outside:
        raise ValueError(f"token id {outside[0]} is outside the vocabulary of {spec.vocab_size}")
    if len(prompt) >= spec.context_limit:
        raise ContextLimitError(
            f"the prompt has {len(prompt)} tokens and the context ends at "
            f"{spec.context_limit}: shorten the prompt"
        )
