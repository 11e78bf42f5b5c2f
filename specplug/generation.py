"""One answer while it is made: what was asked for, its tokens so far, and what becomes of a round.

A loop, whether over one generation or a batch of them, asks :meth:`Generation.propose` for drafted
tokens, runs the target over what is :meth:`pending` and gives the scores to
:meth:`Generation.judge` and :meth:`Generation.commit`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar, Unpack

from specplug.budget import Budget
from specplug.context import Context, Origin, Token
from specplug.drafters import NoDrafter
from specplug.engine_calls import as_exception
from specplug.generation_options import (
    DEFAULT_MAX_TOKENS,
    GenerationOptions,
    check_generation,
    stop_strings,
)
from specplug.logprobs import LogprobsMode, TokenLogprobs
from specplug.preparation import Preparation
from specplug.proposals import drafting, propose
from specplug.sampler import Sampler
from specplug.stats import SpeculationStats
from specplug.text import TextStream, Tokenizer
from specplug.types import (
    Drafter,
    EngineSpec,
    Outcome,
    Proposal,
    Request,
    Scores,
    Slot,
    SpecplugError,
    Verdict,
)

T = TypeVar("T")
OnBroken = Callable[["Generation", str, SpecplugError], None]
"""Told of an answer whose drafter failed, in which of its methods, and how."""


@dataclass(frozen=True, slots=True)
class Result:
    """A finished generation."""

    text: str
    tokens: tuple[Token, ...]
    """New tokens, a final stop token included; the prompt's before them if echoed."""
    finish_reason: str
    """``"stop"`` (token or string), ``"length"`` (max_tokens), ``"context"`` (the model's limit),
    ``"cancelled"``; in a batch also ``"error"``."""
    stats: SpeculationStats
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    """Of the prompt's tokens, the first of which has none; None: not asked for."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens' ids."""
        return tuple(token.id for token in self.tokens)


class Generation:
    """One answer while it is made.

    Args:
        prompt: token ids.
        spec: of the target.
        tokenizer: None: there is no text.
        own_stop_token_ids: tokens that end an answer unless ``ignore_eos`` is asked for.
        prepared: of the same options, shared with other answers; None: made for this one.
        options: see :class:`GenerationOptions`.

    Raises:
        ValueError, ContextLimitError: as :func:`check_generation`, or an option that cannot be
            followed.
        MissingExtraError: structured output is asked for and its library is not installed.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        spec: EngineSpec,
        tokenizer: Tokenizer | None,
        own_stop_token_ids: frozenset[int],
        prepared: Preparation | None = None,
        **options: Unpack[GenerationOptions],
    ) -> None:
        check_generation(spec, prompt, options, has_tokenizer=tokenizer is not None)
        max_tokens = options.get("max_tokens", DEFAULT_MAX_TOKENS)
        min_tokens = options.get("min_tokens", 0)
        sample = options.get("sample", 0)
        self._top = options.get("logprobs")
        self._logprobs_mode: LogprobsMode = options.get("logprobs_mode", "raw")
        if prepared is None:
            prepared = Preparation(
                options, spec=spec, tokenizer=tokenizer, own_stop_token_ids=own_stop_token_ids
            )
        ends = prepared.ends
        self._sampler = Sampler(
            prepared.sampling,
            vocab_size=spec.vocab_size,
            prompt_tokens=len(prompt),
            sample=sample,
            grammar=prepared.grammar(),
            min_tokens=min_tokens,
            stop_token_ids=ends,
            rules=prepared.rules,
        )
        expected = prepared.prediction(prompt)
        self.slot = Slot()
        """Where the target has it."""
        self.request = Request(
            sampler=self._sampler,
            prompt_tokens=len(prompt),
            prediction=expected.tokens if expected else (),
            expected=expected,
            tenant=options.get("tenant", ""),
            slot=self.slot,
        )
        self.prompt = list(prompt)
        prediction = options.get("prediction", "")
        self.predicted_text = prediction if isinstance(prediction, str) else ""
        """What the answer is expected to be, if that was said in text."""
        self.speculation = options.get("speculation", True)
        self.echo = options.get("echo", False)
        self._asked = options.get("cancelled", lambda: False)
        self._cancelled = False
        self.context = Context(
            prompt,
            TextStream(
                tokenizer,
                stop_strings(options),
                shown=prompt if self.echo else (),
                after=() if self.echo else prompt,
                skip_special_tokens=options.get("skip_special_tokens", True),
                include_stop=options.get("include_stop_str_in_output", False),
                stop_token_ids=ends,
            ),
            max_tokens=max_tokens,
            limit=spec.context_limit,
            stop_token_ids=ends,
            min_tokens=min_tokens,
        )
        self.finish_reason: str | None = None
        """None while it runs."""
        self.error: Exception | None = None
        """Why it could not be finished, if so."""
        self.cached_tokens = 0
        """Tokens of the prompt that the target did not have to read."""
        self.stats = SpeculationStats(prompt_tokens=len(prompt))
        self.draft_seconds = 0.0
        """Of the running round: what drafting took, reading of the context left out."""
        self._reading_seconds = 0.0
        self.queue_seconds = 0.0
        """From the request to its beginning."""
        self._drafter: Drafter = NoDrafter()
        self._broken: Drafter | None = None  # what was switched off
        self._on_broken: OnBroken | None = None
        self._prompt_top = options.get("prompt_logprobs")
        self._of_prompt: list[TokenLogprobs | None] = [None] * len(prompt)
        self._clock = time.perf_counter()

    def begin(self, drafter: Drafter, draft_length: int, on_broken: OnBroken | None = None) -> None:
        """Have a drafter draft, tokens a round at most as said.

        Args:
            drafter: for this answer.
            draft_length: of a round.
            on_broken: called if the drafter fails, which is then switched off for this answer;
                None: a failure is raised.
        """
        self._on_broken = on_broken
        self.queue_seconds = time.perf_counter() - self._clock
        if self.speculation:
            self._drafter = drafter
            self.stats.draft_length = draft_length
        self._told("reset", lambda: self._drafter.reset(self.request))

    def _told(self, what: str, call: Callable[[], T]) -> T | None:
        """Have the drafter do something; None: it failed, and drafts no more for this answer.

        Raises:
            SpecplugError: it failed, and that is to be raised.
        """
        try:
            with drafting(self._drafter, what):
                return call()
        except SpecplugError as error:
            if self._on_broken is None:
                raise
            self.stats.drafter_failures += 1
            self._on_broken(self, what, error)
        self._broken, self._drafter = self._drafter, NoDrafter()
        return None

    def start_clock(self) -> None:
        """The request comes now, and not when its arguments were checked."""
        self._clock = time.perf_counter()

    # --- a round ------------------------------------------------------------------------------

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to end."""
        return self._cancelled or self._asked()

    def cancel(self) -> None:
        """End it before its next round; from any thread."""
        self._cancelled = True

    @property
    def pending(self) -> list[int]:
        """The committed tokens that the target has not seen."""
        found: list[int] = self.context.tokens[self.context.cached :].tolist()
        return found

    @property
    def drafts(self) -> bool:
        """Whether its next round may draft: the prompt's own call gives the first token alone."""
        return self.speculation and self.context.cached > 0

    @property
    def branching(self) -> bool:
        """Whether its acceptance rule judges trees."""
        return self._sampler.branching

    def propose(self, budget: Budget | None) -> Proposal:
        """What the drafter proposes; nothing without a budget."""
        self.draft_seconds = 0.0
        if budget is None:
            return Proposal()
        started = time.perf_counter()
        proposal = self._told(
            "propose",
            lambda: propose(
                self._drafter,
                self.context.tokens,
                budget,
                vocab_size=self._sampler.vocab_size,
                drawn=self._sampler.draws,
            ),
        )
        self._reading_seconds = self._drafter.reading_seconds
        self.draft_seconds = time.perf_counter() - started - self._reading_seconds
        return proposal or Proposal()

    def observe(self, past: int, tokens: Sequence[int], scores: Scores) -> None:
        """The target has read tokens, of which the committed ones are told to the drafter."""
        committed = tokens[: self.context.length - past]
        self._told("observe", lambda: self._drafter.observe(past, committed, scores))

    def judge(self, scores: Scores, proposal: Proposal) -> Verdict:
        """What the acceptance rule makes of it, given the scores of the last committed token and
        of each proposed one.
        """
        return self._sampler.judge(scores, self.context.tokens, proposal)

    def commit(
        self, proposal: Proposal, scores: Scores, verdict: Verdict, target_seconds: float
    ) -> list[Token]:
        """Append what was accepted and the target's own token, and count.

        Args:
            proposal: the drafted tokens.
            scores: as in :meth:`judge`.
            verdict: on them.
            target_seconds: what the target's call took.

        Returns:
            The new tokens, up to the one that ends the answer.
        """
        context = self.context
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
        made = context.commit(tokens, _own(proposal, verdict), logprobs)
        committed = [token.id for token in made]
        started = time.perf_counter()
        outcome = Outcome(after, proposal, verdict, committed, scores)
        self._told("commit", lambda: self._drafter.commit(outcome))
        self.draft_seconds += time.perf_counter() - started
        self._count(len(proposal), made, target_seconds)
        self.finish_reason = context.finish_reason
        return made

    def _count(self, drafted: int, made: Sequence[Token], target_seconds: float) -> None:
        now = time.perf_counter()
        stats = self.stats
        stats.target_seconds += target_seconds
        stats.draft_seconds += self.draft_seconds + self._reading_seconds
        if stats.new_tokens:
            stats.drafted_per_round.append(drafted)
            stats.accepted_per_round.append(sum(token.from_draft for token in made))
            stats.decode_seconds += now - self._clock
        else:
            stats.prefill_seconds = now - self._clock
        stats.new_tokens += len(made)
        self._reading_seconds = 0.0
        self._clock = now

    def fail(self, error: BaseException) -> None:
        """It cannot be finished; the first reason is kept."""
        self.finish_reason, self.error = "error", self.error or as_exception(error)

    def end(self) -> None:
        """No more rounds."""
        try:
            if self._broken is not None:  # it may have something to release, and was counted
                with suppress(SpecplugError), drafting(self._broken, "finish"):
                    self._broken.finish(self.request, self.context.tokens)
            else:
                self._told(
                    "finish", lambda: self._drafter.finish(self.request, self.context.tokens)
                )
        finally:
            self._drafter, self._broken = NoDrafter(), None

    # --- the prompt's own tokens, if they are wanted ------------------------------------------

    @property
    def echo_scored(self) -> bool:
        """Whether scores of the prompt's tokens are wanted."""
        return self._prompt_top is not None or (self.echo and self._top is not None)

    def note_echo(self, scores: Scores, start: int, stop: int) -> None:
        """Scores of the prompt's tokens ``start .. stop - 1``, which tell of those after them."""
        if not self.echo_scored:
            return
        following = self.prompt[start + 1 : stop + 1]
        most = max(self._prompt_top or 0, (self._top or 0) if self.echo else 0)
        found = self._sampler.logprobs(
            scores, self.context.tokens[: start + 1], following, top=most
        )
        self._of_prompt[start + 1 : start + 1 + len(found)] = found

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprobs | None, ...] | None:
        """As :attr:`Result.prompt_logprobs`; complete when the first token has come."""
        return None if self._prompt_top is None else self._of_prompt_with(self._prompt_top)

    def _of_prompt_with(self, top: int) -> tuple[TokenLogprobs | None, ...]:
        return tuple(one and replace(one, top=one.top[:top]) for one in self._of_prompt)

    def echoed(self) -> list[Token]:
        """The prompt's tokens; their log-probabilities are raw, and the first has none."""
        found = self._of_prompt_with(self._top or 0)
        if self._top is None:
            found = (None,) * len(self.prompt)
        return [
            Token(token, text, "plain", details, offset, utf8)
            for token, (text, offset, utf8), details in zip(
                self.prompt, self.context.text.shown, found, strict=True
            )
        ]


def _own(proposal: Proposal, verdict: Verdict) -> Origin:
    """What the target's own token of a round is."""
    if not proposal.tokens:
        return "plain"
    last = verdict.path[-1] if verdict.path else -1
    return "corrected" if last in proposal.children() else "bonus"
