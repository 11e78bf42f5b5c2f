"""What may be asked of one generation, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from specplug.context import Token
from specplug.logprobs import LogprobsMode
from specplug.sampling import SamplingParams
from specplug.stats import SpeculationStats
from specplug.text import Messages
from specplug.types import ContextLimitError, EngineSpec

GREEDY = SamplingParams()
DraftTokens = int | Literal["auto"]
"""How many tokens a round may draft; ``"auto"``: as many as pay, none included."""

Prompt = str | Sequence[int] | Messages
"""Text, token ids, or chat messages (``{"role": …, "content": …}``)."""


@dataclass(frozen=True, slots=True)
class Result:
    """A finished generation."""

    text: str
    tokens: tuple[Token, ...]
    """New tokens, a final stop token included; the prompt's before them if echoed."""
    finish_reason: str
    """``"stop"`` (token or string), ``"length"`` (max_tokens), ``"context"`` (the model's limit),
    ``"cancelled"``."""
    stats: SpeculationStats

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens' ids."""
        return tuple(token.id for token in self.tokens)


class GenerationOptions(TypedDict, total=False):
    """What may be asked of one generation."""

    max_tokens: int
    """New tokens at most, a final stop token included; 256 unless given."""
    sampling: SamplingParams
    """How tokens are chosen; greedily unless given."""
    sample: int
    """Which of several answers to the prompt: each has its own noise."""
    stop: str | Sequence[str]
    """Strings that end the answer; nothing of them is in its text."""
    logprobs: int | None
    """Give each token's log-probability, and this many of the likeliest (0 or more)."""
    logprobs_mode: LogprobsMode
    """Those of the target as it is (``"raw"``), or after penalties and truncations."""
    prediction: str | Sequence[int]
    """What the answer is expected to be, for drafters that make use of it."""
    tenant: str
    """On whose behalf: texts are remembered, for drafters that look there, apart by tenant."""
    echo: bool
    """Begin with the prompt's tokens; their log-probabilities are raw, and the first has none."""
    cancelled: Callable[[], bool]
    """Asked before every round; True ends the generation."""


def check_generation(
    spec: EngineSpec,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sample: int,
    stop: Sequence[str],
    has_tokenizer: bool,
    logprobs: int | None,
    logprobs_mode: str,
) -> None:
    """Refuse, before any work, what cannot be answered.

    Raises:
        ValueError: an argument outside its range, with the range.
        ContextLimitError: the prompt leaves no room for a new token.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens {max_tokens}: need at least 1")
    if not 0 <= sample < 1 << 64:
        raise ValueError(f"sample {sample}: it must be in [0, 2**64)")
    if "" in stop:
        raise ValueError("stop '': a stop string has at least one character")
    if stop and not has_tokenizer:
        raise ValueError(f"stop {stop[0]!r}: stop strings need a tokenizer")
    if logprobs is not None and not 0 <= logprobs <= spec.vocab_size:
        raise ValueError(f"logprobs {logprobs}: it must be in [0, {spec.vocab_size}]")
    if logprobs_mode not in ("raw", "processed"):
        raise ValueError(f"logprobs_mode {logprobs_mode!r}: it must be raw or processed")
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
