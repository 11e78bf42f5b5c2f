"""The loop: propose, verify, accept, commit.

A round feeds the target the tokens it has not seen together with the drafted ones, and keeps as
many of these as the acceptance rule allows. Plain decoding is the same loop with nothing drafted,
so a comparison of the two compares nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack, cast

import numpy as np

from specplug.drafters import NoDrafter
from specplug.feeding import PREFILL_WIDTH, feed
from specplug.sampler import Sampler
from specplug.sampling import SamplingParams
from specplug.stats import SpeculationStats
from specplug.text import Messages, TextStream, Tokenizer
from specplug.types import ContextLimitError, Drafter, Engine, Int64Array, Proposal, Verdict

GREEDY = SamplingParams()
_MAX_TOKENS = 256

Prompt = str | Sequence[int] | Messages
"""Text, token ids, or chat messages (``{"role": …, "content": …}``)."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the answer; ``str(token)`` is the text it completes, possibly empty."""

    id: int
    text: str
    from_draft: bool
    """Whether a drafter proposed it; else it is the target's own."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Result:
    """A finished generation."""

    text: str
    token_ids: tuple[int, ...]
    """New tokens, a final stop token included."""
    finish_reason: str
    """``"stop"``, ``"length"`` (max_tokens), ``"context"`` (the model's limit), ``"cancelled"``."""
    stats: SpeculationStats


class GenerationOptions(TypedDict, total=False):
    """What may be asked of one generation."""

    max_tokens: int
    """New tokens at most, a final stop token included; 256 unless given."""
    sampling: SamplingParams
    """How tokens are chosen; greedily unless given."""
    sample: int
    """Which of several answers to the prompt: each has its own noise."""
    cancelled: Callable[[], bool]
    """Asked before every round; True ends the generation."""


class _Context:
    """The committed tokens of one generation, and whether it is finished."""

    def __init__(
        self, prompt: Sequence[int], *, max_tokens: int, limit: int, stop: frozenset[int]
    ) -> None:
        self._tokens = np.empty(min(len(prompt) + max_tokens, limit), dtype=np.int64)
        self._tokens[: len(prompt)] = prompt
        self.length = len(prompt)
        self.cached = 0  # tokens whose cache entries the target holds
        self._end = len(self._tokens)
        self._stop = stop
        self._limit_name = "length" if len(prompt) + max_tokens <= limit else "context"
        self.finish_reason: str | None = None

    @property
    def tokens(self) -> Int64Array:
        return self._tokens[: self.length]

    @property
    def room(self) -> int:
        return self._end - self.length

    def commit(self, tokens: list[int]) -> list[int]:
        """Append up to and including the first stop token; returns what was appended."""
        for position, token in enumerate(tokens):
            if token in self._stop:
                tokens = tokens[: position + 1]
                self.finish_reason = "stop"
                break
        self._tokens[self.length : self.length + len(tokens)] = tokens
        self.length += len(tokens)
        if self.finish_reason is None and not self.room:
            self.finish_reason = self._limit_name
        return tokens


class SpeculativeDecoder:
    """Decodes with a target engine, as many tokens a call as a drafter guesses right.

    Args:
        target: the engine whose text is wanted.
        drafter: what proposes tokens; None: plain decoding. The text is the same either way.
        draft_tokens: how many tokens a round may draft, at least 0; 0 never asks the drafter.
        tokenizer: needed for text in or out; token ids work without.
        stop_token_ids: tokens that end an answer; the tokenizer's own if None.

    A decoder runs one generation at a time: its engines have one cache each.
    """

    def __init__(
        self,
        target: Engine,
        *,
        drafter: Drafter | None = None,
        draft_tokens: int = 8,
        tokenizer: Tokenizer | None = None,
        stop_token_ids: Sequence[int] | None = None,
    ) -> None:
        if not 0 <= draft_tokens < PREFILL_WIDTH:
            raise ValueError(
                f"draft_tokens {draft_tokens}: need 0 <= draft_tokens < {PREFILL_WIDTH}"
            )
        self.target = target
        self.drafter: Drafter = drafter or NoDrafter()
        self.draft_tokens = draft_tokens
        self.tokenizer = tokenizer
        if stop_token_ids is None:
            stop_token_ids = tokenizer.stop_token_ids if tokenizer else ()
        self.stop_token_ids = frozenset(stop_token_ids)
        self.stats = SpeculationStats()
        """Of the running or latest generation."""
        self.finish_reason: str | None = None
        """Of the latest generation; None while one runs."""

    @classmethod
    def from_bundle(
        cls, path: str | Path, *, drafter: str = "none", draft_tokens: int = 8, **options: Any
    ) -> Self:
        """Open a bundle: its target, its tokenizer and, if asked for, its draft model.

        Args:
            path: the bundle's folder.
            drafter: a name of :data:`specplug.drafters.DRAFTERS`.
            draft_tokens: as in the constructor.
            options: see :class:`specplug.opening.EngineOptions`.

        Raises:
            BundleError: the bundle is damaged, or holds no draft model when one is asked for.
        """
        from specplug.opening import open_parts

        return cls(**open_parts(Path(path), drafter, **options), draft_tokens=draft_tokens)

    # --- the loop -----------------------------------------------------------------------------

    def rounds(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        sampling: SamplingParams = GREEDY,
        sample: int = 0,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[list[int], int]]:
        """Yield each round's new tokens and how many of them, from the first, were drafted."""
        context = self._begin(prompt, max_tokens, sampling, sample)
        while context.finish_reason is None:
            if cancelled():
                self.finish_reason = "cancelled"
                return
            proposal = self._propose(context)
            verdict = self._verify(context, proposal)
            tokens = context.commit([*proposal.tokens[: verdict.accepted], verdict.bonus])
            self.drafter.commit(tokens)
            accepted = min(verdict.accepted, len(tokens))
            self._count(len(proposal), accepted, len(tokens))
            self.finish_reason = context.finish_reason
            yield tokens, accepted

    def _propose(self, context: _Context) -> Proposal:
        k = min(self.draft_tokens, context.room - 1)
        if k < 1 or not context.cached:  # the prompt's own call gives the first token alone
            return Proposal()
        started = time.perf_counter()
        proposal = self.drafter.propose(context.tokens, k)
        self.stats.draft_seconds += time.perf_counter() - started
        return proposal

    def _verify(self, context: _Context, proposal: Proposal) -> Verdict:
        pending = [*context.tokens[context.cached :].tolist(), *proposal.tokens]
        started = time.perf_counter()
        scores = feed(self.target, pending, past=context.cached, scored=len(proposal) + 1)
        verdict = self._sampler.judge(scores, context.tokens, proposal)
        self.stats.target_seconds += time.perf_counter() - started
        context.cached = context.length + verdict.accepted
        return verdict

    # --- around the loop ----------------------------------------------------------------------

    def _begin(
        self, prompt: Sequence[int], max_tokens: int, sampling: SamplingParams, sample: int
    ) -> _Context:
        spec = self.target.spec
        if max_tokens < 1:
            raise ValueError(f"max_tokens {max_tokens}: need at least 1")
        if not len(prompt):
            raise ValueError("the prompt is empty: at least one token is needed")
        outside = [token for token in prompt if not 0 <= token < spec.vocab_size]
        if outside:
            raise ValueError(
                f"token id {outside[0]} is outside the vocabulary of {spec.vocab_size}"
            )
        if len(prompt) >= spec.context_limit:
            raise ContextLimitError(
                f"the prompt has {len(prompt)} tokens and the context ends at "
                f"{spec.context_limit}: shorten the prompt"
            )
        self._sampler = Sampler(
            sampling, vocab_size=spec.vocab_size, prompt_tokens=len(prompt), sample=sample
        )
        self.drafter.reset(self._sampler)
        self.finish_reason = None
        self.stats = SpeculationStats(prompt_tokens=len(prompt), draft_length=self.draft_tokens)
        self._clock = time.perf_counter()
        return _Context(
            prompt, max_tokens=max_tokens, limit=spec.context_limit, stop=self.stop_token_ids
        )

    def _count(self, drafted: int, accepted: int, new: int) -> None:
        now = time.perf_counter()
        stats = self.stats
        if stats.new_tokens:
            stats.drafted_per_round.append(drafted)
            stats.accepted_per_round.append(accepted)
            stats.decode_seconds += now - self._clock
        else:
            stats.prefill_seconds = now - self._clock
        stats.new_tokens += new
        self._clock = now

    def encode(self, prompt: Prompt, *, chat: bool | None = None) -> list[int]:
        """The token ids of a prompt.

        Args:
            prompt: text, token ids (taken as they are) or chat messages.
            chat: put text through the bundle's chat template as a user's message; None: if it
                has one.
        """
        if not isinstance(prompt, str) and all(
            isinstance(item, int | np.integer) for item in prompt
        ):
            return [int(item) for item in cast(Sequence[int], prompt)]
        if self.tokenizer is None:
            raise ValueError("text needs a tokenizer: open a bundle, or pass token ids")
        return self.tokenizer.encode_prompt(cast(str | Messages, prompt), chat=chat)

    def stream(
        self,
        prompt: Prompt,
        *,
        chat: bool | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[Token]:
        """Yield the answer's tokens as they are accepted; none is ever retracted.

        Args:
            prompt: see :meth:`encode`.
            chat: see :meth:`encode`.
            options: see :class:`GenerationOptions`.

        Raises:
            ValueError: empty prompt, unknown token id, or an option out of range; before any work.
            ContextLimitError: the prompt fills the context.
            EngineError: a backend failed.
        """
        text = TextStream(self.tokenizer)
        token_ids = self.encode(prompt, chat=chat)
        options.setdefault("max_tokens", _MAX_TOKENS)
        for tokens, accepted in self.rounds(token_ids, **options):
            for position, token in enumerate(tokens):
                last = self.finish_reason is not None and position == len(tokens) - 1
                yield Token(token, text.push(token, last=last), position < accepted)

    def generate(
        self,
        prompt: Prompt,
        *,
        chat: bool | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Result:
        """The whole answer at once; arguments and errors as in :meth:`stream`."""
        tokens = list(self.stream(prompt, chat=chat, **options))
        return Result(
            text="".join(token.text for token in tokens),
            token_ids=tuple(token.id for token in tokens),
            finish_reason=str(self.finish_reason),
            stats=self.stats,
        )

    def close(self) -> None:
        """Release the engines."""
        self.drafter.close()
        self.target.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
