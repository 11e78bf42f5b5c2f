"""The loop over a changing set of generations: those that wait join, and those that end leave,
between any two rounds.

A step reads one piece of a prompt, if one is waiting, and runs one round of all rows: each drafts
by itself, one call of the target checks all drafts, and each row is judged by itself. A row's text
is what it is alone, whoever else is there: rows of a call do not see one another, all of them are
equally wide (a call's rows with fewer tokens get padding, which the next call overwrites), and an
engine's rows do not depend on the width from ``min_width`` on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self, Unpack, cast

import numpy as np

from specplug.arguments import checked
from specplug.budget import Budget
from specplug.claims import Claim
from specplug.context import Token
from specplug.controller import CallCosts, DraftLength, FixedLength, MeasuredLength
from specplug.costs import measure_costs
from specplug.decoding import Decoder, verify
from specplug.drafters import NoDrafter
from specplug.feeding import feed
from specplug.generation import Generation
from specplug.generation_options import ELSEWHERE, CallOptions, Prompt
from specplug.prefixes import DEFAULT_BYTES, PIECE, PrefixCache
from specplug.sampling import NoNumbersError
from specplug.types import (
    HIDDEN_STATES,
    BatchEngine,
    Drafter,
    EngineError,
    Float32Array,
    Int64Array,
    Proposal,
    Scores,
    Step,
    Verdict,
)

Progress = list[tuple[Generation, list[Token]]]
"""What each generation got that made progress."""

DEFAULT_BATCH = 8
_MEASURED_WIDTHS = (1, 4, 2, 8)  # of calls of several rows
_SECONDS = 0.5  # for the calls of a number of rows
_LENIENCE = 0.5  # a row may draft what would pay at this share of the rate
_UNKNOWN_CHANCE = 0.7  # of a drafted token after accepted ones, where the drafter says nothing


class BatchDecoder(Decoder):
    """Decodes many generations at once; arguments are those of :class:`Decoder`, and:

    Args:
        prefix_cache_bytes: of memory for the cache entries of prompts that may come again.
        batch_costs: seconds of the target's calls by rows and width, for ``"auto"``; None:
            measured by :meth:`prepare`.

    :meth:`submit`, and :meth:`Generation.cancel`, may be called from any thread; everything else
    from one at a time: a second :meth:`step` raises :class:`specplug.types.DecoderBusyError`, and
    so does one over engines that another decoder's generation has.

    Raises:
        TypeError: an unknown keyword.
        ValueError: an argument of a wrong type or outside its range.
        EngineError: the target has several rows, and they cannot be moved.
        SpecplugError: the drafter drafts for one sequence at a time.
    """

    @checked()
    def __init__(
        self,
        *args: Any,
        prefix_cache_bytes: int = DEFAULT_BYTES,
        batch_costs: Mapping[int, Mapping[int, float]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.max_batch = self.target.spec.max_batch
        """Generations that run at the same time."""
        movable = isinstance(self.target, BatchEngine)
        if self.max_batch > 1 and not movable:
            raise EngineError(f"{self.target.spec.name} cannot move rows: it serves one at a time")
        self.prefixes = PrefixCache(prefix_cache_bytes if movable else 0)
        self._waiting: deque[Generation] = deque()
        self._reading: Generation | None = None  # its prompt, into the row after the running ones
        self._states: dict[int, Float32Array] = {}  # of that prompt's pieces, by where they begin
        self._running: list[Generation] = []  # the n-th in row n
        self._batch_costs = batch_costs
        self._lengths: dict[int, DraftLength] = {}
        self._drafters: dict[Generation, Drafter] = {}
        self._held: Claim | None = None  # of the engines, while a prompt is read or a row runs
        self._free = [self.drafter]
        self._free += [self.drafter.fork() for _ in range(1, self.max_batch)]

    @classmethod
    @checked()
    def from_bundle(
        cls,
        *args: Any,
        max_batch: int = DEFAULT_BATCH,
        prefix_cache_bytes: int = DEFAULT_BYTES,
        **options: Any,
    ) -> Self:
        """Open a bundle for so many generations at once; see :meth:`Decoder.from_bundle`."""
        PrefixCache(prefix_cache_bytes)  # before the bundle is opened
        made = super().from_bundle(*args, max_batch=max_batch, **options)
        if made.prefixes.most_bytes:
            made.prefixes = PrefixCache(prefix_cache_bytes)
        return made

    # --- what is there ------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Generations whose prompt is still to be read."""
        return len(self._waiting) + (self._reading is not None)

    @property
    def running(self) -> int:
        """Generations that have begun to answer."""
        return len(self._running)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.waiting and not self.running

    @checked(elsewhere=ELSEWHERE, kept=("prompt",))
    def submit(self, prompt: Prompt, **options: Unpack[CallOptions]) -> Generation:
        """Queue a generation; arguments and errors as in :meth:`SpeculativeDecoder.stream`."""
        tokens, rest = self._prepared(prompt, options)
        generation = self._generation(tokens, **rest)
        self._waiting.append(generation)
        return generation

    # --- the loop -----------------------------------------------------------------------------

    def step(self) -> Progress:
        """Read one piece of a prompt, and run a round of all rows.

        Returns:
            Each generation that got tokens or has ended, once; an ended one for the last time. A
            failure of the engine, or of one row's rules, is that of the generations concerned:
            their ``error``.

        Raises:
            DecoderBusyError: another thread is in a step, or another decoder's generation has the
                engines.
            EngineError: the decoder is closed.
        """
        with self._calling(wait=False):
            self._check_open()
            if self._held is None and not self.idle:
                self._held = self._claim()
            try:
                if self._held is not None:
                    self._measure()
                made: dict[Generation, list[Token]] = {}
                for part in (self._drop_cancelled, self._read, self._round):
                    for generation, tokens in part():
                        made.setdefault(generation, []).extend(tokens)
            finally:
                if self._held is not None and not self._began():
                    self._held.release()
                    self._held = None
        return [*made.items()]

    def _drop_cancelled(self) -> Progress:
        cancelled = [one for one in [*self._waiting, *self._began()] if one.cancelled]
        for generation in cancelled:
            generation.finish_reason = "cancelled"
            self._end(generation)
        return [(generation, []) for generation in cancelled]

    def _read(self) -> Progress:
        """The next piece of a prompt; the last one gives the answer's first token."""
        if self._reading is None:
            if not self._waiting or len(self._running) == self.max_batch:
                return []
            self._reading = self._waiting.popleft()
        generation = self._reading
        made: list[Token] = []
        try:
            if generation not in self._drafters:
                self._begin(generation)
            start = generation.context.cached
            piece = generation.prompt[start : start + PIECE]
            last = start + len(piece) == len(generation.prompt)
            if not last or generation.echo_scored:
                scored = len(piece) if generation.echo_scored else 1
                scores = feed(
                    self.target,
                    piece,
                    past=start,
                    scored=scored,
                    row=generation.slot.row,
                    observe=partial(self._observe, generation),
                )
                generation.note_echo(scores, start, start + len(piece))
                generation.context.cached = start + len(piece)
            if last:
                made = self._first(generation, start)
            if not last:
                return []
        except Exception as error:  # one request's fault must not end the others
            generation.fail(error)
        self._reading = None
        self._running.append(generation)
        if generation.finish_reason is not None:
            self._end(generation)
        return [(generation, made)]

    def _first(self, generation: Generation, start: int) -> list[Token]:
        """The answer's first token, and the prompt's before it if they are wanted."""
        generation.context.cached = start
        started = time.perf_counter()
        scores, verdict = verify(self.target, generation, Proposal())
        seconds = time.perf_counter() - started
        self._note_states(start, len(generation.prompt) - start, scores)
        made = generation.echoed() if generation.echo else []
        made += generation.commit(Proposal(), scores, verdict, seconds)
        if isinstance(self.target, BatchEngine):
            row, tenant = generation.slot.row, generation.request.tenant
            self.prefixes.save(self.target, row, tenant, generation.prompt, self._states)
        return made

    def _observe(
        self, generation: Generation, past: int, tokens: Sequence[int], scores: Scores
    ) -> None:
        """A piece of the prompt that is being read, by the target or from what is kept."""
        self._note_states(past, len(tokens), scores)
        generation.observe(past, tokens, scores)

    def _note_states(self, past: int, count: int, scores: Scores) -> None:
        if HIDDEN_STATES in self.target.spec.hidden:
            self._states[past] = scores.hidden(HIDDEN_STATES)[0, :count].copy()

    def _round(self) -> Progress:
        """Draft, verify, accept and commit, in every row."""
        rows = [*self._running]
        if not rows:
            return []
        length = self._length(len(rows))
        proposals = self._propose(rows, length)
        started = time.perf_counter()
        try:
            judged = self._verify(rows, proposals)
        except EngineError as error:
            judged = [error] * len(rows)
        seconds = time.perf_counter() - started
        progress: Progress = []
        for generation, proposal, verified in zip(rows, proposals, judged, strict=True):
            made: list[Token] = []
            try:
                if generation.error is not None:
                    raise generation.error  # in drafting
                if isinstance(verified, Exception):
                    raise verified
                made = generation.commit(proposal, *verified, seconds)
            except Exception as error:  # as in reading
                generation.fail(error)
            progress.append((generation, made))
        for generation in rows:  # only now: rows move when others leave
            if generation.finish_reason is not None:
                self._end(generation)
        length.record(
            max(map(len, proposals)),
            sum(len(made) for _, made in progress) / len(rows),
            seconds,
            sum(generation.draft_seconds for generation in rows),
        )
        return progress

    def _propose(self, rows: Sequence[Generation], length: DraftLength) -> list[Proposal]:
        """What each row drafts. All of them draft as many tokens as pay for the whole call."""
        room = min(
            max(generation.context.room for generation in rows) - 1,
            min(self.target.spec.max_length - 1 - one.context.cached for one in rows),
        )
        alone = len(rows) == 1
        budget = None
        if any(generation.drafts for generation in rows):
            branching = alone and self._trees and rows[0].branching
            budget = length.budget(room, branching=branching)
        if budget is None or alone:
            return [_draft(generation, budget) for generation in rows]
        # A row's sure tokens may pay for a call as wide as makes another's less sure ones free.
        lenient = replace(budget, rate=_LENIENCE * budget.rate)
        proposals = [_draft(generation, lenient) for generation in rows]
        worth = np.zeros(budget.most)  # of the n-th drafted tokens of all rows, a row
        for proposal in proposals:
            reaches = proposal.reaches
            if reaches is None:
                reaches = tuple(_UNKNOWN_CHANCE ** (n + 1) for n in range(len(proposal)))
            worth[: len(reaches)] += np.array(reaches) / len(rows)
        longest = budget.size(worth.tolist())
        return [proposal.shortened(longest) for proposal in proposals]

    def _verify(
        self, rows: Sequence[Generation], proposals: Sequence[Proposal]
    ) -> list[tuple[Scores, Verdict] | Exception]:
        """Scores and verdict of each row, or what went wrong in it alone."""
        if len(rows) == 1:
            return [_attempt(lambda: verify(self.target, rows[0], proposals[0]))]
        width = max(1 + max(map(len, proposals)), self.target.spec.min_width)
        tokens = np.empty((len(rows), width), dtype=np.int64)
        for row, generation, proposal in zip(tokens, rows, proposals, strict=True):
            known = [*generation.pending, *proposal.tokens]
            row[: len(known)] = known
            row[len(known) :] = known[-1]
        past = np.array([generation.context.cached for generation in rows], dtype=np.int64)
        scores = self.target.forward(Step(tokens=tokens, past=past))

        def judge(row: int) -> tuple[Scores, Verdict]:
            own = _RowScores(scores, row)
            rows[row].observe(int(past[row]), tokens[row].tolist(), own)
            return own, rows[row].judge(own, proposals[row])

        return [_attempt(partial(judge, row)) for row in range(len(rows))]

    # --- joining and leaving ------------------------------------------------------------------

    def _began(self) -> list[Generation]:
        return [*self._running, *([self._reading] if self._reading else [])]

    def _begin(self, generation: Generation) -> None:
        """Give it a drafter and the row after the running ones, and what is known of its prompt."""
        generation.slot.row = len(self._running)
        drafter = self._drafters[generation] = self._free.pop()
        generation.begin(drafter, self._length(len(self._running) + 1).longest)
        self._states = {}
        if isinstance(self.target, BatchEngine) and not generation.echo_scored:
            row, tenant = generation.slot.row, generation.request.tenant
            known = self.prefixes.load(
                self.target, row, tenant, generation.prompt, partial(self._observe, generation)
            )
            generation.context.cached = generation.cached_tokens = known

    def _end(self, generation: Generation) -> None:
        """It leaves: its row and its drafter are free."""
        generation.end()
        if generation is self._reading:
            self._reading = None
        elif generation in self._running:
            self._vacate(generation)
        else:
            self._waiting.remove(generation)
        drafter = self._drafters.pop(generation, None)
        if drafter is not None:
            self._free.append(drafter)

    def _vacate(self, generation: Generation) -> None:
        """The last row takes the place of the one that leaves, so that rows stay neighbours."""
        row, last = self._running.index(generation), self._running.pop()
        if last is not generation:
            self._running[row] = last
            self._move(last, row)
        if self._reading is not None:
            self._move(self._reading, len(self._running))

    def _move(self, generation: Generation, row: int) -> None:
        cached = generation.context.cached
        if cached:
            target = cast(BatchEngine, self.target)
            target.load(row, 0, target.save(generation.slot.row, 0, cached))
        generation.slot.row = row

    # --- costs --------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Measure what calls of several rows cost, if it matters; takes seconds, and only once.

        The first step does it, unless it was done before.

        Raises:
            DecoderBusyError: as :meth:`step`.
            EngineError: the decoder is closed.
        """
        with self._calling(wait=False):
            self._check_open()
            claim = self._claim() if self._held is None else None
            try:
                self._measure()
            finally:
                if claim is not None:
                    claim.release()

    def _measure(self) -> None:
        if self._batch_costs is not None or not self._measures:
            return
        counts = [1 << n for n in range((self.max_batch - 1).bit_length())]
        self._batch_costs = {
            rows: measure_costs(self.target, widths=_MEASURED_WIDTHS, seconds=_SECONDS, rows=rows)
            if rows > 1
            else measure_costs(self.target)
            for rows in [*counts, self.max_batch]
            if rows > 1 or self._costs is None
        }

    @property
    def _measures(self) -> bool:
        return self.length is None and not isinstance(self.drafter, NoDrafter)

    def _length(self, rows: int) -> DraftLength:
        """What decides how many tokens so many rows draft."""
        if rows not in self._lengths:
            self._lengths[rows] = self._new_length(rows)
        return self._lengths[rows]

    def _new_length(self, rows: int) -> DraftLength:
        if self.length is not None:
            return self.length
        if not self._measures:
            return FixedLength(0)
        if rows == 1 and self._costs is not None:
            return MeasuredLength(self._costs)
        known = self._batch_costs or {}
        below = max(count for count in known if count <= rows)
        above = min(count for count in known if count >= rows)
        share = (rows - below) / (above - below) if above > below else 0.0
        return MeasuredLength(
            CallCosts(
                {
                    width: (1 - share) * known[below][width] + share * known[above][width]
                    for width in known[below].keys() & known[above].keys()
                }
            )
        )


class _RowScores:
    """A row of a batch's scores, as if it had been alone."""

    def __init__(self, scores: Scores, row: int) -> None:
        self._scores, self._row = scores, slice(row, row + 1)

    def argmax(self) -> Int64Array:
        return self._scores.argmax()[self._row]

    def logits(self) -> Float32Array:
        return self._scores.logits()[self._row]

    def hidden(self, name: str) -> Float32Array:
        return self._scores.hidden(name)[self._row]


def _draft(generation: Generation, budget: Budget | None) -> Proposal:
    """What a row drafts; a drafter that fails ends its own row alone."""
    try:
        return generation.propose(_of_row(budget, generation))
    except Exception as error:
        generation.fail(error)
        return Proposal()


def _of_row(budget: Budget | None, generation: Generation) -> Budget | None:
    """A budget for one row, which may be near its end, or does not draft."""
    most = min(budget.most, generation.context.room - 1) if budget and generation.drafts else 0
    return replace(budget, most=most) if budget and most > 0 else None


def _attempt(
    judge: Callable[[], tuple[Scores, Verdict]],
) -> tuple[Scores, Verdict] | Exception:
    """The backend's failure is everybody's; any other is the row's, and scores that are no numbers
    are those of one row."""
    try:
        return judge()
    except NoNumbersError as error:
        return error
    except EngineError:
        raise
    except Exception as error:
        return error
