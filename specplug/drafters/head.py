"""A learned head guesses from what the target thinks: its hidden states (arXiv:2503.01840)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import count

import numpy as np

from specplug.drafters.chances import Kind
from specplug.drafters.source import ANY, Guess, Source
from specplug.feeding import PREFILL_WIDTH
from specplug.types import (
    HIDDEN_STATES,
    Engine,
    Float32Array,
    Int32Array,
    Int64Array,
    Outcome,
    Request,
    Scores,
    SpecplugError,
    Step,
)

_SHARES = 8  # kinds of guesses, by the head's own probability
_MOST_GUESSES = 3  # at a node
_LEAST_SHARE = 1 / 16  # of a guess after the first
_MOST_STEPS = 2  # to catch up with tokens that others drafted
_SMOOTHING = 0.2  # of the measured seconds
_LONGEST = 256
"""Entries that a head begins with, the last ones of a context. To read all of a long prompt takes
a twentieth of the target's time, and tells no more: the target's hidden states know the rest."""

Place = tuple[int, ...]
"""The drafted tokens since the context."""


class HeadSource(Source):
    """One call of a head a guess, over a cache of its own.

    The head's entry for position i is made of the token at i + 1 and of a hidden state of position
    i: the target's, which every call of the target gives, or where that token is only drafted, the
    one that the head's own last call gave. So the entries of drafted tokens are made anew once
    these are text, and a path of a tree is a run of entries that the next path overwrites.

    Context is read when a guess is asked for, hidden states are kept until then. The head's context
    begins with the last 256 of them, or, where earlier ones are missing, since nobody kept them of
    a prompt that was known, after these.

    Args:
        engine: the head; reads ``features`` and ``fed_back``, gives its own hidden states.
        vocabulary: the target's id of each token that it guesses, i32[n]; None: they are the same.
        row: of its cache.
    """

    name = "head"

    def __init__(self, engine: Engine, vocabulary: Int32Array | None = None, row: int = 0) -> None:
        self.engine, self._vocabulary, self._row = engine, vocabulary, row
        self._entries = {} if vocabulary is None else _entries(vocabulary)
        self._rows = count(row + 1)  # for forks
        self._seconds = 0.0
        self._forget()

    def _forget(self) -> None:
        self._waiting: dict[int, Float32Array] = {}  # hidden states by position, not read yet
        self._seen = 0  # positions that the target has read and that are text
        self._first = 0  # the position of the head's first entry
        self._read = 0  # the position after the context's that it has read
        self._context: Int64Array = np.empty(0, dtype=np.int64)
        self._drafted: Place = ()  # what its cache holds after the context's entries
        self._known: dict[Place, Float32Array] = {}  # its own hidden states by path
        self._logits: dict[Place, Float32Array] = {}

    @property
    def seconds(self) -> float:
        """Of a guess, as measured of late."""
        return self._seconds

    # --- what the target thinks ---------------------------------------------------------------

    def observe(self, past: int, tokens: Sequence[int], scores: Scores) -> None:
        """Keep the target's hidden states until they are read."""
        states = scores.hidden(HIDDEN_STATES)[0, : len(tokens)].copy()
        self._waiting.update(zip(range(past, past + len(tokens)), states, strict=True))
        self._seen = past + len(tokens)

    def commit(self, outcome: Outcome) -> None:
        """Keep those of the drafted tokens that were accepted."""
        path = outcome.verdict.path
        if path:
            states = outcome.scores.hidden(HIDDEN_STATES)[0, [1 + node for node in path]]
            self._waiting.update(zip(count(self._seen), states))
            self._seen += len(path)
        self._drafted, self._known, self._logits = (), {}, {}

    # --- guesses ------------------------------------------------------------------------------

    def begin(self, context: Int64Array) -> Place:
        """Right after the context."""
        self._context = context
        self.reading_seconds = 0.0
        return ()

    def step(self, place: Place, token: int) -> Place:
        """One drafted token more."""
        return (*place, token)

    def guesses(self, place: Place) -> list[Guess]:
        """The likeliest tokens by the head; none where its context ends, or far from its path."""
        if self._seen != len(self._context) - 1:
            return []  # this generation is not one that it was told of
        unknown = sum(place[:depth] not in self._known for depth in range(len(place) + 1))
        if unknown > _MOST_STEPS or self._entry(len(place)) > self.engine.spec.max_length:
            return []
        if not self._known:
            self._read_context()
        for depth in range(len(place) + 1):
            if place[:depth] not in self._known:
                self._call(place[:depth])
        logits = self._logits[place]
        chosen = self._sampler.drafts(
            logits, self._context, place, most=_MOST_GUESSES, ids=self._vocabulary
        )
        shares = self._shares(logits, [token for token, _ in chosen])
        return [
            Guess(token, (rank > 0, int(_SHARES * share)), drawn_from)
            for rank, ((token, drawn_from), share) in enumerate(zip(chosen, shares, strict=True))
            if rank == 0 or share >= _LEAST_SHARE
        ]

    def _entry(self, depth: int) -> int:
        """The number of entries with so many drafted tokens after the context."""
        return len(self._context) - 1 - self._first + depth

    def _read_context(self) -> None:
        """Make the entries of what became text since the last time."""
        end = len(self._context) - 1
        if self._read == self._first:  # the first time: there may be hidden states missing
            self._first = self._read = max(_first_of_run(self._waiting, end), end - _LONGEST)
            self._waiting = {at: self._waiting[at] for at in range(self._first, end)}
        started = time.perf_counter()
        width = end - self._read
        while self._read < end:
            stop = min(self._read + PREFILL_WIDTH, end)
            states = np.stack([self._waiting.pop(at) for at in range(self._read, stop)])
            tokens = self._context[self._read + 1 : stop + 1]
            self._run(tokens, self._read - self._first, {"features": states[None]}, ())
            self._read = stop
        self._timed(time.perf_counter() - started, width)

    def _call(self, place: Place) -> None:
        """Make the entries of a path, from where the cache holds another one."""
        kept = 0
        while kept < min(len(self._drafted), len(place) - 1):
            if self._drafted[kept] != place[kept]:
                break
            kept += 1
        started = time.perf_counter()
        states = np.stack([self._known[place[:depth]] for depth in range(kept, len(place))])
        tokens = np.array(place[kept:], dtype=np.int64)
        self._run(tokens, self._entry(kept), {"fed_back": states[None]}, place)
        self._drafted = place
        self._timed(time.perf_counter() - started, len(tokens))

    def _run(
        self, tokens: Int64Array, past: int, states: dict[str, Float32Array], place: Place
    ) -> None:
        scores = self.engine.forward(
            Step(
                tokens=tokens[None],
                past=np.array([past], dtype=np.int64),
                first_row=self._row,
                scores_from=len(tokens) - 1,
                states=states,
            )
        )
        self._known[place] = scores.hidden(HIDDEN_STATES)[0, len(tokens) - 1].copy()
        self._logits[place] = scores.logits()[0, 0].copy()

    def _timed(self, seconds: float, width: int) -> None:
        if width <= _SHORT:
            self._seconds += _SMOOTHING * (seconds - self._seconds) if self._seconds else seconds
        else:
            self.reading_seconds += seconds

    def _shares(self, logits: Float32Array, tokens: Sequence[int]) -> list[float]:
        """The head's own probabilities of tokens."""
        weights = np.exp(logits - logits.max())
        total = float(weights.sum())
        entries = [self._entries.get(token) if self._entries else token for token in tokens]
        return [0.0 if entry is None else float(weights[entry]) / total for entry in entries]

    def prior(self, kind: Kind) -> float:
        """The head's own probability, at a discount."""
        if kind == ANY:
            return 0.6
        assert isinstance(kind, tuple)
        return 0.05 + 0.8 * float(kind[1]) / _SHARES

    # --- sequences ----------------------------------------------------------------------------

    def reset(self, request: Request) -> None:
        """The next context is of a new sequence."""
        self._sampler = request.sampler
        self._forget()

    def fork(self) -> HeadSource:
        """Over another row of the cache.

        Raises:
            SpecplugError: there is none.
        """
        row, rows = next(self._rows), self.engine.spec.max_batch
        if row >= rows:
            raise SpecplugError(f"the head's cache has {rows} rows: open it with more")
        return HeadSource(self.engine, self._vocabulary, row)

    def close(self) -> None:
        """Release the head."""
        self.engine.close()


_SHORT = 4  # tokens of a call whose time counts as that of a guess


def _entries(vocabulary: Int32Array) -> dict[int, int]:
    return {token: entry for entry, token in enumerate(vocabulary.tolist())}


def _first_of_run(states: dict[int, Float32Array], end: int) -> int:
    """Where the positions begin, all of which up to the last before ``end`` are there."""
    first = end
    while first - 1 in states:
        first -= 1
    return first
