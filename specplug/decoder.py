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

from specplug.bundle import Bundle
from specplug.context import Context, Token
from specplug.drafters import DRAFTERS, NoDrafter
from specplug.feeding import PREFILL_WIDTH, feed
from specplug.grammar import Grammar
from specplug.logprobs import LogprobsMode, TokenLogprobs
from specplug.sampler import Sampler
from specplug.sampling import SamplingParams
from specplug.stats import SpeculationStats
from specplug.text import Messages, TextStream, Tokenizer
from specplug.types import ContextLimitError, Drafter, Engine, Proposal, Verdict

GREEDY = SamplingParams()
_ECHOED_WIDTH = 64  # tokens of a prompt that are scored at once; bounds the memory of logits

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
    echo: bool
    """Begin with the prompt's tokens; their log-probabilities are raw, and the first has none."""
    cancelled: Callable[[], bool]
    """Asked before every round; True ends the generation."""


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
            options: of :func:`specplug.opening.open_parts` and, for both engines, of
                :class:`specplug.opening.EngineOptions`.

        Raises:
            BundleError: the bundle is damaged, or holds no draft model when one is asked for.
        """
        from specplug.opening import open_parts

        if drafter not in DRAFTERS:
            raise ValueError(f"drafter {drafter!r} is none of {', '.join(DRAFTERS)}")
        parts = open_parts(Bundle.open(path), drafter, **options)
        return cls(**parts, draft_tokens=draft_tokens)

    # --- the loop -----------------------------------------------------------------------------

    def rounds(
        self, prompt: Sequence[int], **options: Unpack[GenerationOptions]
    ) -> Iterator[list[Token]]:
        """Yield each round's new tokens; arguments and errors as in :meth:`stream`."""
        context = self._begin(prompt, **options)
        if options.get("echo"):
            yield self._echo(prompt, context)
        while context.finish_reason is None:
            if self._cancelled():
                self.finish_reason = "cancelled"
                return
            proposal = self._propose(context)
            verdict, logprobs = self._verify(context, proposal)
            drafted = proposal.tokens[: verdict.accepted]
            made = context.commit([*drafted, verdict.bonus], verdict.accepted, logprobs)
            self.drafter.commit([token.id for token in made])
            self._count(len(proposal), made)
            self.finish_reason = context.finish_reason
            yield made

    def _propose(self, context: Context) -> Proposal:
        k = min(self.draft_tokens, context.room - 1)
        if k < 1 or not context.cached:  # the prompt's own call gives the first token alone
            return Proposal()
        started = time.perf_counter()
        proposal = self.drafter.propose(context.tokens, k)
        self.stats.draft_seconds += time.perf_counter() - started
        return proposal

    def _verify(
        self, context: Context, proposal: Proposal
    ) -> tuple[Verdict, list[TokenLogprobs] | None]:
        pending = [*context.tokens[context.cached :].tolist(), *proposal.tokens]
        started = time.perf_counter()
        scores = feed(self.target, pending, past=context.cached, scored=len(proposal) + 1)
        verdict = self._sampler.judge(scores, context.tokens, proposal)
        logprobs = None
        if self._top is not None:
            tokens = [*proposal.tokens[: verdict.accepted], verdict.bonus]
            logprobs = self._sampler.logprobs(
                scores, context.tokens, tokens, top=self._top, mode=self._logprobs_mode
            )
        self.stats.target_seconds += time.perf_counter() - started
        context.cached = context.length + verdict.accepted
        return verdict, logprobs

    # --- around the loop ----------------------------------------------------------------------

    def _begin(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int = 256,
        sampling: SamplingParams = GREEDY,
        sample: int = 0,
        stop: str | Sequence[str] = (),
        logprobs: int | None = None,
        logprobs_mode: LogprobsMode = "raw",
        echo: bool = False,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Context:
        spec = self.target.spec
        stop = [stop] if isinstance(stop, str) else list(stop)
        self._check(prompt, max_tokens, sample, stop, logprobs, logprobs_mode)
        self._top, self._logprobs_mode, self._cancelled = logprobs, logprobs_mode, cancelled
        self._sampler = Sampler(
            sampling,
            vocab_size=spec.vocab_size,
            prompt_tokens=len(prompt),
            sample=sample,
            grammar=self._grammar(sampling),
        )
        self.drafter.reset(self._sampler)
        self.finish_reason = None
        self.stats = SpeculationStats(prompt_tokens=len(prompt), draft_length=self.draft_tokens)
        self._clock = time.perf_counter()
        return Context(
            prompt,
            TextStream(self.tokenizer, stop, shown=prompt if echo else ()),
            max_tokens=max_tokens,
            limit=spec.context_limit,
            stop_token_ids=self.stop_token_ids,
        )

    def _check(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        sample: int,
        stop: Sequence[str],
        logprobs: int | None,
        logprobs_mode: str,
    ) -> None:
        spec = self.target.spec
        if max_tokens < 1:
            raise ValueError(f"max_tokens {max_tokens}: need at least 1")
        if not 0 <= sample < 1 << 64:
            raise ValueError(f"sample {sample}: it must be in [0, 2**64)")
        if "" in stop:
            raise ValueError("stop '': a stop string has at least one character")
        if stop and self.tokenizer is None:
            raise ValueError(f"stop {stop[0]!r}: stop strings need a tokenizer")
        if logprobs is not None and not 0 <= logprobs <= spec.vocab_size:
            raise ValueError(f"logprobs {logprobs}: it must be in [0, {spec.vocab_size}]")
        if logprobs_mode not in ("raw", "processed"):
            raise ValueError(f"logprobs_mode {logprobs_mode!r}: it must be raw or processed")
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

    def _grammar(self, sampling: SamplingParams) -> Grammar | None:
        if not sampling.structured:
            return None
        return Grammar(
            sampling,
            self.tokenizer,
            vocab_size=self.target.spec.vocab_size,
            stop_token_ids=tuple(self.stop_token_ids),
        )

    def _echo(self, prompt: Sequence[int], context: Context) -> list[Token]:
        """The prompt's tokens. Their scores take a pass of their own, left to be overwritten."""
        details: list[TokenLogprobs | None] = [None] * len(prompt)
        if self._top is not None:
            for start in range(0, len(prompt) - 1, _ECHOED_WIDTH):
                piece = prompt[start : start + _ECHOED_WIDTH]
                following = prompt[start + 1 : start + 1 + _ECHOED_WIDTH]
                scores = feed(self.target, piece, past=start, scored=len(piece))
                found = self._sampler.logprobs(
                    scores, context.tokens[: start + 1], following, top=self._top
                )
                details[start + 1 : start + 1 + len(found)] = found
        return [
            Token(token, text, from_draft=False, logprobs=one)
            for token, text, one in zip(prompt, context.text.shown, details, strict=True)
        ]

    def _count(self, drafted: int, made: Sequence[Token]) -> None:
        now = time.perf_counter()
        stats = self.stats
        if stats.new_tokens:
            stats.drafted_per_round.append(drafted)
            stats.accepted_per_round.append(sum(token.from_draft for token in made))
            stats.decode_seconds += now - self._clock
        else:
            stats.prefill_seconds = now - self._clock
        stats.new_tokens += len(made)
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
            ValueError: empty prompt, unknown token id, an option out of range, a schema or
                expression that cannot be satisfied; before any work.
            MissingExtraError: structured output is asked for and its library is not installed.
            ContextLimitError: the prompt fills the context.
            EngineError: a backend failed.
        """
        for tokens in self.rounds(self.encode(prompt, chat=chat), **options):
            yield from tokens

    def generate(
        self,
        prompt: Prompt,
        *,
        chat: bool | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Result:
        """The whole answer at once; arguments and errors as in :meth:`stream`."""
        tokens = tuple(self.stream(prompt, chat=chat, **options))
        return Result(
            text="".join(token.text for token in tokens),
            tokens=tokens,
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
