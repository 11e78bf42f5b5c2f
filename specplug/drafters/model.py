"""A second, smaller engine guesses what the target will probably say."""

from __future__ import annotations

import time
from itertools import count

import numpy as np

from specplug.arguments import checked
from specplug.drafters.chances import Kind
from specplug.drafters.source import ANY, CalledSource, Guess
from specplug.drafters.tree import TreeDrafter
from specplug.engine_calls import clear
from specplug.feeding import feed
from specplug.types import (
    Engine,
    Float32Array,
    Int64Array,
    Outcome,
    Request,
    Slot,
    SpecplugError,
)

SHARES = 8  # kinds of guesses, by the draft model's own probability

Place = tuple[int, ...]
"""The drafted tokens since the context."""


class ModelSource(CalledSource):
    """One call of a draft model a guess, over one cache.

    Tokens are chosen as the target chooses its own, by the generation's sampler. The vocabularies
    may differ by padding, rows of the embedding table that no token has: ids that the target does
    not have are never drafted.

    The source only remembers which tokens its cache holds. Rejected drafts need no undoing: the
    next call names the length up to which cache and context agree.

    Args:
        engine: the draft model.
        row: of its cache, unless that is the target's: then the sequence is where it is there.
    """

    name = "draft"

    def __init__(self, engine: Engine, row: int = 0) -> None:
        self.engine = engine
        self._slot = Slot(row)
        self._forks = count(row + 1)
        self._context: Int64Array = np.empty(0, dtype=np.int64)
        self._cached = 0  # entries of the cache that belong to the context
        self._drafted: Place = ()  # what the cache holds after them

    def begin(self, context: Int64Array) -> Place:
        """Right after the context."""
        self._context = context
        self.reading_seconds = 0.0
        if self.engine.spec.shares_cache:  # the target wrote all but the last token there
            self._cached, self._drafted = len(context) - 1, ()
        return ()

    def step(self, place: Place, token: int) -> Place:
        """One drafted token more."""
        return (*place, token)

    def guesses(self, place: Place) -> list[Guess]:
        """One guess; none where the draft model's context ends or does not know a token."""
        context, end = self._context, len(self._context)
        if self._cached == end and place:
            common = 0
            while common < min(len(self._drafted), len(place) - 1):
                if self._drafted[common] != place[common]:
                    break
                common += 1
            past, pending = end + common, list(place[common:])
        else:  # the last token is always fed
            past = min(self._cached, end - 1)
            pending = [*context[past:].tolist(), *place]
        spec = self.engine.spec
        if max(pending) >= spec.vocab_size or past + len(pending) > spec.context_limit:
            return []
        started = time.perf_counter()
        scores = feed(self.engine, pending, past=past, scored=1, row=self._slot.row)
        token, drawn_from = self._sampler.draft(scores, context, place)
        kind = _share(scores.logits()[0, 0])
        seconds = time.perf_counter() - started
        self._timed(seconds, len(pending))
        self._cached, self._drafted = end, place
        return [Guess(token, kind, drawn_from)]

    def prior(self, kind: Kind) -> float:
        """The model's own probability, at a discount."""
        if kind == ANY:
            return 0.6
        assert isinstance(kind, int)
        return 0.1 + 0.8 * kind / SHARES

    def commit(self, outcome: Outcome) -> None:
        """Keep the cache entries of the drafted tokens that became text."""
        for committed, drafted in zip(outcome.tokens, self._drafted, strict=False):
            if committed != drafted:
                break
            self._cached += 1
        self._drafted = ()

    def fork(self) -> ModelSource:
        """Over another row of the cache.

        Raises:
            SpecplugError: there is none.
        """
        return ModelSource(self.engine, self._next_row())

    def _next_row(self) -> int:
        row, rows = next(self._forks), self.engine.spec.max_batch
        if row >= rows:
            raise SpecplugError(f"the draft model's cache has {rows} rows: open it with more")
        return row

    def reset(self, request: Request) -> None:
        """The next context is of a new sequence."""
        self._sampler = request.sampler
        if self.engine.spec.shares_cache:
            self._slot = request.slot
        self._cached = 0
        self._drafted = ()

    def clear(self) -> None:
        """Clear its row; the target's, if that is shared, is for the loop to clear."""
        if not self.engine.spec.shares_cache:
            clear(self.engine, self._slot.row)

    def close(self) -> None:
        """Release the draft model."""
        self.engine.close()


def _share(logits: Float32Array) -> int:
    """Of its likeliest token, in eighths."""
    return int(SHARES / np.exp(logits - logits.max()).sum())


class ModelDrafter(TreeDrafter):
    """Drafts with a draft model alone.

    Args:
        engine: the draft model.
    """

    @checked()
    def __init__(self, engine: Engine) -> None:
        super().__init__("draft", [ModelSource(engine)])
        self.engine = engine
