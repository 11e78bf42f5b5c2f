"""The loop over a changing set of generations: those that wait join, and those that end leave,
between any two rounds.

A step reads one piece of a prompt, if one is waiting, and runs one round of all rows: each drafts
by itself, one call of the target checks all drafts, and each row is judged by itself. A row's text
is what it is alone, whoever else is there: rows of a call do not see one another, all of them are
equally wide (a call's rows with fewer tokens get padding, which the next call overwrites), and an
engine's rows do not depend on the width from ``min_width`` on.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self, Unpack, cast

import numpy as np

from specplug.arguments import checked
from specplug.batch_costs import measure_batch_costs, measured_length
from specplug.batch_rows import RowScores, attempt, propose_all
from specplug.claims import Claim
from specplug.context import Token
from specplug.controller import DraftLength, FixedLength, MeasuredLength
from specplug.decoding import Decoder, verify
from specplug.drafters import NoDrafter
from specplug.engine_calls import forward, is_failure, load, save
from specplug.feeding import feed
from specplug.generation import Generation
from specplug.generation_options import ELSEWHERE, CallOptions, Prompt
from specplug.prefixes import DEFAULT_BYTES, PIECE, PrefixCache
from specplug.types import (
    HIDDEN_STATES,
    BatchEngine,
    Drafter,
    EngineError,
    Float32Array,
    Proposal,
    Scores,
    Step,
    Verdict,
)

_log = logging.getLogger(__name__)

Progress = list[tuple[Generation, list[Token]]]
"""What each generation got that made progress."""
Steps = Iterator[tuple[Generation, list[Token]]]
"""The same, one by one."""

DEFAULT_BATCH = 8
_COMPLETE = ("stop", "length", "context")  # reasons to finish


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
        self.failures = 0
        """Steps in which the engine failed, since an answer was completed."""
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
                    for generation, tokens in self._guarded(part):
                        made.setdefault(generation, []).extend(tokens)
                self._count_failures(made)
            finally:
                if self._held is not None and not self._began():
                    self._held.release()
                    self._held = None
        return [*made.items()]

    def _guarded(self, part: Callable[[], Steps]) -> Steps:
        """What a part of a step gives. Where something fails that no row's own handling foresees,
        every answer that has begun fails: whatever was being done, rows and cache are free again.
        """
        try:
            yield from part()
        except BaseException as error:
            if not is_failure(error):
                raise
            _log.exception("a step failed: the answers that had begun are given up")
            for generation in self._began():
                generation.fail(error)
                self._soil(generation.slot.row)
            yield from self._leave(self._began())

    def _count_failures(self, made: Mapping[Generation, Sequence[Token]]) -> None:
        if any(one.finish_reason in _COMPLETE for one in made):
            self.failures = 0
        if any(isinstance(one.error, EngineError) for one in made):
            self.failures += 1

    def _drop_cancelled(self) -> Steps:
        for generation in [*self._waiting, *self._began()]:
            try:
                if not generation.cancelled:
                    continue
                generation.finish_reason = "cancelled"
            except BaseException as error:  # the caller's own function is asked
                self._fail(generation, error)
            yield from self._leave([generation])

    def _read(self) -> Steps:
        """The next piece of a prompt; the last one gives the answer's first token."""
        if self._reading is None:
            if not self._waiting or len(self._running) == self.max_batch:
                return
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
                return
        except BaseException as error:  # one request's fault must not end the others
            self._fail(generation, error)
        self._reading = None
        self._running.append(generation)
        yield generation, made
        if generation.finish_reason is not None:
            yield from self._leave([generation])

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
            try:
                self.prefixes.save(self.target, row, tenant, generation.prompt, self._states)
            except EngineError as error:  # the row holds what it held
                self._forget_prefixes(error)
        return made

    def _forget_prefixes(self, error: EngineError) -> None:
        """Copying cache entries failed, for want of memory, likely: what is kept is given up."""
        _log.warning("the prefix cache is emptied: %s", error)
        self.failures += 1
        self.prefixes.clear()

    def _observe(
        self, generation: Generation, past: int, tokens: Sequence[int], scores: Scores
    ) -> None:
        """A piece of the prompt that is being read, by the target or from what is kept."""
        self._note_states(past, len(tokens), scores)
        generation.observe(past, tokens, scores)

    def _note_states(self, past: int, count: int, scores: Scores) -> None:
        if HIDDEN_STATES in self.target.spec.hidden:
            self._states[past] = scores.hidden(HIDDEN_STATES)[0, :count].copy()

    def _round(self) -> Steps:
        """Draft, verify, accept and commit, in every row."""
        rows = [*self._running]
        if not rows:
            return
        length = self._length(len(rows))
        proposals = self._propose(rows, length)
        started = time.perf_counter()
        try:
            judged = self._verify(rows, proposals)
        except EngineError as error:
            judged = [error] * len(rows)
        seconds, tokens = time.perf_counter() - started, 0
        for generation, proposal, verified in zip(rows, proposals, judged, strict=True):
            made: list[Token] = []
            try:
                if generation.error is not None:
                    raise generation.error  # in drafting
                if isinstance(verified, BaseException):
                    raise verified
                made = generation.commit(proposal, *verified, seconds)
            except BaseException as error:  # as in reading
                self._fail(generation, error)
            tokens += len(made)
            yield generation, made
        # Only now: rows move when others leave.
        yield from self._leave([one for one in rows if one.finish_reason is not None])
        if tokens:
            length.record(
                max(map(len, proposals)),
                tokens / len(rows),
                seconds,
                sum(generation.draft_seconds for generation in rows),
            )

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
        return propose_all(rows, budget)

    def _verify(
        self, rows: Sequence[Generation], proposals: Sequence[Proposal]
    ) -> list[tuple[Scores, Verdict] | BaseException]:
        """Scores and verdict of each row, or what went wrong in it alone.

        Raises:
            EngineError: what the call was to write is not known: none of its rows can go on.
        """
        if len(rows) == 1:
            return [attempt(lambda: verify(self.target, rows[0], proposals[0]))]
        width = max(1 + max(map(len, proposals)), self.target.spec.min_width)
        tokens = np.empty((len(rows), width), dtype=np.int64)
        for row, generation, proposal in zip(tokens, rows, proposals, strict=True):
            known = [*generation.pending, *proposal.tokens]
            row[: len(known)] = known
            row[len(known) :] = known[-1]
        past = np.array([generation.context.cached for generation in rows], dtype=np.int64)
        scores = forward(self.target, Step(tokens=tokens, past=past))

        def judge(row: int) -> tuple[Scores, Verdict]:
            own = RowScores(scores, row)
            rows[row].observe(int(past[row]), tokens[row].tolist(), own)
            return own, rows[row].judge(own, proposals[row])

        return [attempt(partial(judge, row)) for row in range(len(rows))]

    # --- joining and leaving ------------------------------------------------------------------

    def _began(self) -> list[Generation]:
        return [*self._running, *([self._reading] if self._reading else [])]

    def _begin(self, generation: Generation) -> None:
        """Give it a drafter and the row after the running ones, and what is known of its prompt."""
        row = generation.slot.row = len(self._running)
        longest = self._length(row + 1).longest
        drafter = self._drafters[generation] = self._free.pop()
        generation.begin(drafter, longest, self._on_broken)
        self._states = {}
        self._clean(row)
        if not isinstance(self.target, BatchEngine) or generation.echo_scored:
            return
        known, tenant = 0, generation.request.tenant
        try:
            known = self.prefixes.load(
                self.target, row, tenant, generation.prompt, partial(self._observe, generation)
            )
        except EngineError as error:  # the whole prompt is read instead
            self._forget_prefixes(error)
            self._soil(row)
            self._clean(row)
            # Again: the drafter was told of what is now to be read.
            generation.begin(drafter, longest, self._on_broken)
            self._states = {}
        generation.context.cached = generation.cached_tokens = known

    def _fail(self, generation: Generation, error: BaseException) -> None:
        """An answer cannot be finished; what its row holds is not known if the engine failed."""
        if not is_failure(error):
            raise error
        generation.fail(error)
        if isinstance(error, EngineError) and generation in self._drafters:
            self._soil(generation.slot.row)

    def _leave(self, generations: Sequence[Generation]) -> Steps:
        """They leave: their rows and their drafters are free, and rows stay neighbours.

        Yields:
            Each of them, and those that had to move and could not: they failed, and left too.
        """
        leaving = deque(generations)
        while leaving:
            generation = leaving.popleft()
            try:
                generation.end()
            except BaseException as error:
                self._fail(generation, error)
            for other, row in self._vacate(generation):
                try:
                    self._move(other, row)
                except BaseException as error:
                    self._fail(other, error)
                    self._soil(row)
                    leaving.append(other)
            drafter = self._drafters.pop(generation, None)
            if drafter is not None:
                self._free.append(drafter)
            yield generation, []

    def _vacate(self, generation: Generation) -> list[tuple[Generation, int]]:
        """Take it off the list that it is on; which others now have another row, and which."""
        if generation is self._reading:
            self._reading = None
        elif generation not in self._running:
            self._waiting.remove(generation)
        else:
            row, last = self._running.index(generation), self._running.pop()
            moved = []
            if last is not generation:
                self._running[row] = last
                moved.append((last, row))
            if self._reading is not None:
                moved.append((self._reading, len(self._running)))
            return moved
        return []

    def _move(self, generation: Generation, row: int) -> None:
        old, generation.slot.row = generation.slot.row, row
        cached = generation.context.cached
        if cached and generation.finish_reason is None:  # one that has ended needs nothing more
            target = cast(BatchEngine, self.target)
            self._clean(row)
            load(target, row, 0, save(target, old, 0, cached))

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
        try:
            self._batch_costs = measure_batch_costs(
                self.target, self.max_batch, alone=self._costs is None
            )
        except EngineError as error:
            _log.warning("nothing is drafted: what calls cost could not be measured: %s", error)
            self.failures += 1
            self._dirty.update(range(self.max_batch))
            self._batch_costs = {}

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
        # Where measuring failed, nothing is drafted.
        return measured_length(self._batch_costs, rows) if self._batch_costs else FixedLength(0)
