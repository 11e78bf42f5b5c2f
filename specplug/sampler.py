"""The choice of tokens in one generation: how a row becomes a token, and a proposal a verdict."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from specplug.acceptance import (
    accept_greedy,
    block_chances,
    follow,
    race,
    residual,
    try_siblings,
)
from specplug.grammar import Grammar
from specplug.logit_rules import LogitRules, occurring, token_array
from specplug.logprobs import LogprobsMode, TokenLogprobs, log_softmax, token_logprobs
from specplug.noise import Noise, Purpose
from specplug.sampling import (
    Distribution,
    NoDraftError,
    NothingLeftError,
    SamplingParams,
    check_numbers,
    distribution,
    no_numbers,
    nothing_left,
)
from specplug.types import (
    NO_TOKEN,
    Float32Array,
    Float64Array,
    Int32Array,
    Int64Array,
    Proposal,
    Scores,
    SpecplugError,
    Verdict,
)

P = ParamSpec("P")
R = TypeVar("R")


def _after_drafts(choose: Callable[P, R]) -> Callable[P, R]:
    """What goes wrong in choosing drafts, in a processor, say, is told if the text gets there.

    It becomes :class:`NoDraftError`, which ends the draft and nothing else; what a draft's engine
    raises is not of that kind.
    """

    @wraps(choose)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return choose(*args, **kwargs)
        except SpecplugError:
            raise
        except Exception as error:
            raise NoDraftError(str(error)) from error

    return call


class Sampler:
    """Target and draft of one generation choose through the same sampler.

    Args:
        params: what is asked for.
        vocab_size: V of the target.
        prompt_tokens: length of the prompt.
        sample: which of several answers to the prompt.
        grammar: what the answer must look like, if anything.
        min_tokens: of the answer, before a token that ends it may be chosen.
        stop_token_ids: the tokens that end it.
        rules: of ``params``, if they were made already; the answers to one request share them.

    Raises:
        ValueError: a token id is outside the vocabulary.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        vocab_size: int,
        prompt_tokens: int,
        sample: int = 0,
        grammar: Grammar | None = None,
        min_tokens: int = 0,
        stop_token_ids: Collection[int] = (),
        rules: LogitRules | None = None,
    ) -> None:
        if rules is None:
            params.check_tokens(vocab_size)
            rules = LogitRules(params)
        self._rules = rules
        self.params = params
        self.vocab_size = vocab_size
        self._prompt_tokens = prompt_tokens
        self._noise = Noise(params.seed, sample)
        self._grammar = grammar
        self._withheld = token_array(sorted(one for one in stop_token_ids if one < vocab_size))
        self._ends = occurring(self._withheld, vocab_size)
        # The length of prompt and answer from which on they may be chosen.
        self._earliest_end = prompt_tokens + (min_tokens if stop_token_ids else 0)
        # Whether target and draft choose by the same function of their rows.
        self._matching = params.temperature == 0 or params.acceptance == "coupled"

    # --- the draft's choice -----------------------------------------------------------------------

    def draft(
        self, scores: Scores, context: Int64Array, drafted: Sequence[int]
    ) -> tuple[int, Float64Array | None]:
        """The next drafted token, and what it was drawn from, f64[V], if the rule needs that.

        Args:
            scores: of the draft model; the first row is looked at.
            context: the committed tokens, i64[n].
            drafted: those drafted so far this round.

        Raises:
            NoDraftError: none may follow these: a rule, the grammar or a processor says so.
            NoNumbersError: the scores are not numbers.
        """
        if self._plain(len(context) + len(drafted)):
            best = int(scores.argmax()[0, 0])
            if 0 <= best < self.vocab_size:
                return best, None
        logits = scores.logits()[0, 0, : self.vocab_size]
        if len(logits) < self.vocab_size:
            missing = self.vocab_size - len(logits)
            logits = np.pad(logits, (0, missing), constant_values=-np.inf)
        return self._drafted(logits, _joined(context, drafted), len(context))

    @_after_drafts
    def _drafted(
        self, logits: Float32Array, history: Int64Array, committed: int
    ) -> tuple[int, Float64Array | None]:
        if self._matching:
            return self._choose(logits, history), None
        return self._drawn(logits, history, committed)

    @_after_drafts
    def drafts(
        self,
        logits: Float32Array,
        context: Int64Array,
        drafted: Sequence[int],
        *,
        most: int,
        ids: Int32Array | None = None,
    ) -> list[tuple[int, Float64Array | None]]:
        """The tokens that the target may choose next, as :meth:`draft` gives one of them.

        Args:
            logits: of the draft, f32[n].
            context: the committed tokens, i64[m].
            drafted: those drafted so far on this path.
            most: of the tokens; one where the rule needs to know what it was drawn from.
            ids: the token that each of the logits is of, i32[n], each below ``vocab_size``; None:
                0, 1, 2, …
        """
        check_numbers(logits)
        if self._plain(len(context) + len(drafted)):
            best = _smallest(-logits, most)
            return [(int(ids[entry]) if ids is not None else entry, None) for entry in best]
        row = logits
        if ids is not None:
            row = np.full(self.vocab_size, -np.inf, dtype=np.float32)
            row[ids] = logits
        history = _joined(context, drafted)
        shaped = self._shaped(row, history)
        if not np.isfinite(shaped).any():
            return []  # what may come is beyond the draft
        if not self._matching:
            return [self._drawn(row, history, len(context))]
        if self.params.temperature == 0:
            return [(token, None) for token in _smallest(-shaped, most)]
        found = distribution(shaped, self.params)
        noise = self._noise.exponentials(len(history), Purpose.token, self.vocab_size, found.tokens)
        with np.errstate(divide="ignore", invalid="ignore"):
            times = np.nan_to_num(noise / found.weights, nan=np.inf, posinf=np.inf)
        return [(found.token(entry), None) for entry in _smallest(times, most)]

    def _drawn(
        self, logits: Float32Array, history: Int64Array, committed: int
    ) -> tuple[int, Float64Array]:
        """A token drawn from the draft's distribution, and that."""
        probabilities = self._distribution(logits, history).probabilities()
        noise = self._noise.exponentials(
            len(history), Purpose.draft, self.vocab_size, attempt=committed
        )
        return race(probabilities, noise), probabilities

    # --- the target's verdict ---------------------------------------------------------------------

    def judge(self, scores: Scores, history: Int64Array, proposal: Proposal) -> Verdict:
        """Accept what the rule allows of a proposal, and choose the token after it.

        Args:
            scores: of the target, at the last committed token and after each drafted one.
            history: the committed tokens, i64[n].
            proposal: a tree of k tokens, possibly empty; a chain if not :attr:`branching`.

        Raises:
            NoNumbersError: the scores that the next token depends on are not numbers.
            NothingLeftError: no token may come next.
        """
        if self._plain(len(history)):
            verdict = accept_greedy(scores.argmax()[0], proposal)
            if verdict.bonus == NO_TOKEN:
                raise no_numbers("NaN, or infinite")
            return verdict
        rows = scores.logits()[0]
        if self._matching:
            # Drafts are accepted for as long as they are what the target itself chooses.
            return follow(proposal, lambda path: self._choose(*_at(rows, history, proposal, path)))
        if self.params.acceptance == "block":
            return self._judge_block(rows, history, proposal)
        return self._judge_rejection(rows, history, proposal)

    @property
    def draws(self) -> bool:
        """Whether the rule asks what drafted tokens were drawn from."""
        return not self._matching

    @property
    def branching(self) -> bool:
        """Whether the rule judges trees; block verification is for chains."""
        return self._matching or self.params.acceptance != "block"

    def _judge_rejection(
        self, rows: Float32Array, history: Int64Array, proposal: Proposal
    ) -> Verdict:
        children = proposal.children()
        start = len(history)
        path: list[int] = []
        while True:
            target = self._distribution(*_at(rows, history, proposal, path))
            siblings = children.get(path[-1] if path else -1, ())
            _, which, left = try_siblings(
                target.weights,
                [target.of(_draft_row(proposal, s, target.vocab_size)) for s in siblings],
                [target.entry(proposal.tokens[s]) for s in siblings],
                self._noise.uniforms(
                    start + len(path), Purpose.accept, len(siblings), attempt=start
                ),
            )
            if which is None:
                return Verdict(tuple(path), self._own(left, start, len(path), target))
            path.append(siblings[which])

    def _judge_block(self, rows: Float32Array, history: Int64Array, proposal: Proposal) -> Verdict:
        if proposal.branches:
            raise ValueError("block verification is for chains, and this proposal branches")
        k, start, tokens = len(proposal), len(history), _joined(history, proposal.tokens)
        found: list[Distribution] = []
        dead_end: tuple[int, Exception] | None = None
        for i in range(k + 1):
            try:
                if dead_end is None:
                    found.append(self._distribution(rows[i], tokens[: start + i]))
                    continue
            except Exception as error:
                dead_end = i, error
            # Nothing may follow these drafts. The law of the tokens before is the same whatever is
            # said to follow, and if the text gets there, it ends as without drafts.
            found.append(Distribution(np.ones(self.vocab_size), None, self.vocab_size))
        target = [one.probabilities() for one in found]
        draft = [_draft_row(proposal, i, len(target[0])) for i in range(k)]
        chances, scales = block_chances(target, draft, proposal.tokens)
        passing = [
            i
            for i in range(1, k + 1)
            if self._noise.uniforms(start + i - 1, Purpose.accept, 1, attempt=start)[0] < chances[i]
        ]
        accepted = max(passing, default=0)
        if dead_end is not None and accepted >= dead_end[0]:
            raise dead_end[1]
        own = found[accepted].of(
            target[k]
            if accepted == k
            else residual(target[accepted], draft[accepted], scales[accepted])
        )
        return Verdict(tuple(range(accepted)), self._own(own, start, accepted, found[accepted]))

    def _own(self, weights: Float64Array, start: int, accepted: int, of: Distribution) -> int:
        """The target's own token: drawn by weights of a distribution's entries."""
        noise = self._noise.exponentials(
            start + accepted, Purpose.residual, of.vocab_size, of.tokens, attempt=start
        )
        return of.token(race(weights, noise))

    # --- both -------------------------------------------------------------------------------------

    def _plain(self, length: int) -> bool:
        """Whether what follows so many tokens is the largest of the logits as they come."""
        return self.params.plain and length >= self._earliest_end

    def _choose(self, logits: Float32Array, history: Int64Array) -> int:
        """The token that row, history and noise determine, whoever asks."""
        if self.params.temperature == 0:
            check_numbers(logits)
            shaped = self._shaped(logits, history)
            best = int(shaped.argmax())
            if not np.isfinite(shaped[best]):
                raise nothing_left(shaped[best])
            return best
        found = self._distribution(logits, history)
        noise = self._noise.exponentials(len(history), Purpose.token, self.vocab_size, found.tokens)
        return found.token(race(found.weights, noise))

    def _distribution(self, logits: Float32Array, history: Int64Array) -> Distribution:
        check_numbers(logits)
        return distribution(self._shaped(logits, history), self.params)

    def _shaped(self, logits: Float32Array, history: Int64Array) -> Float32Array:
        answer = history[self._prompt_tokens :]
        if self._ends[answer].any():
            return logits  # drafts after the answer's end: whatever follows, it is not committed
        shaped = self._rules.shape(logits, history, self._prompt_tokens)
        if self._grammar is not None:
            allowed = self._grammar.allowed(answer)
            if allowed is not None:
                shaped = np.where(allowed, shaped, np.float32(-np.inf))
        if len(history) < self._earliest_end:
            possible = np.isfinite(shaped).any()
            shaped = shaped.copy()
            shaped[self._withheld] = -np.inf
            if possible and not np.isfinite(shaped).any():
                raise NothingLeftError(
                    f"min_tokens {self._earliest_end - self._prompt_tokens}: after "
                    f"{len(history) - self._prompt_tokens} tokens nothing but the answer's end may "
                    "follow: the grammar is satisfied, or all else is excluded"
                )
        return shaped

    # --- what was chosen --------------------------------------------------------------------------

    def logprobs(
        self,
        scores: Scores,
        history: Int64Array,
        tokens: Sequence[int],
        *,
        top: int,
        mode: LogprobsMode = "raw",
        path: Sequence[int] | None = None,
    ) -> list[TokenLogprobs]:
        """Log-probabilities of the tokens that the target's scores judged or gave.

        Args:
            scores: of the target, at the last committed token and after drafted ones.
            history: the committed tokens, i64[n].
            tokens: those that follow.
            top: how many of the likeliest to name, too.
            mode: see :data:`specplug.logprobs.LogprobsMode`.
            path: the accepted tokens' indices among the drafted ones; None: 0, 1, 2, …

        Raises:
            NoNumbersError: the scores are not numbers.
        """
        rows = scores.logits()[0]
        if path is not None:
            rows = rows[[0, *(node + 1 for node in path)]]
        found = []
        for row, position in zip(rows, range(len(tokens)), strict=False):
            check_numbers(row)
            values = (
                log_softmax(row)
                if mode == "raw"
                else self._processed(row, _joined(history, tokens[:position]))
            )
            found.append(token_logprobs(values, tokens[position], top))
        return found

    def _processed(self, row: Float32Array, history: Int64Array) -> Float64Array:
        if self.params.temperature == 0:
            return log_softmax(self._shaped(row, history))
        with np.errstate(divide="ignore"):
            return np.log(self._distribution(row, history).probabilities())


def _smallest(values: NDArray[np.floating[Any]], most: int) -> list[int]:
    """The entries of the smallest values, in their order; of infinite ones none.

    The values are overwritten. Of few entries this is quicker than a partition.
    """
    found: list[int] = []
    while len(found) < most:
        entry = int(values.argmin())
        if not np.isfinite(values[entry]):
            break
        found.append(entry)
        values[entry] = np.inf
    return found


def _joined(context: Int64Array, tokens: Sequence[int]) -> Int64Array:
    return np.concatenate([context, np.array(tokens, dtype=np.int64)])


def _at(
    rows: Float32Array, history: Int64Array, proposal: Proposal, path: Sequence[int]
) -> tuple[Float32Array, Int64Array]:
    """The target's row after a path of a proposal, and the tokens before it."""
    if not path:
        return rows[0], history
    return rows[path[-1] + 1], _joined(history, [proposal.tokens[node] for node in path])


def _draft_row(proposal: Proposal, index: int, vocab_size: int) -> Float64Array:
    """What a drafted token was drawn from; all on itself if it was not drawn."""
    drawn_from = proposal.probabilities[index] if proposal.probabilities is not None else None
    if drawn_from is not None:
        return drawn_from
    row = np.zeros(vocab_size)
    row[proposal.tokens[index]] = 1.0
    return row
