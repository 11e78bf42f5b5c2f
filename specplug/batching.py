"""The loop over a changing set of generations: those that wait join, and those that end leave,
between any two rounds.

A step reads one piece of one prompt (:mod:`specplug.waiting_line` says of which) and runs one round
of all rows: each drafts by itself, one call of the target checks all drafts, and each row is judged
by itself. A row's text is what it is alone, whoever else is there: rows of a call do not see one
another, all of them are equally wide (a call's rows with fewer tokens get padding, which the next
call overwrites), and an engine's rows do not depend on the width from ``min_width`` on.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import partial
from typing import Any, Self, Unpack, cast

import numpy as np

from specplug.arguments import checked
from specplug.batch_rows import RowScores, attempt, by_length, propose_all
from specplug.budget import Budget
from specplug.context import Token
from specplug.controller import DraftLength
from specplug.decoding import verify
from specplug.engine_calls import forward, is_failure, load, save
from specplug.feeding import feed
from specplug.generation import Generation
from specplug.generation_options import ELSEWHERE, CallOptions, Prompt
from specplug.measured_decoder import MeasuredDecoder
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
from specplug.waiting_line import WaitingLine

_log = logging.getLogger(__name__)

Progress = list[tuple[Generation, list[Token]]]
"""What each generation got that made progress."""
Steps = Iterator[tuple[Generation, list[Token]]]
"""The same, one by one."""

DEFAULT_BATCH = 8
_COMPLETE = ("stop", "length", "context")  # reasons to finish


class BatchDecoder(MeasuredDecoder):
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
        super().__init__(*args, batch_costs=batch_costs, **options)
        movable = isinstance(self.target, BatchEngine)
        if self.max_batch > 1 and not movable:
            raise EngineError(f"{self.target.spec.name} cannot move rows: it serves one at a time")
        self.prefixes = PrefixCache(prefix_cache_bytes if movable else 0)
        self._line = WaitingLine()  # those whose prompt is read are in rows after the running ones
        self._states: dict[Generation, dict[int, Float32Array]] = {}  # by where pieces begin
        self._running: list[Generation] = []  # the n-th in row n
        self._drafters: dict[Generation, Drafter] = {}
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
        prefixes = PrefixCache(prefix_cache_bytes)  # before the bundle is opened
        made = super().from_bundle(*args, max_batch=max_batch, **options)
        if made.prefixes.most_bytes:
            made.prefixes = prefixes
        return made

    # --- what is there ------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Generations whose prompt is still to be read."""
        return len(self._line)

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
        generation = self.generation(tokens, **rest)
        self.queue(generation)
        return generation

    def queue(self, generation: Generation) -> None:
        """Have a generation of this decoder take its turn; from any thread, without delay."""
        self._line.append(generation)

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
                for part in (self._drop_cancelled, self._join, self._read, self._round):
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
        for generation in [*self._line.waiting, *self._began()]:
            try:
                if not generation.cancelled:
                    continue
                generation.finish_reason = "cancelled"
            except BaseException as error:  # the caller's own function is asked
                self._fail(generation, error)
            yield from self._leave([generation])

    def _read(self) -> Steps:
        """One piece of a prompt; its last piece gives the answer's first token."""
        generation = self._line.next_to_read()
        if generation is None:
            return
        made: list[Token] = []
        try:
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
            if not last:
                return
            made = self._first(generation, start)
        except BaseException as error:  # one request's fault must not end the others
            self._fail(generation, error)
        if generation.finish_reason is None:
            yield from self._take_next_row(generation)
        yield generation, made
        if generation.finish_reason is not None:
            yield from self._leave([generation])

    def _first(self, generation: Generation, start: int) -> list[Token]:
        """The answer's first token, and the prompt's before it if they are wanted."""
        generation.context.cached = start
        started = time.perf_counter()
        scores, verdict = verify(self.target, generation, Proposal())
        seconds = time.perf_counter() - started
        self._look(generation.slot.row, scores)
        self._note_states(generation, start, len(generation.prompt) - start, scores)
        made = generation.echoed() if generation.echo else []
        made += generation.commit(Proposal(), scores, verdict, seconds)
        if isinstance(self.target, BatchEngine):
            row, tenant = generation.slot.row, generation.request.tenant
            states = self._states[generation]
            try:
                self.prefixes.save(self.target, row, tenant, generation.prompt, states)
            except EngineError as error:  # the row holds what it held
                self._forget_prefixes(error)
        del self._states[generation]
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
        self._note_states(generation, past, len(tokens), scores)
        generation.observe(past, tokens, scores)

    def _note_states(self, generation: Generation, past: int, count: int, scores: Scores) -> None:
        if HIDDEN_STATES in self.target.spec.hidden:
            self._states[generation][past] = scores.hidden(HIDDEN_STATES)[0, :count].copy()

    def _round(self) -> Steps:
        """Draft, verify, accept and commit, in every row."""
        rows = [*self._running]
        if not rows:
            return
        lengths = by_length(rows, lambda one: self._length(len(rows), one.request.tenant))
        proposals = self._propose(rows, lengths)
        started = time.perf_counter()
        try:
            judged = self._verify(rows, proposals)
        except EngineError as error:
            judged = [error] * len(rows)
        seconds = time.perf_counter() - started
        counts: list[int] = []  # of tokens that each row gave
        for generation, proposal, verified in zip(rows, proposals, judged, strict=True):
            made: list[Token] = []
            try:
                if generation.error is not None:
                    raise generation.error  # in drafting
                if isinstance(verified, BaseException):
                    raise verified
                self._look(generation.slot.row, verified[0])
                made = generation.commit(proposal, *verified, seconds)
            except BaseException as error:  # as in reading
                self._fail(generation, error)
            counts.append(len(made))
            yield generation, made
        # Only now: rows move when others leave.
        yield from self._leave([one for one in rows if one.finish_reason is not None])
        if any(counts):
            lengths[0][0].observe(1 + max(map(len, proposals)), seconds)
        for length, numbers in lengths:
            if any(counts[number] for number in numbers):
                length.record(
                    max(len(proposals[number]) for number in numbers),
                    sum(counts[number] for number in numbers) / len(numbers),
                    sum(rows[number].draft_seconds for number in numbers),
                )

    def _propose(
        self, rows: Sequence[Generation], lengths: Sequence[tuple[DraftLength, list[int]]]
    ) -> list[Proposal]:
        """What each row drafts: those of a tenant as many tokens as pay for the whole call, as if
        all rows were its own."""
        proposals = [Proposal()] * len(rows)
        for length, numbers in lengths:
            own = [rows[number] for number in numbers]
            made = propose_all(own, self._budget(rows, own, length))
            for number, proposal in zip(numbers, made, strict=True):
                proposals[number] = proposal
        return proposals

    def _budget(
        self, rows: Sequence[Generation], own: Sequence[Generation], length: DraftLength
    ) -> Budget | None:
        """What a tenant's own rows may draft."""
        room = min(
            max(generation.context.room for generation in own) - 1,
            min(self.target.spec.max_length - 1 - one.context.cached for one in rows),
        )
        if not any(generation.drafts for generation in own):
            return None
        branching = len(rows) == 1 and self._trees and rows[0].branching
        return length.budget(room, branching=branching)

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
        return [*self._running, *self._line.reading]

    def _join(self) -> Steps:
        """Give a free row, if there is one, to the generation whose turn it is."""
        began = self._began()
        if len(began) == self.max_batch:
            return
        generation = self._line.begin(Counter(one.request.tenant for one in began))
        if generation is None:
            return
        try:
            self._begin(generation, {one.slot.row for one in began})
        except BaseException as error:  # as in reading
            self._fail(generation, error)
            yield from self._leave([generation])

    def _begin(self, generation: Generation, taken: Set[int]) -> None:
        """Give it a drafter, a row, and what the prefix cache knows of its prompt.

        The row is the one after the running ones or, while another prompt is being read there, the
        last free one, so that few prompts have to be moved when others have been read.
        """
        free = [row for row in range(self.max_batch) if row not in taken]
        row = generation.slot.row = free[0] if free[0] == len(self._running) else free[-1]
        longest = self._length(len(self._running) + 1, generation.request.tenant).longest
        drafter = self._drafters[generation] = self._free.pop()
        generation.begin(drafter, longest, self._on_broken)
        self._states[generation] = {}
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
            self._states[generation] = {}
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
                if not self._try_move(other, row):
                    leaving.append(other)
            drafter = self._drafters.pop(generation, None)
            if drafter is not None:
                self._free.append(drafter)
            yield generation, []

    def _vacate(self, generation: Generation) -> list[tuple[Generation, int]]:
        """Take it off the list that it is on; which others now have another row, and which."""
        self._states.pop(generation, None)
        if generation not in self._running:
            self._line.remove(generation)
            return []
        row, last = self._running.index(generation), self._running.pop()
        if last is generation:
            return []
        self._running[row] = last
        return [(last, row)]

    def _take_next_row(self, generation: Generation) -> Steps:
        """A prompt has been read: its generation runs, in the row after the running ones. Where
        another prompt is being read, the two change places.

        Yields:
            The other one if it could not be moved: it failed, and left.
        """
        row, own = len(self._running), generation.slot.row
        try:
            if row != own:
                target = cast(BatchEngine, self.target)
                entries = save(target, own, 0, generation.context.cached)
                for other in self._line.reading:
                    if other.slot.row == row and not self._try_move(other, own):
                        yield from self._leave([other])
                generation.slot.row = row
                self._clean(row)
                load(target, row, 0, entries)
        except BaseException as error:
            self._fail(generation, error)
            return
        self._line.remove(generation)
        self._running.append(generation)

    def _try_move(self, generation: Generation, row: int) -> bool:
        """Whether it could be moved; if not, it failed."""
        try:
            self._move(generation, row)
        except BaseException as error:
            self._fail(generation, error)
            self._soil(row)
            return False
        return True

    def _move(self, generation: Generation, row: int) -> None:
        old, generation.slot.row = generation.slot.row, row
        cached = generation.context.cached
        if cached and generation.finish_reason is None:  # one that has ended needs nothing more
            target = cast(BatchEngine, self.target)
            self._clean(row)
            load(target, row, 0, save(target, old, 0, cached))
