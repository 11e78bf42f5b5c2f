"""The loop: propose, verify, accept, commit.

A round feeds the target the tokens it has not seen together with the drafted ones, a tree of them,
and keeps as many of these as the acceptance rule allows. Plain decoding is the same loop with
nothing drafted, so a comparison of the two compares nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, Unpack, cast

import numpy as np

from specplug.bundle import Bundle
from specplug.context import Context, Token
from specplug.controller import (
    CallCosts,
    CostsByContext,
    DraftLength,
    FixedLength,
    MeasuredLength,
)
from specplug.costs import measure_costs
from specplug.drafters import DRAFTERS, NoDrafter
from specplug.feeding import PREFILL_WIDTH, feed
from specplug.generation import (
    GREEDY,
    DraftTokens,
    GenerationOptions,
    Prompt,
    Result,
    check_generation,
)
from specplug.grammar import Grammar
from specplug.logprobs import LogprobsMode, TokenLogprobs
from specplug.sampler import Sampler
from specplug.sampling import SamplingParams
from specplug.stats import SpeculationStats
from specplug.text import Messages, TextStream, Tokenizer
from specplug.types import (
    Drafter,
    Engine,
    Outcome,
    Proposal,
    Request,
    Scores,
    TreeEngine,
    Verdict,
)

_ECHOED_WIDTH = 64  # tokens of a prompt that are scored at once; bounds the memory of logits


class SpeculativeDecoder:
    """Decodes with a target engine, as many tokens a call as a drafter guesses right.

    Args:
        target: the engine whose text is wanted.
        drafter: what proposes tokens; None: plain decoding. The text is the same either way.
        draft_tokens: how many tokens a round may draft, at least 0; 0 never asks the drafter;
            ``"auto"``: as many as pay, none included.
        costs: seconds of the target's calls by width, for ``"auto"``; None: measured before the
            first answer, in less than a second.
        inexact_trees: draft trees also where a token's scores in a tree are not those in a chain.
        tokenizer: needed for text in or out; token ids work without.
        stop_token_ids: tokens that end an answer; the tokenizer's own if None.

    A decoder runs one generation at a time: its engines have one cache each.
    """

    def __init__(
        self,
        target: Engine,
        *,
        drafter: Drafter | None = None,
        draft_tokens: DraftTokens = "auto",
        costs: CallCosts | CostsByContext | None = None,
        inexact_trees: bool = False,
        tokenizer: Tokenizer | None = None,
        stop_token_ids: Sequence[int] | None = None,
    ) -> None:
        self.target = target
        self.drafter: Drafter = drafter or NoDrafter()
        self._costs = costs
        self._trees = target.spec.supports_tree and (target.spec.exact_trees or inexact_trees)
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
        cls,
        path: str | Path,
        *,
        drafter: str = "auto",
        draft_tokens: DraftTokens = "auto",
        inexact_trees: bool = False,
        **options: Any,
    ) -> Self:
        """Open a bundle: its target, its tokenizer and, if asked for, its draft model.

        Args:
            path: the bundle's folder.
            drafter: a name of :data:`specplug.drafters.DRAFTERS`.
            draft_tokens: as in the constructor.
            inexact_trees: as in the constructor.
            options: of :func:`specplug.opening.open_parts` and, for both engines, of
                :class:`specplug.opening.EngineOptions`.

        Raises:
            BundleError: the bundle is damaged, or holds no draft model when one is asked for.
        """
        from specplug.opening import open_parts

        if drafter not in DRAFTERS:
            raise ValueError(f"drafter {drafter!r} is none of {', '.join(DRAFTERS)}")
        parts = open_parts(Bundle.open(path), drafter, **options)
        return cls(**parts, draft_tokens=draft_tokens, inexact_trees=inexact_trees)

    @property
    def draft_tokens(self) -> DraftTokens:
        """How many tokens a round may draft; may be set between generations."""
        return self._draft_tokens

    @draft_tokens.setter
    def draft_tokens(self, wanted: DraftTokens) -> None:
        if wanted != "auto" and not (isinstance(wanted, int) and 0 <= wanted < PREFILL_WIDTH):
            raise ValueError(
                f"draft_tokens {wanted!r}: need auto, or a number from 0 to {PREFILL_WIDTH - 1}"
            )
        self._draft_tokens = wanted
        self.length: DraftLength | None = FixedLength(wanted) if wanted != "auto" else None
        """What decides how many tokens a round drafts; None until the costs were measured."""

    # --- the loop -----------------------------------------------------------------------------

    def rounds(
        self, prompt: Sequence[int], **options: Unpack[GenerationOptions]
    ) -> Iterator[list[Token]]:
        """Yield each round's new tokens; arguments and errors as in :meth:`stream`."""
        context, request = self._begin(prompt, **options)
        if options.get("echo"):
            yield self._echo(prompt, context)
        try:
            while context.finish_reason is None:
                if self._cancelled():
                    self.finish_reason = "cancelled"
                    return
                proposal = self._propose(context)
                scores, verdict = self._verify(context, proposal)
                yield self._commit(context, proposal, scores, verdict)
        finally:
            self.drafter.finish(request, context.tokens)

    def _propose(self, context: Context) -> Proposal:
        if not context.cached or self.length is None:
            return Proposal()  # the prompt's own call gives the first token alone
        branching = self._trees and self._sampler.branching
        budget = self.length.budget(context.room - 1, branching=branching)
        if budget is None:
            return Proposal()
        started = time.perf_counter()
        proposal = self.drafter.propose(context.tokens, budget)
        self._round_draft_seconds = time.perf_counter() - started
        self._reading_seconds = self.drafter.reading_seconds
        return proposal

    def _verify(self, context: Context, proposal: Proposal) -> tuple[Scores, Verdict]:
        past = context.cached
        pending = context.tokens[past:].tolist()
        started = time.perf_counter()
        scores = feed(
            self.target,
            [*pending, *proposal.tokens],
            past=past,
            scored=len(proposal) + 1,
            parents=proposal.parents if proposal.branches else None,
        )
        verdict = self._sampler.judge(scores, context.tokens, proposal)
        if verdict.path != tuple(range(verdict.accepted)):
            nodes = [*range(len(pending)), *(len(pending) + node for node in verdict.path)]
            cast(TreeEngine, self.target).keep(0, past, nodes)
        self._round_target_seconds = time.perf_counter() - started
        return scores, verdict

    def _commit(
        self, context: Context, proposal: Proposal, scores: Scores, verdict: Verdict
    ) -> list[Token]:
        tokens = [*(proposal.tokens[node] for node in verdict.path), verdict.bonus]
        logprobs = None
        if self._top is not None:
            logprobs = self._sampler.logprobs(
                scores,
                context.tokens,
                tokens,
                top=self._top,
                mode=self._logprobs_mode,
                path=verdict.path,
            )
        after = int(context.tokens[-1])
        context.cached = context.length + verdict.accepted
        made = context.commit(tokens, verdict.accepted, logprobs)
        committed = [token.id for token in made]
        started = time.perf_counter()
        self.drafter.commit(Outcome(after, proposal, verdict, committed, scores))
        self._round_draft_seconds += time.perf_counter() - started
        self._count(len(proposal), made)
        self.finish_reason = context.finish_reason
        return made

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
        prediction: str | Sequence[int] = (),
        tenant: str = "",
        echo: bool = False,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> tuple[Context, Request]:
        spec = self.target.spec
        stop = [stop] if isinstance(stop, str) else list(stop)
        check_generation(
            spec,
            prompt,
            max_tokens=max_tokens,
            sample=sample,
            stop=stop,
            has_tokenizer=self.tokenizer is not None,
            logprobs=logprobs,
            logprobs_mode=logprobs_mode,
        )
        self._top, self._logprobs_mode, self._cancelled = logprobs, logprobs_mode, cancelled
        self._sampler = Sampler(
            sampling,
            vocab_size=spec.vocab_size,
            prompt_tokens=len(prompt),
            sample=sample,
            grammar=self._grammar(sampling),
        )
        request = Request(
            sampler=self._sampler,
            prompt_tokens=len(prompt),
            prediction=self._predicted(prediction),
            tenant=tenant,
        )
        self.drafter.reset(request)
        if self.length is None and not isinstance(self.drafter, NoDrafter):
            self.length = MeasuredLength(self._costs or CallCosts(measure_costs(self.target)))
        if self.length is not None:
            self.length.begin(len(prompt))
        self.finish_reason = None
        self.stats = SpeculationStats(
            prompt_tokens=len(prompt), draft_length=self.length.longest if self.length else 0
        )
        self._round_draft_seconds = self._reading_seconds = self._round_target_seconds = 0.0
        self._clock = time.perf_counter()
        context = Context(
            prompt,
            TextStream(self.tokenizer, stop, shown=prompt if echo else ()),
            max_tokens=max_tokens,
            limit=spec.context_limit,
            stop_token_ids=self.stop_token_ids,
        )
        return context, request

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
        stats.target_seconds += self._round_target_seconds
        stats.draft_seconds += self._round_draft_seconds
        if stats.new_tokens:
            stats.drafted_per_round.append(drafted)
            stats.accepted_per_round.append(sum(token.from_draft for token in made))
            stats.decode_seconds += now - self._clock
            if self.length is not None:
                drafting = self._round_draft_seconds - self._reading_seconds
                self.length.record(drafted, len(made), self._round_target_seconds, drafting)
        else:
            stats.prefill_seconds = now - self._clock
        self._round_draft_seconds = self._reading_seconds = 0.0
        stats.new_tokens += len(made)
        self._clock = now

    def _predicted(self, prediction: str | Sequence[int]) -> Sequence[int]:
        """The token ids of an expected answer."""
        if not isinstance(prediction, str):
            vocab_size = self.target.spec.vocab_size
            outside = [token for token in prediction if not 0 <= token < vocab_size]
            if outside:
                raise ValueError(
                    f"prediction: token id {outside[0]} is outside the vocabulary of {vocab_size}"
                )
            return prediction
        if self.tokenizer is None:
            raise ValueError("a prediction in text needs a tokenizer: pass token ids")
        return self.tokenizer.encode(prediction)

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
