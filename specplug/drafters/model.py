"""A second, smaller engine proposes what the target will probably say."""

from __future__ import annotations

from collections.abc import Sequence

from specplug.feeding import feed
from specplug.types import Engine, Int64Array, Proposal


class ModelDrafter:
    """Drafts greedily with a draft model, one call a token; each call reads one cache.

    The drafter only remembers how many of the context's tokens its cache holds. Rejected drafts
    need no undoing: the next call names the length up to which cache and context agree.
    """

    name = "draft"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._cached = 0  # entries of the cache that belong to the context
        self._drafted: list[int] = []  # what the cache holds after them

    def propose(self, context: Int64Array, k: int) -> Proposal:
        """``k`` tokens, fewer where the draft model's context ends."""
        limit = self.engine.spec.context_limit
        self._cached = min(self._cached, len(context) - 1)  # the last token is always fed
        drafted: list[int] = []
        pending: Sequence[int] = context[self._cached :].tolist()
        past = self._cached
        while len(drafted) < k and past + len(pending) <= limit:
            scores = feed(self.engine, pending, past=past, scored=1)
            past += len(pending)
            pending = [int(scores.argmax()[0, 0])]
            drafted += pending
        if drafted:
            self._cached = len(context)
            self._drafted = drafted[:-1]  # the last was never fed
        return Proposal(tuple(drafted))

    def commit(self, tokens: Sequence[int]) -> None:
        """Keep the cache entries of the drafted tokens that became text."""
        for committed, drafted in zip(tokens, self._drafted, strict=False):
            if committed != drafted:
                break
            self._cached += 1
        self._drafted = []

    def reset(self) -> None:
        """The next proposal starts a new sequence."""
        self._cached = 0
        self._drafted = []

    def close(self) -> None:
        """Release the draft model."""
        self.engine.close()
