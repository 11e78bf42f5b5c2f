"""The loop: propose, verify, accept, commit.

A round feeds the target the tokens it has not seen together with the drafted ones, a tree of them,
and keeps as many of these as the acceptance rule allows. Plain decoding is the same loop with
nothing drafted, so a comparison of the two compares nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Unpack

from specplug.arguments import checked
from specplug.context import Token
from specplug.controller import CallCosts, MeasuredLength
from specplug.costs import measure_costs
from specplug.decoding import Decoder, token_ids, verify
from specplug.drafters import NoDrafter
from specplug.feeding import feed
from specplug.generation import Generation, Result
from specplug.generation_options import ELSEWHERE, CallOptions, GenerationOptions, Prompt
from specplug.logprobs import TokenLogprobs
from specplug.stats import SpeculationStats
from specplug.tenants import Tenants
from specplug.types import EngineError, Proposal, Scores, Verdict

_ECHOED_WIDTH = 64  # tokens of a prompt that are scored at once; bounds the memory of logits


class SpeculativeDecoder(Decoder):
    """Decodes with a target engine, as many tokens a call as a drafter guesses right.

    Arguments are those of :class:`specplug.decoding.Decoder`. A decoder runs one generation at a
    time: its engines have one cache each. A second one, of this decoder or of another over the same
    engines, raises :class:`specplug.types.DecoderBusyError`; for many at once see
    :class:`specplug.batching.BatchDecoder`. A stream has the engines from the first token that is
    asked of it until it is exhausted, closed or collected; one that was never advanced has nothing.
    """

    stats = SpeculationStats()
    """Of the running or latest generation."""
    finish_reason: str | None = None
    """Of the latest generation; None while one runs."""
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    """Of the running or latest generation; see :attr:`specplug.generation.Result`."""

    # --- the loop -----------------------------------------------------------------------------

    @checked(elsewhere=ELSEWHERE, kept=("prompt",))
    def rounds(
        self, prompt: Sequence[int], **options: Unpack[GenerationOptions]
    ) -> Iterator[list[Token]]:
        """Yield each round's new tokens; arguments and errors as in :meth:`stream`."""
        ids = token_ids(prompt)
        if ids is None:
            raise ValueError("rounds takes token ids: use stream, or encode the prompt")
        return self._rounds(self.generation(ids, **options))

    def _rounds(self, generation: Generation) -> Iterator[list[Token]]:
        claim = self._claim()
        try:
            with self._calling():
                self._begin(generation)
            try:
                with self._calling():
                    self._score_prompt(generation)
                if generation.echo:
                    yield generation.echoed()
                while generation.finish_reason is None:
                    if generation.cancelled:
                        generation.finish_reason = "cancelled"
                        break
                    with self._calling():
                        self._check_open()
                        proposal = self._propose(generation)
                        scores, verdict = self._verify(generation, proposal)
                        made = self._commit(generation, proposal, scores, verdict)
                    yield made
            except EngineError:
                self._soil(generation.slot.row)
                raise
            finally:
                self.finish_reason = generation.finish_reason
                generation.end()
        finally:
            claim.release()

    def _propose(self, generation: Generation) -> Proposal:
        budget = None
        if self.length is not None and generation.drafts:
            branching = self._trees and generation.branching
            budget = self.length.budget(generation.context.room - 1, branching=branching)
        return generation.propose(budget)

    def _verify(self, generation: Generation, proposal: Proposal) -> tuple[Scores, Verdict]:
        started = time.perf_counter()
        verified = verify(self.target, generation, proposal)
        self._target_seconds = time.perf_counter() - started
        self._look(generation.slot.row, verified[0])
        return verified

    def _commit(
        self, generation: Generation, proposal: Proposal, scores: Scores, verdict: Verdict
    ) -> list[Token]:
        first = not generation.stats.new_tokens
        made = generation.commit(proposal, scores, verdict, self._target_seconds)
        if self.length is not None and not first:
            self.length.observe(1 + len(proposal), self._target_seconds)
            self.length.record(len(proposal), len(made), generation.draft_seconds)
        self.finish_reason = generation.finish_reason
        return made

    # --- around the loop ----------------------------------------------------------------------

    def _begin(self, generation: Generation) -> None:
        self._check_open()
        self._clean(0)
        generation.start_clock()
        if self.length is None and not isinstance(self.drafter, NoDrafter):
            costs = self._costs or CallCosts(measure_costs(self.target))
            self._by_tenant = Tenants(lambda: MeasuredLength(costs))
        if self._by_tenant is not None:
            self.length = self._by_tenant.of(generation.request.tenant)
        if self.length is not None:
            self.length.begin(len(generation.prompt))
        longest = self.length.longest if self.length else 0
        generation.begin(self.drafter, longest, self._on_broken)
        self.stats, self.finish_reason = generation.stats, None

    def _score_prompt(self, generation: Generation) -> None:
        """Score the prompt's tokens in a pass of their own, which is left to be overwritten."""
        prompt = generation.prompt
        if generation.echo_scored:
            for start in range(0, len(prompt) - 1, _ECHOED_WIDTH):
                piece = prompt[start : start + _ECHOED_WIDTH]
                scores = feed(self.target, piece, past=start, scored=len(piece))
                generation.note_echo(scores, start, start + len(piece))
        self.prompt_logprobs = generation.prompt_logprobs

    @checked(elsewhere=ELSEWHERE, kept=("prompt",))
    def stream(self, prompt: Prompt, **options: Unpack[CallOptions]) -> Iterator[Token]:
        """Yield the answer's tokens as they are accepted; none is ever retracted.

        Args:
            prompt: see :meth:`encode`.
            options: see :class:`specplug.prompts.PromptOptions` and :class:`GenerationOptions`.

        Raises:
            TypeError: an unknown keyword; like the next three at the call, before any work.
            ValueError: empty prompt, unknown token id, an option of a wrong type or out of range,
                options that contradict one another, a schema or expression that cannot be
                satisfied.
            MissingExtraError: structured output is asked for and its library is not installed.
            ContextLimitError: the prompt fills the context.
            DecoderBusyError: another generation has the engines; at the first token.
            DrafterError: the drafter failed, or broke its contract.
            EngineError: a backend failed, or the decoder is closed.
        """
        tokens, rest = self._prepared(prompt, options)
        return self._stream(self.generation(tokens, **rest))

    def _stream(self, generation: Generation) -> Iterator[Token]:
        for made in self._rounds(generation):
            yield from made

    @checked(elsewhere=ELSEWHERE, kept=("prompt",))
    def generate(self, prompt: Prompt, **options: Unpack[CallOptions]) -> Result:
        """The whole answer at once; arguments and errors as in :meth:`stream`."""
        ids, rest = self._prepared(prompt, options)
        generation = self.generation(ids, **rest)
        tokens = tuple(self._stream(generation))
        return Result(
            text="".join(token.text for token in tokens),
            tokens=tokens,
            finish_reason=str(generation.finish_reason),
            stats=generation.stats,
            prompt_logprobs=generation.prompt_logprobs,
        )
