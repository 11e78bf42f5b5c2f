"""A second, smaller engine proposes what the target will probably say."""

from __future__ import annotations

from collections.abc import Sequence

from specplug.feeding import feed
from specplug.types import Engine, Int64Array, Proposal, Scores


class ModelDrafter:
    """Drafts greedily with a draft model, one call a token; each call reads one cache.

    Args:
        engine: the draft model.
        vocab_size: of the target. The two may differ by padding: rows of the embedding table that
            no token has. Ids from there on are never drafted.

    The drafter only remembers how many of the context's tokens its cache holds. Rejected drafts
    need no undoing: the next call names the length up to which cache and context agree.
    """

    name = "draft"

    def __init__(self, engine: Engine, *, vocab_size: int | None = None) -> None:
        self.engine = engine
        self._vocab_size = vocab_size or engine.spec.vocab_size
        self._cached = 0  # entries of the cache that belong to the context
        self._drafted: list[int] = []  # what the cache holds after them

    def propose(self, context: Int64Array, k: int) -> Proposal:
        """``k`` tokens; fewer where the draft model's context ends or does not know a token."""
        limit = self.engine.spec.context_limit
        self._cached = min(self._cached, len(context) - 1)  # the last token is always fed
        drafted: list[int] = []
        pending: Sequence[int] = context[self._cached :].tolist()
        past = self._cached
        if max(pending) >= self.engine.spec.vocab_size:
            return Proposal()
        while len(drafted) < k and past + len(pending) <= limit:
            scores = feed(self.engine, pending, past=past, scored=1)
            past += len(pending)
            pending = [self._best(scores)]
            drafted += pending
        if drafted:
            self._cached = len(context)
            self._drafted = drafted[:-1]  # the last was never fed
        return Proposal(tuple(drafted))

    def _best(self, scores: Scores) -> int:
        if self._vocab_size >= self.engine.spec.vocab_size:
            return int(scores.argmax()[0, 0])
        return int(scores.logits()[0, 0, : self._vocab_size].argmax())

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
