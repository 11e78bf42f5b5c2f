"""What the target thinks, kept until a head reads it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Self

import numpy as np

from specplug.drafters.chances import Kind
from specplug.drafters.source import ANY, CalledSource, Guess
from specplug.engine_calls import clear, forward
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
_LONGEST = 256
"""Entries that a head begins with, the last ones of a context. To read all of a long prompt takes
a twentieth of the target's time, and tells no more: the target's hidden states know the rest."""

Place = tuple[int, ...]
"""The drafted tokens since the context."""


class StatesSource(CalledSource):
    """A head over a cache of its own, whose entries for the context come of the target's states.

    Context is read when a guess is asked for, hidden states are kept until then. The head's context
    begins with the last 256 of them, or, where earlier ones are missing, since nobody kept them of
    a prompt that was known, after these.

    Args:
        engine: the head; reads ``features``.
        vocabulary: the target's id of each token that it guesses, i32[n]; None: they are the same.
        row: of its cache.
    """

    name = "head"

    def __init__(self, engine: Engine, vocabulary: Int32Array | None = None, row: int = 0) -> None:
        self.engine, self._vocabulary, self._row = engine, vocabulary, row
        self._ids = {} if vocabulary is None else _entries(vocabulary)
        self._rows = count(row + 1)  # for forks
        self._forget()

    def _forget(self) -> None:
        self._waiting: dict[int, Float32Array] = {}  # hidden states by position, not read yet
        self._seen = 0  # positions that the target has read and that are text
        self._first = 0  # the position of the head's first entry
        self._read = 0  # the position after the context's that it has read
        self._context: Int64Array = np.empty(0, dtype=np.int64)

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

    def _unread(self, most: int) -> Iterator[tuple[int, Float32Array]]:
        """Positions of context that was not read yet with their states, f32[n, D], n <= most."""
        end = len(self._context) - 1
        if self._read == self._first:  # the first time: there may be hidden states missing
            self._first = self._read = max(_first_of_run(self._waiting, end), end - _LONGEST)
            self._waiting = {at: self._waiting[at] for at in range(self._first, end)}
        while self._read < end:
            begin, self._read = self._read, min(self._read + most, end)
            yield begin, np.stack([self._waiting.pop(at) for at in range(begin, self._read)])

    # --- guesses ------------------------------------------------------------------------------

    def begin(self, context: Int64Array) -> Place:
        """Right after the context."""
        self._context = context
        self.reading_seconds = 0.0
        return ()

    def step(self, place: Place, token: int) -> Place:
        """One drafted token more."""
        return (*place, token)

    def _is_told(self) -> bool:
        """Whether the target's hidden states are of this context."""
        return self._seen == len(self._context) - 1

    def _entry(self, depth: int) -> int:
        """The number of entries with so many drafted tokens after the context."""
        return len(self._context) - 1 - self._first + depth

    def _call(self, tokens: Any, past: int, **more: Any) -> Scores:
        """The head's scores of the last tokens of a call: one, or those of the block."""
        return forward(
            self.engine,
            Step(
                tokens=np.asarray(tokens, dtype=np.int64)[None],
                past=np.array([past], dtype=np.int64),
                first_row=self._row,
                scores_from=len(tokens) - more.get("block", 1),
                **more,
            ),
        )

    def _chosen(self, logits: Float32Array, place: Place) -> list[Guess]:
        """The likeliest tokens by the head's logits, f32[V], or what is drawn from these."""
        chosen = self._sampler.drafts(
            logits, self._context, place, most=_MOST_GUESSES, ids=self._vocabulary
        )
        shares = self._shares(logits, [token for token, _ in chosen])
        return [
            Guess(token, (rank > 0, int(_SHARES * share)), drawn_from)
            for rank, ((token, drawn_from), share) in enumerate(zip(chosen, shares, strict=True))
            if rank == 0 or share >= _LEAST_SHARE
        ]

    def _shares(self, logits: Float32Array, tokens: Sequence[int]) -> list[float]:
        """The head's own probabilities of tokens."""
        weights = np.exp(logits - logits.max())
        total = float(weights.sum())
        entries = [self._ids.get(token) if self._ids else token for token in tokens]
        return [0.0 if entry is None else float(weights[entry]) / total for entry in entries]

    @contextmanager
    def _timing(self, width: int) -> Iterator[None]:
        """Count the time as of a call of so many tokens."""
        started = time.perf_counter()
        yield
        self._timed(time.perf_counter() - started, width)

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

    def fork(self) -> Self:
        """Over another row of the cache.

        Raises:
            SpecplugError: there is none.
        """
        row, rows = next(self._rows), self.engine.spec.max_batch
        if row >= rows:
            raise SpecplugError(f"the head's cache has {rows} rows: open it with more")
        return self._in_row(row)

    def _in_row(self, row: int) -> Self:
        return type(self)(self.engine, self._vocabulary, row)

    def clear(self) -> None:
        """Clear its row."""
        clear(self.engine, self._row)

    def close(self) -> None:
        """Release the head."""
        self.engine.close()


def _entries(vocabulary: Int32Array) -> dict[int, int]:
    return {token: entry for entry, token in enumerate(vocabulary.tolist())}


def _first_of_run(states: dict[int, Float32Array], end: int) -> int:
    """Where the positions begin, all of which up to the last before ``end`` are there."""
    first = end
    while first - 1 in states:
        first -= 1
    return first
